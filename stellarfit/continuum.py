"""The continuum: a polynomial that multiplies the model, with coefficients integrated out.

The model of the data is ``normalised flux * (T c)``, with Chebyshev polynomials T of the
wavelength and coefficients c. It is linear in c, so c has a Gaussian prior and is marginalised in
closed form: its columns join the covariance (see `stellarfit.noise`).
"""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64
from scipy.linalg import block_diag

from emulators.errors import InputError

# Prior widths of the coefficients in units of the level of the data: the level itself is free
# within a factor of a few, each shape within half the level. Data of S/N 100 fix both to better
# than a thousandth, so the widths are only there to keep the posterior proper.
_LEVEL_SIGMA = 3.0
_SHAPE_SIGMA = 0.5

# One polynomial degree for each stretch of this many Angstrom: stiff enough to leave strong lines
# (a few Angstrom of wing) alone, loose enough for a blaze or a flux calibration.
_ANGSTROM_PER_DEGREE = 70.0
_SMALLEST_DEFAULT = (
    2  # a short piece of a spectrum bends too, and a missed bend biases strong lines
)
_LARGEST_DEFAULT = 10


class Continuum(eqx.Module):
    """Chebyshev basis on the pixels, scaled to the level of the data, and its prior.

    Of several arms, one after another, the basis is block diagonal.
    """

    basis: Float64[Array, "pixel coefficient"]
    mean: Float64[Array, " coefficient"]
    variance: Float64[Array, " coefficient"]

    @classmethod
    def build(
        cls, wavelength: Float64[np.ndarray, " pixel"], level: float, degree: int | None = None
    ) -> "Continuum":
        """Basis of the given degree over the span of `wavelength`.

        Parameters
        ----------
        wavelength
            Of the pixels [vacuum Angstrom].
        level
            Rough continuum of the data, in the unit of the flux; coefficients are relative to it.
        degree
            Of the polynomial; by default one for every 70 Angstrom, from 2 to 10. 0 leaves only
            the level free.
        """
        low, high = float(wavelength.min()), float(wavelength.max())
        if degree is None:
            degree = default_degree(wavelength)
        if degree < 0:
            raise InputError(f"continuum_degree: {degree}; give 0 or more")
        x = 2 * (wavelength - low) / max(high - low, 1e-9) - 1
        sigma = np.r_[_LEVEL_SIGMA, np.full(degree, _SHAPE_SIGMA)]
        return cls(
            basis=jnp.asarray(level * np.polynomial.chebyshev.chebvander(x, degree)),
            mean=jnp.asarray(np.r_[1.0, np.zeros(degree)]),
            variance=jnp.asarray(sigma**2),
        )

    @classmethod
    def join(cls, parts: Sequence["Continuum"]) -> "Continuum":
        """Of several arms, pixels one after another: each has its own polynomial and level."""
        return cls(
            basis=jnp.asarray(block_diag(*(part.basis for part in parts))),
            mean=jnp.asarray(np.concatenate([part.mean for part in parts])),
            variance=jnp.asarray(np.concatenate([part.variance for part in parts])),
        )


def default_degree(wavelength: Float64[np.ndarray, " pixel"]) -> int:
    """The degree of `Continuum.build` where none is asked for."""
    span = float(np.ptp(wavelength)) / _ANGSTROM_PER_DEGREE
    return int(np.clip(np.ceil(span), _SMALLEST_DEFAULT, _LARGEST_DEFAULT))


def rough_level(flux: Float64[np.ndarray, " pixel"]) -> float:
    """The level of the continuum of good pixels, in the unit of the flux.

    Raises
    ------
    InputError
        It is not positive.
    """
    level = float(np.percentile(flux, 90))
    if not level > 0:
        raise InputError(
            f"flux: the 90th percentile of the good pixels is {level:g}; a spectrum to be "
            "fitted has a positive continuum"
        )
    return level
