"""How well a model describes a star: chi^2 against the degrees of freedom that the fit left.

A parameter with a prior uses up less than one degree of freedom. With the linear model y = J x + n,
noise covariance C and prior precision P of x, the fitted model is H y up to a constant, and

    E[chi^2] = tr(I - H) = pixels - p_eff,    p_eff = tr[(J^T C^-1 J + P)^-1 J^T C^-1 J]

exactly, over noise and prior: the data have covariance S = C + J P^-1 J^T and I - H = C S^-1, so
E[chi^2] = tr(S^-1 C C^-1 C S^-1 S) = tr(C S^-1). (p_eff is that of Spiegelhalter et al. 2002, J. R.
Stat. Soc. B 64, 583, for a linear model.) x holds labels, velocities and continuum coefficients
together. A box counts as a Gaussian of its variance; a parameter that lies on the edge of its box
is not fitted and uses up nothing (Meyer & Woodroofe 2000, Ann. Stat. 28, 1083: the degrees of
freedom of a constrained fit are the dimension of the face it ends on).

What the p-value can be trusted for
-----------------------------------
Pixels have to be independent but for what C says. Pixels that were resampled (a spectrum rebinned
to a common grid, co-added visits, a two-dimensional extraction) share noise with their neighbours:
chi^2 then scatters by more than that of as many independent pixels, and has another mean unless
the quoted errors are those of the resampled pixels, so p comes out too near to 0 or to 1. Errors
quoted 5% too small make chi^2 11% too large, which for 4,000 pixels is p = 1e-6. And C holds the
emulator's error at its expected amplitude, known to a factor only: where it exceeds the photon
noise, `Posterior.predictive` is the test, which draws that amplitude.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float64
from scipy.stats import chi2 as chi2_distribution

from .emulator_error import EmulatorError
from .model import Problem
from .noise import Noise

# The optimiser keeps positions where a value is within 0.03% of its box's edge; this is just wider.
_EDGE = 1e-3


class Goodness(NamedTuple):
    """chi^2, and its effective degrees of freedom."""

    chi2: float
    dof: float

    @property
    def p_value(self) -> float:
        """The chance of a chi^2 at least as large."""
        return float(chi2_distribution.sf(self.chi2, self.dof))


def measure_goodness(
    problem: Problem, values: Float64[Any, " parameter"], error: EmulatorError | None
) -> Goodness:
    """Compare data and model.

    Parameters
    ----------
    problem
        With the noise to be judged by; only its central Gaussian is used.
    values
        Of the free parameters, at the most probable ones; the continuum is at its best there.
    error
        The emulator's, at these values: it brings the model's derivatives.
    """
    by_free = None if error is None else error.by_free
    return Goodness(*map(float, _compiled(problem, jnp.asarray(values), by_free)))


def effective_parameters(
    noise: Noise,
    columns: Float[Array, "pixel parameter"],
    precision: Float[Array, "parameter parameter"],
) -> Float64[Array, ""]:
    """Degrees of freedom that a linear fit uses up, from 0 to the number of columns.

    Parameters
    ----------
    noise
        C.
    columns
        J, derivatives of the model by each parameter [flux per unit of the parameter].
    precision
        P, of the prior [per unit of the parameters squared]; positive definite.
    """
    information = columns.T @ noise.solve(columns)
    total = information + precision
    # Parameters differ by powers of ten: solved with a diagonal of ones.
    unit = 1 / jnp.sqrt(jnp.diagonal(total))
    scale = unit[:, None] * unit
    return jnp.trace(jnp.linalg.solve(total * scale, information * scale))


def chi2_and_dof(
    problem: Problem,
    values: Float[Array, " parameter"],
    by_free: Float[Array, "pixel parameter"] | None,
) -> tuple[Float64[Array, ""], Float64[Array, ""]]:
    """What `measure_goodness` makes of the model's derivatives; None has them taken here."""
    prior, basis = problem.prior, problem.continuum.basis
    normalized = problem.star(values)
    continuum = basis @ problem.coefficients(normalized)
    chi2 = problem.noise.central.chi2(problem.flux - normalized * continuum)
    unit = (values - prior.lower) / (prior.upper - prior.lower)
    fitted = (unit > _EDGE) & (unit < 1 - _EDGE)
    moves = by_free
    if moves is None:
        moves = jax.jacfwd(problem.star)(values) * continuum[:, None]
    smooth = jnp.diag(1 / problem.continuum.variance)
    precision = jax.scipy.linalg.block_diag(prior.wide, smooth)
    columns = jnp.concatenate([moves * fitted, normalized[:, None] * basis], axis=1)
    noise = problem.noise.central
    return chi2, noise.num_good - effective_parameters(noise, columns, precision)


_compiled = eqx.filter_jit(chi2_and_dof)
