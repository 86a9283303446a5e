"""Finding the maximum of a posterior: Levenberg-Marquardt with forward-mode Jacobians.

The continuum coefficients are solved exactly at every point (variable projection), so the search
runs over the labels and velocities alone. A step costs one Jacobian, columns of which are pushed
through emulator and instrument together.

The usual mode is sought in the values themselves, straight to the edge of the box where it lies
there; the one that samplers see in their positions, which the box bends.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float64, Int

from .laplace import invert
from .model import Problem

# Positions are kept within +-8: there a value is within 0.03% of its box's edge.
LARGEST_POSITION = 8.0
# Change in sigma below which it is needless to freeze the noise anew.
SETTLED = 0.05
_AT_EDGE = LARGEST_POSITION - 1e-6
_LARGEST_STEP, _LARGEST_SHARE = 2.0, 0.4  # in positions; in values, of the width of the box
_HOLDING_ROUNDS = 4  # of what would leave the box at its edge
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
    """The objective with gradient and Gauss-Newton Hessian, the continuum projected out.

    With `bounded` the Hessian has how the box bends positions: against its edge a posterior falls
    off as fast as the likelihood, however well or badly the label is measured elsewhere.
    """
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
    gradient += bounded * jnp.tanh(0.5 * position)
    # At the mode, whose gradient by the values makes up for the bend of the box.
    box = 1 - 2 * _unit_slope(position)
    hessian += slope[:, None] * prior.precision * slope + jnp.diag(bounded * box)
    cost = _cost(problem, position, normalized, coefficients, bounded)
    return Curvature(cost, gradient, hessian)


def _unit_slope(position):
    """Of a place in the box, from 0 to 1, by the position."""
    return jax.nn.sigmoid(position) * jax.nn.sigmoid(-position)


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
        trial = _trial(search, bounded)
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


def _trial(search, bounded):
    """Where a damped step leads: in positions, or in values and no further than the box."""
    position = search.position
    gradient, hessian = _active(position, search.curvature)
    in_values = bounded == 0
    slope = jnp.where(in_values, _unit_slope(position), 1.0)
    gradient, hessian = gradient / slope, hessian / (slope[:, None] * slope)
    damped = hessian + search.damping * jnp.diag(jnp.diagonal(hessian) + 1e-6)
    edges = jax.nn.sigmoid(jnp.asarray([-LARGEST_POSITION, LARGEST_POSITION], jnp.float64))
    place = jax.nn.sigmoid(position)
    low, high = jnp.where(in_values, edges - place[:, None], jnp.asarray([-jnp.inf, jnp.inf])).T
    move = _solve_inside(damped, gradient, low, high)
    largest = jnp.where(in_values, _LARGEST_SHARE, _LARGEST_STEP)
    move = move * jnp.minimum(1.0, largest / (jnp.max(jnp.abs(move)) + 1e-30))
    place = jnp.clip(place + move, *edges)
    moved = jnp.where(in_values, jnp.log(place) - jnp.log1p(-place), position + move)
    return jnp.clip(moved, -LARGEST_POSITION, LARGEST_POSITION)


def _solve_inside(hessian, gradient, low, high):
    """The step to the minimum of a parabola, what would leave the box held at its edge."""
    held, at_edge = jnp.zeros(len(gradient), bool), jnp.zeros(len(gradient))
    for _ in range(_HOLDING_ROUNDS):
        free = jnp.where(held, 0.0, 1.0)
        matrix = hessian * free[:, None] * free + jnp.diag(1 - free)
        move = jnp.linalg.solve(matrix, -(gradient + hessian @ at_edge) * free) + at_edge
        leaves = (move < low) | (move > high)
        at_edge = jnp.where(leaves, jnp.clip(move, low, high), at_edge)
        held = held | leaves
    return jnp.clip(move, low, high)


def _active(position, curvature):
    """Gradient and Hessian without the parameters that press against the edge of their box."""
    pressing = (jnp.abs(position) >= _AT_EDGE) & (curvature.gradient * position < 0)
    keep = jnp.where(pressing, 0.0, 1.0)
    hessian = curvature.hessian * keep[:, None] * keep[None, :]
    return curvature.gradient * keep, hessian + jnp.diag(1 - keep)


def _distance(position, curvature):
    """Predicted decrease of the objective by a full Newton step."""
    gradient, hessian = _active(position, curvature)
    hessian = hessian + 1e-9 * jnp.diag(jnp.diagonal(hessian) + 1e-9)
    return 0.5 * gradient @ jnp.linalg.solve(hessian, gradient)


def moved(
    problem: Problem, before: Float[Array, " parameter"], after: Optimum
) -> Float64[Array, " parameter"]:
    """How far values are from those at a position, in sigma of an optimum with `bounded` = 0.

    In values, since a position may go far without its label moving, or hardly where it does.
    """
    prior = problem.prior
    sigma = jnp.sqrt(jnp.diagonal(invert(after.curvature.hessian)[0]))
    moves = prior.values(after.position) - prior.values(before)
    return jnp.abs(moves) / (prior.slope(after.position) * sigma)
