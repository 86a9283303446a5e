"""Draw from the posterior of one star."""

import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emulators.errors import InputError

from .. import flags as flag_table
from ..fitting import Fit, fit
from .base import AbstractSampler, run
from .posterior import Posterior
from .surrogate import NAME as SURROGATE
from .surrogate import run_surrogate
from .target import make_target

BACKENDS = ("numpyro", "blackjax", "blackjax-hmc")
STARTS = ("laplace", "pathfinder")


def make_sampler(backend: str) -> AbstractSampler:
    """The sampler of a backend; the other library is not imported."""
    if backend == "numpyro":
        from .numpyro_nuts import NumPyroNUTS

        return NumPyroNUTS()
    if backend == "blackjax":
        from .blackjax_nuts import BlackJAXNUTS

        return BlackJAXNUTS()
    if backend == "blackjax-hmc":
        from .blackjax_hmc import BlackJAXHMC

        return BlackJAXHMC()
    known = " or ".join(map(repr, (*BACKENDS, SURROGATE)))
    raise InputError(f"backend: {backend!r} is not known; give {known}")


def sample(
    spectrum: Any,
    emulator: Any = None,
    *,
    backend: str = "numpyro",
    start: str = "laplace",
    num_chains: int = 4,
    num_warmup: int = 40,
    num_samples: int = 500,
    seed: int = 0,
    fit: Fit | None = None,
    progress: bool = False,
    **options: Any,
) -> Posterior:
    """Sample the posterior of one star, started from the Laplace approximation.

    Chains start at draws from the Laplace approximation and move in the coordinates that it
    whitens, so a few leapfrogs make a draw and the warm-up only has to settle the step size.

    Parameters
    ----------
    spectrum : Spectrum, or several arms
        As `stellarfit.fit` takes them.
    emulator : Emulator, its name or the path of its file, optional
        The shipped default otherwise.
    backend : {"numpyro", "blackjax", "blackjax-hmc", "surrogate"}
        NUTS of either library; Hamiltonian Monte Carlo with trajectories of random length; or NUTS
        of a series of the flux, corrected by importance weights, at one spectrum a draw: fast on a
        processor, and to be trusted where `Posterior.k_hat` is 0.7 or less.
    start : {"laplace", "pathfinder"}
        The Gaussian where chains start and that whitens: by the curvature at the mode, or by the
        gradients on a path to it.
    num_chains, num_warmup, num_samples : int
        Chains, and steps of each.
    seed : int
        Of everything random here; recorded in the result.
    fit : Fit, optional
        A fit of this star to start from; made here with `options` otherwise.
    progress : bool
        Show a progress bar.
    **options
        Of `stellarfit.fit`: ``fixed``, ``priors``, ``noise``, ...

    Returns
    -------
    Posterior
        Its `flags` say whether the chains can be trusted; what is set is warned of.
    """
    sampler = None if backend == SURROGATE else make_sampler(backend)
    if start not in STARTS:
        raise InputError(f"start: {start!r} is not known; give {' or '.join(map(repr, STARTS))}")
    for key, value, least in (
        ("num_chains", num_chains, 1),
        ("num_warmup", num_warmup, 0),
        ("num_samples", num_samples, 4),
    ):
        if value < least:
            raise InputError(f"{key}: {value}; give {least} or more")
    found = _fit(spectrum, emulator, options) if fit is None else fit
    began = time.perf_counter()
    start_key, probe_key, run_key = jax.random.split(jax.random.key(seed), 3)
    target = make_target(found, probe_key, start)
    initial = jax.random.normal(start_key, (num_chains, len(found.names)), jnp.float64)
    lengths: Any = {"num_warmup": num_warmup, "num_samples": num_samples, "progress": progress}
    if sampler is None:
        chains, k_hat = run_surrogate(target, initial, run_key, **lengths)
    else:
        chains, k_hat = run(sampler, target, initial, run_key, **lengths), None
    values = jax.vmap(jax.vmap(target.values))(jnp.asarray(chains.draws.position))
    posterior = Posterior(
        names=found.names,
        samples=np.asarray(values),
        stats={
            "diverging": np.asarray(chains.draws.diverging),
            "energy": np.asarray(chains.draws.energy),
            "lp": np.asarray(chains.draws.log_density),
            "n_steps": np.asarray(chains.draws.num_leapfrogs),
            "acceptance_rate": np.asarray(chains.draws.acceptance),
        },
        fit=found,
        backend=backend,
        seed=seed,
        num_warmup=num_warmup,
        step_size=chains.step_size,
        seconds=time.perf_counter() - began,
        k_hat=k_hat,
    )
    for sentence in flag_table.describe(posterior.flags):
        warnings.warn(sentence, stacklevel=2)
    return posterior


def _fit(spectrum, emulator, options):
    # `fit` the argument hides `fit` the function in `sample`.
    return fit(spectrum, emulator, **options)
