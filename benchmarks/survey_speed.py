"""How fast are surveys: mode and covariance, then posteriors, of simulated stars.

    python benchmarks/survey_speed.py --out OUT [--stars 100000] [--compiled fast.h5] [--peer 200]

2,000 pixels at R = 20,000; 10 labels, the velocity and four coefficients of the continuum are
free; S/N 20 to 200 a pixel; 5% junk. Spectra are those of the emulator that the compiled one was
made from, through the spectrograph; a part of the stars is fitted with that emulator's own
derivatives as well, which tells what compiling costs. One JSON line a result.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from curve_fit_peer import Network, fit_stars

from emulators.compiled_spectra import evaluate_spline
from emulators.emulator import load_emulator
from stellarfit.compile import RECIPES, compile_emulator
from stellarfit.compiled import CompiledEmulator
from stellarfit.engine import Engine
from stellarfit.instrument import log_shift
from stellarfit.lockstep import of_star
from stellarfit.optimize import maximize, moved
from stellarfit.sampling.diagnostics import MIXED, TRUSTED
from stellarfit.spectrum import Spectrum

WAVELENGTH = 5105.5 + 0.0955 * np.arange(2000)
EXAMPLE = Spectrum(WAVELENGTH, np.ones(2000), snr=100, resolution=20_000.0)
LABELS = ("teff", "logg", "vmic", "fe_h", "mg_fe", "si_fe", "ca_fe", "ti_fe", "cr_fe", "ni_fe")
JUNK = 0.05
AT_A_TIME = 32_768  # stars that the engine is given: their anchors are kept until they are drawn


def tell(**found: Any) -> None:
    print(json.dumps(found, default=float), flush=True)


def held(emulator: Any) -> dict[str, float]:
    """All labels but ten, as the Sun has them."""
    return {name: 0.0 for name in emulator.label_space.names if name not in LABELS}


def make_compiled(emulator: Any, path: Path | None, recipe: str, out: Path) -> CompiledEmulator:
    """The one of a file, or a new one."""
    if path is not None:
        return CompiledEmulator.load(path, emulator)
    began = time.perf_counter()
    found = compile_emulator(
        EXAMPLE, emulator, fixed=held(emulator), recipe=RECIPES[recipe], cache=None, progress=False
    )
    rms = np.asarray(found.rms)
    tell(
        what="compile", seconds=time.perf_counter() - began, rms=np.sqrt(np.mean(rms**2)),
        rms_median=np.median(rms),
        shift_at_snr_100=np.percentile(np.abs(found.shift), [50, 68, 95], axis=0).round(3).tolist(),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(found.network)),
    )  # fmt: skip
    found.save(out / "compiled.h5")
    return found


def simulate(compiled: CompiledEmulator, num: int, seed: int) -> dict[str, np.ndarray]:
    """Spectra of the parent; the last 5% are no stars."""
    rng = np.random.default_rng(seed)
    space = compiled.label_space
    labels = space.sobol(num, seed=seed)
    labels[:, [i for i, name in enumerate(space.names) if name not in LABELS]] = 0.0
    velocity = np.clip(rng.normal(0, 80, num), -300, 300)
    encoding = compiled.encode(jnp.asarray(WAVELENGTH))
    last = len(compiled.network.mean) - 4

    @eqx.filter_jit
    def observe(compiled, labels, velocity):
        def one(star):
            labels, velocity = star
            place = jnp.clip(encoding + log_shift(velocity) / compiled.step, 1.5, last)
            return 1 - evaluate_spline(compiled.exact(labels), place)

        return jax.lax.map(one, (labels, velocity), batch_size=64)

    flux = np.empty((num, 2000), np.float32)
    for first in range(0, num, 4096):
        part = slice(first, first + 4096)
        flux[part] = observe(compiled, jnp.asarray(labels[part]), jnp.asarray(velocity[part]))
    x = np.linspace(-1, 1, 2000, dtype=np.float32)
    slope = rng.normal(0, 0.1, (2, num, 1)).astype(np.float32)
    flux *= 1 + slope[0] * x + slope[1] * x**2
    snr = 10 ** rng.uniform(np.log10(20), np.log10(200), num)
    junk = np.zeros(num, bool)
    junk[num - int(JUNK * num) :] = True
    noise = rng.standard_normal(flux.shape, dtype=np.float32) / snr[:, None].astype(np.float32)
    for i in np.flatnonzero(junk):
        kind = i % 4
        flux[i] = (0.0, 1.0, rng.exponential(1.0, 2000), 1 + np.cumsum(rng.normal(0, 0.02, 2000)))[
            kind
        ]
    flux += noise
    ivar = np.broadcast_to((snr[:, None] ** 2).astype(np.float32), flux.shape).copy()
    ivar[rng.random(flux.shape, dtype=np.float32) < 0.01] = 0.0
    return {"flux": flux, "ivar": ivar, "labels": labels, "velocity": velocity, "snr": snr,
            "junk": junk}  # fmt: skip


def parents_shift(engine: Engine, stars: dict, found: Any, num: int) -> np.ndarray:
    """How far a search that goes on with the parent itself takes labels [sigma of the photons]."""

    @eqx.filter_jit
    def go_on(engine, flux, ivar, position, v_frame, level):
        def one(star):
            flux, ivar, position, v_frame, level = star
            problem = of_star(engine, flux, ivar, v_frame, level)
            parent = Parent(problem.star.emulator)
            problem = eqx.tree_at(lambda p: p.star.emulator, problem, parent)
            return moved(problem, position, maximize(problem, position, 0.0, 4))

        return jax.lax.map(one, (flux, ivar, position, v_frame, level))

    columns = stars["flux"], stars["ivar"], *found.state[:3]
    return np.asarray(go_on(engine, *(jnp.asarray(column[:num]) for column in columns)))


class Parent(eqx.Module):
    """What a compiled emulator was made from, through the same spectrograph."""

    compiled: CompiledEmulator

    @property
    def label_space(self) -> Any:
        return self.compiled.label_space

    def flux_at(self, labels: Any, encoding: Any, shift: Any) -> Any:
        places = encoding + shift / self.compiled.step
        return 1.0 - evaluate_spline(self.compiled.exact(labels), places)


def fit_all(
    engine: Engine, stars: dict, num: int, chunk: int, draws: int
) -> tuple[Any, Any, dict[str, float]]:
    """What is found of stars, their draws and the seconds of both, so many stars at a time."""
    found, drawn, seconds = [], [], {"fit": 0.0, "draw": 0.0}
    for first in range(0, num, AT_A_TIME):
        flux, ivar = (stars[key][first : min(first + AT_A_TIME, num)] for key in ("flux", "ivar"))
        began = time.perf_counter()
        part = engine.fit(flux, ivar, chunk=chunk)
        seconds["fit"] += time.perf_counter() - began
        if draws:
            began = time.perf_counter()
            drawn.append(engine.draw(flux, ivar, part.state, num=draws, seed=2, chunk=chunk))
            seconds["draw"] += time.perf_counter() - began
        found.append(part._replace(state=part.state._replace(anchor=None)))

    def join(parts):
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts) if parts else None

    return join(found), join(drawn), seconds


def main() -> None:
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--emulator", default="fgk-mgb-s")
    parser.add_argument("--stars", type=int, default=100_000)
    parser.add_argument("--chunk", type=int, default=4 if on_cpu else 512)
    parser.add_argument("--peer", type=int, default=0, help="stars that curve_fit gets as well")
    parser.add_argument("--recipe", choices=RECIPES, default=jax.default_backend())
    parser.add_argument("--compiled", type=Path)
    parser.add_argument("--noise", default="law")
    parser.add_argument("--alone", action="store_true", help="the network, never anchored")
    parser.add_argument("--seconds", type=float, default=1e9)
    arguments = parser.parse_args()
    end = time.perf_counter() + arguments.seconds
    out, chunk = arguments.out, arguments.chunk
    out.mkdir(parents=True, exist_ok=True)
    compiled = make_compiled(
        load_emulator(arguments.emulator), arguments.compiled, arguments.recipe, out
    )
    began = time.perf_counter()
    stars = simulate(compiled, arguments.stars, 5)
    rng = np.random.default_rng(1)
    order = rng.permutation(arguments.stars)
    stars = {name: part[order] for name, part in stars.items()}
    tell(what="simulate", seconds=time.perf_counter() - began)
    for noise in dict.fromkeys(("none", arguments.noise)):
        engine = Engine.build(
            compiled, EXAMPLE, fixed=held(compiled) | {"v_sini": 0.0}, noise=noise,
            continuum_degree=3,
            anchored=not arguments.alone,
        )  # fmt: skip

        draws = 64 if noise == arguments.noise else 0
        began = time.perf_counter()
        fit_all(engine, stars, chunk, chunk, draws)
        tell(what="first chunk", noise=noise, seconds=time.perf_counter() - began)
        num = min(4 * chunk, arguments.stars)
        while True:
            began = time.perf_counter()
            found, drawn, seconds = fit_all(engine, stars, num, chunk, draws)
            for step, spent in seconds.items():
                tell(
                    what=step, noise=noise, stars=num, seconds=spent,
                    stars_per_second=num / spent if spent else 0.0,
                )  # fmt: skip
            spent = time.perf_counter() - began
            if num == arguments.stars or time.perf_counter() + 20 * spent > end:
                break
            num = min(8 * num, arguments.stars)
        report(engine, stars, found, num, noise)
        if noise == "none" and arguments.peer:
            rate = num / seconds["fit"]
            compare_with_peer(engine, stars, found, rate, min(arguments.peer, num))
        if noise == "none":
            shift = np.abs(parents_shift(engine, stars, found, min(num, 256)))
            good = ~stars["junk"][: len(shift)] & found.converged[: len(shift)]
            tell(
                what="shift of the parent", stars=int(good.sum()),
                sigma_68_95=np.percentile(shift[good], [68, 95]).tolist(),
                by_label_95=np.percentile(shift[good], 95, axis=0).round(3).tolist(),
            )  # fmt: skip
        if drawn is not None:
            star = ~stars["junk"][:num]
            k_hat, r_hat = drawn.k_hat[star], drawn.r_hat[star]
            chained = np.isfinite(r_hat)
            tell(
                what="draws", chains=np.mean(chained),
                chains_of_junk=np.mean(np.isfinite(drawn.r_hat[~star])),
                poor=np.mean(~((k_hat <= TRUSTED) | (r_hat <= MIXED))),
                k_hat=np.percentile(k_hat, [5, 50, 95]).tolist(),
                r_hat=np.percentile(r_hat[chained], [5, 50, 95]).tolist(),
            )  # fmt: skip
    memory = jax.local_devices()[0].memory_stats() or {}
    tell(
        what="memory", device_gb=memory.get("peak_bytes_in_use", 0) / 1e9,
        host_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    )  # fmt: skip


def compare_with_peer(
    engine: Engine, stars: dict, found: Any, ours_a_second: float, num: int
) -> None:
    """The first stars again, by a Payne-style network and curve_fit: times, and scatter."""
    names = tuple(name for name in engine.names if name != "v_rad")
    began = time.perf_counter()
    network = Network(engine.emulator, names, WAVELENGTH, 3)
    tell(what="peer: training", seconds=time.perf_counter() - began)
    peer = fit_stars(network, WAVELENGTH, stars, num)
    truth = truths(engine, stars, num)
    star = ~stars["junk"][:num]
    ours, theirs = (
        np.nanmedian(np.abs(values[:num] - truth)[star], axis=0)
        for values in (found.values, peer["values"])
    )
    a_second = num / peer["seconds"]
    tell(
        what="peer: curve_fit", stars=num, stars_per_second=a_second,
        times_as_fast=ours_a_second / a_second,
        failed=np.mean(np.isnan(peer["values"][star, 0])),
        scatter_ours_over_theirs=dict(zip(engine.names, (ours / theirs).round(3), strict=True)),
    )  # fmt: skip


def truths(engine: Engine, stars: dict, num: int) -> np.ndarray:
    """Values of the free parameters, the velocity last."""
    space = engine.emulator.label_space
    names = [name for name in engine.names if name != "v_rad"]
    labels = stars["labels"][:num, [space.index(name) for name in names]]
    return np.column_stack([labels, stars["velocity"][:num]])


def report(engine: Engine, stars: dict, found: Any, num: int, noise: str) -> None:
    """Errors in units of what is said, and what becomes of junk."""
    truth = truths(engine, stars, num)
    sigma = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2))
    z = np.abs(found.values - truth) / sigma
    star, junk = ~stars["junk"][:num], stars["junk"][:num]
    ratio = found.chi2 / found.dof
    tell(
        what="quality", noise=noise, converged=np.mean(found.converged[star]),
        wrong_velocity=np.mean(np.abs(found.values[star, -1] - truth[star, -1]) > 10),
        within_68=np.mean(z[star] < 1), within_95=np.mean(z[star] < 1.96),
        by_label={name: np.mean(z[star, i] < 1).round(3) for i, name in enumerate(engine.names)},
        chi2_dof=np.percentile(ratio[star], [5, 50, 95]).round(3).tolist(),
        junk_flagged=np.mean(~((ratio[junk] > 0.5) & (ratio[junk] < 2) & found.converged[junk])),
    )  # fmt: skip


if __name__ == "__main__":
    main()
