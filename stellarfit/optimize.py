"""Finding the maximum of a posterior: Levenberg-Marquardt with forward-mode Jacobians.

The continuum coefficients are solved exactly at every point (variable projection), so the search
runs over the labels and velocities alone. A step costs one Jacobian, columns of which are pushed
through emulator and instrument together.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float64, Int

from .model import Problem

# Positions are kept within +-8: there a value is within 0.03% of its box's edge.
LARGEST_POSITION = 8.0
# Change in sigma below which it is needless to freeze the noise anew.
SETTLED = 0.05
_LARGEST_STEP = 2.0
# Half the squared distance to the maximum, in posterior sigma: 0.01 sigma and 0.1 sigma.
_GOOD_ENOUGH = 5e-5
_ACCEPTABLE = 5e-3


class Curvature(NamedTuple):
    """The objective (minus log posterior) and its Gauss-Newton expansion at one position."""

    cost: Float64[Array, ""]
    gradient: Float64[Array, " parameter"]
    hessian: Float64[Array, "parameter parameter"]


class Optimum(NamedTuple):
    """Where a search ended."""

    position: Float64[Array, " parameter"]
    curvature: Curvature
    converged: Bool[Array, ""]
    steps: Int[Array, ""]


def objective(
    problem: Problem, position: Float[Array, " parameter"], bounded: Float[Array, ""]
) -> Float64[Array, ""]:
    """Minus the log posterior, with the continuum at its best value.

    `bounded` = 0 measures the density per unit of the labels, whose maximum is the usual MAP;
    1 measures it per unit of the position, which is what a sampler sees.
    """
    normalized = problem.star(problem.prior.values(position))
    coefficients = problem.coefficients(normalized)
    return _cost(problem, position, normalized, coefficients, bounded)


def curvature(
    problem: Problem, position: Float[Array, " parameter"], bounded: Float[Array, ""]
) -> Curvature:
    """The objective with gradient and Gauss-Newton Hessian, the continuum projected out."""
    prior = problem.prior
    values, slope = prior.values(position), prior.slope(position)

    def model(values):
        normalized = problem.star(values)
        return normalized, normalized

    jacobian, normalized = jax.jacfwd(model, has_aux=True)(values)
    coefficients = problem.coefficients(normalized)
    continuum = problem.continuum.basis @ coefficients
    residual = problem.flux - normalized * continuum
    columns = jnp.concatenate(
        [
            continuum[:, None] * jacobian * slope,
            normalized[:, None] * problem.continuum.basis,
            residual[:, None],
        ],
        axis=1,
    )
    normal = columns.T @ problem.noise.central.solve(columns)
    num, last = position.shape[0], columns.shape[1] - 1
    nuisance = normal[num:last, num:last] + jnp.diag(1 / problem.continuum.variance)
    coupling = normal[:num, num:last]
    hessian = normal[:num, :num] - coupling @ jnp.linalg.solve(nuisance, coupling.T)
    gradient = -normal[:num, last]
    gradient += slope * (prior.precision @ (values - prior.mean))
    gradient += bounded * (2 * jax.nn.sigmoid(position) - 1)
    spread = jax.nn.sigmoid(position) * jax.nn.sigmoid(-position)
    hessian += slope[:, None] * prior.precision * slope + jnp.diag(bounded * 2 * spread)
    cost = _cost(problem, position, normalized, coefficients, bounded)
    return Curvature(cost, gradient, hessian)


def _cost(problem, position, normalized, coefficients, bounded):
    residual = problem.flux - normalized * (problem.continuum.basis @ coefficients)
    pull = (coefficients - problem.continuum.mean) ** 2 / problem.continuum.variance
    return (
        0.5 * problem.noise.central.chi2(residual)
        + 0.5 * jnp.sum(pull)
        - problem.prior.log_density(problem.prior.values(position))
        - bounded * problem.prior.log_jacobian(position)
    )


class _Search(NamedTuple):
    position: Array
    curvature: Curvature
    damping: Array
    steps: Array
    stop: Array


def maximize(
    problem: Problem, position: Float[Array, " parameter"], bounded: float, max_steps: int
) -> Optimum:
    """Search from one position; compiled once for all problems of equal shapes.

    Parameters
    ----------
    position
        Where to start.
    bounded
        See `objective`.
    max_steps
        Trials before giving up; the first is the start itself, so 1 only measures there.
    """
    return _maximize(problem, position, jnp.asarray(bounded, jnp.float64), jnp.asarray(max_steps))


@eqx.filter_jit
def _maximize(problem, position, bounded, max_steps):
    def step(search):
        gradient, hessian = _active(search.position, search.curvature)
        damped = hessian + search.damping * jnp.diag(jnp.diagonal(hessian) + 1e-6)
        move = -jnp.linalg.solve(damped, gradient)
        move = move * jnp.minimum(1.0, _LARGEST_STEP / (jnp.max(jnp.abs(move)) + 1e-30))
        trial = jnp.clip(search.position + move, -LARGEST_POSITION, LARGEST_POSITION)
        # A Jacobian costs thirty times a spectrum, so it waits until the trial is accepted.
        better = objective(problem, trial, bounded) < search.curvature.cost
        new = jax.lax.cond(
            better,
            lambda: curvature(problem, trial, bounded),
            lambda: search.curvature,
        )
        position = jnp.where(better, trial, search.position)
        damping = jnp.where(better, search.damping * 0.1, jnp.maximum(search.damping, 1e-4) * 8)
        finished = _distance(position, new) < _GOOD_ENOUGH
        return _Search(position, new, damping, search.steps + 1, finished | (damping > 1e8))

    # The first trial is the start itself, against an infinite cost: one Jacobian to compile.
    num = position.shape[0]
    nowhere = Curvature(jnp.asarray(jnp.inf), jnp.zeros(num), jnp.eye(num))
    start = jnp.clip(position, -LARGEST_POSITION, LARGEST_POSITION)
    search = _Search(start, nowhere, jnp.asarray(1e-1), jnp.asarray(0), jnp.asarray(False))
    search = jax.lax.while_loop(
        lambda search: ~search.stop & (search.steps < max_steps), step, search
    )
    distance = _distance(search.position, search.curvature)
    # A search that never found a finite cost has gone nowhere.
    converged = (distance < _ACCEPTABLE) & jnp.isfinite(search.curvature.cost)
    return Optimum(search.position, search.curvature, converged, search.steps)


def _active(position, curvature):
    """Gradient and Hessian without the parameters that press against the edge of their box."""
    pressing = (jnp.abs(position) >= LARGEST_POSITION) & (curvature.gradient * position < 0)
    keep = jnp.where(pressing, 0.0, 1.0)
    hessian = curvature.hessian * keep[:, None] * keep[None, :]
    return curvature.gradient * keep, hessian + jnp.diag(1 - keep)


def _distance(position, curvature):
    """Predicted decrease of the objective by a full Newton step."""
    gradient, hessian = _active(position, curvature)
    hessian = hessian + 1e-9 * jnp.diag(jnp.diagonal(hessian) + 1e-9)
    return 0.5 * gradient @ jnp.linalg.solve(hessian, gradient)
