"""Are the error bars right? Posteriors of synthesised stars whose labels are known.

Truths are drawn from the prior of the fit, spectra come from the synthesiser, never from the
emulator that fits them, and every star gets its own photon noise. If posteriors are right, the
rank of the truth among the draws is uniform for every label (simulation-based calibration, Talts
et al. 2018, arXiv:1804.06788), and the truth lies in the central 68% of 68% of them.
"""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Float64
from scipy.stats import chisquare

from emulators.bundle import read_bundle, write_bundle
from emulators.errors import InputError

from .batch import fit_batch, sample_batch
from .emulator_error import NOISES, amplitude_prior
from .instrument import log_shift
from .priors import make_prior
from .setup import Setup
from .spectrum import Spectrum

LEVELS = (0.5, 0.68, 0.95)
WHITE = "white"
"""The noise of a fit that takes the emulator's error for white: photon variance plus its MSE."""
_KIND, _FORMAT = "calibration", 1
_V_RAD = 1.0  # km/s: a spectrum that was shifted to rest by a survey's velocity
_PIXELS_PER_FWHM = 3.0
_CANDIDATES = 256  # labels tried as starting points
_SYNTHESISED = 32  # at a time
_BINS = 10


@dataclass(frozen=True, eq=False)
class Calibration:
    """Ranks of the truths in the posteriors of many stars.

    Attributes
    ----------
    names : tuple of str
        Free parameters.
    noise : str
        Of the fits, see `stellarfit.fit`, or `WHITE`.
    snr : [star]
        Signal to noise a pixel, at the continuum.
    truth : [star, parameter]
    rank : [star, parameter]
        Share of the draws below the truth.
    mean, sigma : [star, parameter]
        Of the draws.
    draws : [star, draw, parameter]
        Some of them, for joint tests.
    converged : [star]
        Whether the search before the sampling ended at a maximum.
    diverging : [star]
        Share of transitions that diverged.
    """

    names: tuple[str, ...]
    noise: str
    snr: Float64[np.ndarray, " star"]
    truth: Float64[np.ndarray, "star parameter"]
    rank: Float64[np.ndarray, "star parameter"]
    mean: Float64[np.ndarray, "star parameter"]
    sigma: Float64[np.ndarray, "star parameter"]
    draws: Float64[np.ndarray, "star draw parameter"]
    converged: np.ndarray
    diverging: Float64[np.ndarray, " star"]

    @classmethod
    def join(cls, parts: Sequence["Calibration"]) -> "Calibration":
        """Of the stars of all parts, which share parameters and noise."""
        first = parts[0]
        for part in parts:
            if (part.names, part.noise) != (first.names, first.noise):
                raise InputError("calibration: parts of different parameters or noise do not join")
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
        return cls(first.names, first.noise, **arrays)

    def at(self, snr: float) -> "Calibration":
        """The stars of one S/N."""
        rows = self.snr == snr
        arrays = {name: getattr(self, name)[rows] for name in _ARRAYS}
        return Calibration(self.names, self.noise, **arrays)

    def coverage(self, level: float) -> Float64[np.ndarray, " parameter"]:
        """Share of the stars whose truth lies in the central interval of that probability."""
        return np.mean(np.abs(self.rank - 0.5) < 0.5 * level, axis=0)

    @property
    def bias(self) -> Float64[np.ndarray, " parameter"]:
        """Mean of posterior mean minus truth, in posterior sigma."""
        return np.mean((self.mean - self.truth) / self.sigma, axis=0)

    @property
    def uniformity(self) -> Float64[np.ndarray, " parameter"]:
        """p-value of chi^2 over ten bins of the ranks, each parameter for itself."""
        bins = np.clip((self.rank * _BINS).astype(int), 0, _BINS - 1)
        counts = np.stack([np.sum(bins == b, axis=0) for b in range(_BINS)])
        found: Any = chisquare(counts, axis=0)
        return np.asarray(found.pvalue)

    def joint_coverage(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Expected coverage against credibility by random points (TARP, Lemos et al. 2023)."""
        from tarp import get_tarp_coverage

        coverage, credibility = get_tarp_coverage(
            self.draws.swapaxes(0, 1), self.truth, norm=True, bootstrap=False, seed=seed
        )
        return np.asarray(coverage), np.asarray(credibility)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one sealed file that `load` reads back."""
        arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        arrays["draws"] = arrays["draws"].astype(np.float32)
        record = {"format": _FORMAT, "names": list(self.names), "noise": self.noise}
        write_bundle(path, _KIND, arrays, record)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Calibration":
        """Read what `save` wrote."""
        arrays, record = read_bundle(path, _KIND)
        return cls(tuple(record["names"]), record["noise"], **arrays)


_ARRAYS = ("snr", "truth", "rank", "mean", "sigma", "draws", "converged", "diverging")


class Trial:
    """Synthesised stars before one spectrograph.

    Parameters
    ----------
    emulator : Emulator
        To be tested.
    synthesizer : callable
        Gives a `Synthesizer` of vacuum wavelengths [Angstrom] and of the emulator's labels.
    resolution
        Resolving power, three pixels a FWHM.
    wavelength_range
        Vacuum Angstrom; by default as much as the emulator can model.
    stars, seed
        How many, and the seed of labels, velocities, noise and chains.
    """

    def __init__(
        self,
        emulator: Any,
        synthesizer: Callable[[np.ndarray], Any],
        *,
        resolution: float,
        wavelength_range: tuple[float, float] | None = None,
        stars: int,
        seed: int,
    ):
        self.emulator, self.seed = emulator, seed
        rng = np.random.default_rng(seed)
        low, high = wavelength_range or emulator.wavelength_range
        step = 1 / (_PIXELS_PER_FWHM * resolution)
        wavelength = np.exp(np.arange(np.log(low), np.log(high), step))
        # Only its pixels count; the flux of a star takes its place.
        ones = np.ones(len(wavelength))
        self.empty = Spectrum(wavelength, ones, ones, resolution=resolution)
        space = emulator.label_space
        labels = space.from_unit(jnp.asarray(rng.uniform(size=(stars, len(space)))))
        v_rad = rng.normal(0.0, _V_RAD, stars)
        self.truth = np.column_stack([np.asarray(labels), v_rad])
        self.flux = self._synthesise(synthesizer)

    def of(self, emulator: Any) -> "Trial":
        """The same stars before another emulator of these labels and wavelengths."""
        other = copy.copy(self)
        other.emulator = emulator
        return other

    def _setup(self, noise):
        space = self.emulator.label_space
        prior, held = make_prior(space, {"v_sini": 0.0}, {"v_rad": dist.Normal(0.0, _V_RAD)})
        amplitude = amplitude_prior(self.emulator, noise)
        return Setup.build(self.empty, self.emulator, prior, held, amplitude=amplitude)

    def _synthesise(self, make):
        """What the spectrograph sees of the synthesiser's spectra, without noise."""
        instrument = self._setup("none").photons.star.instrument
        synth = make(np.asarray(instrument.wavelength))
        see = eqx.filter_jit(
            lambda depth: 1.0 - jax.vmap(lambda one: instrument(one, 0.0, 0.0))(depth)
        )
        flux = []
        for first in range(0, len(self.truth), _SYNTHESISED):
            # The last ones again fill up the last batch.
            part = self.truth[first : first + _SYNTHESISED]
            part = part[np.arange(_SYNTHESISED) % len(part)]
            shift = log_shift(jnp.asarray(part[:, -1]))
            spectra = synth.batch(jnp.asarray(part[:, :-1]), shift).normalized
            flux.append(np.asarray(see(1.0 - jnp.asarray(spectra, jnp.float64))))
        return np.concatenate(flux)[: len(self.truth)]

    def run(
        self,
        noise: str,
        snr: float,
        stars: slice,
        *,
        num_warmup: int = 60,
        num_samples: int = 240,
        keep: int = 60,
    ) -> Calibration:
        """Posteriors of some stars at one S/N.

        Parameters
        ----------
        noise
            See `stellarfit.fit`; or `WHITE`.
        snr
            Signal to noise a pixel, at the continuum.
        stars
            Which.
        num_warmup, num_samples
            Transitions of each star's chain.
        keep
            Draws that are kept.
        """
        if noise not in (*NOISES, WHITE):
            raise InputError(f"noise: {noise!r} is not known; give {', '.join((*NOISES, WHITE))}")
        setup = self._setup("none" if noise == WHITE else noise)
        truth, flux = self.truth[stars], self.flux[stars]
        # The same noise whatever the fit: only then are fits compared on the same data.
        scatter = np.random.default_rng((self.seed, round(snr))).normal(size=self.flux.shape)
        data = flux + scatter[stars] / snr
        variance = snr**-2.0
        if noise == WHITE:
            variance += float(self.emulator.error_model.mse)
        space = self.emulator.label_space
        candidates = np.column_stack([space.sobol(_CANDIDATES, seed=1), np.zeros(_CANDIDATES)])
        found = fit_batch(setup, data, np.full_like(data, 1 / variance), candidates)
        key = jax.random.fold_in(jax.random.key(self.seed), stars.start or 0)
        chains = sample_batch(found, key, num_warmup=num_warmup, num_samples=num_samples)
        samples = np.asarray(chains.samples)
        chosen = np.linspace(0, num_samples - 1, min(keep, num_samples)).astype(int)
        return Calibration(
            names=setup.prior.names,
            noise=noise,
            snr=np.full(len(truth), float(snr)),
            truth=truth,
            rank=np.mean(samples < truth[:, None], axis=1),
            mean=samples.mean(axis=1),
            sigma=samples.std(axis=1, ddof=1),
            draws=samples[:, chosen],
            converged=np.asarray(found.converged),
            diverging=np.asarray(chains.diverging),
        )


def chunks(number: int, size: int) -> Iterator[slice]:
    """Equal pieces of so many stars, so that all share one compilation."""
    if number % size:
        raise InputError(f"calibrate: {number} stars do not divide into pieces of {size}")
    return (slice(first, first + size) for first in range(0, number, size))


def read_parts(folder: Path) -> dict[str, Calibration]:
    """The calibrations of a folder, by noise, from all files of it."""
    parts = [Calibration.load(path) for path in sorted(folder.glob("*.h5"))]
    if not parts:
        raise InputError(f"calibrate: no results in {folder}")
    noises = dict.fromkeys(part.noise for part in parts)
    return {
        noise: Calibration.join([part for part in parts if part.noise == noise]) for noise in noises
    }
