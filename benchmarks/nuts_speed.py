"""How long NUTS takes for one star: 4 x 500 draws of 10 labels, v_rad and v_sini.

    PYTHONPATH=. python benchmarks/nuts_speed.py [--emulator fgk-mgb-l] [--backend numpyro]

A dwarf of R = 47,000 and S/N 100, synthesised, in 3,800 pixels, of which 1% are bad. Prints a JSON
line for each of three observations of it, which differ in noise and bad pixels: the first compiles.
Seconds of the fit and of the sampling, R-hat, effective draws.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from emulators.emulator import load_emulator
from emulators.physics.synthesizer import LTESynthesizer
from stellarfit.fitting import fit
from stellarfit.instrument import Instrument, Velocities
from stellarfit.sampling import sample
from stellarfit.sampling.diagnostics import ess, r_hat
from stellarfit.spectrum import Spectrum

PIXELS, RESOLUTION, SNR, V_SINI, BAD = 3800, 47_000.0, 100.0, 3.0, 0.01
STAR = {"teff": 5600.0, "logg": 4.2, "vmic": 1.1, "fe_h": -0.2}
FREE = ("teff", "logg", "vmic", "fe_h", "mg_fe", "si_fe", "ca_fe", "ti_fe", "cr_fe", "ni_fe")


def observe(emulator, number: int) -> list[Spectrum]:
    """The star as the spectrograph sees it, so often."""
    wavelength = 5195.0 * np.exp((np.arange(PIXELS) - PIXELS / 2) / (3 * RESOLUTION))
    width = wavelength / (3 * RESOLUTION)
    velocities = Velocities(0.0, 0.0, 2 * V_SINI, 0.0)
    instrument = Instrument.build(wavelength, width, RESOLUTION, step=2e-6, velocities=velocities)
    synth = LTESynthesizer.build(instrument.reached, emulator.label_space)
    labels = [STAR.get(name, 0.0) for name in emulator.label_space.names]
    flux = synth.batch(jnp.asarray(labels)[None], jnp.zeros(1)).normalized[0]
    depth = 1 - jnp.asarray(flux, jnp.float64)
    seen = 1 - np.asarray(instrument(depth, jnp.asarray(V_SINI), jnp.zeros(())))
    spectra = []
    for rng in map(np.random.default_rng, range(number)):
        noisy = seen + rng.normal(0, 1 / SNR, PIXELS)
        ivar = np.where(rng.random(PIXELS) < BAD, 0.0, SNR**2)
        spectra.append(Spectrum(wavelength, noisy, ivar, resolution=RESOLUTION))
    return spectra


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--emulator", default="fgk-mgb-l")
    parser.add_argument("--backend", default="numpyro")
    given = parser.parse_args()
    emulator = load_emulator(given.emulator)
    fixed = {name: STAR.get(name, 0.0) for name in emulator.label_space.names if name not in FREE}
    for star, spectrum in enumerate(observe(emulator, 3)):
        began = time.perf_counter()
        best = fit(spectrum, emulator, fixed=fixed)
        middle = time.perf_counter()
        posterior = sample(spectrum, emulator, fit=best, backend=given.backend)
        done = time.perf_counter()
        truth = np.array([{**STAR, "v_sini": V_SINI}.get(name, 0.0) for name in posterior.names])
        pulls = np.round((posterior.mean - truth) / posterior.sigma, 2).tolist()
        print(
            json.dumps(
                {
                    "star": star,
                    "bad_pixels": int((~spectrum.good).sum()),
                    "emulator": emulator.name,
                    "backend": given.backend,
                    "device": jax.devices()[0].device_kind,
                    "fit_seconds": middle - began,
                    "sampling_seconds": done - middle,
                    "r_hat": float(r_hat(posterior.samples).max()),
                    "ess": float(ess(posterior.samples).min()),
                    "flags": posterior.flags,
                    "leapfrogs": int(posterior.stats["n_steps"].sum()),
                    "pulls": dict(zip(posterior.names, pulls, strict=True)),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
