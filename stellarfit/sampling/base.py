"""The contract of a sampler, and the loop that runs any of them.

A sampler is one transition: from a state and a step size to the next state and a `Draw`. Everything
else (chains, step-size adaptation, seeds, progress) is done here, once, so that two backends differ
in nothing but the transition. Targets are given in whitened coordinates, where the Laplace
approximation is a standard normal: the inverse mass matrix is the identity there, that is the
Laplace covariance in the coordinates of the problem, and needs no adaptation.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Key, PRNGKeyArray

# Dual averaging (Hoffman & Gelman 2014), shrunk towards the first guess itself: whitened targets
# need no search over orders of magnitude.
_GAMMA, _DELAY, _KAPPA = 0.05, 10.0, 0.75
_LONGEST_CHUNK = 10
TARGET_ACCEPTANCE = 0.65  # `run` says why

# Three leapfrogs of the usual step go half way round a standard normal, which is where a no-U-turn
# trajectory ends anyway. Where the step falls just short of that, NUTS doubles on, past the far
# side and back, at up to ten times the cost and for no gain: measured in 6 and 18 dimensions, with
# and without a bend, two doublings gave the most effective draws a gradient.
MAX_DOUBLINGS = 2


class Draw(NamedTuple):
    """One transition of one chain."""

    position: Float[Array, "*batch parameter"]
    log_density: Float[Array, "*batch"]
    energy: Float[Array, "*batch"]
    diverging: Bool[Array, "*batch"]
    num_leapfrogs: Int[Array, "*batch"]
    acceptance: Float[Array, "*batch"]


class State(NamedTuple):
    """Where a chain is: position, log density and its gradient."""

    position: Float[Array, "*batch parameter"]
    log_density: Float[Array, "*batch"]
    gradient: Float[Array, "*batch parameter"]


class AbstractSampler(eqx.Module):
    """A Markov transition that leaves a density invariant.

    A new backend implements `step` and passes ``tests/test_sampling.py``.
    """

    name: eqx.AbstractClassVar[str]

    @abstractmethod
    def step(
        self, target: Any, key: PRNGKeyArray, state: State, step_size: Float[Array, ""]
    ) -> tuple[State, Draw]:
        """Make one transition.

        Parameters
        ----------
        target
            Callable equinox module: position to log density.
        key
            Randomness of this transition.
        state
            Of one chain.
        step_size
            Of the leapfrog integrator; the mass matrix is the identity.
        """


class Chains(NamedTuple):
    """What a run returns, [chain, draw, ...], warm-up excluded."""

    draws: Draw
    step_size: float
    warmup_leapfrogs: int


class Adaptation(NamedTuple):
    """Of a step size, by dual averaging."""

    log_step: Array
    log_average: Array
    error: Array
    center: Array


def run(
    sampler: AbstractSampler,
    target: Any,
    initial: Float64[Array, "chain parameter"],
    key: PRNGKeyArray,
    *,
    num_warmup: int,
    num_samples: int,
    target_acceptance: float = TARGET_ACCEPTANCE,
    progress: bool = False,
) -> Chains:
    """Run chains from `initial`: adapt one common step size, then sample with it.

    All chains share the step size and adapt it with their mean acceptance: four chains need a
    quarter of the warm-up. It aims at an acceptance of 0.65 only, because a mismatch between
    force and density costs acceptance that no smaller step brings back.

    Chains run one after another within a step on a processor: in lockstep each would wait for the
    longest trajectory, and one spectrum already fills it. On an accelerator they run together.
    """
    num_chains, num_parameters = initial.shape
    adaptation = start_adaptation(num_parameters)
    states = begin(target, initial)
    total = num_warmup + num_samples
    chunk = max(size for size in range(1, _LONGEST_CHUNK + 1) if total % size == 0)
    draws = []
    with _progress(progress, f"{sampler.name}, {num_chains} chains", total) as advance:
        for start in range(0, total, chunk):
            index = jnp.arange(start, start + chunk)
            keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), num_chains))(
                index
            )
            states, adaptation, part = advance_all(
                sampler, target, states, adaptation, index, keys,
                jnp.asarray(num_warmup), jnp.asarray(target_acceptance),
            )  # fmt: skip
            draws.append(jax.tree.map(np.asarray, part))
            advance(chunk)
    joined = jax.tree.map(lambda *parts: np.concatenate(parts).swapaxes(0, 1), *draws)
    return Chains(
        jax.tree.map(lambda array: array[:, num_warmup:], joined),
        float(jnp.exp(adaptation.log_average)),
        int(joined.num_leapfrogs[:, :num_warmup].sum()),
    )


@eqx.filter_jit
def begin(target: Any, initial: Float64[Array, "chain parameter"]) -> State:
    """The state of every chain at its first position."""
    log_density, gradient = _each_chain(jax.value_and_grad(target), initial)
    return State(initial, log_density, gradient)


@eqx.filter_jit
def advance_all(
    sampler: AbstractSampler,
    target: Any,
    states: State,
    adaptation: Adaptation,
    index: Int[Array, " transition"],
    keys: Key[Array, "transition chain"],
    num_warmup: Int[Array, ""],
    target_acceptance: Float[Array, ""],
) -> tuple[State, Adaptation, Draw]:
    """All chains by some transitions, draws [transition, chain, ...]; pure, for batches of stars.

    Parameters
    ----------
    index
        Of the transitions, from 0.
    keys
        Randomness of each.
    """

    def one_step(carry, inputs):
        states, adaptation = carry
        i, keys = inputs

        def step(states, step_size):
            return _each_chain(
                lambda pair: sampler.step(target, pair[0], pair[1], step_size), (keys, states)
            )

        return transition(step, states, adaptation, i, num_warmup, target_acceptance)

    (states, adaptation), draws = jax.lax.scan(one_step, (states, adaptation), (index, keys))
    return states, adaptation, draws


def transition(
    step: Callable[[State, Float[Array, ""]], tuple[State, Draw]],
    states: State,
    adaptation: Adaptation,
    index: Int[Array, ""],
    num_warmup: int | Int[Array, ""],
    target_acceptance: float | Float[Array, ""],
) -> tuple[tuple[State, Adaptation], Draw]:
    """One transition of all chains, with the step size that they share; adapts it in the warm-up.

    Parameters
    ----------
    step
        Moves all chains with a step size.
    index
        Of the transition, from 0.
    """
    warm = index < num_warmup
    log_step = jnp.where(warm, adaptation.log_step, adaptation.log_average)
    states, draw = step(states, jnp.exp(log_step))
    updated = adapt(adaptation, index + 1, target_acceptance - jnp.mean(draw.acceptance))
    adaptation = jax.tree.map(lambda new, old: jnp.where(warm, new, old), updated, adaptation)
    return (states, adaptation), draw


def _each_chain(function, chains):
    if jax.default_backend() == "cpu":
        return jax.lax.map(function, chains)
    return jax.vmap(function)(chains)


def start_adaptation(num_parameters: int) -> Adaptation:
    """With the step that is about right for a standard normal."""
    guess = jnp.log(1.6 * num_parameters**-0.25)
    return Adaptation(guess, guess, jnp.asarray(0.0), guess)


def adapt(adaptation: Adaptation, count: Int[Array, ""], error: Float[Array, ""]) -> Adaptation:
    """The step sizes after `count` transitions, the last of which fell short by `error`."""
    count = count.astype(jnp.float64)
    weight = 1 / (count + _DELAY)
    error = (1 - weight) * adaptation.error + weight * error
    log_step = adaptation.center - jnp.sqrt(count) / _GAMMA * error
    share = count**-_KAPPA
    log_average = share * log_step + (1 - share) * adaptation.log_average
    return Adaptation(log_step, log_average, error, adaptation.center)


@contextmanager
def _progress(show: bool, description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, or nothing; gives a function that advances it."""
    if not show:
        yield lambda count: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)
