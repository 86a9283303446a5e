"""Many stars of one spectrograph at once: fitted and sampled in lockstep, on any device.

The same pure functions as for one star, mapped over stars that share their pixels, parameters and
fixed values. What a single star does on the host (deciding how often to go round, which pixels to
distrust) is a fixed recipe here: three rounds of freezing the emulator's error, no down-weighting.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float64, PRNGKeyArray

from emulators.errors import InputError

from .compiled import CompiledEmulator
from .emulator_error import mix, push
from .model import Problem
from .noise import Noise, NoiseMixture
from .optimize import maximize
from .sampling.blackjax_hmc import draw_lengths, run_chains
from .sampling.target import whiten
from .setup import Setup

_STARTS, _SCOUT_STEPS, _STEPS, _ROUNDS = 3, 6, 40, 3


class BatchFit(NamedTuple):
    """Of every star: its problem as it stood at the end, the maximum, and whether it is one."""

    problem: Problem
    values: Float64[Array, "star parameter"]
    converged: Bool[Array, " star"]


class BatchDraws(NamedTuple):
    """Of every star: draws, the share of them that diverged, the mean acceptance."""

    samples: Float64[Array, "star draw parameter"]
    diverging: Float64[Array, " star"]
    acceptance: Float64[Array, " star"]


def fit_batch(
    setup: Setup,
    flux: Float64[np.ndarray, "star good"],
    ivar: Float64[np.ndarray, "star good"],
    candidates: Float64[np.ndarray, "candidate parameter"],
) -> BatchFit:
    """Find the maximum of each star's posterior.

    Parameters
    ----------
    setup
        Of any star of the batch: pixels, prior, emulator, prior of its error.
    flux, ivar
        On the pixels that `setup` keeps.
    candidates
        Values to start from; each star takes the three that fit it best.

    Raises
    ------
    InputError
        If `setup` is of several arms, or of a compiled emulator.
    """
    if isinstance(setup.emulator, CompiledEmulator):
        raise InputError(
            "setup: its emulator is compiled; `stellarfit.engine.Engine` fits by those"
        )
    if len(setup.parts) > 1:
        raise InputError(f"setup: {len(setup.parts)} arms; a batch is of one, fit these by `fit`")
    level = jnp.percentile(jnp.asarray(flux), 90.0, axis=1)
    flux, ivar = flux[:, setup.places], setup.used * ivar[:, setup.places]
    problem = _with_data(setup.photons, jnp.asarray(flux), jnp.asarray(ivar), level)
    axes = _axes(problem)
    starts = _best_starts(problem, axes, jnp.asarray(candidates))
    errors, prior = None, None
    if setup.amplitude is not None:
        errors, prior = setup.emulator.error_model, setup.amplitude.arrays
    noise, values, converged = _fit(problem, axes, starts, errors, setup.sizes, prior)
    problem = eqx.tree_at(lambda p: p.noise, problem, noise)
    return BatchFit(problem, values, converged)


def sample_batch(
    fits: BatchFit, key: PRNGKeyArray, *, num_warmup: int, num_samples: int
) -> BatchDraws:
    """One chain a star of Hamiltonian Monte Carlo, preconditioned by the Laplace covariance."""
    lengths = draw_lengths(jax.random.fold_in(key, 0), num_warmup + num_samples)
    keys = jax.random.split(jax.random.fold_in(key, 1), len(fits.values))
    return _sample(fits.problem, _axes(fits.problem), fits.values, keys, lengths, num_warmup)


def _with_data(problem, flux, ivar, level):
    """A problem whose data, continuum level and noise have a leading axis of stars."""
    nothing = jnp.zeros((flux.shape[1], 0))
    noise = jax.vmap(lambda weight: NoiseMixture.single(Noise.build(weight, nothing)))(ivar)
    level = level / jnp.mean(problem.continuum.basis[:, 0])
    basis = level[:, None, None] * problem.continuum.basis
    return eqx.tree_at(
        lambda p: (p.flux, p.noise, p.continuum.basis), problem, (flux, noise, basis)
    )


def _axes(problem):
    """0 for what differs from star to star, None for what all share."""
    shared = jax.tree.map(lambda _: None, problem)
    noise = jax.tree.map(lambda _: 0, problem.noise)
    return eqx.tree_at(
        lambda p: (p.flux, p.noise, p.continuum.basis),
        shared,
        (0, noise, 0),
        is_leaf=lambda leaf: leaf is None,
    )


@eqx.filter_jit
def _best_starts(problem, axes, candidates):
    models = jax.lax.map(problem.star, candidates)

    def best(problem):
        def cost(normalized):
            coefficients = problem.coefficients(normalized)
            return problem.noise.central.chi2(
                problem.flux - normalized * (problem.continuum.basis @ coefficients)
            )

        return candidates[jnp.argsort(jax.lax.map(cost, models))[:_STARTS]]

    return eqx.filter_vmap(best, in_axes=(axes,))(problem)


@eqx.filter_jit
def _fit(problem, axes, starts, errors, sizes, amplitude):
    def one(problem, starts):
        prior = problem.prior

        def scout(start):
            return maximize(problem, prior.position(start), 0.0, _SCOUT_STEPS)

        scouts = jax.lax.map(scout, starts)
        place = jnp.argmin(scouts.curvature.cost)
        best = maximize(problem, scouts.position[place], 0.0, _STEPS)
        weight = problem.noise.central.inverse_variance
        used = jnp.where(weight > 0, 1.0, 0.0)
        photons = 1 / jnp.where(weight > 0, weight, 1.0)
        for _ in range(0 if errors is None else _ROUNDS):
            values = prior.values(best.position)
            error = push(problem, errors, values, sizes)
            noise = mix(problem, error, values, photons, used, amplitude)
            problem = eqx.tree_at(lambda p: p.noise, problem, noise)
            best = maximize(problem, best.position, 0.0, _STEPS)
        return problem.noise, prior.values(best.position), best.converged

    return eqx.filter_vmap(one, in_axes=(axes, 0))(problem, starts)


@eqx.filter_jit
def _sample(problem, axes, values, keys, lengths, num_warmup):
    def one(problem, values, key):
        target = whiten(problem, values)
        first, others = jax.random.split(key)
        z = jax.random.normal(first, (1, len(values)), jnp.float64)
        draws = run_chains(target, z, others, lengths, num_warmup)
        return BatchDraws(
            jax.vmap(target.values)(draws.position[:, 0]),
            jnp.mean(draws.diverging.astype(jnp.float64)),
            jnp.mean(draws.acceptance),
        )

    return eqx.filter_vmap(one, in_axes=(axes, 0, 0))(problem, values, keys)
