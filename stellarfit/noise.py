"""The covariance of the residuals: a diagonal plus a few modes, never an N x N matrix.

    C = diag(variance) + modes modes^T          fixed: photons, emulator, model mismatch
    C + U diag(s) U^T                           after the continuum (columns U) is integrated out

How large the emulator's error is in this very star is known to a factor only, so the density is a
mixture over a few amplitudes of it.

Everything goes through the matrix inversion lemma (Woodbury) and the determinant lemma, in
float64. A masked pixel has inverse variance 0: it drops out of both sums.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as linalg
from jaxtyping import Array, Float, Float64


class Noise(eqx.Module):
    """A Gaussian on the good pixels with covariance diag(variance) + modes modes^T.

    Made by `Noise.build`. ``C^-1 x = w x - factor (factor^T x)`` with w the inverse variance.
    """

    inverse_variance: Float64[Array, " pixel"]
    factor: Float64[Array, "pixel mode"]
    log_det: Float64[Array, ""]
    num_good: Float64[Array, ""]

    @classmethod
    def build(
        cls, inverse_variance: Float[Array, " pixel"], modes: Float[Array, "pixel mode"]
    ) -> "Noise":
        """Precompute the inverse.

        Parameters
        ----------
        inverse_variance
            1/variance of each pixel; 0 masks it.
        modes
            Columns of the low-rank part, in the unit of the flux; zero columns do nothing.
        """
        weight = jnp.asarray(inverse_variance, jnp.float64)
        modes = jnp.asarray(modes, jnp.float64)
        good = weight > 0
        weighted = weight[:, None] * modes
        inner = jnp.eye(modes.shape[1]) + modes.T @ weighted
        lower = jnp.linalg.cholesky(inner)
        log_variance = -jnp.log(jnp.where(good, weight, 1.0))
        # A small inverse and a product: twice as quick as to solve for every pixel.
        inverse = linalg.solve_triangular(lower, jnp.eye(len(lower)), lower=True)
        return cls(
            inverse_variance=weight,
            factor=weighted @ inverse.T,
            log_det=jnp.sum(log_variance) + 2 * jnp.sum(jnp.log(jnp.diagonal(lower))),
            num_good=jnp.sum(good).astype(jnp.float64),
        )

    def solve(self, columns: Float[Array, "pixel column"]) -> Float64[Array, "pixel column"]:
        """C^-1 applied to columns."""
        columns = columns.astype(jnp.float64)
        direct = self.inverse_variance[:, None] * columns
        return direct - self.factor @ (self.factor.T @ columns)

    def chi2(self, residual: Float[Array, " pixel"]) -> Float64[Array, ""]:
        """residual^T C^-1 residual."""
        explained = self.factor.T @ residual
        return residual @ (self.inverse_variance * residual) - explained @ explained

    def log_density(
        self,
        residual: Float[Array, " pixel"],
        columns: Float[Array, "pixel column"],
        variance: Float[Array, " column"],
    ) -> Float64[Array, ""]:
        """Log of the normal density with the amplitudes of `columns` integrated out.

        Parameters
        ----------
        residual
            Data minus the model at the prior mean of the amplitudes.
        columns, variance
            The columns and the prior variances of their amplitudes.
        """
        num = columns.shape[1]
        both = jnp.concatenate([residual[:, None], columns], axis=1).astype(jnp.float64)
        # Products with C^-1 alone are wanted, at half the price of what it makes of each column.
        explained = self.factor.T @ both
        products = both.T @ (self.inverse_variance[:, None] * both) - explained.T @ explained
        scale = jnp.sqrt(variance)
        inner = jnp.eye(num) + scale[:, None] * products[1:, 1:] * scale[None, :]
        lower = jnp.linalg.cholesky(inner)
        half = linalg.solve_triangular(lower, scale * products[1:, 0], lower=True)
        quadratic = products[0, 0] - half @ half
        log_det = self.log_det + 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))
        return -0.5 * (quadratic + log_det + self.num_good * jnp.log(2 * jnp.pi))


class NoiseMixture(eqx.Module):
    """A few Gaussians, one for each amplitude of an error that is known to a factor only.

    Parameters
    ----------
    components
        Every leaf with a leading axis of the amplitudes.
    log_weight
        Of each.
    central
        The Gaussian at the most likely amplitude, for searches that need a single one.
    log_amplitude
        ln of that amplitude.
    """

    components: Noise
    log_weight: Float64[Array, " node"]
    central: Noise
    log_amplitude: Float64[Array, ""]

    @classmethod
    def single(cls, noise: Noise) -> "NoiseMixture":
        """Of one Gaussian."""
        components = jax.tree.map(lambda leaf: leaf[None], noise)
        return cls(components, jnp.zeros(1), noise, jnp.zeros(()))

    def log_density(
        self,
        residual: Float[Array, " pixel"],
        columns: Float[Array, "pixel column"],
        variance: Float[Array, " column"],
    ) -> Float64[Array, ""]:
        """See `Noise.log_density`."""
        each = jax.vmap(lambda noise: noise.log_density(residual, columns, variance))(
            self.components
        )
        return jax.nn.logsumexp(each + self.log_weight)
