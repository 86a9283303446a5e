"""Rows of a catalogue from stars, one after another; a star that fails is a row that says why."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from emulators.errors import InputError, one_line

from .catalog import failed_row, result_row, widen_row
from .fitting import fit
from .sources import Source, read_stars

# Told how many stars are done more, and how many of these failed.
Tell = Callable[[int, int], None]
_LONGEST = 200  # characters of a reason
# Every compiled program takes memory maps, of which Linux gives a process 65,530; a process that
# has used them up dies. Stars of ever other numbers of pixels need ever other programs.
_MAPS, _MOST_MAPS = Path("/proc/self/maps"), 30_000


def fit_stars(
    stars: Sequence[Source],
    emulator: Any,
    reading: Mapping[str, Any],
    fitting: Mapping[str, Any],
    tell: Tell = lambda *_: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read and fit stars.

    Parameters
    ----------
    stars
        At least one.
    emulator
    reading, fitting
        Arguments of `stellarfit.read_spectrum` and of `stellarfit.fit`.
    tell
        Told of every star.

    Returns
    -------
    list of dict
        A row a star, in order: columns of a catalogue, ``source``, ``row`` and ``reason``.
    list of str
        The parameters that the rows' covariances are over.
    """
    labels = list(emulator.label_space.names)
    found = []
    for star, spectrum in read_stars(stars, reading):
        row, own, reason = _fit_one(star, spectrum, emulator, fitting, labels)
        found.append((row | {"source": star.path, "row": star.row, "reason": reason}, own))
        tell(1, int(bool(reason)))
    parameters = list(dict.fromkeys([*labels, *(name for _, own in found for name in own)]))
    return [widen_row(row, own, parameters) for row, own in found], parameters


def _fit_one(star, spectrum, emulator, fitting, labels) -> tuple[dict[str, Any], list[str], str]:
    name = star.path
    try:
        if isinstance(spectrum, Exception):
            raise spectrum
        name = spectrum.name or name
        _forget_compilations()
        row, own = result_row(fit(spectrum, emulator, **fitting))
        return row, own, ""
    # Whatever one star brings up, the others are fitted.
    except Exception as error:
        return failed_row(name, labels), labels, _reason(error, star.path)


def _reason(error: Exception, path: str) -> str:
    """One line, without the path, which has a column of its own."""
    text = one_line(error).removeprefix(path).lstrip(": ")
    if not isinstance(error, InputError) and str(error):
        text = f"{type(error).__name__}: {text}"
    return (text or "no reason given")[:_LONGEST]


def _forget_compilations() -> None:
    """Drop compiled programs before they are too many."""
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
