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
So where the posterior is close to the quadratic expansion of its likelihood, the expansion drives
the trajectories (exact prior, exact bounds), and the model is evaluated once a leapfrog, without
derivatives. The samples are those of the exact posterior in either case.
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
    expanded_at, pull, curvature
        Where the log likelihood is expanded, its gradient there and minus its Hessian.
    """

    problem: Problem
    origin: Float64[Array, " parameter"]
    order: Int[Array, " parameter"]
    scale: Float64[Array, "parameter parameter"]
    expanded_at: Float64[Array, " parameter"]
    pull: Float64[Array, " parameter"]
    curvature: Float64[Array, "parameter parameter"]
    exact_force: bool = eqx.field(static=True, default=False)

    def values(self, z: Float[Array, " parameter"]) -> Float64[Array, " parameter"]:
        """The parameters, inside their boxes."""
        return self._build_up(z)[0]

    def _build_up(self, z):
        """Values, and the log of the volume that z takes up among them."""
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
        _, (values, log_slopes) = jax.lax.scan(add, jnp.zeros_like(z), rows)
        return jnp.zeros_like(values).at[order].set(values), jnp.sum(log_slopes)

    def expansion(self, z: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """The log density with the likelihood expanded about the mode, up to a constant."""
        values, log_volume = self._build_up(z)
        away = values - self.expanded_at
        likelihood = self.pull @ away - 0.5 * away @ self.curvature @ away
        return likelihood + self.problem.prior.log_density(values) + log_volume

    def exact(self, z: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """The log density."""
        values, log_volume = self._build_up(z)
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
    prior, mode = fit.problem.prior, fit.laplace.mode
    slope, values = np.asarray(prior.slope(mode)), np.asarray(prior.values(mode))
    unit = np.asarray(jax.nn.sigmoid(mode))
    precision = np.asarray(prior.precision)
    # Undo what prior and bounds add to the curvature; at the mode their pull balances the data's.
    hessian = np.linalg.inv(np.asarray(fit.laplace.covariance))
    hessian -= np.diag(slope**2 * precision + 2 * unit * (1 - unit))
    curvature = hessian / slope / slope[:, None]

    lower, upper = np.asarray(prior.lower), np.asarray(prior.upper)
    # What the data leave open has the variance of its box.
    box = 12 / (upper - lower) ** 2
    covariance = np.linalg.inv(curvature + np.diag(precision + box))
    margin = _EDGE * (upper - lower)
    origin = np.clip(fit.values, lower + margin, upper - margin)
    room = np.minimum(origin - lower, upper - origin) / np.sqrt(np.diagonal(covariance))
    order = np.argsort(room)
    target = Whitened(
        problem=fit.problem,
        origin=jnp.asarray(origin),
        order=jnp.asarray(order),
        scale=jnp.asarray(np.linalg.cholesky(covariance[np.ix_(order, order)])),
        expanded_at=jnp.asarray(values),
        pull=jnp.asarray(precision * (values - np.asarray(prior.mean)) - (1 - 2 * unit) / slope),
        curvature=jnp.asarray(curvature),
    )
    probes = jax.random.normal(key, (_NUM_PROBES, len(slope)), jnp.float64)
    difference = np.asarray(_differences(target, probes))
    # The expansion is judged where the posterior is: far draws count by their true density.
    weight = np.exp(np.clip(difference - np.median(difference), -20, 3))
    center = np.average(difference, weights=weight)
    scatter = np.sqrt(np.average((difference - center) ** 2, weights=weight))
    good = bool(scatter <= _LARGEST_SCATTER)
    return target if good else replace(target, exact_force=True)


@eqx.filter_jit
def _differences(target, probes):
    return jax.lax.map(lambda z: target.exact(z) - target.expansion(z), probes)
