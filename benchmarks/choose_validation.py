"""Does `choose_emulator` predict what emulators really do to labels? Against fitted synthesis.

    python benchmarks/choose_validation.py [--spectra 200] [--noisy 6]

Around three stars, spectra of the synthesiser, never of an emulator, are fitted with each of the
shipped sizes and the weights of three S/N: all labels, the radial velocity and the continuum are
free, the labels within their box. The rms of (fit - truth) is compared with the systematic error
that `choose_emulator` predicts, from other spectra of the synthesiser near these stars.

The spectra carry no noise: it moves a fit by an amount of its own, which to first order does not
depend on the emulator and has mean zero, so it would only blur what is measured here. Weights, box
and continuum are those of a spectrum of that S/N. Each fit goes from the truth by Gauss-Newton
steps with the derivatives of the fitting emulator at the truth, until a step is below a twentieth
of the statistical error in every label; derivatives renewed at the end would change the result
by a second-order amount, which the output tells for one spectrum in 50 (``renewed``).

``--noisy`` of the spectra around each star are also fitted with noise at S/N 100 by
`stellarfit.fit` and the default emulator; ``noisy`` is the rms of (fit - truth) over the predicted
error, statistical and systematic together, over all labels.

One JSON object on stdout, a line of progress on stderr.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import lsq_linear

from emulators import pretrained
from emulators.emulator import load_emulator
from emulators.physics.synthesizer import LTESynthesizer
from scaling.choose import choose_emulator
from scaling.label_bias import (
    error_model_of,
    make_design,
    make_pixels,
    make_weights,
    observed_covariance,
)
from scaling.local_error import synthesize_stars

STARS = {
    "sun": {"teff": 5772.0, "logg": 4.44, "vmic": 1.0},
    "giant": {"teff": 4600.0, "logg": 2.3, "vmic": 1.5, "fe_h": -0.5},
    # Added when the way to predict was settled on the others.
    "metal-poor": {"teff": 6100.0, "logg": 4.1, "vmic": 1.4, "fe_h": -1.0},
}
SNRS = (30.0, 100.0, 300.0)
RANGE = (5130.0, 5240.0)  # Angstrom, vacuum
RESOLUTION, PIXELS_PER_FWHM = 47_000.0, 3.0
HALF_WIDTH = {"teff": 150.0}  # of the box around a star; 0.2 of the other labels
SEED = 7
SETTLED, MOST_STEPS = 0.05, 8
FAR = 3.0  # errors from the truth, beyond which derivatives are renewed
C = 299_792.458  # km/s


def draw(space: Any, star: dict[str, float], spectra: int, seed: int) -> np.ndarray:
    """Labels around a star, evenly in a box."""
    centre = np.array([star.get(name, 0.0) for name in space.names])
    half = np.array([HALF_WIDTH.get(name, 0.2) for name in space.names])
    shift = np.random.default_rng(seed).uniform(-1, 1, (spectra, len(half)))
    return np.clip(centre + half * shift, space.lower, space.upper)


class Fitter:
    """Weighted least squares of one emulator, with the weights of every S/N."""

    def __init__(self, emulator: Any, pixels: Any, star: np.ndarray):
        self.emulator, self.pixels = emulator, pixels
        known = observed_covariance(emulator, star, pixels)
        self.weights = {snr: make_weights(known, snr) for snr in SNRS}
        self.encoding = eqx.filter_jit(lambda e, w: e.encode(w))(emulator, jnp.asarray(pixels.fine))
        space = emulator.label_space
        self.lower, self.upper = np.asarray(space.lower), np.asarray(space.upper)

    def flux(self, labels: np.ndarray, v_rad: float) -> np.ndarray:
        """[pixel] of the emulator."""
        shift = -np.log1p(v_rad / C)
        fine = _flux(self.emulator, jnp.asarray(labels), self.encoding, jnp.asarray(shift))
        return self.pixels.spread @ np.asarray(fine, np.float64)

    def fit(self, flux: np.ndarray, truth: np.ndarray) -> dict[float, Any]:
        """Labels for every S/N, whether the search settled, and whether derivatives were renewed.

        From the truth, because only the distance of the maximum from it is asked for.
        """
        here, start = make_design(self.emulator, truth, self.pixels), self.flux(truth, 0.0)
        found = {}
        for snr in SNRS:
            values, v_rad, error, settled = self._descend(here, flux, truth, 0.0, start, snr)
            far = bool(np.any(np.abs(values - truth) > FAR * error))
            if far:
                there = make_design(self.emulator, values, self.pixels)
                model = self.flux(values, v_rad)
                values, _, _, settled = self._descend(there, flux, values, v_rad, model, snr)
            found[snr] = values, settled, far
        return found

    def _descend(self, design, flux, values, v_rad, model, snr):
        num = len(values)
        solved = self.weights[snr].apply(design.columns)
        fisher = design.columns.T @ solved
        scale = 1 / np.sqrt(np.diagonal(fisher))
        root = cholesky(fisher * scale[:, None] * scale[None, :])  # upper
        error = scale[:num] * np.linalg.norm(np.linalg.inv(root), axis=1)[:num]
        # The level and shape of the continuum, with columns flux * T of the first model.
        basis = design.columns[:, num + 1 :] / model[:, None]
        shape = np.linalg.lstsq(basis, np.ones(len(basis)), rcond=None)[0]
        for _ in range(MOST_STEPS):
            gradient = scale * (solved.T @ (flux - model * (basis @ shape)))
            free = np.full(len(scale) - num, np.inf)
            low = np.r_[self.lower - values - 1e-12, -free] / scale
            high = np.r_[self.upper - values + 1e-12, free] / scale
            target = solve_triangular(root, gradient, trans=1)
            step = scale * lsq_linear(root, target, (low, high), method="bvls").x
            values = np.clip(values + step[:num], self.lower, self.upper)
            v_rad, shape = v_rad + step[num], shape + step[num + 1 :]
            if np.all(np.abs(step[:num]) < SETTLED * error):
                return values, v_rad, error, True
            model = self.flux(values, v_rad)
        return values, v_rad, error, False


@eqx.filter_jit
def _flux(emulator, labels, encoding, shift):
    return emulator.flux_at(labels, encoding, shift)


def fit_with_noise(truth: np.ndarray, flux: np.ndarray, pixels: Any, error: np.ndarray) -> float:
    """Rms of (fit - truth) / error over stars and labels, by the fits that users run."""
    import stellarfit as sf

    emulator = load_emulator()
    rng = np.random.default_rng(SEED)
    pulls = []
    for labels, spectrum in zip(truth, flux, strict=True):
        noisy = spectrum + rng.normal(size=len(spectrum)) / 100.0
        seen = sf.Spectrum(
            pixels.wavelength, noisy, ivar=np.full(len(noisy), 1e4), resolution=RESOLUTION
        )
        found = sf.fit(seen, emulator, fixed={"v_sini": 0.0}, robust=False)
        columns = [found.names.index(name) for name in emulator.label_space.names]
        pulls.append((found.values[columns] - labels) / error)
        tell(f"fitted {len(pulls)} of {len(truth)} with noise")
    return float(np.sqrt(np.mean(np.square(pulls))))


def tell(text: str) -> None:
    sys.stderr.write(f"\r{text:<60}")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--spectra", type=int, default=200, help="around each star")
    parser.add_argument(
        "--measured", type=Path, help="an earlier output: its stars are not fitted again"
    )
    parser.add_argument("--noisy", type=int, default=6, help="fits with noise around each star")
    arguments = parser.parse_args()
    began = time.perf_counter()
    emulators = [load_emulator(name) for name in pretrained.available()]
    emulators.sort(key=lambda one: -float(error_model_of(one).mse))
    space = emulators[0].label_space
    pixels = make_pixels(RANGE, RESOLUTION, PIXELS_PER_FWHM, emulators[0].step)
    seconds, noise_check = {}, {}

    def clock(name):
        nonlocal began
        now = time.perf_counter()
        seconds[name] = round(seconds.get(name, 0.0) + now - began, 1)
        began = now

    clock("setup")
    choices = {}
    for snr in SNRS:
        tell(f"predicting for S/N {snr:g}")
        choices[snr] = choose_emulator(
            emulators, stars=list(STARS.values()), snr=snr, resolution=RESOLUTION,
            wavelength_range=RANGE, pixels_per_fwhm=PIXELS_PER_FWHM,
        )  # fmt: skip
    clock("prediction")
    known = {one.name: [one.fingerprint, float(error_model_of(one).mse)] for one in emulators}
    measured = []
    if arguments.measured is not None:
        earlier = json.loads(arguments.measured.read_text(encoding="utf-8"))
        if earlier["emulators"] != known:
            parser.error(f"--measured: {arguments.measured} is of other emulators; measure anew")
        measured = earlier["measured"]
    synth = LTESynthesizer.build(pixels.fine, space)
    for number, (name, star) in enumerate(STARS.items()):
        if name in {one["star"] for one in measured}:
            continue
        truth = draw(space, star, arguments.spectra, SEED + number)
        center = np.array([star.get(label, 0.0) for label in space.names])
        fitters = [Fitter(emulator, pixels, center) for emulator in emulators]
        tell(f"{name}: synthesising {len(truth)}")
        flux = np.array([pixels.spread @ one for one in synthesize_stars(synth, truth)])
        clock("synthesis")
        for fitter in fitters:
            fits = []
            for i, (spectrum, labels) in enumerate(zip(flux, truth, strict=True)):
                fits.append(fitter.fit(spectrum, labels))
                tell(f"{name}, {fitter.emulator.name}: fitted {i + 1} of {len(truth)}")
            for snr in SNRS:
                off = np.array([fit[snr][0] for fit in fits]) - truth
                rms = np.sqrt(np.mean(off**2, axis=0))
                measured.append(
                    {
                        "star": name, "snr": snr, "size": fitter.emulator.name,
                        "spectra": len(truth),
                        "not_settled": sum(not fit[snr][1] for fit in fits),
                        "renewed": sum(fit[snr][2] for fit in fits),
                        "rms": dict(zip(space.names, map(float, rms), strict=True)),
                    }
                )  # fmt: skip
            clock("fits")
        if arguments.noisy:
            choice, default = choices[100.0], fitters[_default(emulators)].emulator.name
            size = [one.name for one in choice.sizes].index(default)
            error = np.hypot(choice.statistical[number], choice.systematic[size, number])
            some = slice(0, arguments.noisy)
            noise_check[name] = fit_with_noise(truth[some], flux[some], pixels, error)
            clock("noisy fits")
    found = {
        "wavelength_range": RANGE,
        "resolution": RESOLUTION,
        "emulators": known,
        "noisy": noise_check,
        "measured": measured,
    }
    sys.stderr.write("\n")
    print(json.dumps(report(choices, found, seconds), indent=1))


def report(choices: dict[float, Any], found: dict[str, Any], seconds: dict) -> dict[str, Any]:
    """Predictions beside what was measured."""
    rows, groups = [], []
    for one in found["measured"]:
        choice, names = choices[one["snr"]], list(STARS)
        star = names.index(one["star"])
        size = [size.name for size in choice.sizes].index(one["size"])
        about = {key: one[key] for key in ("star", "snr", "size")}
        ratios = []
        for i, label in enumerate(choice.labels):
            predicted, rms = choice.systematic[size, star, i], one["rms"][label]
            ratios.append(rms / predicted)
            rows.append(
                about
                | {
                    "label": label,
                    "statistical": float(f"{choice.statistical[star, i]:.4g}"),
                    "predicted": float(f"{predicted:.4g}"),
                    "ratio": round(float(ratios[-1]), 3),
                }
            )
        within = float(np.mean(np.abs(np.log2(ratios)) <= 1))
        median = round(float(np.median(ratios)), 3)
        groups.append(about | {"within_factor_2": round(within, 3), "median_ratio": median})
    ratios = np.array([row["ratio"] for row in rows])
    return found | {
        "within_factor_2": float(np.mean(np.abs(np.log2(ratios)) <= 1)),
        "range": [float(ratios.min()), float(ratios.max())],
        "median_ratio": float(np.median(ratios)),
        "seconds": seconds,
        "groups": groups,
        "rows": rows,
    }


def _default(emulators):
    return [one.name for one in emulators].index(pretrained.DEFAULT)


if __name__ == "__main__":
    main()
