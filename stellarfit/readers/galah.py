"""GALAH DR3: one camera of HERMES a file.

Data model: https://docs.datacentral.org.au/galah/dr3/galah-dr3-spectra/. The loader of specutils
does not serve: it takes the first extension for the error, which is the *relative* error, to be
multiplied by the flux, and puts the normalised spectrum first. Wavelengths are freed of the
barycentric velocity (https://docs.datacentral.org.au/galah/dr2/data-reduction-and-analysis/). That
they are in air is the survey's practice (it compares with syntheses in air); the data model does
not say it.
"""

from typing import Any

import numpy as np

from emulators.errors import InputError

from .columns import ivar_from_error
from .fits import image_wavelength
from .header import clean_header
from .raw import RawSpectrum
from .survey import Survey, get_extension

# Kos et al. 2017, MNRAS 464, 1259.
_RESOLUTION = 28_000.0


def _is_galah(file: Any) -> bool:
    return "GALAH" in str(file[0].header.get("ORIGIN", "")).upper()


def _list_stars(file: Any, where: str) -> dict[int, str]:
    header = file[0].header
    return {0: str(header.get("OBJECT", header.get("NAME", ""))).strip()}


def _read(file: Any, where: str, row: int) -> list[RawSpectrum]:
    if len(file) != 5:
        raise InputError(
            f"{where}: {len(file)} extensions; spectra of GALAH DR3 have five, and what the first "
            "of another release holds is not known"
        )
    flux = np.asarray(get_extension(file, 0, where).data, np.float64)
    relative = np.asarray(get_extension(file, 1, where).data, np.float64)
    if flux.ndim != 1 or relative.shape != flux.shape:
        raise InputError(f"{where}: flux and error have shapes {flux.shape} and {relative.shape}")
    with np.errstate(invalid="ignore"):  # infinite times zero: a pixel without weight
        error = relative * np.abs(flux)
    return [
        RawSpectrum(
            image_wavelength(file[0].header, len(flux), None, where),
            flux,
            ivar_from_error(error),
            None,
            clean_header(file[0].header.items()),
            where,
            resolution=_RESOLUTION,
            medium="air",
            frame="barycentric",
        )
    ]


GALAH = Survey("GALAH", _is_galah, _list_stars, _read)
