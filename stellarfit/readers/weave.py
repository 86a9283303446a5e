"""WEAVE: L1 files (single, stack, superstack), the fibres of one arm, or of several.

Layout (L1File of weaveio; SQUEzE, pykoala and rvspecfit read the same): images of
[fibre, pixel] {ARM}_DATA and {ARM}_IVAR, the same before sky subtraction (_NOSS), {ARM}_SENSFUNC,
by which data are multiplied to become fluxes, and the table FIBTABLE. No mask: a pixel without
weight is bad. Air or vacuum is by ``CTYPE1`` (AWAV is air), the frame by ``SPECSYS``; neither could
be checked against a data model, and the medium must be stated where the file does not. The
correction ``Helio_cor`` of FIBTABLE is kept, not applied: whether it has been is not stated.
"""

from typing import Any

import numpy as np

from emulators.errors import InputError

from .fits import image_wavelength
from .frame import find_frame
from .header import clean_header
from .raw import RawSpectrum
from .survey import Survey, get_extension, get_row

ARMS = ("blue", "green", "red")
# R = 5000 and 20,000 with the fibres of MOS and mIFU, half of that with those of the LIFU:
# http://www.ing.iac.es/Astronomy/instruments/weave/ (lifu_spec.html).
_LOW, _HIGH = 5_000.0, 20_000.0
# Low resolution is sampled by 0.25 Angstrom or more, high by 0.11 or less.
_LOW_STEP = 0.2


def _arms(file: Any) -> list[str]:
    names = {unit.name.upper() for unit in file}
    return [arm for arm in ARMS if f"{arm.upper()}_DATA" in names]


def _is_weave(file: Any) -> bool:
    return bool(_arms(file)) and "FIBTABLE" in {unit.name.upper() for unit in file}


def _list_stars(file: Any, where: str) -> dict[int, str]:
    """Names by row, without sky fibres (TARGUSE S) and those of no target."""
    table = get_extension(file, "FIBTABLE", where)
    found = {name.upper(): name for name in table.columns.names}
    key = next((found[one] for one in ("CNAME", "TARGID") if one in found), None)
    if key is None:
        raise InputError(f"{where}: FIBTABLE has neither CNAME nor TARGID")
    names = [str(one).strip() for one in table.data[key]]
    use = ["T"] * len(names)
    if "TARGUSE" in found:
        use = [str(one).strip().upper() for one in table.data[found["TARGUSE"]]]
    return {i: name for i, name in enumerate(names) if name and use[i] != "S"}


def _read(file: Any, where: str, row: int) -> list[RawSpectrum]:
    arms = [_read_arm(file, where, row, arm) for arm in _arms(file)]
    if not arms:
        raise InputError(f"{where}: no extension {', '.join(f'{a.upper()}_DATA' for a in ARMS)}")
    # Files of the pipeline hold one arm: that is a spectrum, to be joined with the other's.
    return arms if len(arms) > 1 else [arms[0]._replace(arm="")]


def _read_arm(file: Any, where: str, row: int, arm: str) -> RawSpectrum:
    prefix = arm.upper()
    data = get_extension(file, f"{prefix}_DATA", where)
    if len(data.shape) != 2:
        raise InputError(f"{where}: {prefix}_DATA has shape {data.shape}, not [fibre, pixel]")
    num = data.shape[1]
    flux = get_row(data, row, num, where).astype(np.float64)
    ivar = get_row(get_extension(file, f"{prefix}_IVAR", where), row, num, where).astype(np.float64)
    if f"{prefix}_SENSFUNC" in file:
        unit = get_extension(file, f"{prefix}_SENSFUNC", where)
        response = (
            np.asarray(unit.data) if len(unit.shape) == 1 else get_row(unit, row, num, where)
        ).astype(np.float64)
        # Where the response is not known, neither is the flux.
        response = np.where(response > 0, response, np.nan)
        flux, ivar = flux * response, ivar / response**2
    header = clean_header([*file[0].header.items(), *data.header.items()])
    table = get_extension(file, "FIBTABLE", where)
    header.update(
        clean_header((name, _plain(table.data[name][row])) for name in table.columns.names)
    )
    wavelength = image_wavelength(data.header, num, None, where)
    power = _LOW if np.median(np.diff(wavelength)) > _LOW_STEP else _HIGH
    if "LIFU" in str(header.get("obsmode", "")).upper():
        power /= 2
    return RawSpectrum(
        wavelength,
        flux,
        ivar,
        None,
        header,
        where,
        arm=arm,
        resolution=power,
        frame=find_frame(header),
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


WEAVE = Survey("WEAVE", _is_weave, _list_stars, _read)
