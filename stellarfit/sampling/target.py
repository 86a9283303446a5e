"""What samplers see of a fit: its log density in whitened coordinates, with a cheap force.

Coordinates
-----------
Every parameter lives in a box, and one that presses against an edge, or is tied to one that does,
is no longer Gaussian: in coordinates that stretch each box to infinity by itself its posterior has
a wall on one side, which trajectories hit as divergences. So the parameters are built up one after
another, those nearest to an edge first: each is drawn about its mean given the *values* of those
before it, and a smooth clamp with the width of that conditional keeps it in its box. Far from all
edges this is the Cholesky factor of the covariance; at an edge the others follow what the clamped
parameter really does.

Force
-----
A gradient of the posterior costs three to four times its value. NUTS does not need it: the leapfrog
map is reversible and keeps volume under *any* force that depends on the position alone, and every
weight it gives a state is the exact density. The force only decides how well energy is conserved.
So where the posterior is close to that of a model whose flux is expanded beyond first order, this
one drives the trajectories (exact prior, exact bounds), and the model is evaluated once a
leapfrog, without derivatives. The samples are those of the exact posterior in either case. First
order would not do: lines saturate, so a posterior has a long tail towards weak ones, and chains
that are driven by a parabola stick there.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray

from ..fitting import Fit
from ..model import Problem

# Scatter of log density minus expansion over Laplace draws up to which the expansion may drive.
# In 18 dimensions, a scatter of 0.7 halves the effective draws, at a third of the price of a draw.
_LARGEST_SCATTER = 0.6
_NUM_PROBES = 48
_STEP = 1.0  # sigma, over which the model's Jacobians are differenced
_EDGE = 1e-3  # of the width of the box: the coordinates' origin stays that far inside


class Whitened(eqx.Module):
    """A problem's log density in coordinates z where it is about a standard normal.

    Attributes
    ----------
    origin
        Values at z = 0.
    order
        Parameters, those nearest to an edge of their box first.
    scale
        Cholesky factor of the covariance, in that order.
    offset, linear, gram
        Of every component of the noise, the expanded log likelihood is
        ``offset + linear @ terms - terms @ gram @ terms / 2``, with the terms of `_terms`.
    """

    problem: Problem
    origin: Float64[Array, " parameter"]
    order: Int[Array, " parameter"]
    scale: Float64[Array, "parameter parameter"]
    offset: Float64[Array, " node"]
    linear: Float64[Array, "node term"]
    gram: Float64[Array, "node term term"]
    exact_force: bool = eqx.field(static=True, default=False)

    @classmethod
    def without_expansion(
        cls,
        problem: Problem,
        origin: Float[Array, " parameter"],
        order: Int[Array, " parameter"],
        scale: Float[Array, "parameter parameter"],
    ) -> "Whitened":
        """Driven by its own force."""
        nothing = jnp.zeros(1), jnp.zeros((1, 0)), jnp.zeros((1, 0, 0))
        return cls(problem, origin, order, scale, *nothing, exact_force=True)

    def values(self, z: Float[Array, " parameter"]) -> Float64[Array, " parameter"]:
        """The parameters, inside their boxes."""
        return self._build_up(z)[0]

    def _build_up(self, z):
        """Values, the log of the volume that z takes up among them, and z without clamps."""
        prior, order = self.problem.prior, self.order

        def add(standard, row):
            i, weights, sigma, coordinate, origin, lower, upper = row
            mean = origin + weights @ standard
            above = (mean + sigma * coordinate - lower) / sigma
            below = above - (upper - lower) / sigma
            value = lower + sigma * (jax.nn.softplus(above) - jax.nn.softplus(below))
            log_slope = jnp.log(sigma) - jax.nn.softplus(-above) - jax.nn.softplus(below)
            log_slope += jnp.log(-jnp.expm1((lower - upper) / sigma))
            return standard.at[i].set((value - mean) / sigma), (value, log_slope)

        rows = (
            jnp.arange(len(order)),
            jnp.tril(self.scale, -1),
            jnp.diagonal(self.scale),
            z,
            self.origin[order],
            prior.lower[order],
            prior.upper[order],
        )
        standard, (values, log_slopes) = jax.lax.scan(add, jnp.zeros_like(z), rows)
        return jnp.zeros_like(values).at[order].set(values), jnp.sum(log_slopes), standard

    def expansion(self, z: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """The log density of the expanded model, up to a constant."""
        values, log_volume, standard = self._build_up(z)
        terms = _terms(standard)
        each = self.offset + self.linear @ terms - 0.5 * self.gram @ terms @ terms
        likelihood = jax.nn.logsumexp(each)
        return likelihood + self.problem.prior.log_density(values) + log_volume

    def exact(self, z: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """The log density."""
        values, log_volume, _ = self._build_up(z)
        prior = self.problem.prior.log_density(values)
        return self.problem.log_likelihood(values) + prior + log_volume

    def __call__(self, z: Float[Array, " parameter"]) -> Float64[Array, ""]:
        exact = self.exact(z)
        if self.exact_force:
            return exact
        driven = self.expansion(z)
        return driven + jax.lax.stop_gradient(exact - driven)


def make_target(fit: Fit, key: PRNGKeyArray) -> Whitened:
    """The target of a fit; probes whether the expansion is good enough to drive trajectories."""
    prior = fit.problem.prior
    lower, upper = np.asarray(prior.lower), np.asarray(prior.upper)
    exact, jacobian = _whiten(fit.problem, jnp.asarray(fit.values))
    origin, num = np.asarray(exact.origin), len(fit.values)
    directions = np.zeros((num, num))
    directions[np.asarray(exact.order)] = np.asarray(exact.scale)  # [parameter, coordinate]
    higher = _higher_terms(fit.problem, origin, jacobian, directions, lower, upper)
    columns = np.hstack([np.asarray(jacobian) @ directions, higher])
    offset, linear, gram = _expand(fit.problem, exact.origin, jnp.asarray(columns))
    target = replace(exact, offset=offset, linear=linear, gram=gram, exact_force=False)
    probes = jax.random.normal(key, (_NUM_PROBES, num), jnp.float64)
    difference = np.asarray(_differences(target, probes))
    # The expansion is judged where the posterior is: far draws count by their true density.
    weight = np.exp(np.clip(difference - np.median(difference), -20, 3))
    center = np.average(difference, weights=weight)
    scatter = np.sqrt(np.average((difference - center) ** 2, weights=weight))
    return target if bool(scatter <= _LARGEST_SCATTER) else exact


def whiten(problem: Problem, values: Float[Array, " parameter"]) -> Whitened:
    """The target of a problem about some values, driven by its own force: pure, for batches."""
    return _whiten(problem, values)[0]


@eqx.filter_jit
def _whiten(problem, values):
    """The target, and the Jacobian of the normalised flux at its origin."""
    prior = problem.prior
    margin = _EDGE * (prior.upper - prior.lower)
    origin = jnp.clip(values, prior.lower + margin, prior.upper - margin)
    jacobian = _jacobian(problem, origin)
    curvature = _quadratic(problem, problem.noise.central, origin, jacobian)[1]
    # What data and prior leave open has the variance of its box.
    precision = curvature + prior.wide
    # Labels differ by powers of ten: inverted with a diagonal of ones.
    unit = 1 / jnp.sqrt(jnp.diagonal(precision))
    covariance = jnp.linalg.inv(precision * unit[:, None] * unit) * unit[:, None] * unit
    covariance = 0.5 * (covariance + covariance.T)
    room = jnp.minimum(origin - prior.lower, prior.upper - origin)
    order = jnp.argsort(room / jnp.sqrt(jnp.diagonal(covariance)))
    scale = jnp.linalg.cholesky(covariance[order][:, order])
    return Whitened.without_expansion(problem, origin, order, scale), jacobian


def _terms(standard):
    """Each coordinate, the products of all pairs, and those of a square and a coordinate."""
    first, second = np.triu_indices(len(standard))
    cubic = standard[:, None] ** 2 * standard
    return jnp.concatenate([standard, standard[first] * standard[second], cubic.ravel()])


def _higher_terms(problem, origin, jacobian, directions, lower, upper):
    """Columns [pixel, term] of the flux beyond first order, by differences of Jacobians.

    A step along each direction, forward and back, gives all second derivatives and those third
    ones that have a direction twice.
    """
    num = len(origin)
    bends, twists = [], []
    for direction in directions.T:
        ends = []
        for step in (_STEP * direction, -_STEP * direction):
            with np.errstate(divide="ignore"):
                room = np.where(step > 0, upper - origin, origin - lower) / np.abs(step)
            share = min(1.0, float(np.min(room)))
            moved = _jacobian(problem, jnp.asarray(origin + share * step))
            ends.append((_STEP * share, np.asarray(moved - jacobian) @ directions))
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
    return np.concatenate([square, cubic.reshape(num * num, -1)]).T


@eqx.filter_jit
def _jacobian(problem, values):
    """Of the normalised flux."""
    return jax.jacfwd(problem.star)(values)


@eqx.filter_jit
def _expand(problem, values, columns):
    """Of every component of the noise: weighted density at `values`, gradient and curvature."""
    normalized = problem.star(values)
    nuisance = normalized[:, None] * problem.continuum.basis
    residual = problem.flux - nuisance @ problem.continuum.mean

    def one(node):
        noise, log_weight = node
        density = noise.log_density(residual, nuisance, problem.continuum.variance)
        return log_weight + density, *_quadratic(problem, noise, values, columns)

    return jax.lax.map(one, (problem.noise.components, problem.noise.log_weight))


def _quadratic(problem, noise, values, columns):
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


@eqx.filter_jit
def _differences(target, probes):
    return jax.lax.map(lambda z: target.exact(z) - target.expansion(z), probes)
