"""Pixels that the model describes badly: one fixed rule, the same for every star.

A synthesised spectrum lacks lines and has wrong line strengths, so real stars differ from every
model by more than their photon noise, in places by far. The rule looks at residuals only, never at
labels, and its two constants are the textbook ones:

1. The spread of the residuals is measured by their median absolute deviation; what it has in
   excess of the expected variance is a mismatch variance s^2 that all pixels share.
2. A pixel whose residual exceeds 2.5 of the then expected sigma has its error enlarged until it
   does not: its weight falls by (2.5 / z)^2. The pull of a badly modelled line on the labels
   therefore falls with the size of its misfit, as with a Student-t likelihood; under Huber's
   2.5 / |z| it would stay constant, and a missing line, a dozen pixels of one sign, still matter.

A misfit is shared by all pixels of a line. So where it enters the fit, s^2 is multiplied by the
pixels in a resolution element: a spectrum sampled ten times finer tells no more about its star.

Both are repeated with the fit until they settle. On data that the model explains, s^2 is zero and
the weights of one pixel in eighty change by a little.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

_LARGEST = 2.5  # sigma
_MAD_TO_SIGMA = 1.4826022185056018


class Mismatch(NamedTuple):
    """What the rule found: a variance [flux^2] and the factor on each pixel's weight."""

    variance: float
    weight: Float64[np.ndarray, " pixel"]

    def inverse_variance(
        self, variance: Float64[np.ndarray, " pixel"], element: float = 1.0
    ) -> Float64[np.ndarray, " pixel"]:
        """Weight of each pixel in the fit, from its expected variance.

        `element` is the number of pixels in a resolution element.
        """
        return self.weight / (variance + self.variance * max(element, 1.0))


def find_mismatch(
    residual: Float64[np.ndarray, " pixel"], variance: Float64[np.ndarray, " pixel"]
) -> Mismatch:
    """Apply the rule to the residuals of a fit.

    Parameters
    ----------
    residual
        Data minus model, good pixels only.
    variance
        Expected variance of each: photon noise and emulator.
    """
    z = residual / np.sqrt(variance)
    spread = (_MAD_TO_SIGMA * np.median(np.abs(z - np.median(z)))) ** 2
    # The median deviation of N pixels scatters by 1.17/sqrt(N): three times that is still noise.
    excess = spread - 1.0 if spread > (1 + 3.5 / np.sqrt(len(z))) ** 2 else 0.0
    extra = excess * float(np.median(variance))
    size = np.abs(residual) / np.sqrt(variance + extra)
    return Mismatch(extra, (_LARGEST / np.maximum(size, _LARGEST)) ** 2)
