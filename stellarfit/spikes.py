"""Pixels far above the continuum: cosmic rays and emission, which no absorption spectrum has."""

import numpy as np
from jaxtyping import Bool, Float64

from .instrument import SPEED_OF_LIGHT

# The continuum about a pixel: this percentile of the flux within this many km/s on either side,
# wider than any line of a star that is fitted.
_PERCENTILE, _REACH = 95.0, 600.0
# A spike exceeds it by this factor and by as many sigma: noise and the blaze do neither.
_FACTOR, _SIGMA = 1.3, 8.0
# Its feet, which may lie below that factor, are the next pixels above the continuum by:
_FEET = 3.0


def find_spikes(
    wavelength: Float64[np.ndarray, " pixel"],
    flux: Float64[np.ndarray, " pixel"],
    ivar: Float64[np.ndarray, " pixel"],
    good: Bool[np.ndarray, " pixel"],
) -> Bool[np.ndarray, " pixel"]:
    """Which good pixels are spikes.

    Parameters
    ----------
    wavelength
        Ascending [Angstrom].
    flux, ivar, good
        As in `Spectrum`.
    """
    spikes = np.zeros(len(flux), bool)
    where = np.flatnonzero(good)
    velocity = np.log(wavelength[where]) * SPEED_OF_LIGHT
    centers = np.arange(velocity[0], velocity[-1] + _REACH / 4, _REACH / 4)
    first = np.searchsorted(velocity, centers - _REACH)
    last = np.searchsorted(velocity, centers + _REACH)
    some = last > first
    levels = [
        np.percentile(flux[where[a:b]], _PERCENTILE)
        for a, b in zip(first[some], last[some], strict=True)
    ]
    level = np.interp(velocity, centers[some], levels)
    excess = (flux[where] - level) * np.sqrt(ivar[where])
    high = (excess > _SIGMA) & (flux[where] > _FACTOR * level)
    beside = np.zeros_like(high)
    beside[1:] |= high[:-1]
    beside[:-1] |= high[1:]
    spikes[where] = high | (beside & (excess > _FEET))
    return spikes
