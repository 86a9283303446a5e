"""Pixels far above the continuum: cosmic rays and emission, which no absorption spectrum has."""

from typing import Any

import numpy as np
from jaxtyping import Bool

from emulators.units import SPEED_OF_LIGHT

from .arms import Arms
from .spectrum import MaskBit, Spectrum

# The continuum about a pixel: this percentile of the flux within this many km/s on either side,
# wider than any line of a star that is fitted.
_PERCENTILE, _REACH = 95.0, 600.0
# A spike exceeds it by this factor and by as many sigma: noise and the blaze do neither.
_FACTOR, _SIGMA = 1.3, 8.0
# Its feet, which may lie below that factor, are the next pixels above the continuum by:
_FEET = 3.0


def without_spikes(spectrum: Any) -> Any:
    """The spectrum, or the arms, with the spikes of each marked ``SPIKE``."""
    if not isinstance(spectrum, Arms):
        return spectrum.masked(find_spikes(spectrum), MaskBit.SPIKE)
    spikes = {name: find_spikes(one) for name, one in spectrum.spectra.items()}
    return spectrum.masked(spikes, MaskBit.SPIKE)


def find_spikes(spectrum: Spectrum) -> Bool[np.ndarray, " pixel"]:
    """Which good pixels of a spectrum are spikes."""
    flux, spikes = spectrum.flux, np.zeros(len(spectrum), bool)
    where = np.flatnonzero(spectrum.good)
    if not where.size:
        return spikes
    velocity = np.log(spectrum.wavelength[where]) * SPEED_OF_LIGHT
    centers = np.arange(velocity[0], velocity[-1] + _REACH / 4, _REACH / 4)
    first = np.searchsorted(velocity, centers - _REACH)
    last = np.searchsorted(velocity, centers + _REACH)
    some = last > first
    levels = [
        np.percentile(flux[where[a:b]], _PERCENTILE)
        for a, b in zip(first[some], last[some], strict=True)
    ]
    level = np.interp(velocity, centers[some], levels)
    excess = (flux[where] - level) * np.sqrt(spectrum.ivar[where])
    high = (excess > _SIGMA) & (flux[where] > _FACTOR * level)
    beside = np.zeros_like(high)
    beside[1:] |= high[:-1]
    beside[:-1] |= high[1:]
    spikes[where] = high | (beside & (excess > _FEET))
    return spikes
