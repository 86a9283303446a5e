"""Spectra in FITS: binary tables, and one-dimensional images with a wavelength axis."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emulators.errors import InputError, one_line

from .columns import Columns, find_columns, holds_spectrum, ivar_from_error, to_angstrom
from .header import clean_header
from .raw import RawSpectrum

_ERROR_NAMES = ("ERR", "ERROR", "ERRS", "SIGMA", "UNCERT", "UNCERTAINTY", "STAT", "NOISE")
_IVAR_NAMES = ("IVAR", "INVVAR", "INV_VAR")
_MASK_NAMES = ("MASK", "DQ", "QUALITY", "QUAL")


@contextmanager
def open_fits(path: Path) -> Iterator[Any]:
    """Open a FITS file for reading; whatever is wrong with it is one `InputError`.

    The headers of all extensions are read now, so that a file cut short fails here; data are read
    when they are asked for.
    """
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyUserWarning

    try:
        with warnings.catch_warnings():
            # Of odd cards there may be thousands, and they say nothing about the pixels.
            warnings.filterwarnings("ignore", category=AstropyUserWarning)
            # A file cut short is only a warning to astropy; to us it is lost pixels.
            warnings.filterwarnings("error", ".*truncated.*", AstropyUserWarning)
            # astropy leaves a file that it cannot read open; this one closes in any case.
            with (
                path.open("rb") as stream,
                fits.open(stream, memmap=False, lazy_load_hdus=False) as file,
            ):
                yield file
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - astropy raises whatever its parsing meets
        raise InputError(
            f"{path}: cannot be read as FITS, it is damaged or cut short ({one_line(error)[:200]})"
        ) from None


def read_table_or_image(
    file: Any, path: Path, columns: Columns, wavelength_unit: str | None, hdu: int | str | None
) -> RawSpectrum:
    """Read the first extension that holds a spectrum, or the one asked for."""
    for unit in file:
        _ = unit.data
    return _choose(file, path, columns, wavelength_unit, hdu)


def _choose(file, path, columns, wavelength_unit, hdu) -> RawSpectrum:
    if hdu is not None:
        try:
            units = [file[hdu]]
        except (KeyError, IndexError):
            names = ", ".join(f"{i} {unit.name}" for i, unit in enumerate(file))
            raise InputError(f"{path}: no extension {hdu!r}; it has {names}") from None
    else:
        units = list(file)
    tables = [unit for unit in units if getattr(unit, "columns", None) is not None]
    given = any(name is not None for name in columns)
    for unit in tables:
        if holds_spectrum(unit.columns.names, columns) or (given and len(tables) == 1):
            return _from_table(file, unit, path, columns, wavelength_unit)
    for unit in units:
        if unit.data is not None and unit not in tables and _is_line(unit.data):
            return _from_image(file, unit, path, wavelength_unit)
    if len(tables) == 1:
        # Not recognised: the message about the missing column is the helpful one.
        return _from_table(file, tables[0], path, columns, wavelength_unit)
    contents = ", ".join(
        f"{i} {unit.name or 'image'}"
        + (f" ({', '.join(unit.columns.names[:6])})" if unit in tables else "")
        for i, unit in enumerate(file)
    )
    raise InputError(
        f"{path}: no extension holds one spectrum ({contents}); give hdu= and the column names, or "
        "format= for a specutils loader"
    )


def _header(file, unit) -> dict[str, Any]:
    """Cards of the primary header, then those of the extension itself."""
    return clean_header([*file[0].header.items(), *unit.header.items()])


def _from_table(file, unit, path, columns, wavelength_unit) -> RawSpectrum:
    names = unit.columns.names
    where = str(path)
    found = find_columns(
        names,
        lambda name: unit.data[name],
        lambda name: unit.columns[name].unit,
        columns,
        wavelength_unit,
        where,
    )
    return RawSpectrum(*found, header=_header(file, unit), name=where)


def _is_line(data: np.ndarray) -> bool:
    """Whether an image is one spectrum: one axis longer than one pixel."""
    return data.dtype.kind in "fiu" and sum(size > 1 for size in data.shape) == 1


def _from_image(file, unit, path, wavelength_unit) -> RawSpectrum:
    flux = np.asarray(unit.data, np.float64).ravel()
    header = _header(file, unit)
    beside = {
        other.name.upper(): np.asarray(other.data).ravel()
        for other in file
        if other is not unit
        and isinstance(other.data, np.ndarray)
        and getattr(other, "columns", None) is None
        and other.data.size == flux.size
    }
    ivar = next((beside[name].astype(np.float64) for name in _IVAR_NAMES if name in beside), None)
    if ivar is None:
        error = next((beside[name] for name in _ERROR_NAMES if name in beside), None)
        ivar = None if error is None else ivar_from_error(error.astype(np.float64))
    mask = next((beside[name] for name in _MASK_NAMES if name in beside), None)
    wavelength = image_wavelength(unit.header, flux.size, wavelength_unit, str(path))
    return RawSpectrum(wavelength, flux, ivar, mask, header=header, name=str(path))


def image_wavelength(header: Any, num: int, wavelength_unit: str | None, where: str) -> np.ndarray:
    """Wavelength of each pixel of a one-dimensional image [Angstrom], from its header.

    Understood are linear axes; axes linear in log10 wavelength (IRAF ``DC-FLAG = 1``, SDSS
    ``COEFF0``/``COEFF1``, ``CTYPE1`` with LOG or a start below 10); and the FITS standard's
    ``-LOG`` axes, which are linear in ln wavelength about the reference value.
    """
    start = header.get("CRVAL1", header.get("COEFF0"))
    step = header.get("CDELT1", header.get("CD1_1", header.get("COEFF1")))
    if start is None or not step:
        raise InputError(
            f"{where}: the image has no wavelength axis (CRVAL1 with CDELT1 or CD1_1, or "
            "COEFF0 with COEFF1)"
        )
    kind = str(header.get("CTYPE1", "")).upper()
    offset = np.arange(1, num + 1) - header.get("CRPIX1", 1.0)
    unit = wavelength_unit or header.get("CUNIT1")
    scale = float(to_angstrom(np.ones(1), unit, where)[0])
    if kind.endswith("-LOG") and start * scale > 10:
        return scale * start * np.exp(offset * step / start)
    if header.get("DC-FLAG") == 1 or "CRVAL1" not in header or "LOG" in kind or start * scale < 10:
        # No spectrum starts below 10 Angstrom: this is the logarithm of its wavelength.
        return to_angstrom(10.0 ** (start + offset * step), wavelength_unit, where)
    return scale * (start + offset * step)
