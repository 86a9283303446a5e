"""A model whose flux is expanded about the most probable labels: its likelihood is a quartic of z.

First order would not do: lines saturate, so a posterior has a long tail towards weak ones.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from ..model import Problem
from ..noise import Noise

_STEP = 1.0  # sigma, over which the model's Jacobians are differenced


@eqx.filter_jit
def jacobian(
    problem: Problem, values: Float[Array, " parameter"]
) -> Float64[Array, "pixel parameter"]:
    """Of the normalised flux."""
    return jax.jacfwd(problem.star)(values)


def pairs(standard: Float[Array, " parameter"]) -> Float[Array, " pair"]:
    """The products of all pairs."""
    first, second = np.triu_indices(len(standard))
    return standard[first] * standard[second]


def terms(standard: Float[Array, " parameter"]) -> Float[Array, " term"]:
    """Each coordinate, the products of all pairs, and those of a square and a coordinate."""
    cubic = standard[:, None] ** 2 * standard
    return jnp.concatenate([standard, pairs(standard), cubic.ravel()])


def columns(
    problem: Problem,
    place: Float64[np.ndarray, " parameter"],
    directions: Float64[np.ndarray, "parameter coordinate"],
) -> Float64[np.ndarray, "pixel term"]:
    """What each of the terms adds to the normalised flux, by differences of Jacobians.

    A step along each direction, forward and back, gives all second derivatives and those third
    ones that have a direction twice.

    Parameters
    ----------
    problem
        Of the star.
    place
        About which the flux is expanded, inside the box.
    directions
        Change of the parameters for a unit of each coordinate.
    """
    lower, upper = np.asarray(problem.prior.lower), np.asarray(problem.prior.upper)
    here = np.asarray(jacobian(problem, jnp.asarray(place)))
    num = len(place)
    bends, twists = [], []
    for direction in directions.T:
        ends = []
        for step in (_STEP * direction, -_STEP * direction):
            with np.errstate(divide="ignore"):
                room = np.where(step > 0, upper - place, place - lower) / np.abs(step)
            share = min(1.0, float(np.min(room)))
            moved = np.asarray(jacobian(problem, jnp.asarray(place + share * step)))
            ends.append((_STEP * share, (moved - here) @ directions))
        (ahead, after), (behind, before) = ends
        # The parabola through three points: its slope and bend at the middle one.
        rise, fall = after / ahead, before / behind
        bends.append((behind * rise - ahead * fall) / (ahead + behind))
        twists.append((rise + fall) / (ahead + behind))
    bend = np.stack(bends)  # [coordinate, pixel, coordinate]
    first, second = np.triu_indices(num)
    share = np.where(first == second, 0.25, 0.5)
    square = (bend[first, :, second] + bend[second, :, first]) * share[:, None]
    # A Taylor series has 1/2 for z_i^2 z_j and 1/6 for z_i^3; `twists` are half the derivatives.
    cubic = np.stack(twists).transpose(0, 2, 1) * np.where(np.eye(num) > 0, 1 / 3, 1.0)[:, :, None]
    return np.hstack([here @ directions, square.T, cubic.reshape(num * num, -1).T])


@eqx.filter_jit
def expand(
    problem: Problem, values: Float[Array, " parameter"], columns: Float[Array, "pixel term"]
) -> tuple[Float64[Array, " node"], Float64[Array, "node term"], Float64[Array, "node term term"]]:
    """Of every component of the noise: weighted density at `values`, gradient and curvature."""
    normalized = problem.star(values)
    nuisance = normalized[:, None] * problem.continuum.basis
    residual = problem.flux - nuisance @ problem.continuum.mean

    def one(node):
        noise, log_weight = node
        density = noise.log_density(residual, nuisance, problem.continuum.variance)
        return log_weight + density, *quadratic(problem, noise, values, columns)

    return jax.lax.map(one, (problem.noise.components, problem.noise.log_weight))


def quadratic(
    problem: Problem,
    noise: Noise,
    values: Float[Array, " parameter"],
    columns: Float[Array, "pixel term"],
) -> tuple[Float64[Array, " term"], Float64[Array, "term term"]]:
    """Gradient and curvature by the amplitudes of `columns` of normalised flux, at `values`.

    The continuum is integrated out.
    """
    normalized = problem.star(values)
    coefficients = problem.coefficients(normalized)
    continuum = problem.continuum.basis @ coefficients
    nuisance = normalized[:, None] * problem.continuum.basis
    residual = problem.flux - normalized * continuum
    every = jnp.concatenate([continuum[:, None] * columns, nuisance, residual[:, None]], axis=1)
    normal = every.T @ noise.solve(every)
    num, last = columns.shape[1], every.shape[1] - 1
    coupling = normal[:num, num:last]
    inner = normal[num:last, num:last] + jnp.diag(1 / problem.continuum.variance)
    curvature = normal[:num, :num] - coupling @ jnp.linalg.solve(inner, coupling.T)
    # The coefficients are the best ones of the central amplitude, not of every other.
    pull = (coefficients - problem.continuum.mean) / problem.continuum.variance
    left = normal[num:last, last] - pull
    return normal[:num, last] - coupling @ jnp.linalg.solve(inner, left), curvature
