"""The Gaussian that chains start from and that whitens their coordinates."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from ..fitting import Fit
from ..model import Problem
from .expansion import jacobian, quadratic

# Of a path: corrections for each parameter that make up its curvature, and steps. With a tenth of
# the corrections a Gaussian of 20 dimensions, tied at a condition of 1e6, came out as a line.
_CORRECTIONS, _STEPS, _LINE_SEARCH = 2, 60, 30
_ELBO_DRAWS = 8
_FAR, _FARTHEST = 3.0, 1.0  # Laplace sigma from the mode, and unbounded units


class Start(NamedTuple):
    """A Gaussian of the parameters; the box that cuts it off is not part of it."""

    mean: Float64[Array, " parameter"]
    covariance: Float64[Array, "parameter parameter"]


def gauss_newton(problem: Problem, values: Float[Array, " parameter"]) -> Start:
    """By the slope and the curvature of the posterior at some values: pure, for batches.

    Where the data say nothing, a mode is anywhere, often on an edge. There the Gaussian is that of
    the box: about its middle, and so wide that it is nearly level inside.
    """
    prior = problem.prior
    columns = jacobian(problem, values)
    gradient, curvature = quadratic(problem, problem.noise.central, values, columns)
    width = prior.upper - prior.lower
    precision = curvature + prior.precision + jnp.diag(width**-2)
    gradient = gradient + prior.precision @ (prior.mean - values)
    gradient = gradient + (0.5 * (prior.lower + prior.upper) - values) / width**2
    # Labels differ by powers of ten: inverted with a diagonal of ones.
    unit = 1 / jnp.sqrt(jnp.diagonal(precision))
    covariance = jnp.linalg.inv(precision * unit[:, None] * unit) * unit[:, None] * unit
    covariance = 0.5 * (covariance + covariance.T)
    # A mean outside the box is the slope at its edge; the further, the less a parabola knows.
    mean = jnp.clip(values + covariance @ gradient, prior.lower - width, prior.upper + width)
    return Start(mean, covariance)


def pathfinder(fit: Fit, key: PRNGKeyArray) -> Start:
    """By BlackJAX's Pathfinder (Zhang et al. 2022): a quasi-Newton search from off the mode.

    Of the Gaussians along its path, made of the gradients passed, the one nearest to the posterior.
    """
    away_key, path_key = jax.random.split(key)
    away = _FAR * (fit.laplace.draws(away_key, 1)[0] - fit.laplace.mode)
    place = fit.laplace.mode + jnp.clip(away, -_FARTHEST, _FARTHEST)
    mean, covariance = _follow(fit.problem, place, path_key)
    return Start(mean, covariance)


@eqx.filter_jit
def _follow(problem, place, key):
    from blackjax.optimizers.lbfgs import lbfgs_inverse_hessian_formula_1
    from blackjax.vi import pathfinder

    # Typed loosely: the library annotates arrays as floats.
    approximate: Any = pathfinder.approximate
    found, _ = approximate(
        key,
        _in_turn(problem),
        place,
        _ELBO_DRAWS,
        maxiter=_STEPS,
        maxcor=_CORRECTIONS * len(place),
        maxls=_LINE_SEARCH,
    )
    covariance = lbfgs_inverse_hessian_formula_1(found.alpha, found.beta, found.gamma)
    slope = problem.prior.slope(found.position)
    return problem.prior.values(found.position), slope[:, None] * covariance * slope


def _in_turn(problem: Problem) -> Callable[[Array], Array]:
    """Its density, batches of which are evaluated one by one: Pathfinder asks for hundreds."""
    arrays, rest = eqx.partition(problem, eqx.is_array)

    def density(arrays, position):
        return eqx.combine(arrays, rest).log_density(position)

    # Arrays are passed, not closed over: such functions allow no tracers inside.
    value = jax.custom_vjp(jax.custom_batching.sequential_vmap(density))
    value.defvjp(
        jax.value_and_grad(density, argnums=1), lambda gradient, change: (None, change * gradient)
    )
    return partial(value, arrays)
