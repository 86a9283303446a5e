"""LAMOST: low resolution (LRS), in both layouts, and medium resolution (MRS), two arms.

Data models: the data release documents (http://www.lamost.org/dr9/v1.0/doc/) and
https://www.lamost.org/public/dr/algorithms/ff: vacuum wavelengths in the heliocentric frame; the
readers of laspec (github.com/hypergravity/laspec, mrs.py), which agree with them. Until DR7 LRS is
an image of five rows, from DR8 on a table of one row.
"""

from typing import Any

import numpy as np

from emulators.errors import InputError

from .bad_bits import LAMOST_MASK, to_integers
from .header import clean_header
from .raw import RawSpectrum
from .survey import Survey, get_column, get_extension, has_columns

# R = 1800 at 5500 Angstrom, and 7500 (the data release documents).
_RESOLUTION = {"LRS": 1_800.0, "MRS": 7_500.0}
_MRS = {"blue": "COADD_B", "red": "COADD_R"}
_ROWS = ("flux", "ivar", "wavelength", "andmask", "ormask")


def _is_lrs(file: Any) -> bool:
    return has_columns(file, 1, "flux", "ivar", "wavelength", "andmask") or (
        "LAMOST" in str(file[0].header.get("TELESCOP", "")).upper()
        and file[0].header.get("NAXIS") == 2
    )


def _is_mrs(file: Any) -> bool:
    names = {unit.name.upper() for unit in file}
    return not names.isdisjoint(_MRS.values()) or (
        "LAMOST" in str(file[0].header.get("TELESCOP", "")).upper()
        and any(name.startswith(("B-", "R-")) for name in names)
    )


def _list_stars(file: Any, where: str) -> dict[int, str]:
    header = file[0].header
    return {0: str(header.get("DESIG", header.get("OBSID", ""))).strip()}


def _read_lrs(file: Any, where: str, row: int) -> list[RawSpectrum]:
    if has_columns(file, 1, *_ROWS):
        unit = file[1]
        flux, ivar, wavelength, and_mask = (get_column(unit, k, where) for k in _ROWS[:4])
    else:
        unit = get_extension(file, 0, where)
        if unit.data.ndim != 2 or len(unit.data) != len(_ROWS):
            raise InputError(
                f"{where}: an image of shape {unit.data.shape}; LAMOST LRS has five rows "
                f"({', '.join(_ROWS)}), or from DR8 on a table COADD"
            )
        flux, ivar, wavelength, and_mask = unit.data[:4].astype(np.float64)
        if not (wavelength.min() > 3000 and wavelength.max() < 10_000):
            # The pilot survey has the spectrum without its continuum here.
            raise InputError(
                f"{where}: the third row runs {wavelength.min():g} .. {wavelength.max():g}, which "
                "is not LAMOST's wavelengths [Angstrom]; the pilot survey's layout is not read"
            )
    return [_finish(file, unit, where, wavelength, flux, ivar, and_mask, "LRS")]


def _read_mrs(file: Any, where: str, row: int) -> list[RawSpectrum]:
    names = {unit.name.upper() for unit in file}
    arms = []
    for arm, name in _MRS.items():
        if name not in names or not file[name].header.get("NAXIS2"):
            continue
        unit = file[name]
        if has_columns(file, name, "wavelength"):
            wavelength = get_column(unit, "wavelength", where)
        else:
            wavelength = 10 ** get_column(unit, "loglam", where)
        flux, ivar, and_mask = (get_column(unit, k, where) for k in ("flux", "ivar", "andmask"))
        raw = _finish(file, unit, where, wavelength, flux, ivar, and_mask, "MRS")
        arms.append(raw._replace(arm=arm))
    if not arms:
        raise InputError(
            f"{where}: no coadded spectrum (COADD_B, COADD_R); of the single exposures "
            f"({', '.join(sorted(names - {'PRIMARY'}))}) name one with hdu="
        )
    return arms


def _finish(file, unit, where, wavelength, flux, ivar, and_mask, survey) -> RawSpectrum:
    bits = to_integers(np.nan_to_num(and_mask, nan=1).astype(np.int64))
    return RawSpectrum(
        wavelength,
        flux,
        ivar,
        LAMOST_MASK.find_bad(bits),
        clean_header([*file[0].header.items(), *unit.header.items()]),
        where,
        bits=bits,
        resolution=_RESOLUTION[survey],
        medium="vacuum",
        frame="heliocentric",
    )


LRS = Survey("LAMOST LRS", _is_lrs, _list_stars, _read_lrs)
MRS = Survey("LAMOST MRS", _is_mrs, _list_stars, _read_mrs, tuple(_MRS))
