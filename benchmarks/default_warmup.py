"""The no-U-turn samplers of NumPyro and BlackJAX as they come: the control of `sampler_comparison`.

Unit mass matrix, window adaptation of step size and mass, trees of up to ten doublings, exact
gradients, in the unbounded position of `Prior`, which is the unconstrained space of
`stellarfit.stellar_model`. All chains in lockstep: what counts here is gradients, not seconds.
"""

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float64, Int, PRNGKeyArray

from stellarfit.model import Problem

_CHUNK = 5
# `numpyro.infer.init_to_uniform`, NumPyro's default.
_RADIUS = 2.0


class Control(NamedTuple):
    """What a control gave, [chain, step, ...], warm-up included."""

    values: Float64[np.ndarray, "chain step parameter"]
    leapfrogs: Int[np.ndarray, "chain step"]
    diverging: Bool[np.ndarray, "chain step"]


def uniform_start(
    key: PRNGKeyArray, num_chains: int, num_parameters: int
) -> Float64[Array, "chain parameter"]:
    """Unbounded positions where NumPyro starts by default."""
    shape = num_chains, num_parameters
    return jax.random.uniform(key, shape, jnp.float64, -_RADIUS, _RADIUS)


def run_numpyro(
    problem: Problem,
    start: Float64[Array, "chain parameter"],
    key: PRNGKeyArray,
    *,
    dense: bool,
    num_warmup: int,
    num_samples: int,
    end: float,
) -> Control:
    """NumPyro's NUTS; stops at `end` of `time.monotonic` with what there is by then."""
    keys = jax.random.split(key, len(start))
    states = _begin(problem, start, keys, dense, num_warmup)
    parts = []
    for _ in range(0, num_warmup + num_samples, _CHUNK):
        if time.monotonic() > end:
            break
        states, part = _advance(problem, states, dense, num_warmup)
        parts.append(jax.tree.map(np.asarray, part))
    if not parts:
        empty = np.zeros((len(start), 0))
        return Control(np.zeros((*start.shape[:1], 0, start.shape[1])), empty, empty)
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *parts)
    return Control(*joined)


def _kernels(problem, dense, num_warmup):
    from numpyro.infer.hmc import hmc

    kernels: Any = hmc(potential_fn=lambda position: -problem.log_density(position))
    init, step = kernels
    return lambda place, key: init(place, num_warmup, dense_mass=dense, rng_key=key), step


@eqx.filter_jit
def _begin(problem, start, keys, dense, num_warmup):
    return jax.vmap(_kernels(problem, dense, num_warmup)[0])(start, keys)


@eqx.filter_jit
def _advance(problem, states, dense, num_warmup):
    from numpyro.infer.util import ParamInfo

    init, step = _kernels(problem, dense, num_warmup)

    def chain(state):
        # The library's step works only after its `init`, whose result is not used.
        init(ParamInfo(state.z, state.potential_energy, state.z_grad), state.rng_key)

        def one(state, _):
            state = step(state)
            values = problem.prior.values(state.z)
            return state, Control(values, state.num_steps, state.diverging)

        return jax.lax.scan(one, state, length=_CHUNK)

    return jax.vmap(chain)(states)


def run_blackjax(
    problem: Problem,
    start: Float64[Array, "chain parameter"],
    key: PRNGKeyArray,
    *,
    dense: bool,
    num_warmup: int,
    num_samples: int,
) -> Control:
    """``blackjax.window_adaptation`` and NUTS with what it found."""
    keys = jax.random.split(key, len(start))
    found = _all_of_blackjax(problem, start, keys, dense, num_warmup, num_samples)
    return Control(*map(np.asarray, found))


@eqx.filter_jit
def _all_of_blackjax(problem, start, keys, dense, num_warmup, num_samples):
    import blackjax

    nuts: Any = blackjax.nuts

    def chain(position, key):
        first, second = jax.random.split(key)
        warmup: Any = blackjax.window_adaptation(
            nuts, problem.log_density, is_mass_matrix_diagonal=not dense
        )
        (state, found), told = warmup.run(first, position, num_warmup)
        step = nuts(problem.log_density, **found).step

        def one(state, key):
            state, info = step(key, state)
            return state, (state.position, info.num_integration_steps, info.is_divergent)

        _, drawn = jax.lax.scan(one, state, jax.random.split(second, num_samples))
        warm = told.state.position, told.info.num_integration_steps, told.info.is_divergent
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), warm, drawn)
        return Control(jax.vmap(problem.prior.values)(joined[0]), *joined[1:])

    return jax.vmap(chain)(start, keys)
