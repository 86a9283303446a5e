"""Posteriors by importance: draws of the Gaussian at the mode, cut off by the boxes, weighted."""

import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, PRNGKeyArray, UInt32

from .fitting import Fit
from .flags import Flag
from .judge import Result
from .model import Problem
from .sampling.diagnostics import TRUSTED
from .sampling.target import whiten

_WEIGHED = 0.9  # of the draws, at least
_AT_ONCE = 8  # draws of a star; together with a chunk of stars they fill any GPU


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


@dataclass(frozen=True, eq=False, repr=False)
class Drawn:
    """A result with draws of its posterior.

    Attributes
    ----------
    fit
        What a row of a catalogue holds without them.
    samples, k_hat
        As of `Weighted`.
    """

    fit: Result
    samples: Float64[np.ndarray, "draw parameter"]
    k_hat: float

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return self.fit.names

    @property
    def flags(self) -> Flag:
        """``poor_draws``, if these cannot be trusted."""
        return Flag.POOR_DRAWS if self.k_hat > TRUSTED else Flag(0)


def draw_and_weigh(
    problem: Problem, values: Float[Array, " parameter"], key: PRNGKeyArray, num: int
) -> Weighted:
    """Draws about a mode, their Pareto-smoothed importance, and k-hat.

    Parameters
    ----------
    values
        The mode.
    num
        Draws.
    """
    from blackjax.diagnostics import psis_weights

    target = whiten(problem, values)
    first, second = jax.random.split(key)
    normal = jax.random.normal(first, (num, len(values)), jnp.float64)
    density = jax.lax.map(target.exact, normal, batch_size=_AT_ONCE)
    ratio = density + 0.5 * jnp.sum(normal**2, axis=1)
    log_weight, k_hat = psis_weights(jnp.where(jnp.isfinite(ratio), ratio, -jnp.inf))
    weight = jax.nn.softmax(log_weight)
    drawn = jax.vmap(target.values)(normal)
    mean = weight @ drawn
    sigma = jnp.sqrt(weight @ (drawn - mean) ** 2)
    chosen = jax.random.choice(second, num, (num,), p=weight)
    # The tail of a few weights tells nothing of draws without any.
    enough = jnp.mean(jnp.isfinite(ratio)) > _WEIGHED
    usable = enough & jnp.isfinite(k_hat) & jnp.isfinite(mean).all()
    return Weighted(drawn[chosen], mean, sigma, jnp.where(usable, k_hat, jnp.inf))


def star_keys(seed: int, flux: Float[np.ndarray, "star pixel"]) -> UInt32[np.ndarray, "star word"]:
    """Data of a random key for each star, which hangs on the seed and its flux alone."""
    numbers = [zlib.crc32(one.tobytes()) for one in flux]
    fold = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))
    return np.asarray(jax.random.key_data(fold(jnp.asarray(numbers, jnp.uint32))))


def draw_alone(fit: Fit, num: int, seed: int) -> Drawn:
    """Draws of the posterior of a star that was fitted by itself."""
    problem: Any = fit.problem
    (key,) = star_keys(seed, np.asarray(problem.flux)[None])
    found = _draw(problem, jnp.asarray(fit.values), jnp.asarray(key), num)
    return Drawn(fit, np.asarray(found.samples), float(found.k_hat))


@eqx.filter_jit
def _draw(problem, values, key, num):
    return draw_and_weigh(problem, values, jax.random.wrap_key_data(key), num)
