"""APOGEE of SDSS-III, IV and V: apStar, aspcapStar and apVisit.

Data models: https://data.sdss.org/datamodel/files/APOGEE_REDUX/. Fluxes, errors and wavelengths
come through the loaders of specutils; the masks and the line spread, which these drop, are read
beside them. Wavelengths are in vacuum.
"""

from typing import Any

import numpy as np

from emulators.errors import InputError
from emulators.units import FWHM

from .bad_bits import APOGEE_PIXMASK, to_integers
from .frame import to_barycentre
from .header import clean_header
from .raw import RawSpectrum
from .specutils_object import load
from .survey import Survey, get_extension

# Majewski et al. 2017, AJ 154, 94.
_RESOLUTION = 22_500.0


def _is_star(file: Any) -> bool:
    return _unit(file, 1).startswith("flux") and "mask" in _unit(file, 3) and _is_log(file)


def _is_aspcap(file: Any) -> bool:
    return (
        len(file) > 4
        and _is_log(file)
        and getattr(file[4], "columns", None) is not None
        and "ASPCAPFLAG" in file[4].columns.names
    )


def _is_visit(file: Any) -> bool:
    return _unit(file, 1).startswith("flux") and _unit(file, 4).startswith("wavelen")


def _unit(file: Any, key: int) -> str:
    return str(file[key].header.get("BUNIT", "")).lower() if key < len(file) else ""


def _is_log(file: Any) -> bool:
    return len(file) > 3 and file[1].header.get("CTYPE1") == "LOG-LINEAR"


def _list_stars(file: Any, where: str) -> dict[int, str]:
    return {0: str(file[0].header.get("OBJID", file[0].header.get("OBJ", ""))).strip()}


def _read_star(file: Any, where: str, row: int) -> list[RawSpectrum]:
    """The combined spectrum, in the star's own rest frame; the visits below it are not read."""
    for key in (1, 2, 3):
        unit = get_extension(file, key, where)
        if unit.data.ndim == 1:
            # Stars of one visit had no second axis until DR17; the loader expects it.
            unit.data = unit.data[None]
    raw = load(file, "APOGEE apStar", where)
    bits = to_integers(file[3].data[0])
    return [
        raw._replace(
            mask=APOGEE_PIXMASK.find_bad(bits),
            bits=bits,
            resolution=_RESOLUTION,
            medium="vacuum",
            frame="rest",
        )
    ]


def _read_aspcap(file: Any, where: str, row: int) -> list[RawSpectrum]:
    """The normalised spectrum that ASPCAP fitted; its errors say which pixels are bad."""
    get_extension(file, 1, where)
    raw = load(file, "APOGEE aspcapStar", where)
    return [
        raw._replace(
            resolution=_RESOLUTION,
            medium="vacuum",
            frame="rest",
        )
    ]


def _read_visit(file: Any, where: str, row: int) -> list[RawSpectrum]:
    """One visit: three detectors, in the observatory's frame, brought to the barycentre."""
    for key in (1, 2, 3, 4):
        shape = get_extension(file, key, where).shape
        if len(shape) != 2 or shape[0] != 3 or shape != file[1].shape:
            raise InputError(
                f"{where}: extension {key} has shape {shape}; an apVisit has three detectors, "
                "[3, pixel], in extensions 1 to 4"
            )
    raw = load(file, "APOGEE apVisit", where)
    bits = to_integers(file[3].data.ravel())
    header = clean_header(file[0].header.items())
    correction = header.get("bc")
    if not isinstance(correction, int | float) or not np.isfinite(correction):
        correction = None
    else:
        header["velocity_correction"] = float(correction)
    resolution = _measure_lines(file, where)
    wavelength = raw.wavelength
    return [
        raw._replace(
            wavelength=wavelength if correction is None else to_barycentre(wavelength, correction),
            mask=APOGEE_PIXMASK.find_bad(bits),
            bits=bits,
            header=header,
            resolution=_RESOLUTION if resolution is None else resolution,
            medium="vacuum",
            frame="topocentric" if correction is None else "barycentric",
        )
    ]


def _measure_lines(file: Any, where: str) -> np.ndarray | None:
    """Resolving power of every pixel by the LSF coefficients, where the file has them.

    The Gauss-Hermite parameters are, for each detector: the width of a detector pixel in units of
    the sampling, an offset, the number of Hermite terms, the orders of their polynomials in x, and
    the coefficients, those of sigma first (HISTORY of the extension; LSF_GH of the pipeline). The
    Hermite terms, which give the line its wings, are left out. The line is spread by detector
    pixels; what the model is integrated over anyway, one sample, is taken out again.
    """
    if len(file) < 11 or "LSF" not in str(file[10].header.get("BUNIT", "")):
        return None
    powers = []
    for wavelength, parameters in zip(file[4].data, file[10].data, strict=True):
        size, offset, order = parameters[0], parameters[1], int(parameters[2])
        num = int(parameters[3]) + 1
        coefficients = parameters[4 + order : 4 + order + num]
        x = np.arange(len(wavelength)) + offset
        sigma = np.polynomial.polynomial.polyval(x, coefficients)
        variance = sigma**2 + (size**2 - 1) / 12
        step = np.abs(np.gradient(wavelength.astype(np.float64)))
        powers.append(wavelength / (FWHM * np.sqrt(variance) * step))
    power = np.concatenate(powers)
    return power if np.isfinite(power).all() and (power > 0).all() else None


APSTAR = Survey("APOGEE apStar", _is_star, _list_stars, _read_star)
ASPCAPSTAR = Survey("APOGEE aspcapStar", _is_aspcap, _list_stars, _read_aspcap)
APVISIT = Survey("APOGEE apVisit", _is_visit, _list_stars, _read_visit)
