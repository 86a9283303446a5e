"""The stars of a survey: which they are, in one order, and each of them read when it is its turn.

A star is known by its file and its row there, so that every process, today or after a kill, means
the same one.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from emulators.errors import InputError

from .readers import read_spectrum
from .readers.build import Stated
from .readers.stars import check_path, open_stars

ONLY = -1
"""The row of a star that is alone in its file."""
_SPECTRUM_KEYS = ("medium", "resolution", "snr")
COLUMN_KEYS = ("wavelength", "flux", "ivar", "error", "mask", "wavelength_unit", "hdu")


class Source(NamedTuple):
    """Where a star's spectrum is: an absolute path, and the row in a file of many, or `ONLY`."""

    path: str
    row: int


def find_files(sources: Any) -> list[str]:
    """Absolute paths of a glob's matches, sorted, or of a list of paths and globs, as it has them.

    Raises
    ------
    InputError
        A glob that matches nothing, a single path that is not there, a folder, a file given twice.
        A path of a list that is not there is a star that cannot be read.
    """
    alone = isinstance(sources, str | os.PathLike)
    paths: list[str] = []
    for one in [sources] if alone else list(sources):
        text = os.fspath(one)
        if glob.has_magic(text) and not os.path.exists(text):
            found = sorted(glob.glob(text, recursive=True))
            if not found:
                raise InputError(f"sources: no file matches {text}")
            paths += found
        else:
            paths.append(text)
    if not paths:
        raise InputError("sources: no files; give a glob such as 'spectra/*.fits', or paths")
    if alone and not os.path.exists(paths[0]):
        raise InputError(f"sources: {paths[0]}: no such file")
    paths = [os.path.abspath(path) for path in paths]
    if len(set(paths)) < len(paths):
        twice = next(path for i, path in enumerate(paths) if path in paths[:i])
        raise InputError(f"sources: {twice} is given twice; give every file once")
    for path in paths:
        if os.path.isdir(path):
            raise InputError(f"sources: {path} is a folder; give its files: '{path}/*.fits'")
    return paths


def list_stars(files: Iterable[str], reading: Mapping[str, Any]) -> Iterator[Source]:
    """The stars of files, file by file; one that cannot be opened counts as one star.

    Parameters
    ----------
    files
        Absolute paths.
    reading
        Arguments of `stellarfit.read_spectrum`.
    """
    for path in files:
        rows = _rows(path, reading)
        if len(rows) > 1:
            yield from (Source(path, row) for row in rows)
        else:
            yield Source(path, ONLY)


def read_stars(stars: Sequence[Source], reading: Mapping[str, Any]) -> Iterator[tuple[Source, Any]]:
    """Each star with its spectrum, or with the exception that reading it raised.

    A file of many stars is opened once for those that follow one another.
    """
    for (path, alone), group in groupby(stars, key=lambda star: (star.path, star.row == ONLY)):
        if alone:
            yield from ((star, _attempt(read_spectrum, path, **reading)) for star in group)
        else:
            yield from _read_rows(path, list(group), reading)


def _read_rows(path: str, group: list[Source], reading) -> Iterator[tuple[Source, Any]]:
    stated = Stated(**{key: reading[key] for key in _SPECTRUM_KEYS if key in reading})
    num = 0
    try:
        with open_stars(check_path(path), reading.get("format")) as stars:
            if stars is None:
                raise InputError(f"{path}: not a file of many stars any more")
            for star in group:
                spectrum = _attempt(lambda row: stars.build(stars.choose(row), stated), star.row)
                num += 1
                yield star, spectrum
    except Exception as error:
        yield from ((star, error) for star in group[num:])


def _attempt(read: Any, *arguments: Any, **options: Any) -> Any:
    # A damaged file may break a reader in ways that nobody has foreseen.
    try:
        return read(*arguments, **options)
    except Exception as error:
        return error


def _rows(path: str, reading: Mapping[str, Any]) -> list[int]:
    """Rows of a file of many stars; none of another, nor where the file cannot be opened."""
    if any(key in reading for key in COLUMN_KEYS):
        return []
    try:
        with open_stars(check_path(Path(path)), reading.get("format")) as stars:
            return [] if stars is None else list(stars.names)
    except Exception:
        return []  # why, its row in the catalogue will say
