"""Synthesised stars before a spectrograph, fitted by an emulator: a test of its error bars."""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from emulators.errors import InputError

from .batch import fit_batch, sample_batch
from .calibration import Calibration, identity
from .emulator_error import NOISES, amplitude_prior
from .instrument import log_shift
from .priors import make_prior
from .setup import Setup
from .spectrum import Spectrum

WHITE = "white"
"""The noise of a fit that takes the emulator's error for white: photon variance plus its MSE."""
_V_RAD = 1.0  # km/s: a spectrum that was shifted to rest by a survey's velocity
_PIXELS_PER_FWHM = 3.0
_CANDIDATES = 256  # labels tried as starting points
_SYNTHESISED = 32  # at a time
_LARGEST_PIECE = 52  # stars in lockstep


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
        self.emulator, self.seed, self.resolution = emulator, seed, resolution
        self.priors = {"v_rad": dist.Normal(0.0, _V_RAD)}
        rng = np.random.default_rng(seed)
        if not resolution > 0:
            raise InputError(f"resolution: {resolution:g}; give a positive resolving power")
        if stars < 1:
            raise InputError(f"stars: {stars}; give 1 or more")
        low, high = wavelength_range or emulator.wavelength_range
        step = 1 / (_PIXELS_PER_FWHM * resolution)
        wavelength = np.exp(np.arange(np.log(low), np.log(high), step))
        # Only its pixels count; the flux of a star takes its place.
        ones = np.ones(len(wavelength))
        self.empty = Spectrum(wavelength, ones, ones, resolution=resolution)
        space = emulator.label_space
        labels = space.from_unit(jnp.asarray(rng.uniform(size=(stars, len(space)))))
        v_rad = np.random.default_rng((seed, 1)).normal(0.0, _V_RAD, stars)
        self.truth = np.column_stack([np.asarray(labels), v_rad])
        self.flux = self._synthesise(synthesizer)

    def of(self, emulator: Any) -> "Trial":
        """The same stars before another emulator of these labels and wavelengths."""
        other = copy.copy(self)
        other.emulator = emulator
        return other

    def setup(self, noise: str) -> Setup:
        """The pixels and the prior of every star, with the emulator's error as `stellarfit.fit`."""
        prior, held = make_prior(self.emulator.label_space, {"v_sini": 0.0}, self.priors)
        amplitude = amplitude_prior(self.emulator, noise)
        return Setup.build(self.empty, self.emulator, prior, held, amplitude=amplitude)

    def _synthesise(self, make):
        """What the spectrograph sees of the synthesiser's spectra, without noise."""
        setup = self.setup("none")
        instrument: Any = setup.photons.star.arms[0].instrument
        synth = make(instrument.reached)
        still = jnp.zeros(())
        see = eqx.filter_jit(
            lambda depth: 1.0 - jax.vmap(lambda one: instrument(one, still, still))(depth)
        )
        flux = []
        for first in range(0, len(self.truth), _SYNTHESISED):
            # The last ones again fill up the last batch.
            part = self.truth[first : first + _SYNTHESISED]
            part = part[np.arange(_SYNTHESISED) % len(part)]
            shift = jax.vmap(log_shift)(jnp.asarray(part[:, -1]))
            spectra = synth.batch(jnp.asarray(part[:, :-1]), shift).normalized
            flux.append(np.asarray(see(1.0 - jnp.asarray(spectra, jnp.float64))))
        return np.concatenate(flux)[: len(self.truth), setup.used]

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
        if noise != "none" and self.emulator.error_model is None:
            raise InputError(
                f"noise: {self.emulator.name} has no error model for {noise!r}; give 'none'"
            )
        if not snr > 0:
            raise InputError(f"snr: {snr:g}; give a positive number")
        setup = self.setup("none" if noise == WHITE else noise)
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
            emulator=identity(self.emulator),
            snr=np.full(len(truth), float(snr)),
            truth=truth,
            rank=np.mean(samples < truth[:, None], axis=1),
            mean=samples.mean(axis=1),
            # Rounding leaves a constant a deviation of its own.
            sigma=np.where(np.ptp(samples, axis=1) > 0, samples.std(axis=1, ddof=1), 0.0),
            draws=samples[:, chosen],
            converged=np.asarray(found.converged),
            diverging=np.asarray(chains.diverging),
        )

    def run_all(
        self,
        out: Path,
        noises: Sequence[str],
        snrs: Sequence[float],
        *,
        end: float = float("inf"),
        tell: Callable[[str], None] = lambda _: None,
        **settings: int,
    ) -> None:
        """Posteriors of all stars, an equal part of them at each S/N, for each noise.

        Every piece of stars leaves a file in `out`; pieces that have one are not made again.

        Parameters
        ----------
        end
            Of `time.monotonic`: no piece is begun that would not be done by then.
        tell
            Told of every piece.
        settings
            Of `run`.

        Raises
        ------
        InputError
            If the stars cannot be shared equally between the S/N.
        """
        number, rest = divmod(len(self.truth), len(snrs))
        if rest:
            raise InputError(
                f"calibrate: {len(self.truth)} stars for {len(snrs)} S/N; give a multiple of them"
            )
        # Equal pieces, so that all share one compilation.
        size = max(n for n in range(1, min(number, _LARGEST_PIECE) + 1) if number % n == 0)
        out.mkdir(parents=True, exist_ok=True)
        # Whatever changes a result is in its file's name.
        about = [identity(self.emulator), self.truth.tolist(), self.empty.wavelength.tolist()]
        digest = hashlib.sha256(json.dumps([about, size, settings]).encode()).hexdigest()[:10]
        pace = 0.0
        for noise in noises:
            for place, snr in enumerate(snrs):
                for first in range(place * number, (place + 1) * number, size):
                    path = out / f"{noise}-{snr:g}-{first}-{digest}.h5"
                    if path.exists() or time.monotonic() + pace > end:
                        continue
                    since = time.monotonic()
                    found = self.run(noise, snr, slice(first, first + size), **settings)
                    found.save(path)
                    pace = time.monotonic() - since
                    share = found.coverage(0.68).mean()
                    tell(f"{path.stem}: {share:.3f} within 68% after {pace:.0f} s")
