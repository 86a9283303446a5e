"""The spectra of a file of many stars, one at a time."""

import os
from collections.abc import Iterator
from pathlib import Path

from emulators.errors import InputError

from ..arms import Arms
from ..spectrum import Spectrum
from .build import Stated, check_medium
from .stars import check_path, open_stars


class Spectra:
    """The stars of one file, read when they are asked for.

    Holds no open file, so that it can be sent to other processes.

    Attributes
    ----------
    path : Path
    rows : tuple of int
        Of the stars in the file; sky fibres and the like are left out.
    names : tuple of str
        The survey's names of the stars, in the same order.

    Examples
    --------
    >>> for name, spectrum in read_spectra("coadd.fits"):  # doctest: +SKIP
    ...     fit = sf.fit(spectrum)
    """

    def __init__(self, path: Path, format: str | None, stated: Stated):
        self.path, self._format, self._stated = path, format, stated
        with open_stars(path, format) as stars:
            if stars is None:
                raise InputError(
                    f"{path}: not a file of many stars that is known; read_spectrum reads one"
                )
            self.rows = tuple(stars.names)
            self.names = tuple(stars.names.values())

    def __repr__(self) -> str:
        return f"Spectra({self.path}: {len(self)} stars)"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Spectrum | Arms:
        """The spectrum of the star ``names[index]``."""
        row = self.rows[index]
        with open_stars(self.path, self._format) as stars:
            assert stars is not None  # for the type checker
            return stars.build(row, self._stated)

    def __iter__(self) -> Iterator[tuple[str, Spectrum | Arms]]:
        """Name and spectrum of each star; a star that cannot be read is an `InputError`."""
        with open_stars(self.path, self._format) as stars:
            assert stars is not None  # for the type checker
            for row, name in zip(self.rows, self.names, strict=True):
                yield name, stars.build(row, self._stated)


def read_spectra(
    path: str | os.PathLike[str],
    *,
    medium: str | None = None,
    resolution: float | int | None = None,
    snr: float | int | None = None,
    format: str | None = None,
) -> Spectra:
    """The spectra of a file of many stars: DESI, WEAVE, Gaia RVS, or our own layout.

    Parameters
    ----------
    path
    medium, resolution, snr, format
        As of `read_spectrum`.

    Returns
    -------
    Spectra
        Iterates over names and spectra, and gives one by its index, without holding more than
        one in memory. A file of one star is one of many of length 1.

    Raises
    ------
    InputError
        No such file, or one whose layout is not known.
    """
    check_medium(medium)
    return Spectra(check_path(path), format, Stated(medium, resolution, snr))
