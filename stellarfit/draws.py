"""Draws of the posterior of each star: by importance, or by chains where that fails."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt32

from .fitting import Fit
from .flags import Flag
from .importance import Weighted, draw_and_weigh
from .judge import Result
from .sampling.diagnostics import MIXED, TRUSTED, r_hat
from .short_chains import chain_lengths, walk

_MORE = 8  # times as many weights where few have a tail that looks heavy, which may be by chance


class Draws(NamedTuple):
    """Of stars; every field has a leading axis of them.

    Attributes
    ----------
    samples
        All weigh the same.
    mean, sigma
        Of the posterior: of all weighted draws, or of the whole chains.
    k_hat
        Shape of the tail of the weights; where it exceeded 0.7, of eight times as many weights.
        Where that does too, samples are those of chains, if the search found a maximum.
    r_hat
        Of these chains, of their worst parameter; NaN where there are none, or where one of them
        never moved.
    """

    samples: Float64[np.ndarray, "star draw parameter"]
    mean: Float64[np.ndarray, "star parameter"]
    sigma: Float64[np.ndarray, "star parameter"]
    k_hat: Float64[np.ndarray, " star"]
    r_hat: Float64[np.ndarray, " star"]


@dataclass(frozen=True, eq=False, repr=False)
class Drawn:
    """A result with draws of its posterior.

    Attributes
    ----------
    fit
        What a row of a catalogue holds without them.
    samples, k_hat, r_hat
        As of `Draws`.
    """

    fit: Result
    samples: Float64[np.ndarray, "draw parameter"]
    k_hat: float
    r_hat: float

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters."""
        return self.fit.names

    @property
    def flags(self) -> Flag:
        """``poor_draws``, if neither weights nor chains can be trusted."""
        fine = self.k_hat <= TRUSTED or self.r_hat <= MIXED
        return Flag(0) if fine else Flag.POOR_DRAWS


def draw_with(
    weigh: Callable[[Int[np.ndarray, " some"], int], Weighted],
    chains: Callable[[Int[np.ndarray, " some"]], Float64[np.ndarray, "..."]],
    settled: Bool[np.ndarray, " star"],
    num: int,
) -> Draws:
    """Draws of stars, by what is enough for each: few weights, many, chains.

    Parameters
    ----------
    weigh
        Gives draws of some stars by importance, of so many.
    chains
        Gives chains of some stars, [star, chain, draw, parameter].
    settled
        Of all stars: whether there is a maximum, without which chains have nowhere to begin.
    num
        Draws of each.
    """
    number = len(settled)
    samples, mean, sigma, k_hat = (np.array(part) for part in weigh(np.arange(number), num))
    poor = np.flatnonzero(~(k_hat <= TRUSTED))
    if len(poor):
        more = weigh(poor, _MORE * num)
        for whole, part in zip((samples, mean, sigma, k_hat), more, strict=True):
            whole[poor] = part
    worst = np.full(number, np.nan)
    poor = np.flatnonzero(settled & ~(k_hat <= TRUSTED))
    if len(poor):
        found = chains(poor)
        worst[poor] = [np.max(r_hat(star)) for star in found]
        # One chain after another: at equal steps, as many of each.
        joined = found.reshape(len(poor), -1, found.shape[-1])
        kept = np.linspace(0, joined.shape[1] - 1, num).round().astype(int)
        samples[poor] = joined[:, kept]
        mean[poor], sigma[poor] = joined.mean(axis=1), joined.std(axis=1)
    return Draws(samples, mean, sigma, k_hat, worst)


def star_keys(seed: int, flux: Float[np.ndarray, "star pixel"]) -> UInt32[np.ndarray, "star word"]:
    """Data of a random key for each star, which hangs on the seed and its flux alone."""
    numbers = [zlib.crc32(one.tobytes()) for one in flux]
    fold = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))
    return np.asarray(jax.random.key_data(fold(jnp.asarray(numbers, jnp.uint32))))


def draw_alone(fit: Fit, num: int, seed: int) -> Drawn:
    """Draws of the posterior of a star that was fitted by itself."""
    problem: Any = fit.problem
    (key,) = star_keys(seed, np.asarray(problem.flux)[None])
    star = problem, jnp.asarray(fit.values), jnp.asarray(key)
    lengths = chain_lengths(seed, num)
    settled = np.array([Flag.NOT_CONVERGED not in Flag(fit.flags)])

    def weigh(_, weighed):
        by = eqx.Partial(draw_and_weigh, num=weighed, kept=num)
        return jax.tree.map(lambda part: part[None], _draw(*star, by))

    def chains(_):
        return np.asarray(_draw(*star, eqx.Partial(walk, lengths=lengths)))[None]

    found = draw_with(weigh, chains, settled, num)
    return Drawn(fit, found.samples[0], float(found.k_hat[0]), float(found.r_hat[0]))


@eqx.filter_jit
def _draw(problem, values, key, by):
    return by(problem, values, jax.random.wrap_key_data(key))
