"""Optical spectra of SDSS-III to V (spec), and stars of SDSS-V's Milky Way Mapper (mwmStar).

Data models: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html
and https://sdss-astra.readthedocs.io/en/latest/user/datamodels/. Read through specutils; the
integer masks and the line spread, which its loaders drop, beside it. Wavelengths are in vacuum.
"""

from typing import Any

import numpy as np

from emulators.errors import InputError
from emulators.units import FWHM

from .bad_bits import APOGEE_PIXMASK, SDSS_SPPIXMASK, to_integers
from .header import clean_header
from .raw import RawSpectrum
from .specutils_object import load
from .survey import Survey, fill_resolution, get_column, get_extension, has_columns

# Of mwmStar, which does not carry it. BOSS: 1,560 to 2,270 in its blue arm and 1,850 to 2,650 in
# its red one (Smee et al. 2013, AJ 146, 32). APOGEE: Majewski et al. 2017, AJ 154, 94.
_RESOLUTION = {"apogee": 22_500.0, "boss": 2_000.0}


def _is_spec(file: Any) -> bool:
    return has_columns(file, 1, "flux", "loglam", "ivar", "and_mask")


def _list_spec(file: Any, where: str) -> dict[int, str]:
    header = file[0].header
    if "CATALOGID" in header:
        return {0: str(header["CATALOGID"])}
    known = [str(header[key]) for key in ("PLATEID", "MJD", "FIBERID") if key in header]
    return {0: "-".join(known)}


def _read_spec(file: Any, where: str, row: int) -> list[RawSpectrum]:
    """The coadd; its AND mask, and the width of arc lines in each pixel."""
    table = get_extension(file, 1, where)
    # SDSS-V's reductions begin with version 6; they are in the barycentric frame.
    new = str(file[0].header.get("VERS2D", file[0].header.get("RUN2D", ""))).startswith("v6")
    raw = load(file, "SDSS-V spec" if new else "SDSS-III/IV spec", where)
    bits = to_integers(table.data["and_mask"])
    resolution = None
    if has_columns(file, 1, "wdisp"):
        # Standard deviation of arc lines, in pixels uniform in log10 wavelength.
        step = np.gradient(get_column(table, "loglam", where)) * np.log(10)
        with np.errstate(divide="ignore"):
            resolution = fill_resolution(
                1 / (FWHM * get_column(table, "wdisp", where) * np.abs(step))
            )
    return [
        raw._replace(
            mask=SDSS_SPPIXMASK.find_bad(bits),
            bits=bits,
            resolution=resolution,
            medium="vacuum",
            frame="barycentric" if new else "heliocentric",
        )
    ]


def _is_mwm(file: Any) -> bool:
    return "V_ASTRA" in file[0].header and any(
        has_columns(file, key, "flux", "ivar", "pixel_flags") for key in range(1, len(file))
    )


def _list_mwm(file: Any, where: str) -> dict[int, str]:
    return {0: str(file[0].header.get("SDSS_ID", ""))}


def _read_mwm(file: Any, where: str, row: int) -> list[RawSpectrum]:
    """The coadds of all instruments that saw the star, in its rest frame."""
    arms = []
    for key, unit in enumerate(file):
        if not has_columns(file, key, "flux", "ivar", "pixel_flags") or not unit.header["NAXIS2"]:
            continue
        num = unit.header["NAXIS2"]
        if num > 1:
            raise InputError(
                f"{where}: extension {key} {unit.name} holds {num} visits; read the star's "
                "mwmStar file"
            )
        raw = load(file, "SDSS-V mwm", where, hdu=key)
        instrument = "apogee" if "APOGEE" in unit.name.upper() else "boss"
        bits = to_integers(np.ravel(unit.data["pixel_flags"]))
        table = APOGEE_PIXMASK if instrument == "apogee" else SDSS_SPPIXMASK
        site = unit.name.upper().split("/")[-1].lower() if "/" in unit.name else str(key)
        arms.append(
            raw._replace(
                mask=table.find_bad(bits),
                header=clean_header([*file[0].header.items(), *unit.header.items()]),
                arm=f"{instrument}_{site}",
                bits=bits,
                resolution=_RESOLUTION[instrument],
                medium="vacuum",
                frame="rest",
            )
        )
    if not arms:
        raise InputError(f"{where}: every extension of this mwmStar file is empty")
    # Most stars were seen by one of the four; it is then simply a spectrum.
    return arms if len(arms) > 1 else [arms[0]._replace(arm="")]


SPEC = Survey("SDSS spec", _is_spec, _list_spec, _read_spec)
MWM = Survey("SDSS-V mwmStar", _is_mwm, _list_mwm, _read_mwm)
