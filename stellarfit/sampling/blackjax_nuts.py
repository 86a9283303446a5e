"""The no-U-turn sampler of BlackJAX."""

from typing import Any, ClassVar

import jax.numpy as jnp
from blackjax.mcmc import hmc, nuts
from jaxtyping import Array, Float, PRNGKeyArray

from .base import MAX_DOUBLINGS, AbstractSampler, Draw, State


class BlackJAXNUTS(AbstractSampler):
    """One transition of ``blackjax.nuts``."""

    name: ClassVar[str] = "blackjax"
    max_doublings: int = MAX_DOUBLINGS

    def step(
        self, target: Any, key: PRNGKeyArray, state: State, step_size: Float[Array, ""]
    ) -> tuple[State, Draw]:
        # Typed loosely: the library annotates arrays as floats.
        kernel: Any = nuts.build_kernel()
        make_state: Any = hmc.HMCState
        after, info = kernel(
            key,
            make_state(*state),
            target,
            step_size,
            jnp.ones_like(state.position),
            self.max_doublings,
        )
        draw = Draw(
            position=after.position,
            log_density=after.logdensity,
            energy=info.energy,
            diverging=info.is_divergent,
            num_leapfrogs=info.num_integration_steps,
            acceptance=info.acceptance_rate,
        )
        return State(after.position, after.logdensity, after.logdensity_grad), draw
