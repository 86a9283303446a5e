"""Hamiltonian Monte Carlo with trajectories of random length, by BlackJAX.

In whitened coordinates the mass matrix is the Laplace covariance. Lengths that vary keep a
trajectory from coming back to where it began; drawn beforehand, they are the same for all chains
of a batch, which then never wait for each other, as those of a no-U-turn sampler do.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from blackjax.mcmc import hmc
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .base import AbstractSampler, Draw, State

# Leapfrogs of a trajectory, the longest: four of the usual step go half way round a standard
# normal, and lengths from 1 to this have that mean.
LONGEST = 7


class BlackJAXHMC(AbstractSampler):
    """One transition of ``blackjax.hmc`` over 1 to 7 leapfrogs."""

    name: ClassVar[str] = "blackjax-hmc"

    def step(
        self, target: Any, key: PRNGKeyArray, state: State, step_size: Float[Array, ""]
    ) -> tuple[State, Draw]:
        key, length_key = jax.random.split(key)
        length = jax.random.randint(length_key, (), 1, LONGEST + 1)
        return move(target, key, state, step_size, length)


def move(
    target: Any,
    key: PRNGKeyArray,
    state: State,
    step_size: Float[Array, ""],
    length: Int[Array, ""],
) -> tuple[State, Draw]:
    """One transition of so many leapfrogs."""
    kernel: Any = hmc.build_kernel()
    make_state: Any = hmc.HMCState
    after, info = kernel(
        key, make_state(*state), target, step_size, jnp.ones_like(state.position), length
    )
    # The library gives the energy of the trajectory's end, also where it was not accepted.
    start = 0.5 * jnp.sum(info.momentum**2) - state.log_density
    draw = Draw(
        position=after.position,
        log_density=after.logdensity,
        energy=jnp.where(info.is_accepted, info.energy, start),
        diverging=info.is_divergent,
        num_leapfrogs=jnp.asarray(info.num_integration_steps),
        acceptance=info.acceptance_rate,
    )
    return State(after.position, after.logdensity, after.logdensity_grad), draw
