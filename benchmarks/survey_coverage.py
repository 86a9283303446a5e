"""Do a survey's errors hold the truth? Synthesised stars through `fit_survey`, by S/N.

    python benchmarks/survey_coverage.py --out OUT --compiled fast.h5 [--stars 400] [--noise law]

The stars are the synthesiser's, before the spectrograph of `survey_speed.py`: 2,000 pixels at
R = 20,000, ten labels, the velocity and four coefficients of the continuum free, the emulator that
is compiled there. The same stars are seen at each S/N. They are written to files, fitted by the
catalogue's way, and read from the catalogue. What is there already is not made anew, so that the
stars may come from another machine. One JSON line for each noise and S/N: shares of the stars whose
truth lies within one error and within 1.96, and between the 16th and the 84th percentile of 64
draws, by label; and of those alone that no flag warns of.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from survey_speed import EXAMPLE, LABELS, WAVELENGTH, held, tell

import stellarfit as sf
from emulators.physics.synthesizer import LTESynthesizer
from emulators.units import SPEED_OF_LIGHT
from stellarfit.compiled import CompiledEmulator
from stellarfit.flags import Flag
from stellarfit.instrument import Instrument
from stellarfit.spectrograph import STILL

SNRS = (50.0, 100.0, 300.0, 1000.0)
_AT_ONCE, _STEP = 32, 2e-6


def synthesise(compiled: CompiledEmulator, num: int, seed: int) -> dict[str, np.ndarray]:
    """Labels over the box, velocities, and spectra without noise under a continuum."""
    rng = np.random.default_rng(seed)
    space = compiled.label_space
    labels = space.sobol(num, seed=seed)
    labels[:, [i for i, name in enumerate(space.names) if name not in LABELS]] = 0.0
    # Two thirds of a sigma of the narrowest line, before the line spread.
    instrument = Instrument.build(WAVELENGTH, EXAMPLE.width, 20_000.0, step=_STEP, velocities=STILL)
    # A star moves by whole steps, so that nothing is interpolated.
    reach = int(300.0 / SPEED_OF_LIGHT / _STEP)
    steps = np.clip(
        np.round(rng.normal(0, 80.0 / SPEED_OF_LIGHT / _STEP, num)), -reach, reach
    ).astype(int)
    places = instrument.reached
    beyond = _STEP * np.arange(1, reach + 1)
    wider = [places[0] * np.exp(-beyond[::-1]), places, places[-1] * np.exp(beyond)]
    synth = LTESynthesizer.build(np.concatenate(wider), space)

    @eqx.filter_jit
    def see(instrument, depth):
        return 1.0 - jax.vmap(lambda one: instrument(one, jnp.zeros(()), jnp.zeros(())))(depth)

    flux = np.empty((num, len(WAVELENGTH)))
    for first in range(0, num, _AT_ONCE):
        # The last ones again fill up the last batch.
        part = np.arange(first, first + _AT_ONCE) % num
        spectra = synth.batch(jnp.asarray(labels[part]), jnp.zeros(_AT_ONCE)).normalized
        depth = 1.0 - np.asarray(spectra, np.float64)
        there = reach - steps[part, None] + np.arange(len(places))
        seen = np.asarray(see(instrument, jnp.asarray(np.take_along_axis(depth, there, axis=1))))
        last = min(first + _AT_ONCE, num)
        flux[first:last] = seen[: last - first]
    velocity = SPEED_OF_LIGHT * np.expm1(_STEP * steps)
    x = np.linspace(-1, 1, len(WAVELENGTH))
    slope = rng.normal(0, 0.1, (2, num, 1))
    flux *= 1 + slope[0] * x + slope[1] * x**2
    return {"flux": flux, "labels": labels, "velocity": velocity}


def write(stars: dict[str, np.ndarray], snr: float, path: Path) -> None:
    """The stars with noise, in one file."""
    rng = np.random.default_rng(round(snr))
    flux = stars["flux"] + rng.normal(size=stars["flux"].shape) / snr
    ivar = np.full(len(WAVELENGTH), snr**2)
    sf.write_spectra(
        path,
        [
            sf.Spectrum(WAVELENGTH, one, ivar, resolution=20_000.0, name=f"{i:05d}")
            for i, one in enumerate(flux)
        ],
    )


def report(catalog: Any, stars: dict[str, np.ndarray], names: list[str], about: dict) -> None:
    """Shares within one error and within two, and among the draws."""
    truth = {name: stars["labels"][:, i] for i, name in enumerate(names)}
    truth = {name: truth[name] for name in LABELS} | {"v_rad": stars["velocity"]}
    fine = ~(catalog["flag_warn"] | catalog["flag_bad"]).astype(bool)
    columns = {name: {"vmic": "v_micro"}.get(name, name) for name in truth}
    off = {
        name: np.abs(np.asarray(catalog[column]) - truth[name]) / np.asarray(catalog[f"e_{column}"])
        for name, column in columns.items()
    }
    drawn = {
        name: np.asarray(
            (catalog[f"{one}_p16"] < truth[name]) & (truth[name] < catalog[f"{one}_p84"])
        )
        for name, one in columns.items()
    }
    rows = {"all": np.isfinite(off["teff"]), "unflagged": np.isfinite(off["teff"]) & fine}
    for which, used in rows.items():
        shares = {
            level: {name: np.mean(one[used] < within).round(3) for name, one in off.items()}
            for level, within in (("within_68", 1.0), ("within_95", 1.96))
        }
        shares["drawn_68"] = {name: np.mean(one[used]).round(3) for name, one in drawn.items()}
        tell(
            **about, rows=which, stars=int(used.sum()),
            mean_68=np.mean(list(shares["within_68"].values())),
            mean_95=np.mean(list(shares["within_95"].values())),
            mean_drawn_68=np.mean(list(shares["drawn_68"].values())),
            chains=np.mean(np.isfinite(catalog["r_hat"][used])),
            poor=np.mean((catalog["result_flags"][used] & int(Flag.POOR_DRAWS)) > 0), **shares,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compiled", type=Path, required=True)
    parser.add_argument("--stars", type=int, default=400)
    parser.add_argument("--noise", nargs="+", default=["law"])
    parser.add_argument("--snr", type=float, nargs="*", default=SNRS, help="none: synthesise alone")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    compiled = CompiledEmulator.load(given.compiled)
    names = list(compiled.label_space.names)
    assert dict(compiled.held) == held(compiled), "compiled for other labels"
    began = time.perf_counter()
    made = given.out / "stars.npz"
    if not made.exists():
        new: dict[str, Any] = synthesise(compiled, given.stars, 11)
        np.savez(made, **new)
    stars = dict(np.load(made))
    num = len(stars["flux"])
    tell(what="synthesise", stars=num, seconds=time.perf_counter() - began)
    for snr in given.snr:
        source = given.out / f"snr{snr:g}.h5"
        if not source.exists():
            write(stars, snr, source)
        for noise in given.noise:
            began = time.perf_counter()
            catalog = sf.fit_survey(
                source, compiled, out=given.out / f"{noise}-{snr:g}.fits", noise=noise,
                fixed={"v_sini": 0.0}, robust=False, continuum_degree=3,
                draws=64, part_size=num, progress=False, resume=True,
            )  # fmt: skip
            about = {"noise": noise, "snr": snr, "seconds": time.perf_counter() - began}
            report(catalog, stars, names, about)


if __name__ == "__main__":
    main()
