"""Mean spectra of Gaia's Radial Velocity Spectrometer, as the archive's DataLink gives them.

Data model: Gaia DR3 documentation, section 20.12.1 (rvs_mean_spectrum): normalised, in the star's
rest frame, 846 to 870 nm in steps of 0.01 nm, 2401 elements; NaN where there is no flux. One star
a file with a column of wavelengths ("individual"), or many stars, one a row, without ("raw").
Wavelengths are in vacuum, as those of the line lists made for them (Contursi et al. 2021, A&A 654,
A130); the data model does not say it.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from emulators.errors import InputError, one_line

from .columns import ivar_from_error, to_angstrom
from .header import clean_header
from .raw import RawSpectrum
from .survey import Survey, get_column, has_columns

# Cropper et al. 2018, A&A 616, A5.
_RESOLUTION = 11_500.0
_RANGE = (845.0, 871.0)
_GRID = 846.0 + 0.01 * np.arange(2401)


def _is_rvs(file: Any) -> bool:
    if not has_columns(file, 1, "flux", "flux_error"):
        return False
    if not has_columns(file, 1, "wavelength"):
        return has_columns(file, 1, "source_id") and _length(file[1]) == len(_GRID)
    values = np.asarray(file[1].data[_name(file[1], "wavelength")], np.float64)
    return bool(values.size and _RANGE[0] < values.min() and values.max() < _RANGE[1])


def _name(unit: Any, name: str) -> str:
    return next(one for one in unit.columns.names if one.lower() == name)


def _length(unit: Any) -> int:
    return unit.data[_name(unit, "flux")].shape[-1]


def _list_stars(file: Any, where: str) -> dict[int, str]:
    unit = file[1]
    if not has_columns(file, 1, "wavelength"):
        return {i: str(one) for i, one in enumerate(unit.data[_name(unit, "source_id")].tolist())}
    header = clean_header([*file[0].header.items(), *unit.header.items()])
    return {0: str(header.get("source_id", header.get("object", "")))}


def _read(file: Any, where: str, row: int) -> list[RawSpectrum]:
    unit = file[1]
    if has_columns(file, 1, "wavelength"):
        wavelength = get_column(unit, "wavelength", where)
        stated = unit.columns[_name(unit, "wavelength")].unit or "nm"
        flux, error = (get_column(unit, name, where) for name in ("flux", "flux_error"))
    else:
        wavelength, stated = _GRID, "nm"
        flux, error = (get_column(unit, name, where, row) for name in ("flux", "flux_error"))
        if len(flux) != len(_GRID):
            raise InputError(
                f"{where}: {len(flux)} fluxes a star; rvs_mean_spectrum has {len(_GRID)}"
            )
    return [
        RawSpectrum(
            to_angstrom(wavelength, stated, where),
            flux,
            ivar_from_error(error),
            None,
            clean_header([*file[0].header.items(), *unit.header.items()]),
            where,
            resolution=_RESOLUTION,
            medium="vacuum",
            frame="rest",
        )
    ]


def open_votable(path: Path) -> Any:
    """A spectrum of the archive in its default format, as a FITS file would hold it."""
    from astropy.io import fits
    from astropy.table import Table

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = Table.read(path, format="votable")
            file = fits.HDUList([fits.PrimaryHDU(), fits.table_to_hdu(table)])
    except Exception as error:  # noqa: BLE001 - the XML parser raises errors of its own
        raise InputError(f"{path}: cannot be read as a VOTable ({one_line(error)[:200]})") from None
    if not _is_rvs(file):
        raise InputError(
            f"{path}: a VOTable with columns {', '.join(table.colnames)}; of VOTables those of "
            "Gaia RVS spectra are read (wavelength, flux, flux_error)"
        )
    return file


RVS = Survey("Gaia RVS", _is_rvs, _list_stars, _read)
