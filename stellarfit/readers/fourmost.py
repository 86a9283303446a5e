"""4MOST: L1 spectra, one star a file.

The layout is that of ESO's Science Data Products (ESO-044286): a table of one row, with the vectors
WAVE, FLUX, ERR_FLUX and QUAL, and more (FLUX_NOSS, ...), as the consortium's pipelines read and
simulate it (qmostxp/l1spectrum.py; github.com/jkrogager/py4most, qmost_etc.py). A file of the
high-resolution spectrograph holds its three windows one after another. Air or vacuum is by the
standard's ``TUCD1`` (`header.find_medium`), the frame by ``SPECSYS``; where the file has no
``TUCD1``, the medium must be stated.
"""

from typing import Any

import numpy as np

from emulators.errors import InputError

from .bad_bits import ESO_QUAL, to_integers
from .columns import ivar_from_error, to_angstrom
from .frame import find_frame
from .header import clean_header, find_name, find_resolution
from .raw import RawSpectrum
from .survey import Survey, get_column, get_extension, has_columns

ARMS = ("blue", "green", "red")
# de Jong et al. 2019, The Messenger 175, 3: windows 3926-4355, 5160-5730 and 6100-6790 Angstrom.
_ARM_ENDS = (4750.0, 5900.0)
_RESOLUTION = {"HRS": 20_000.0, "LRS": 6_500.0}
# The low-resolution spectrum is joined over 5800 Angstrom; no window is wider than this.
_WIDEST_WINDOW = 1000.0
_GAP = 50.0


def _is_fourmost(file: Any) -> bool:
    return "QMOST" in str(file[0].header.get("INSTRUME", "")).upper() and has_columns(
        file, 1, "wave", "flux", "err_flux"
    )


def _list_stars(file: Any, where: str) -> dict[int, str]:
    return {0: find_name(clean_header(file[0].header.items()))}


def _read(file: Any, where: str, row: int) -> list[RawSpectrum]:
    unit = get_extension(file, 1, where)
    if unit.header["NAXIS2"] != 1:
        raise InputError(
            f"{where}: the table {unit.name} has {unit.header['NAXIS2']} rows; an L1 spectrum has "
            "one, of vectors"
        )
    stated = unit.columns["WAVE"].unit
    wavelength = to_angstrom(get_column(unit, "wave", where), stated, where)
    flux, error = (get_column(unit, name, where) for name in ("flux", "err_flux"))
    bits = None
    if has_columns(file, 1, "qual"):
        bits = to_integers(np.nan_to_num(get_column(unit, "qual", where), nan=-1))
    header = clean_header([*file[0].header.items(), *unit.header.items()])
    whole = RawSpectrum(
        wavelength,
        flux,
        ivar_from_error(error),
        None if bits is None else ESO_QUAL.find_bad(bits),
        header,
        where,
        bits=bits,
        resolution=find_resolution(header),
        frame=find_frame(header),
    )
    ends = np.flatnonzero(np.diff(wavelength) > _GAP) + 1
    pieces = np.split(np.arange(len(wavelength)), ends)
    if any(np.ptp(wavelength[piece]) > _WIDEST_WINDOW for piece in pieces):
        return [whole._replace(resolution=whole.resolution or _RESOLUTION["LRS"])]
    whole = whole._replace(resolution=whole.resolution or _RESOLUTION["HRS"])
    return [_cut(whole, piece) for piece in pieces]


def _cut(whole: RawSpectrum, piece: np.ndarray) -> RawSpectrum:
    arm = ARMS[int(np.searchsorted(_ARM_ENDS, whole.wavelength[piece].mean()))]
    vectors = ("wavelength", "flux", "ivar", "mask", "bits")
    values = {name: getattr(whole, name) for name in vectors}
    cut = {name: None if one is None else one[piece] for name, one in values.items()}
    return whole._replace(arm=arm, **cut)


FOURMOST = Survey("4MOST", _is_fourmost, _list_stars, _read, ARMS)
