"""Posteriors by short chains of Hamiltonian Monte Carlo, where importance does not give them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray

from .importance import log_ratios
from .model import Problem
from .sampling.blackjax_hmc import draw_lengths, run_chains
from .sampling.target import whiten

CHAINS, _WARMUP, _KEPT = 4, 64, 192
_TRIALS = 32  # of the Gaussian, to begin with some of these by their importance


def chain_lengths(seed: int, num: int) -> Int[Array, " transition"]:
    """Leapfrogs of every transition, of all stars alike, for so many draws a star at least."""
    return draw_lengths(jax.random.key(seed), _WARMUP + max(_KEPT, -(-num // CHAINS)))


def walk(
    problem: Problem,
    values: Float[Array, " parameter"],
    key: PRNGKeyArray,
    lengths: Int[Array, " transition"],
) -> Float64[Array, "chain draw parameter"]:
    """Four chains about a mode, preconditioned by the covariance there.

    Parameters
    ----------
    values
        The mode.
    lengths
        Of `chain_lengths`.
    """
    target = whiten(problem, values)
    first, second, third = jax.random.split(jax.random.fold_in(key, 0), 3)
    trials = jax.random.normal(first, (_TRIALS, len(values)), jnp.float64)
    # Largest after Gumbel's noise: drawn by their importance, none twice.
    ratio = log_ratios(target, trials)
    _, begin = jax.lax.top_k(ratio + jax.random.gumbel(second, ratio.shape, jnp.float64), CHAINS)
    draws = run_chains(target, trials[begin], third, lengths, _WARMUP)
    return jax.vmap(jax.vmap(target.values))(draws.position).swapaxes(0, 1)
