"""Pixels that the model describes badly: one fixed rule, the same for every star.

A synthesised spectrum has wrong line strengths and lacks lines, so real stars differ from every
model by more than their photon noise, in places by far. What is wrong is the list of lines: nearly
every log gf is off by its own amount. So the model is taken to miss the flux of pixel i by
``s |dF_i / d[M/H]|``, the effect of a scatter of s dex in log gf:

1. s is one number a star, found from the residuals alone, never from labels: it maximises the
   likelihood of a Student t with 4 degrees of freedom (Lange, Little & Taylor 1989), whose squared
   scale is the expected variance plus ``(s dF/d[M/H])^2``.
2. A pixel whose residual exceeds 2 of the then expected sigma has its error enlarged until it does
   not: its weight falls by (2 / z)^2. The pull of a line that is badly wrong, or missing, falls
   with the size of its misfit; under Huber's 2 / |z| it would stay constant.
3. The pixels of a line are wrong together. So where it enters the fit, ``(s dF/d[M/H])^2`` is
   multiplied by the pixels in three line widths, the width being that of the autocorrelation of
   dF/d[M/H]: a spectrum sampled ten times finer tells no more about its star.

All are repeated with the fit until they settle. On data that the model explains, s is zero and the
weights of one pixel in twenty change by a little.

How it was chosen
-----------------
On simulated stars only, by ``benchmarks/line_data_mismatch.py``: dwarfs, giants and metal-poor
stars synthesised with a line list of which every log gf was changed (by less where a line is
strong, with a heavy tail; a tenth of the lines much too strong in the list; molecules shifted as a
whole; some lines unknown to the model), by amounts that match the difference of the Gaia-ESO and
linemake lists for the same lines and the size of the residuals, not the labels, of the Sun. Rms
error over 64 stars at S/N 100, R = 47,000, all labels free, and in brackets the rms of error over
stated sigma, which should be 1:

=============================  ===========  ============  ============  ============  ============
rule                           teff         logg          vmic          [Fe/H]        [X/Fe]
=============================  ===========  ============  ============  ============  ============
none                           110 (18)     0.20 (16)     0.17 (17)     0.10 (16)     0.38 (17)
same variance for all pixels   66 (4.5)     0.12 (3.4)    0.11 (3.5)    0.08 (5.0)    0.18 (4.2)
that, and a test of the depth  66 (4.5)     0.12 (3.1)    0.12 (3.6)    0.09 (4.9)    0.15 (3.5)
this one                       67 (1.5)     0.12 (1.3)    0.09 (1.0)    0.08 (1.9)    0.12 (1.1)
=============================  ===========  ============  ============  ============  ============

What the rule can buy is mostly honest errors. [Fe/H] stays too sure because a list that is too
strong on the whole looks like a star that is metal-poor, which no residual shows. Priors of 0.1 or
0.2 dex on [X/Fe] did not help these stars, and [X/Fe] held at their true values made teff worse (95
K against 67 K for the Sun): free abundances absorb what the lines of an element have in common.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize_scalar

_LARGEST = 2.0  # sigma
_FREEDOM = 4.0
_LINE_WIDTHS = 3.0
_BOUNDS = (1e-3, 1.0)  # dex, for s


class Mismatch(NamedTuple):
    """What the rule found.

    Attributes
    ----------
    scatter
        Of log gf [dex]: s.
    variance
        Of each pixel [flux^2] as it enters the fit, shared within lines.
    weight
        Factor on each pixel's weight.
    """

    scatter: float
    variance: Float64[np.ndarray, " pixel"]
    weight: Float64[np.ndarray, " pixel"]

    def inverse_variance(
        self, variance: Float64[np.ndarray, " pixel"]
    ) -> Float64[np.ndarray, " pixel"]:
        """Weight of each pixel in the fit, from its expected variance."""
        return self.weight / (variance + self.variance)


def find_mismatch(
    residual: Float64[np.ndarray, " pixel"],
    variance: Float64[np.ndarray, " pixel"],
    sensitivity: Float64[np.ndarray, " pixel"],
    arms: Sequence[slice] = (slice(None),),
) -> Mismatch:
    """Apply the rule to the residuals of a fit.

    Parameters
    ----------
    residual
        Data minus model, good pixels only, in order of wavelength within each arm.
    variance
        Expected variance of each: photon noise and emulator.
    sensitivity
        Change of each pixel's flux for one dex in all line strengths.
    arms
        Pixels of each arm: the scatter is the star's, the line widths are an arm's own.
    """
    power = sensitivity**2

    def cost(log_scatter):
        total = variance + np.exp(2 * log_scatter) * power
        tail = np.log1p(residual**2 / (_FREEDOM * total))
        return np.sum(np.log(total) + (_FREEDOM + 1) * tail)

    lower, upper = np.log(_BOUNDS)
    best = minimize_scalar(cost, bounds=(lower, upper), method="bounded", options={"xatol": 1e-3})
    # Half the gain in -2 log likelihood must exceed 4.5, three sigma, to be more than noise.
    scatter = float(np.exp(best.x)) if cost(lower) - best.fun > 9 else 0.0
    shared = scatter**2 * power
    size = np.abs(residual) / np.sqrt(variance + shared)
    weight = (_LARGEST / np.maximum(size, _LARGEST)) ** 2
    for arm in arms:
        shared[arm] *= max(_LINE_WIDTHS * _line_width(sensitivity[arm]), 1.0)
    return Mismatch(scatter, shared, weight)


def _line_width(sensitivity):
    """Full width at half maximum [pixel] of the autocorrelation of the sensitivity."""
    centred = sensitivity - np.mean(sensitivity)
    power = np.abs(np.fft.rfft(centred, 2 * len(centred))) ** 2
    correlation = np.fft.irfft(power)[: len(centred)]
    below = np.flatnonzero(correlation < 0.5 * correlation[0])
    if not below.size:  # a constant sensitivity has no lines
        return 1.0
    right = below[0]
    left, half = correlation[right - 1], 0.5 * correlation[0]
    return 2 * (right - 1 + (left - half) / (left - correlation[right]))
