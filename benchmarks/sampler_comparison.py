"""Do the samplers agree, and what does the Laplace start gain over the libraries' own warm-up?

    PYTHONPATH=. python benchmarks/sampler_comparison.py --out OUT --seconds 500
    PYTHONPATH=. python benchmarks/sampler_comparison.py --summary OUT

Stars drawn from the emulator's box, synthesised, R = 30,000 and S/N 100; all labels, v_rad free.
Each is fitted once and sampled by every backend, all stars in lockstep; every fourth also with the
exact force, and by the libraries as they come (`default_warmup`), one after another. Results are
written after every run, and those in the folder of as many draws are not made again: call again to
go on, or with more ``--draws`` for the stars that R-hat asks for.

With ``--compiled`` the emulator is first compiled for the spectrograph, so that a gradient takes a
hundredth of the time; every method then samples that posterior, anchored where the fit ends.

Counts: a leapfrog evaluates the spectrum once. With the exact force that is a gradient, with the
expansion's it is a value without derivatives; ``cost`` times both on the device.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from default_warmup import run_blackjax, run_numpyro, uniform_start
from sampler_summary import read_records, summarise

from emulators.emulator import load_emulator
from emulators.physics.synthesizer import LTESynthesizer
from emulators.storage import atomic_write
from stellarfit.compile import compile_emulator
from stellarfit.fitting import Fit, fit
from stellarfit.sampling.base import TARGET_ACCEPTANCE, advance_all, begin, start_adaptation
from stellarfit.sampling.diagnostics import ess, r_hat
from stellarfit.sampling.sample import make_sampler
from stellarfit.sampling.target import Whitened, make_target
from stellarfit.spectrum import Spectrum
from stellarfit.trial import Trial

RESOLUTION, SNR, STARS, SEED = 30_000.0, 100.0, 20, 1
CHAINS, WARMUP = 4, 40
CHUNK = 10  # transitions between two looks at the clock
OURS = ("numpyro", "blackjax", "blackjax-hmc")
# Sampler, dense mass matrix, start.
CONTROLS = {
    "default-numpyro-dense": ("numpyro", True, "uniform"),
    "default-numpyro-diagonal": ("numpyro", False, "uniform"),
    "mode-numpyro-dense": ("numpyro", True, "mode"),
    "default-blackjax-diagonal": ("blackjax", False, "uniform"),
}
ON_EVERY_FOURTH = ("cost", "numpyro-exact-force", *CONTROLS)
METHODS = (*OURS, *ON_EVERY_FOURTH)


class Star:
    """One star of the trial: its fit and its target are made when first asked for."""

    def __init__(self, trial: Trial, index: int, emulator: Any):
        noise = np.random.default_rng((SEED, index)).normal(0, 1 / SNR, trial.flux.shape[1])
        setup = trial.setup("none")
        wavelength = setup.spectrum.wavelength[setup.keep]
        ivar = np.full(len(wavelength), SNR**2)
        self.spectrum = Spectrum(
            wavelength, trial.flux[index] + noise, ivar, resolution=trial.resolution
        )
        self.index, self.emulator, self.priors = index, emulator, trial.priors
        self.key = jax.random.fold_in(jax.random.key(SEED), index)
        self.truth = trial.truth[index]
        self._made: tuple[Fit, Whitened, dict[str, float]] | None = None

    def made(self) -> tuple[Fit, Whitened, dict[str, float]]:
        if self._made is None:
            began = time.monotonic()
            found = fit(self.spectrum, self.emulator, fixed={"v_sini": 0.0}, priors=self.priors)
            middle = time.monotonic()
            target = make_target(found, jax.random.fold_in(self.key, 0))
            took = {"fit": middle - began, "target": time.monotonic() - middle}
            self._made = found, target, took
        return self._made


def measure(star: Star, method: str, settings: argparse.Namespace, end: float) -> dict[str, Any]:
    """One record of one star."""
    found, target, took = star.made()
    began = time.monotonic()
    if method == "cost":
        record = _cost(target)
    elif method in CONTROLS:
        record = _control(star, method, settings, end)
    else:
        (record,) = sample_together([star], method, settings.draws)
    return record | _about(star) | {"seconds": time.monotonic() - began}


def _about(star):
    found, _, took = star.made()
    return {
        "names": found.names,
        "truth": star.truth.tolist(),
        "map": found.values.tolist(),
        "laplace": found.error.tolist(),
        "fit_flags": found.flags,
        "seconds_start": took,
        "device": jax.devices()[0].device_kind,
    }


def sample_together(stars: list[Star], method: str, draws: int) -> list[dict[str, Any]]:
    """A record of each star, all of the same force, by one of ours: what `run` does, of a batch."""
    targets = [star.made()[1] for star in stars]
    expanded = [not target.exact_force for target in targets]
    backend = method
    if method == "numpyro-exact-force":
        backend = "numpyro"
        targets = [replace(target, exact_force=True) for target in targets]
    keys = [jax.random.fold_in(star.key, 2) for star in stars]
    shape = CHAINS, len(targets[0].origin)
    initial = [
        jax.random.normal(jax.random.fold_in(star.key, 1), shape, jnp.float64) for star in stars
    ]
    positions, told, steps, warmup = _lockstep(make_sampler(backend), targets, initial, keys, draws)
    records = []
    for i, target in enumerate(targets):
        values = jax.vmap(jax.vmap(target.values))(jnp.asarray(positions[i]))
        records.append(
            _moments(np.asarray(values))
            | {
                "force": "exact" if target.exact_force else "expansion",
                "expansion_good": expanded[i],
                "leapfrogs_warmup": int(warmup[i]),
                "leapfrogs": int(told["num_leapfrogs"][i].sum()),
                "diverging": int(told["diverging"][i].sum()),
                "acceptance": float(told["acceptance"][i].mean()),
                "step_size": float(steps[i]),
            }
        )
    return records


def _kind(star):
    """Equal for stars that go together: of one force and of equal shapes."""
    target = star.made()[1]
    return target.exact_force, tuple(leaf.shape for leaf in jax.tree.leaves(target))


def _lockstep(sampler, targets, initial, keys, draws):
    """Positions [star, chain, draw, parameter], the rest of the draws, steps, leapfrogs before."""
    target, axes = _stack(targets)
    states = eqx.filter_vmap(begin, in_axes=(axes, 0))(target, jnp.stack(initial))
    adaptation = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (len(targets),)), start_adaptation(initial[0].shape[1])
    )
    keys = jnp.stack(keys)

    @eqx.filter_jit
    def advance(target, states, adaptation, index):
        def one(target, states, adaptation, key):
            of_chains = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), CHAINS))
            return advance_all(
                sampler, target, states, adaptation, index, of_chains(index),
                jnp.asarray(WARMUP), jnp.asarray(TARGET_ACCEPTANCE),
            )  # fmt: skip

        whole = eqx.filter_vmap(one, in_axes=(axes, 0, 0, 0))
        return whole(target, states, adaptation, keys)

    parts = []
    for first in range(0, WARMUP + draws, CHUNK):
        index = first + jnp.arange(CHUNK)
        states, adaptation, part = advance(target, states, adaptation, index)
        parts.append(jax.tree.map(np.asarray, part))
    # [star, transition, chain, ...] to [star, chain, transition, ...].
    joined = jax.tree.map(lambda *every: np.concatenate(every, axis=1).swapaxes(1, 2), *parts)
    kept = jax.tree.map(lambda array: array[:, :, WARMUP:], joined)
    warmup = joined.num_leapfrogs[:, :, :WARMUP].sum(axis=(1, 2))
    return kept.position, kept._asdict(), np.exp(np.asarray(adaptation.log_average)), warmup


def _stack(targets):
    """Of all stars at once; arrays that all of them share are kept once. And the axes of stars."""

    def shared(*leaves):
        return not eqx.is_array(leaves[0]) or all(
            one is leaves[0] or np.array_equal(one, leaves[0]) for one in leaves[1:]
        )

    axes = jax.tree.map(lambda *leaves: None if shared(*leaves) else 0, *targets)
    stacked = jax.tree.map(
        lambda *leaves: leaves[0] if shared(*leaves) else jnp.stack(leaves), *targets
    )
    return stacked, axes


def _control(star, method, settings, end):
    found, *_ = star.made()
    library, dense, where = CONTROLS[method]
    key = jax.random.fold_in(star.key, 3)
    num = len(found.names)
    start = uniform_start(jax.random.fold_in(star.key, 4), CHAINS, num)
    if where == "mode":
        start = found.laplace.draws(jax.random.fold_in(star.key, 4), CHAINS)
    warm, draws = settings.control_warmup, settings.control_draws
    options: dict[str, Any] = {"dense": dense, "num_warmup": warm, "num_samples": draws}
    if library == "numpyro":
        control = run_numpyro(found.problem, start, key, end=end, **options)
    else:
        control = run_blackjax(found.problem, start, key, **options)
    return _moments(control.values[:, warm:]) | {
        "force": "exact",
        "leapfrogs_warmup": int(control.leapfrogs[:, :warm].sum()),
        "leapfrogs": int(control.leapfrogs[:, warm:].sum()),
        "diverging": int(control.diverging[:, warm:].sum()),
        "steps": control.leapfrogs.shape[1],
    }


def _moments(values):
    """Of draws [chain, draw, parameter]; without moments where there are next to none."""
    few = values.shape[1] < 20
    return {
        "chains": values.shape[0],
        "draws": values.shape[1],
        "mean": None if few else values.mean(axis=(0, 1)).tolist(),
        "sigma": None if few else values.std(axis=(0, 1), ddof=1).tolist(),
        "r_hat": None if few else r_hat(values).tolist(),
        "ess": None if few else ess(values).tolist(),
    }


def _cost(target):
    """Seconds of a leapfrog of all chains together: expansion's force, exact force."""
    found = {}
    places = jax.random.normal(jax.random.key(0), (CHAINS, len(target.origin)), jnp.float64)
    for name, exact in (("expansion", False), ("exact", True)):
        if target.exact_force and not exact:
            continue
        force = eqx.filter_jit(_forces)
        chosen = replace(target, exact_force=exact)
        jax.block_until_ready(force(chosen, places))
        times = []
        for _ in range(10):
            began = time.perf_counter()
            jax.block_until_ready(force(chosen, places))
            times.append(time.perf_counter() - began)
        found[name] = float(np.median(times))
    return {"leapfrog_seconds": found}


