"""What samplers see of a fit: its log density in whitened coordinates, with a cheap force.

Coordinates
-----------
Every parameter lives in a box, and one that presses against an edge, or is tied to one that does,
or that the data leave open, is no longer Gaussian. So the parameters are built up one after
another, those nearest to an edge first: each is a Gaussian about its mean given the *values* of
those before it, cut off at the edges of its box, and its coordinate is the normal deviate of the
same quantile. Far from all edges this is the Cholesky factor of the covariance; at an edge the
others follow what the cut parameter really does; and an open one has a coordinate as normal as any.

The mean bends: it follows a ridge to second order in those before it, as the expanded model has
it. Where CO binds carbon, [C/Fe] rises along a parabola of a free [O/Fe], to ten times its
conditional sigma; chains in straight coordinates stick at its end.

Force
-----
A gradient of the posterior costs three to four times its value. NUTS does not need it: the leapfrog
map is reversible and keeps volume under *any* force that depends on the position alone, and every
weight it gives a state is the exact density. The force only decides how well energy is conserved.
So where the posterior is close to that of a model whose flux is expanded beyond first order, this
one drives the trajectories (exact prior, exact bounds), and the model is evaluated once a
leapfrog, without derivatives. The samples are those of the exact posterior in either case.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray

from ..fitting import Fit
from ..model import Problem
from .expansion import columns, expand, pairs, terms
from .start import Start, gauss_newton, pathfinder
from .truncated import truncate

# Scatter of log density minus expansion over Laplace draws up to which the expansion may drive.
# In 18 dimensions, a scatter of 0.7 halves the effective draws, at a third of the price of a draw.
_LARGEST_SCATTER = 0.6
_NUM_PROBES = 48
_EDGE = 1e-3  # of the width of the box: derivatives are taken that far inside


class Whitened(eqx.Module):
    """A problem's log density in coordinates z where it is about a standard normal.

    Attributes
    ----------
    origin
        Mean of the Gaussian, which may lie outside the box that cuts it off.
    order
        Parameters, those nearest to an edge of their box first.
    scale
        Cholesky factor of the covariance, in that order.
    middle
        Where the flux is expanded, in units of `scale` from the mean.
    bend
        Shift of each mean, in its sigma, by the products of all pairs of coordinates before it.
    offset, linear, gram
        Of every component of the noise, the expanded log likelihood is
        ``offset + linear @ t - t @ gram @ t / 2``, with t the terms of `expansion.terms`.
    """

    problem: Problem
    origin: Float64[Array, " parameter"]
    order: Int[Array, " parameter"]
    scale: Float64[Array, "parameter parameter"]
    middle: Float64[Array, " parameter"]
    bend: Float64[Array, "parameter pair"]
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
        """Straight coordinates, driven by the posterior's own force."""
        num = len(origin)
        straight = jnp.zeros(num), jnp.zeros((num, num * (num + 1) // 2))
        nothing = jnp.zeros(1), jnp.zeros((1, 0)), jnp.zeros((1, 0, 0))
        return cls(problem, origin, order, scale, *straight, *nothing, exact_force=True)

    @classmethod
    def about(cls, problem: Problem, start: Start) -> "Whitened":
        """With the coordinates of a Gaussian, driven by its own force."""
        prior, covariance = problem.prior, start.covariance
        room = jnp.minimum(start.mean - prior.lower, prior.upper - start.mean)
        order = jnp.argsort(room / jnp.sqrt(jnp.diagonal(covariance)))
        scale = jnp.linalg.cholesky(covariance[order][:, order])
        return cls.without_expansion(problem, start.mean, order, scale)

    def values(self, z: Float[Array, " parameter"]) -> Float64[Array, " parameter"]:
        """The parameters, inside their boxes."""
        return self._build_up(z)[0]

    def _build_up(self, z):
        """Values, the log of the volume that z takes up among them, and z without a box."""
        prior, order = self.problem.prior, self.order

        def add(standard, row):
            i, weights, sigma, coordinate, origin, lower, upper, bend = row
            mean = origin + weights @ standard
            before = jnp.where(jnp.arange(len(order)) < i, standard - self.middle, 0.0)
            bent = mean + sigma * (bend @ pairs(before))
            value, log_slope = truncate(coordinate, bent, sigma, lower, upper)
            return standard.at[i].set((value - mean) / sigma), (value, log_slope)

        rows = (
            jnp.arange(len(order)),
            jnp.tril(self.scale, -1),
            jnp.diagonal(self.scale),
            z,
            self.origin[order],
            prior.lower[order],
            prior.upper[order],
            self.bend,
        )
        standard, (values, log_slopes) = jax.lax.scan(add, jnp.zeros_like(z), rows)
        return jnp.zeros_like(values).at[order].set(values), jnp.sum(log_slopes), standard

    def expansion(self, z: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """The log density of the expanded model, up to a constant."""
        values, log_volume, standard = self._build_up(z)
        t = terms(standard - self.middle)
        each = self.offset + self.linear @ t - 0.5 * self.gram @ t @ t
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


def make_target(fit: Fit, key: PRNGKeyArray, start: str = "laplace") -> Whitened:
    """The target of a fit; probes whether the expansion is good enough to drive trajectories.

    Parameters
    ----------
    fit
        Of the star.
    key
        Randomness of the probes and of the path.
    start
        What whitens: ``"laplace"`` or ``"pathfinder"``.
    """
    if start == "laplace":
        bare = _whiten(fit.problem, jnp.asarray(fit.values))
    else:
        bare = Whitened.about(fit.problem, pathfinder(fit, jax.random.fold_in(key, 1)))
    target = with_expansion(bare)
    probes = jax.random.normal(key, (_NUM_PROBES, len(fit.values)), jnp.float64)
    difference = np.asarray(_differences(target, probes))
    # The expansion is judged where the posterior is: far draws count by their true density.
    weight = np.exp(np.clip(difference - np.median(difference), -20, 3))
    center = np.average(difference, weights=weight)
    scatter = np.sqrt(np.average((difference - center) ** 2, weights=weight))
    return target if bool(scatter <= _LARGEST_SCATTER) else replace(target, exact_force=True)


def with_expansion(target: Whitened) -> Whitened:
    """The same, bent along the expansion about its median, and driven by it."""
    problem, order, scale = target.problem, np.asarray(target.order), np.asarray(target.scale)
    place = np.asarray(_inside(problem.prior, target.values(jnp.zeros_like(target.origin))))
    directions = np.zeros_like(scale)
    directions[order] = scale  # [parameter, coordinate]
    every = columns(problem, place, directions)
    offset, linear, gram = expand(problem, jnp.asarray(place), jnp.asarray(every))
    middle = jnp.asarray(np.linalg.solve(directions, place - np.asarray(target.origin)))
    bend = _bend(
        problem.prior, directions, np.asarray(jnp.tensordot(jax.nn.softmax(offset), gram, 1))
    )
    return replace(
        target,
        middle=middle,
        bend=jnp.asarray(bend),
        offset=offset,
        linear=linear,
        gram=gram,
        exact_force=False,
    )


def _bend(prior, directions, gram):
    """How far a product of two coordinates moves the mean of one after them."""
    num = len(directions)
    width = np.asarray(prior.upper - prior.lower)
    precision = np.asarray(prior.precision) + np.diag(width**-2)
    curvature = gram[:num, :num] + directions.T @ precision @ directions
    pull = gram[:num, num : num + num * (num + 1) // 2]
    latest = np.triu_indices(num)[1]
    # The ones after it are integrated out, those before it are given.
    rows = [-np.linalg.solve(curvature[i:, i:], pull[i:])[0] for i in range(num)]
    return np.where(latest < np.arange(num)[:, None], np.stack(rows), 0.0)


def whiten(problem: Problem, values: Float[Array, " parameter"]) -> Whitened:
    """The target of a problem about some values, driven by its own force: pure, for batches."""
    prior = problem.prior

    def about(values, _):
        start = gauss_newton(problem, values)
        # The mode of what the data leave open is anywhere; its median is where the posterior is.
        median = Whitened.about(problem, start).values(jnp.zeros_like(values))
        return _inside(prior, median), start

    _, starts = jax.lax.scan(about, _inside(prior, values), length=2)
    return Whitened.about(problem, jax.tree.map(lambda array: array[-1], starts))


_whiten = eqx.filter_jit(whiten)


def _inside(prior, values):
    margin = _EDGE * (prior.upper - prior.lower)
    return jnp.clip(values, prior.lower + margin, prior.upper - margin)


@eqx.filter_jit
def _differences(target, probes):
    return jax.lax.map(lambda z: target.exact(z) - target.expansion(z), probes)
