"""One door for every file: choose the reader, state the medium, build the `Spectrum`."""

import os
from pathlib import Path
from typing import Any

from emulators.errors import InputError

from ..spectrum import MEDIA, Spectrum
from .columns import Columns
from .header import find_medium, find_name, find_resolution
from .raw import RawSpectrum

_FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz")


def read_spectrum(
    source: Any,
    *,
    medium: str | None = None,
    resolution: float | int | None = None,
    snr: float | int | None = None,
    wavelength: str | None = None,
    flux: str | None = None,
    ivar: str | None = None,
    error: str | None = None,
    mask: str | None = None,
    wavelength_unit: str | None = None,
    hdu: int | str | None = None,
    format: str | None = None,
) -> Spectrum:
    """Read an observed spectrum.

    FITS tables, one-dimensional FITS images with a linear or logarithmic wavelength axis, ECSV and
    plain text are recognised by themselves; `format` names a specutils loader for a survey's own
    layout. Columns are found by their usual names (``wave``, ``loglam``, ``flux``, ``ivar``,
    ``err``, ``mask``, ...) unless they are given. In text without a header line the columns are
    wavelength, flux and, where there is a third, the 1-sigma error.

    Parameters
    ----------
    source : path, or specutils.Spectrum
    medium : {"air", "vacuum"}, optional
        What the wavelengths are measured in. May be left out only where the file says it.
    resolution : float, optional
        Resolving power lambda / FWHM; read from the header where left out and known there.
    snr : float, optional
        Signal-to-noise ratio a pixel, for files without errors.
    wavelength, flux, ivar, error, mask : str, optional
        Column names, where the usual ones do not serve. `error` is 1 sigma; nonzero `mask` is bad.
    wavelength_unit : str, optional
        Unit of the wavelengths, where the file does not say it and it is not Angstrom.
    hdu : int or str, optional
        The FITS extension to read; the first that holds a spectrum otherwise.
    format : str, optional
        A specutils loader such as ``"SDSS-V mwm"``.

    Returns
    -------
    Spectrum
        In vacuum Angstrom.
    """
    if medium is not None and medium not in MEDIA:
        raise InputError(f"medium: {medium!r} is not known; give 'air' or 'vacuum'")
    columns = Columns(wavelength, flux, ivar, error, mask)
    raw = _read_raw(source, columns, wavelength_unit, hdu, format)
    agreed = _agree_on_medium(medium, raw)
    try:
        return Spectrum(
            raw.wavelength,
            raw.flux,
            raw.ivar,
            mask=raw.mask,
            resolution=resolution if resolution is not None else find_resolution(raw.header),
            medium=agreed,
            snr=snr,
            name=find_name(raw.header) or raw.name,
            meta=raw.header,
        )
    except InputError as problem:
        raise InputError(f"{raw.name}: {problem}") from None


def _read_raw(source, columns, wavelength_unit, hdu, format) -> RawSpectrum:
    if not isinstance(source, str | os.PathLike):
        from .specutils_object import from_specutils

        return from_specutils(source)
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    if format is not None:
        from .specutils_object import read_with_specutils

        return read_with_specutils(path, format)
    if path.name.lower().endswith(_FITS):
        from .fits import read_fits

        return read_fits(path, columns, wavelength_unit, hdu)
    from .text import read_text

    return read_text(path, columns, wavelength_unit)


def _agree_on_medium(medium: str | None, raw: RawSpectrum) -> str:
    """The stated medium, else the header's; a contradiction or silence is an error."""
    known, where = find_medium(raw.header)
    if medium is None and known is None:
        raise InputError(
            f"{raw.name}: neither the file nor you say whether its wavelengths are in air or in "
            "vacuum; give medium='air' or medium='vacuum' (--medium)"
        )
    if medium is not None and known is not None and medium != known:
        raise InputError(
            f"{raw.name}: medium={medium!r} was given but the header says {where}; "
            "leave it out, or correct the header"
        )
    return medium or known  # type: ignore[return-value]