def _forces(target, places):
    return jax.vmap(jax.value_and_grad(target))(places)


def work(trial: Trial, given: argparse.Namespace, end: float, tell: Callable[[str], None]) -> None:
    """Every star of this process by every method that is not in the folder yet."""
    named = [*map(str, given.stars), *(given.only or ["all"]), str(given.draws)]
    path = given.out / f"stars-{'-'.join(named)}.json"
    given.out.mkdir(parents=True, exist_ok=True)
    done = {key: record.get("draws", 0) for key, record in read_records(given.out).items()}
    own = json.loads(path.read_text()) if path.exists() else []
    methods = [name for name in METHODS if not given.only or name in given.only]
    emulator = trial.emulator
    if given.compiled:
        example = Star(trial, 0, emulator).spectrum
        emulator = compile_emulator(example, emulator, cache=given.compiled)
    stars = {index: Star(trial, index, emulator) for index in given.stars}

    def keep(index, method, record):
        own.append({"star": index, "method": method} | record)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(own))
        worst = min(record["ess"]) if record.get("ess") else float("nan")
        count = record.get("leapfrogs", 0)
        took = record["seconds"]
        tell(f"star {index} {method}: {took:.1f} s, {count} leapfrogs, least ESS {worst:.0f}")

    pace = 0.0  # seconds of one draw, of however many stars, with compiling
    for method in [name for name in methods if name in OURS]:
        open_ = [star for i, star in stars.items() if done.get((i, method), 0) < given.draws]
        for kind in dict.fromkeys(map(_kind, open_)):
            group = [star for star in open_ if _kind(star) == kind]
            if time.monotonic() + pace * given.draws > end:
                continue
            began = time.monotonic()
            records = sample_together(group, method, given.draws)
            took = time.monotonic() - began
            pace = took / given.draws
            for star, record in zip(group, records, strict=True):
                keep(star.index, method, record | _about(star) | {"seconds": took / len(group)})
    for method in [name for name in methods if name in ON_EVERY_FOURTH]:
        for index, star in stars.items():
            if index % 4 == 0 and (index, method) not in done and time.monotonic() < end:
                keep(index, method, measure(star, method, given, end))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--summary", type=Path, help="print the table of a folder, and no more")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--emulator", default="fgk-mgb-s")
    parser.add_argument("--compiled", type=Path, help="compile it first, and keep that here")
    parser.add_argument("--wavelength", type=float, nargs=2, default=(5150.0, 5250.0))
    parser.add_argument("--stars", type=int, nargs="+", default=range(STARS))
    parser.add_argument("--only", nargs="+", choices=METHODS, help="these methods alone")
    parser.add_argument("--draws", type=int, default=2000, help="of each of 4 chains")
    parser.add_argument("--control-warmup", type=int, default=500)
    parser.add_argument("--control-draws", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=500.0)
    given = parser.parse_args()
    if given.summary:
        print(summarise(given.summary))
        return
    if given.out is None:
        parser.error("--out or --summary")
    end = time.monotonic() + given.seconds
    emulator = load_emulator(given.emulator)
    trial = Trial(
        emulator,
        lambda wavelength: LTESynthesizer.build(wavelength, emulator.label_space),
        resolution=RESOLUTION,
        wavelength_range=tuple(given.wavelength),
        stars=STARS,
        seed=SEED,
    )
    print(f"{len(trial.truth)} stars of {trial.flux.shape[1]} pixels", flush=True)
    work(trial, given, end, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
