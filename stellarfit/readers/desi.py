"""DESI: coadd and spectra files, three arms of many stars.

Data model: https://desidatamodel.readthedocs.io (coadd-SURVEY-PROGRAM-PIXNUM). Wavelengths are in
vacuum and in the barycentric frame, by which the extraction multiplies them (desispec,
scripts/extract.py). The loader of specutils reads every array of the file, hundreds of MB, and
takes every nonzero bit for bad; here the rows of one star are read.
"""

from typing import Any

import numpy as np

from emulators.errors import InputError
from emulators.units import FWHM

from .bad_bits import DESI_SPECMASK, to_integers
from .header import clean_header
from .raw import RawSpectrum
from .survey import Survey, fill_resolution, get_extension, get_row

ARMS = ("b", "r", "z")


def _is_desi(file: Any) -> bool:
    names = {unit.name.upper() for unit in file}
    return "FIBERMAP" in names and any(f"{arm.upper()}_FLUX" in names for arm in ARMS)


def _list_stars(file: Any, where: str) -> dict[int, str]:
    """Target identifiers by row, without sky fibres."""
    table = get_extension(file, "FIBERMAP", where)
    if "TARGETID" not in table.columns.names:
        raise InputError(f"{where}: the FIBERMAP has no column TARGETID")
    targets = table.data["TARGETID"].tolist()
    kinds = ["TGT"] * len(targets)
    if "OBJTYPE" in table.columns.names:
        kinds = [str(kind).strip() for kind in table.data["OBJTYPE"]]
    return {i: str(one) for i, (one, kind) in enumerate(zip(targets, kinds, strict=True))
            if kind != "SKY"}  # fmt: skip


def _read(file: Any, where: str, row: int) -> list[RawSpectrum]:
    names = {unit.name.upper() for unit in file}
    return [_read_arm(file, where, row, arm) for arm in ARMS if f"{arm.upper()}_FLUX" in names]


def _read_arm(file: Any, where: str, row: int, arm: str) -> RawSpectrum:
    prefix = arm.upper()
    wavelength = np.asarray(get_extension(file, f"{prefix}_WAVELENGTH", where).data, np.float64)
    if wavelength.ndim != 1:
        raise InputError(f"{where}: {prefix}_WAVELENGTH has shape {wavelength.shape}, not [pixel]")

    def get(what: str) -> np.ndarray:
        unit = get_extension(file, f"{prefix}_{what}", where)
        return get_row(unit, row, len(wavelength), where)

    bits = to_integers(get("MASK")) if f"{prefix}_MASK" in file else None
    resolution = None
    if f"{prefix}_RESOLUTION" in file:
        resolution = measure_rows(get("RESOLUTION").astype(np.float64), wavelength)
    return RawSpectrum(
        wavelength,
        get("FLUX").astype(np.float64),
        get("IVAR").astype(np.float64),
        None if bits is None else DESI_SPECMASK.find_bad(bits),
        clean_header(file[0].header.items()),
        where,
        arm=arm,
        bits=bits,
        resolution=resolution,
        medium="vacuum",
        frame="barycentric",
    )


def measure_rows(diagonals: np.ndarray, wavelength: np.ndarray) -> np.ndarray | None:
    """Resolving power of every pixel by the width of its row in the resolution matrix.

    Parameters
    ----------
    diagonals : [diagonal, pixel]
        As files have them: diagonal k, of offset ``num // 2 - k``, holds in column j the matrix
        element of row ``j - offset`` and column j (desispec, resolution.py; scipy's DIA format).
    wavelength : [pixel]

    Returns
    -------
    [pixel]
        lambda / FWHM of the Gaussian with the row's standard deviation. Rows without a width
        (dead pixels) take it from their neighbours. The matrix acts on fluxes integrated over
        pixels, as our model's are: the width of the pixel is not in it.
    """
    num = len(diagonals)
    offsets = num // 2 - np.arange(num)
    rows = np.zeros_like(diagonals)
    for k, offset in enumerate(offsets):
        # Element (i, i + offset) of the matrix lies in column i + offset.
        rows[k] = np.roll(diagonals[k], -offset)
        if offset > 0:
            rows[k, -offset:] = 0
        elif offset < 0:
            rows[k, :-offset] = 0
    with np.errstate(invalid="ignore", divide="ignore"):
        total = rows.sum(0)
        mean = (rows * offsets[:, None]).sum(0) / total
        variance = (rows * (offsets[:, None] - mean) ** 2).sum(0) / total
        power = wavelength / (FWHM * np.sqrt(variance) * np.abs(np.gradient(wavelength)))
    # At the ends the row is cut off, and looks narrower than it is.
    power[: num // 2] = power[len(power) - num // 2 :] = np.nan
    return fill_resolution(power)


DESI = Survey("DESI", _is_desi, _list_stars, _read, ARMS)
