"""One door for every file."""

import os
from typing import Any

from emulators.errors import InputError

from ..arms import Arms
from ..spectrum import Spectrum
from .build import Stated, build, check_medium
from .columns import Columns
from .raw import RawSpectrum
from .stars import check_path, is_fits, open_stars


def read_spectrum(
    source: Any,
    *,
    row: int | None = None,
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
) -> Spectrum | Arms:
    """Read an observed spectrum.

    The files of surveys are recognised by what is in them: APOGEE, SDSS, SDSS-V, DESI, GALAH,
    LAMOST, Gaia RVS, 4MOST and WEAVE; so is our own layout of many stars (`write_spectra`). Their
    bad pixels, resolving power, medium and frame are those of the survey's data model; see the
    page "Reading spectra". Other FITS tables, one-dimensional FITS images with a linear or
    logarithmic wavelength axis, ECSV and plain text are read by their columns, which are found by
    their usual names (``wave``, ``loglam``, ``flux``, ``ivar``, ``err``, ``mask``, ...) unless
    they are given. In text without a header line the columns are wavelength, flux and, where there
    is a third, the 1-sigma error.

    Parameters
    ----------
    source : path, or specutils.Spectrum
    row : int, optional
        Which star of a file of many (DESI, WEAVE, ...), counted from 0.
    medium : {"air", "vacuum"}, optional
        What the wavelengths are measured in. May be left out only where the file says it.
    resolution : float, optional
        Resolving power lambda / FWHM; by the survey or the header where left out and known.
    snr : float, optional
        Signal-to-noise ratio a pixel, for files without errors.
    wavelength, flux, ivar, error, mask : str, optional
        Column names, where the usual ones do not serve. `error` is 1 sigma; nonzero `mask` is bad.
        A file of a survey is then read as any other table.
    wavelength_unit : str, optional
        Unit of the wavelengths, where the file does not say it and it is not Angstrom.
    hdu : int or str, optional
        The FITS extension to read as a table or image; the first that holds a spectrum otherwise.
    format : str, optional
        A survey's layout, such as ``"LAMOST LRS"``, where it is not to be recognised; or a
        specutils loader.

    Returns
    -------
    Spectrum
        In vacuum Angstrom. For a survey ``meta["frame"]`` says whose velocity its wavelengths are
        free of, and `survey_mask` has the survey's own mask bits.
    Arms
        For spectrographs with several: DESI, LAMOST MRS, 4MOST HRS, SDSS-V stars with several
        instruments. Arms that the star lacks are in its `missing`.

    Raises
    ------
    InputError
        The file, what is wrong with it, and what to do.
    """
    columns = Columns(wavelength, flux, ivar, error, mask)
    stated = Stated(medium, resolution, snr)
    check_medium(medium)
    if not isinstance(source, str | os.PathLike):
        from .specutils_object import from_specutils

        return build([from_specutils(source)], stated)
    path = check_path(source)
    # Columns or an extension by name are read as a table, whatever the survey.
    plain = any(name is not None for name in (*columns, wavelength_unit, hdu))
    if not plain:
        with open_stars(path, format) as stars:
            if stars is not None:
                return stars.build(stars.choose(row), stated)
    if row is not None:
        raise InputError(f"{path}: row={row} was given, but the file holds one spectrum")
    return build([_read_plain(path, columns, wavelength_unit, hdu, format)], stated)


def _read_plain(path, columns, wavelength_unit, hdu, format) -> RawSpectrum:
    if format is not None:
        from .specutils_object import load

        return load(path, format, str(path))
    if is_fits(path):
        from .fits import open_fits, read_table_or_image

        with open_fits(path) as file:
            return read_table_or_image(file, path, columns, wavelength_unit, hdu)
    from .text import read_text

    return read_text(path, columns, wavelength_unit)
