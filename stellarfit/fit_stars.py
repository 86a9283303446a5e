"""Rows of a catalogue from stars, in lockstep where they can be fitted together, else one by one.

A star that fails is a row that says why.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from emulators.errors import InputError, one_line

from .catalog import failed_row, result_row, widen_row
from .draws import draw_alone
from .fit_together import can_fit_together, fit_together, hash_pixels
from .fitting import fit
from .sources import Source, read_stars
from .spectrum import Spectrum

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

    Where `stellarfit.fit_together.can_fit_together` says so, those that are a single `Spectrum` are
    fitted in lockstep with those of the same pixels, however few these are.

    Parameters
    ----------
    stars
        At least one.
    emulator
    reading, fitting
        Arguments of `stellarfit.read_spectrum` and of `stellarfit.fit`; of fitting also ``draws``,
        how many are wanted of each posterior, and their ``seed``.
    tell
        Told of every star, once it is done.

    Returns
    -------
    list of dict
        A row a star, in order: columns of a catalogue, ``source``, ``row`` and ``reason``.
    list of str
        The parameters that the rows' covariances are over.
    """
    labels, draws = list(emulator.label_space.names), fitting.get("draws", 0)
    together = can_fit_together(emulator, fitting)
    found: dict[int, tuple[dict[str, Any], list[str]]] = {}
    groups: dict[str, list[tuple[int, Spectrum]]] = {}

    def finish(i: int, spectrum: Any, find: Callable[[], Any]) -> None:
        row, own, reason = _row_of(stars[i], spectrum, find, labels, draws)
        found[i] = row | {"source": stars[i].path, "row": stars[i].row, "reason": reason}, own
        tell(1, int(bool(reason)))

    for i, (_, spectrum) in enumerate(read_stars(stars, reading)):
        if together and isinstance(spectrum, Spectrum):
            groups.setdefault(hash_pixels(spectrum), []).append((i, spectrum))
        else:
            finish(i, spectrum, functools.partial(_fit_alone, spectrum, emulator, fitting))
    for group in groups.values():
        finds = _fit_group([spectrum for _, spectrum in group], emulator, fitting)
        for (i, spectrum), find in zip(group, finds, strict=True):
            finish(i, spectrum, find)
    rows = [found[i] for i in range(len(stars))]
    parameters = list(dict.fromkeys([*labels, *(name for _, own in rows for name in own)]))
    return [widen_row(row, own, parameters) for row, own in rows], parameters


def _fit_group(spectra, emulator, fitting) -> list[Callable[[], Any]]:
    """Of each star its result, by itself where these cannot be fitted together."""
    try:
        _forget_compilations()
        return fit_together(spectra, emulator, fitting)
    # Whatever it is, a single fit says it of the star that it is wrong with, and fits the others.
    except Exception as error:
        if not isinstance(error, InputError):
            warnings.warn(
                f"{len(spectra)} stars are fitted one by one, not together: {_reason(error, '')}",
                stacklevel=2,
            )
        return [functools.partial(_fit_alone, one, emulator, fitting) for one in spectra]


def _fit_alone(spectrum, emulator, fitting) -> Any:
    _forget_compilations()
    options = dict(fitting)
    num, seed = options.pop("draws", 0), options.pop("seed", 0)
    found = fit(spectrum, emulator, **options)
    return draw_alone(found, num, seed) if num else found


def _row_of(star, spectrum, find, labels, draws) -> tuple[dict[str, Any], list[str], str]:
    name = star.path
    try:
        if isinstance(spectrum, Exception):
            raise spectrum
        name = spectrum.name or name
        row, own = result_row(find())
        return row, own, ""
    # Whatever one star brings up, the others are fitted.
    except Exception as error:
        return failed_row(name, labels, draws), labels, _reason(error, star.path)


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
