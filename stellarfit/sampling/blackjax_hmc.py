"""Hamiltonian Monte Carlo with trajectories of random length, by BlackJAX.

In whitened coordinates the mass matrix is the Laplace covariance. Lengths that vary keep a
trajectory from coming back to where it began; drawn beforehand, they are the same for all chains
of a batch, which then never wait for each other, as those of a no-U-turn sampler do.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray

from .base import AbstractSampler, Draw, State, start_adaptation, transition

# Leapfrogs of a trajectory, the longest: four of the usual step go half way round a standard
# normal, and lengths from 1 to this have that mean.
LONGEST = 7
_ACCEPTANCE = 0.7


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
    from blackjax.mcmc import hmc

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


def draw_lengths(key: PRNGKeyArray, num: int) -> Int[Array, " transition"]:
    """Leapfrogs of each of so many transitions, for all chains of a batch."""
    return jax.random.randint(key, (num,), 1, LONGEST + 1)


def run_chains(
    target: Any,
    initial: Float64[Array, "chain parameter"],
    key: PRNGKeyArray,
    lengths: Int[Array, " transition"],
    num_warmup: int,
) -> Draw:
    """Chains of one star that share a step size, [draw, chain, ...]: pure, for batches of stars.

    Parameters
    ----------
    target
        Callable equinox module: position to log density.
    lengths
        Of `draw_lengths`; those of the warm-up, in which the step size is adapted, come first.
    num_warmup
        Transitions that are not in the result.
    """

    def one(carry, inputs):
        states, adaptation = carry
        i, length = inputs
        keys = jax.random.split(jax.random.fold_in(key, i), len(initial))

        def step(states, step_size):
            return jax.vmap(lambda key, state: move(target, key, state, step_size, length))(
                keys, states
            )

        return transition(step, states, adaptation, i, num_warmup, _ACCEPTANCE)

    states = State(initial, *jax.vmap(jax.value_and_grad(target))(initial))
    start = states, start_adaptation(initial.shape[1])
    _, draws = jax.lax.scan(one, start, (jnp.arange(len(lengths)), lengths))
    return jax.tree.map(lambda array: array[num_warmup:], draws)
