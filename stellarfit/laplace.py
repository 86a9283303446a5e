"""The Gaussian at the maximum: covariance of the labels, and draws to start samplers from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, PRNGKeyArray

from .priors import Prior

# A curvature with eigenvalues spread wider than this has no inverse in float64 to speak of.
_WORST_CONDITION = 1e13


class Laplace(NamedTuple):
    """A Gaussian in the unbounded position.

    The bounded coordinates matter: a label that the data hardly constrain gets the spread of its
    box instead of an infinite error, and no draw can leave the box.
    """

    mode: Float64[Array, " parameter"]
    covariance: Float64[Array, "parameter parameter"]
    bad: bool

    def scale(self) -> Float64[Array, "parameter parameter"]:
        """Lower triangle L: position = mode + L z has this Gaussian for standard normal z."""
        return jnp.linalg.cholesky(self.covariance)

    def draws(self, key: PRNGKeyArray, num: int) -> Float64[Array, "draw parameter"]:
        """Positions drawn from the Gaussian."""
        noise = jax.random.normal(key, (num, self.mode.shape[0]), jnp.float64)
        return self.mode + noise @ self.scale().T

    def label_covariance(self, prior: Prior) -> Float64[np.ndarray, "parameter parameter"]:
        """Covariance of the values, by their slope at the mode."""
        slope = np.asarray(prior.slope(self.mode))
        return np.asarray(self.covariance) * slope[:, None] * slope[None, :]


def laplace(
    mode: Float[Array, " parameter"], hessian: Float[Array, "parameter parameter"]
) -> Laplace:
    """Invert the curvature by `invert`."""
    covariance, bad = jax.jit(invert)(jnp.asarray(hessian, jnp.float64))
    return Laplace(jnp.asarray(mode), covariance, bool(bad))


def invert(
    hessian: Float[Array, "parameter parameter"],
) -> tuple[Float64[Array, "parameter parameter"], Bool[Array, ""]]:
    """The covariance of a curvature, and whether it has none: then that of its positive part."""
    finite = jnp.isfinite(hessian).all()
    matrix = jnp.where(finite, hessian, jnp.eye(len(hessian)))
    # Scaling the diagonal to one keeps labels of very different leverage apart from rounding.
    scale = 1 / jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 1e-12))
    eigenvalues, vectors = jnp.linalg.eigh(matrix * scale[:, None] * scale[None, :])
    floor = eigenvalues[-1] / _WORST_CONDITION
    vectors = vectors * scale[:, None]
    covariance = (vectors / jnp.maximum(eigenvalues, floor)) @ vectors.T
    return 0.5 * (covariance + covariance.T), ~finite | (eigenvalues[0] <= floor)
