"""What samplers see of a fit: its log density in whitened coordinates, with a cheap force.

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
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from ..fitting import Fit
from ..model import Problem

# Scatter of log density minus expansion over Laplace draws up to which the expansion may drive.
# In 18 dimensions, a scatter of 0.7 halves the effective draws, at a third of the price of a draw.
_LARGEST_SCATTER = 0.6
_NUM_PROBES = 48


class Whitened(eqx.Module):
    """A problem's log density where its Laplace approximation is a standard normal."""

    problem: Problem
    center: Float64[Array, " parameter"]
    scale: Float64[Array, "parameter parameter"]
    pull: Float64[Array, " parameter"]
    curvature: Float64[Array, "parameter parameter"]
    exact_force: bool = eqx.field(static=True, default=False)

    def position(self, z: Float[Array, " parameter"]) -> Float64[Array, " parameter"]:
        """The problem's unbounded position."""
        return self.center + self.scale @ z

    def expansion(self, z: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """The log density with the likelihood expanded about the mode, up to a constant."""
        prior, position = self.problem.prior, self.position(z)
        values = prior.values(position)
        away = values - prior.values(self.center)
        likelihood = self.pull @ away - 0.5 * away @ self.curvature @ away
        return likelihood + prior.log_density(values) + prior.log_jacobian(position)

    def __call__(self, z: Float[Array, " parameter"]) -> Float64[Array, ""]:
        exact = self.problem.log_density(self.position(z))
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
    target = Whitened(
        problem=fit.problem,
        center=mode,
        scale=fit.laplace.scale(),
        pull=jnp.asarray(precision * (values - np.asarray(prior.mean)) - (1 - 2 * unit) / slope),
        curvature=jnp.asarray(hessian / slope / slope[:, None]),
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
    def difference(z):
        return target.problem.log_density(target.position(z)) - target.expansion(z)

    return jax.lax.map(difference, probes)
