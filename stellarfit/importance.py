"""Posteriors by importance: draws of the Gaussian at the mode, cut off by the boxes, weighted."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from .model import Problem
from .sampling.target import Whitened, whiten

_WEIGHED = 0.9  # of the draws, at least
_AT_ONCE = 8  # densities of a star; together with a chunk of stars they fill any GPU


class Weighted(NamedTuple):
    """Of a star, or with a leading axis of them.

    Attributes
    ----------
    samples
        Drawn again by their smoothed importance, so that all weigh the same.
    mean, sigma
        Of the weighted draws.
    k_hat
        Shape of the tail of the weights; above 0.7 they cannot be trusted.
    """

    samples: Float64[Array, "... draw parameter"]
    mean: Float64[Array, "... parameter"]
    sigma: Float64[Array, "... parameter"]
    k_hat: Float64[Array, "..."]


def log_ratios(
    target: Whitened, normal: Float64[Array, "draw parameter"]
) -> Float64[Array, " draw"]:
    """Log density over that of the standard normal, up to a constant; -inf where it has none."""
    density = jax.lax.map(target.exact, normal, batch_size=_AT_ONCE)
    ratio = density + 0.5 * jnp.sum(normal**2, axis=1)
    return jnp.where(jnp.isfinite(ratio), ratio, -jnp.inf)


def draw_and_weigh(
    problem: Problem, values: Float[Array, " parameter"], key: PRNGKeyArray, num: int, kept: int
) -> Weighted:
    """Draws about a mode, their Pareto-smoothed importance, and k-hat.

    Parameters
    ----------
    values
        The mode.
    num, kept
        Draws that are weighed, and how many are drawn of these.
    """
    from blackjax.diagnostics import psis_weights

    target = whiten(problem, values)
    # More draws are other draws, so that their k-hat is another look.
    first, second = jax.random.split(jax.random.fold_in(key, num))
    normal = jax.random.normal(first, (num, len(values)), jnp.float64)
    ratio = log_ratios(target, normal)
    log_weight, k_hat = psis_weights(ratio)
    weight = jax.nn.softmax(log_weight)
    drawn = jax.vmap(target.values)(normal)
    mean = weight @ drawn
    sigma = jnp.sqrt(weight @ (drawn - mean) ** 2)
    # At equal steps through the weights: hardly any is drawn twice where they are about equal.
    share = jnp.cumsum(weight)
    marks = (jnp.arange(kept) + jax.random.uniform(second, dtype=jnp.float64)) / kept
    chosen = jnp.searchsorted(share, marks * share[-1])
    # The tail of a few weights tells nothing of draws without any.
    enough = jnp.mean(jnp.isfinite(ratio)) > _WEIGHED
    usable = enough & jnp.isfinite(k_hat) & jnp.isfinite(mean).all()
    return Weighted(drawn[chosen], mean, sigma, jnp.where(usable, k_hat, jnp.inf))
