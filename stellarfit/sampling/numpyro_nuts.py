"""The no-U-turn sampler of NumPyro."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.infer.hmc import hmc
from numpyro.infer.util import ParamInfo

from .base import MAX_DOUBLINGS, AbstractSampler, Draw, State


class NumPyroNUTS(AbstractSampler):
    """One transition of ``numpyro.infer.hmc`` with its own adaptation switched off."""

    name: ClassVar[str] = "numpyro"
    max_doublings: int = MAX_DOUBLINGS

    def step(
        self, target: Any, key: PRNGKeyArray, state: State, step_size: Float[Array, ""]
    ) -> tuple[State, Draw]:
        kernels: Any = hmc(potential_fn=lambda position: -target(position))
        init_kernel, sample_kernel = kernels
        # Potential and gradient are passed along, so setting up the kernel evaluates nothing.
        kernel_state = init_kernel(
            ParamInfo(state.position, -state.log_density, -state.gradient),
            num_warmup=0,
            step_size=step_size,
            inverse_mass_matrix=jnp.ones_like(state.position),
            adapt_step_size=False,
            adapt_mass_matrix=False,
            max_tree_depth=self.max_doublings,
            rng_key=key,
        )
        after = sample_kernel(kernel_state)
        draw = Draw(
            position=after.z,
            log_density=-after.potential_energy,
            energy=after.energy,
            diverging=after.diverging,
            num_leapfrogs=after.num_steps,
            acceptance=after.accept_prob,
        )
        return State(after.z, -after.potential_energy, -after.z_grad), draw
