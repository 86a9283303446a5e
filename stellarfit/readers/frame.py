"""Whose velocity the wavelengths are free of.

`v_rad` of a fit is the star's velocity in the frame of its wavelengths: relative to the solar
system's barycentre, the Sun, the telescope, or, where a survey has taken the star's own velocity
out, close to zero.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from emulators.units import SPEED_OF_LIGHT

FRAMES = ("barycentric", "heliocentric", "topocentric", "rest", "unknown")
# The FITS standard's names, https://fits.gsfc.nasa.gov/fits_standard.html (table 27).
_SPECSYS = {
    "BARYCENT": "barycentric",
    "HELIOCEN": "heliocentric",
    "TOPOCENT": "topocentric",
    "SOURCE": "rest",
}


def find_frame(header: Mapping[str, Any]) -> str:
    """The frame that the card ``SPECSYS`` names; "unknown" where there is none."""
    return _SPECSYS.get(str(header.get("specsys", "")).upper(), "unknown")


def to_barycentre(
    wavelength: Float[np.ndarray, "*pixel"], correction: float | int
) -> Float[np.ndarray, "*pixel"]:
    """Wavelengths of a topocentric spectrum, freed of the telescope's motion.

    Parameters
    ----------
    wavelength
        As measured at the telescope.
    correction
        Barycentric correction [km/s]: what is added to a measured velocity.
    """
    return wavelength * (1 + correction / SPEED_OF_LIGHT)
