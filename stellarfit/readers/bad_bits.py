"""Which bits of a survey's mask mean that a pixel must not be fitted.

A mask says many things about a pixel; most of them ("near a sky line") make it worse, which its
error already says, and only some make it wrong. Those are listed here. Bits that are not listed
do not mask a pixel; all bits stay readable in `Spectrum.survey_mask`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Integer


class BadBits(NamedTuple):
    """The bad bits of one mask.

    Attributes
    ----------
    bits : dict or None
        Name by binary digit; None where any nonzero value is bad.
    source : str
        Where the survey says so.
    """

    bits: dict[int, str] | None
    source: str

    def find_bad(self, mask: Integer[np.ndarray, "*pixel"]) -> Bool[np.ndarray, "*pixel"]:
        """Pixels that carry a bad bit."""
        if self.bits is None:
            return mask != 0
        return (mask.astype(np.int64) & sum(1 << digit for digit in self.bits)) != 0


APOGEE_PIXMASK = BadBits(
    {
        0: "BADPIX", 1: "CRPIX", 2: "SATPIX", 3: "UNFIXABLE", 4: "BADDARK", 5: "BADFLAT",
        6: "BADERR", 7: "NOSKY", 14: "NOT_ENOUGH_PSF", 16: "INACTIVE_PIXEL", 24: "BAD_EXTRACTION",
    },
    "PixelBitMask of the APOGEE reduction pipelines (bitmask.py of github.com/sdss/apogee and "
    "apogee_drp): the bits of level 1, 16 and 24 by the latter, of SDSS-V. Persistence, Littrow "
    "ghost and nearness to sky and telluric lines are of level 0",
)  # fmt: skip

SDSS_SPPIXMASK = BadBits(
    {18: "FULLREJECT", 22: "NOSKY", 23: "BRIGHTSKY", 25: "COMBINEREJ"},
    "https://www.sdss3.org/dr10/algorithms/bitmask_sppixmask.php: what is very bad has no weight "
    "already; BRIGHTSKY is the bit to look at; NODATA is to be ignored",
)

DESI_SPECMASK = BadBits(
    {
        1: "ALLBADPIX", 3: "LOWFLAT", 4: "BADFIBERFLAT", 6: "BADSKY", 7: "BAD2DFIT", 8: "NODATA",
        9: "BADFIBER",
    },
    "specmask of desispec (py/desispec/maskbits.py), https://desidatamodel.readthedocs.io/en/"
    "latest/bitmasks.html. SOMEBADPIX and COSMIC: the other CCD pixels carry the flux",
)  # fmt: skip

LAMOST_MASK = BadBits(
    None,
    "https://www.lamost.org/public/dr/algorithms/ff: the AND mask marks pixels that are bad in all "
    "exposures. What its single bits mean could not be checked",
)

ESO_QUAL = BadBits(
    None,
    "QUAL of ESO's Science Data Products (ESO-044286): 0 is good. The consortium's simulator sets "
    "1 where a cosmic ray hit (github.com/jkrogager/py4most, qmost_etc.py)",
)


def to_integers(mask: np.ndarray) -> Integer[np.ndarray, "*pixel"]:
    """A mask as int64; the highest bit of a signed integer is a bit like the others."""
    mask = np.asarray(mask)
    if mask.dtype.kind == "i" and mask.dtype.itemsize < 8:
        mask = mask.astype(mask.dtype.newbyteorder("=")).view(f"u{mask.dtype.itemsize}")
    return mask.astype(np.int64)
