"""Our own layout for many spectra of one kind: one HDF5 or Parquet file, a row a star.

HDF5. Attributes of the file: ``format`` ("stellarfit spectra"), ``version`` (1), ``medium`` ("air"
or "vacuum"), ``frame`` (see `frame.FRAMES`). Data sets: ``id`` [star], text; ``wavelength``
[pixel], or [star, pixel] where stars differ, Angstrom; ``flux``, ``ivar`` [star, pixel];
``mask`` [star, pixel], integers, nonzero is bad (may be absent); ``resolution``, lambda / FWHM:
one number, [star], [pixel] of shared wavelengths, or [star, pixel] (may be absent; NaN is not
known). A star with fewer pixels than others ends in pixels whose wavelength is NaN.

Parquet. The same words in the metadata of the schema; columns ``id`` (text), ``wavelength``,
``flux``, ``ivar``, ``mask``, ``resolution`` (lists, one value a pixel; ``resolution`` may be a
number). A null ``wavelength`` is that of the row before, within its row group.

Both are read a star at a time, and written a star at a time under a temporary name, so that a file
that is there is whole.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emulators.errors import InputError
from emulators.storage import atomic_write

from ..spectrum import Spectrum
from .frame import FRAMES
from .raw import RawSpectrum

FORMAT, VERSION = "stellarfit spectra", 1


class Row(NamedTuple):
    """One star as the file has it: vectors [pixel]."""

    id: str
    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray
    resolution: np.ndarray


def write_spectra(path: str | os.PathLike[str], spectra: Iterable[Any]) -> Path:
    """Write many spectra into one file of our own layout.

    Parameters
    ----------
    path
        Ends in ``.h5`` or ``.hdf5``, or in ``.parquet``.
    spectra
        Each a `Spectrum`, of any length, taken one by one; their `name` is the identifier.
        Wavelengths are written in vacuum.

    Returns
    -------
    Path
        Of the file, which `read_spectra` and `read_spectrum` read.

    Raises
    ------
    InputError
        Another ending, no spectrum, something that is no `Spectrum` of one order, frames that
        differ. Nothing is left behind then.
    """
    path = Path(path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        from .bulk_hdf5 import write
    elif path.suffix.lower() == ".parquet":
        from .bulk_parquet import write
    else:
        raise InputError(f"{path}: end the name in .h5 or .parquet, which says the format")
    rows = _Rows(path, spectra)
    with atomic_write(path) as temporary:
        write(temporary, rows)
        if not rows.num:
            raise InputError(f"{path}: no spectrum was given to write")
    return path


class _Rows:
    """Rows of spectra, and how many and in which frame they were, once they are written."""

    def __init__(self, path: Path, spectra: Iterable[Any]):
        self.path, self.spectra, self.num, self.frame = path, spectra, 0, "unknown"

    def __iter__(self):
        for spectrum in self.spectra:
            row = self._check(spectrum)
            frame = str(spectrum.meta.get("frame", "unknown"))
            if self.num and frame != self.frame:
                raise InputError(
                    f"{self.path}: {row.id} is in the {frame} frame and those before it in the "
                    f"{self.frame} frame; write a file for each"
                )
            self.frame = frame if frame in FRAMES else "unknown"
            self.num += 1
            yield row

    def _check(self, one: Any) -> Row:
        if not isinstance(one, Spectrum):
            raise InputError(
                f"{self.path}: spectrum {self.num} is a {type(one).__name__}; give a Spectrum, of "
                "several arms each to a file of its own"
            )
        again = Spectrum(one.wavelength, one.flux, one.ivar)
        if not np.allclose(again.width, one.width, rtol=1e-3):
            raise InputError(
                f"{self.path}: {one.name or self.num} has overlapping orders, whose pixel widths "
                "this layout does not hold"
            )
        resolution = np.nan if one.resolution is None else one.resolution
        return Row(
            one.name or str(self.num),
            one.wavelength,
            one.flux,
            one.ivar,
            one.mask.astype(np.int32),
            np.broadcast_to(np.asarray(resolution, np.float64), one.flux.shape),
        )


def check_words(words: dict[str, Any], where: str) -> tuple[str, str]:
    """Medium and frame of a file, by its attributes or metadata."""
    if words.get("format") != FORMAT:
        raise InputError(
            f"{where}: format = {words.get('format')!r}; a file of spectra says {FORMAT!r}"
        )
    if int(words.get("version", 0)) != VERSION:
        raise InputError(f"{where}: version = {words.get('version')}; this code reads {VERSION}")
    if words.get("medium") not in ("air", "vacuum"):
        raise InputError(f"{where}: medium = {words.get('medium')!r}; say 'air' or 'vacuum'")
    frame = words.get("frame", "unknown")
    if frame not in FRAMES:
        raise InputError(f"{where}: frame = {frame!r}; say one of {', '.join(FRAMES)}")
    return words["medium"], frame


def to_raw(row: Row, medium: str, frame: str, where: str) -> RawSpectrum:
    """A row as other readers hand a spectrum over, without the pixels that fill it up."""
    vectors = row[1:]
    lengths = {np.shape(one) for one in vectors}
    if len(lengths) != 1 or np.ndim(row.flux) != 1:
        raise InputError(f"{where}: {row.id}: vectors of shapes {sorted(map(str, lengths))}")
    num = int(np.isfinite(row.wavelength).sum())
    if not np.isfinite(row.wavelength[:num]).all():
        raise InputError(f"{where}: {row.id}: NaN among its wavelengths; only its end may be NaN")
    wavelength, flux, ivar, mask, resolution = (one[:num] for one in vectors)
    bits = np.nan_to_num(mask, nan=1).astype(np.int64)
    power = None
    if np.isfinite(resolution).all():
        power = float(resolution[0]) if num and np.ptp(resolution) == 0 else resolution
    return RawSpectrum(
        wavelength,
        flux,
        ivar,
        bits,
        {},
        where,
        bits=bits,
        resolution=power,
        medium=medium,
        frame=frame,
    )
