"""Draws from the expanded model, corrected to the posterior by importance: one spectrum a draw.

Chains of the expansion cost next to nothing, so they are thinned until a draw is nearly
independent; then the spectrum is evaluated once for each that is kept. Weights, the exact density
over the expansion's, are smoothed at their tail by a Pareto distribution (Vehtari et al. 2024),
whose shape k-hat tells whether they can be trusted, and draws repeated in proportion.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, PRNGKeyArray

from .base import Chains, run
from .numpyro_nuts import NumPyroNUTS
from .target import Whitened

NAME = "surrogate"
_THIN = 3


class Expansion(eqx.Module):
    """The density of the expanded model alone."""

    target: Whitened

    def __call__(self, z: Float[Array, " parameter"]) -> Float64[Array, ""]:
        return self.target.expansion(z)


def run_surrogate(
    target: Whitened,
    initial: Float64[Array, "chain parameter"],
    key: PRNGKeyArray,
    *,
    num_warmup: int,
    num_samples: int,
    progress: bool = False,
) -> tuple[Chains, float]:
    """What `run` returns, and k-hat.

    Parameters
    ----------
    target
        With an expansion, good or not.
    initial, key, num_warmup, num_samples, progress
        See `run`; the chains of the expansion are three times as long.
    """
    run_key, choice_key = jax.random.split(key)
    chains = run(
        NumPyroNUTS(),
        Expansion(target),
        initial,
        run_key,
        num_warmup=num_warmup,
        num_samples=_THIN * num_samples,
        progress=progress,
    )
    draws = jax.tree.map(lambda array: array[:, _THIN - 1 :: _THIN], chains.draws)
    exact = np.asarray(_densities(target, jnp.asarray(draws.position)))
    weights, k_hat = smooth(exact - draws.log_density)
    chosen = resample(weights, choice_key)
    draws = draws._replace(log_density=exact)
    rows = np.arange(len(chosen))[:, None]
    return chains._replace(draws=jax.tree.map(lambda array: array[rows, chosen], draws)), k_hat


def smooth(
    log_ratios: Float64[np.ndarray, "chain draw"],
) -> tuple[Float64[np.ndarray, "chain draw"], float]:
    """Pareto-smoothed weights, and k-hat, of all chains together."""
    from blackjax.diagnostics import psis_weights

    if not np.isfinite(log_ratios).all():
        return np.ones_like(log_ratios), float("nan")
    smoothed: Any = psis_weights(jnp.asarray(log_ratios.ravel()))
    log_weights, k_hat = smoothed
    return np.exp(np.asarray(log_weights)).reshape(log_ratios.shape), float(k_hat)


def resample(
    weights: Float64[np.ndarray, "chain draw"], key: PRNGKeyArray
) -> Int[np.ndarray, "chain draw"]:
    """Indices of draws, in their order, each as often as its weight in its chain says.

    In order, because then draws that repeat are neighbours, and effective sample sizes count them.
    """
    num = weights.shape[1]
    offsets = np.asarray(jax.random.uniform(key, (len(weights), 1), jnp.float64))
    marks = (np.arange(num) + offsets) / num
    share = np.cumsum(weights, axis=1)
    share /= share[:, -1:]
    return np.stack([np.searchsorted(*pair) for pair in zip(share, marks, strict=True)])


@eqx.filter_jit
def _densities(target, positions):
    return jax.lax.map(lambda chain: jax.lax.map(target.exact, chain), positions)
