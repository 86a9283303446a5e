"""How wrong an emulator is: a covariance over wavelength, measured on held-out spectra."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, ArrayLike, Float

from .errors import InputError

_STARS_A_MODE = 8


class ErrorModel(eqx.Module):
    """Second moments of an emulator's residuals: ``diag(variance) + modes modes^T``.

    Residuals are emulator minus truth in normalised flux. The moments are taken about zero,
    so a mean error counts as error.

    Parameters
    ----------
    wavelength
        Nominal grid of the training spectra, vacuum Angstrom.
    variance
        What the modes leave of each pixel's mean squared residual.
    modes
        Shared patterns of error, scaled so that their outer product is their covariance.
    """

    wavelength: Float[Array, " pixel"]
    variance: Float[Array, " pixel"]
    modes: Float[Array, "pixel mode"]

    @property
    def mse(self) -> float:
        """Mean over the pixels of the diagonal of the covariance."""
        return float(jnp.mean(self.variance) + jnp.sum(self.modes**2) / self.variance.size)

    def rounded(self) -> "ErrorModel":
        """The same with modes that float16 holds, so that its file is small.

        Every pixel keeps its mean square: the variance takes what rounding changes.
        """
        modes = self.modes.astype(jnp.float16).astype(self.modes.dtype)
        total = self.variance + jnp.sum(self.modes**2, axis=1)
        variance = jnp.maximum(total - jnp.sum(modes**2, axis=1), 0.0)
        return ErrorModel(self.wavelength, variance, modes)

    def covariance(self) -> Float[Array, "pixel pixel"]:
        """The dense matrix; for tests and small windows."""
        return jnp.diag(self.variance) + self.modes @ self.modes.T


def fit_error_model(
    residuals: Float[ArrayLike, "star pixel"],
    wavelength: Float[ArrayLike, " pixel"],
    num_modes: int = 160,
) -> ErrorModel:
    """Measure an error model on residuals of spectra that the training did not see.

    The modes are the strongest principal components of the residuals; the variance is set so
    that every pixel's mean square, and so the trace, is kept exactly.

    Parameters
    ----------
    residuals
        Emulator minus truth, normalised flux, one row a star.
    wavelength
        Nominal grid, vacuum Angstrom.
    num_modes
        Patterns to keep; never more than pixels or an eighth of the stars, or they would describe
        these stars and leave others no variance. How far an emulator's residuals move the labels
        of a star they were not measured on was twice what 16 modes say, 1.6 times at 64, 1.5 at
        128 and 1.4 with all (median over stars 1.6, 1.3, 1.1, 1.1; the shipped emulator, 1,152
        spectra).
    """
    residuals = np.asarray(residuals, np.float64)
    if residuals.ndim != 2 or residuals.shape[0] == 0:
        raise InputError(
            f"error_model: residuals have shape {residuals.shape}, expected [star, pixel]"
        )
    if not np.isfinite(residuals).all():
        raise InputError("error_model: residuals hold NaN or infinity; drop those spectra")
    num_stars, num_pixels = residuals.shape
    scaled = residuals / np.sqrt(num_stars)
    size = min(num_stars, num_pixels)
    count = min(num_modes, num_pixels, max(num_stars // _STARS_A_MODE, 1))
    # Eigenvectors of the smaller of the two Gram matrices give the leading singular vectors.
    gram = scaled @ scaled.T if num_stars <= num_pixels else scaled.T @ scaled
    _, vectors = scipy.linalg.eigh(gram, subset_by_index=(size - count, size - 1))
    vectors = vectors[:, ::-1]
    if num_stars <= num_pixels:
        modes = scaled.T @ vectors
    else:
        modes = vectors * np.linalg.norm(scaled @ vectors, axis=0)
    variance = np.maximum(np.sum(scaled**2, axis=0) - np.sum(modes**2, axis=1), 0.0)
    return ErrorModel(
        wavelength=jnp.asarray(wavelength, jnp.float64),
        variance=jnp.asarray(variance),
        modes=jnp.asarray(modes),
    )
