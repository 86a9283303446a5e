"""From spectra and an emulator to a problem that can be optimised and sampled."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float64, Int

from emulators.errors import InputError
from emulators.units import SPEED_OF_LIGHT

from .arms import Arms, list_arms, of_arm, select_arms
from .compiled import CompiledEmulator, make_instrument, usable_pixels
from .continuum import Continuum, rough_level
from .emulator_error import AmplitudePrior, EmulatorError, mix, push
from .instrument import Velocities, rounded_up
from .mask import Mismatch, find_mismatch
from .model import Problem, StarModel
from .noise import Noise, NoiseMixture
from .priors import Prior
from .spectrum import MaskBit
from .velocity import WINDOW, first_guess


@dataclass(frozen=True, eq=False)
class Setup:
    """A spectrum, or several arms, prepared for an emulator.

    Attributes
    ----------
    spectrum : Spectrum or Arms
        With the pixels that the emulator cannot reach marked ``OUTSIDE``.
    keep : [good]
        Indices of the pixels that are fitted.
    places : [pixel]
        Which of `keep` each pixel of a problem is. A few more follow those of an arm, copies of its
        last without weight: stars that differ by a few pixels then share what is compiled.
    used : [pixel]
        Whether it has weight; ``keep`` is these, in order.
    prior : Prior
        With v_rad restricted to 50 km/s about the first guess.
    held : dict
        Fixed parameters.
    starts : [start, parameter]
        Starting values, best first.
    photons : Problem
        With photon noise only.
    parts : tuple of slice
        Which pixels of a problem belong to each arm that is used.
    num_outside : int
        Good pixels that the emulator cannot reach.
    amplitude : AmplitudePrior or None
        Of the emulator's error; None leaves photon noise alone.
    sizes : ([pixel], [pixel])
        Width of each pixel, and FWHM of its line spread, in ln(wavelength).
    """

    spectrum: Any
    emulator: Any
    keep: Int[np.ndarray, " good"]
    places: Int[np.ndarray, " pixel"]
    used: Bool[np.ndarray, " pixel"]
    prior: Prior
    held: dict[str, float]
    starts: Float64[np.ndarray, "start parameter"]
    photons: Problem
    parts: tuple[slice, ...]
    num_outside: int
    amplitude: AmplitudePrior | None
    sizes: tuple[Any, Any]

    @classmethod
    def build(
        cls,
        spectrum: Any,
        emulator: Any,
        prior: Prior,
        held: dict[str, float],
        *,
        resolution: Any = None,
        continuum_degree: Any = None,
        amplitude: AmplitudePrior | None = None,
    ) -> "Setup":
        """Check, find the velocity, choose the pixels and lay out the arrays.

        Parameters
        ----------
        spectrum : Spectrum or Arms
        prior, held
            From `stellarfit.priors.make_prior`.
        resolution
            Resolving power; by default the spectrum's own. Of arms, one for all or a mapping.
        continuum_degree
            See `Continuum.build`. Of arms, one for all or a mapping.
        amplitude
            Of the emulator's error, which `freeze` adds; None for photon noise alone.

        Raises
        ------
        InputError
            No resolving power, no pixel that the emulator can model, no positive continuum.
        """
        arms = list_arms(spectrum, resolution, continuum_degree)
        near, _ = select_arms(arms, lambda arm: _check_overlap(arm.spectrum, emulator))
        guess = first_guess(near, emulator, prior, held)
        if "v_rad" in prior.names:
            prior = prior.narrowed("v_rad", guess.v_rad - WINDOW, guess.v_rad + WINDOW)
        used, spectra = select_arms(near, lambda arm: _reach(arm, emulator, prior, held))
        seen = {arm.name: one for arm, one in zip(used, spectra, strict=True)}
        num_good = int(np.sum(spectrum.good))
        if isinstance(spectrum, Arms):
            spectrum = Arms(
                {
                    name: seen[name] if name in seen else one.marked(one.good, MaskBit.OUTSIDE)
                    for name, one in spectrum.spectra.items()
                },
                spectrum.missing,
            )
        else:
            spectrum = seen[""]
        views = [_View.build(arm, seen[arm.name], emulator, prior, held) for arm in used]
        keep = np.flatnonzero(spectrum.good)
        ends = np.cumsum([len(view.line_spread) for view in views]).tolist()
        first = np.cumsum([0, *(view.number for view in views)])
        places = np.concatenate([n + view.places for n, view in zip(first, views, strict=False)])
        weighs = np.concatenate([np.arange(len(v.places)) < v.number for v in views])
        pixels = keep[places]
        ivar = jnp.asarray(np.where(weighs, spectrum.ivar[pixels], 0.0))
        problem = Problem(
            star=StarModel.build(
                emulator,
                [(v.instrument, arm.zero_point) for arm, v in zip(used, views, strict=True)],
                prior.names,
                held,
            ),
            prior=prior,
            continuum=Continuum.join([view.continuum for view in views]),
            noise=NoiseMixture.single(Noise.build(ivar, jnp.zeros((len(pixels), 0)))),
            flux=jnp.asarray(spectrum.flux[pixels]),
        )
        return cls(
            spectrum=spectrum,
            emulator=emulator,
            keep=keep,
            places=places,
            used=weighs,
            prior=prior,
            held=held,
            starts=guess.values,
            photons=problem,
            parts=tuple(slice(first, last) for first, last in itertools.pairwise([0, *ends])),
            num_outside=num_good - len(keep),
            amplitude=amplitude,
            sizes=(
                jnp.asarray(spectrum.width[pixels] / spectrum.wavelength[pixels]),
                jnp.asarray(np.concatenate([view.line_spread for view in views])),
            ),
        )

    def anchored(self, values: Float64[Any, " parameter"]) -> "Setup":
        """The same with a compiled emulator that is exact at `values`; others are everywhere."""
        if not isinstance(self.emulator, CompiledEmulator):
            return self
        labels, *_ = self.photons.star.split(jnp.asarray(values))
        there = self.emulator.anchored(_anchor(self.emulator, labels))
        return dataclasses.replace(
            self, photons=eqx.tree_at(lambda p: p.star.emulator, self.photons, there)
        )

    def emulator_error(self, values: Float64[Any, " parameter"]) -> EmulatorError | None:
        """The emulator's error in the pixels; None where it is not to be used."""
        if self.amplitude is None:
            return None
        model = self.emulator.error_model
        return push(self.photons, model, jnp.asarray(values), self.sizes)

    def freeze(
        self,
        values: Float64[Any, " parameter"],
        error: EmulatorError | None,
        mismatch: Mismatch | None = None,
    ) -> Problem:
        """The problem with the emulator's error and the mismatch as they are at `values`.

        Parameters
        ----------
        error
            `emulator_error` at these values, here as below.
        """
        variance, weight = self.photon_variance, self.used.astype(float)
        if mismatch is not None:
            variance = variance + mismatch.variance[self.places]
            weight = weight * mismatch.weight[self.places]
        if error is None or self.amplitude is None:
            nothing = jnp.zeros((len(weight), 0))
            noise = NoiseMixture.single(Noise.build(jnp.asarray(weight / variance), nothing))
        else:
            noise = mix(
                self.photons,
                error,
                jnp.asarray(values),
                jnp.asarray(variance),
                jnp.asarray(weight),
                self.amplitude.arrays,
            )
        return eqx.tree_at(lambda problem: problem.noise, self.photons, noise)

    def without_mismatch(
        self, error: EmulatorError | None, log_amplitude: Float64[Any, ""] | float
    ) -> Problem:
        """The problem with photon noise and the emulator's error of one amplitude alone.

        As the labels see it, with its floor: what the noise of `freeze` has beside the mismatch.
        """
        if error is None:
            return self.photons
        return self._with_error(error.floor * error.variance, error.modes, log_amplitude)

    def find_mismatch(
        self, values: Float64[Any, " parameter"], error: EmulatorError | None
    ) -> Mismatch:
        """Apply the rule of `stellarfit.mask` to the residuals at `values`, [good]."""
        normalized, continuum = _predict(self.photons, values)
        residual = self.photons.flux - normalized * continuum
        sensitivity = _sensitivity(self.photons, values) * continuum
        variance = self.photon_variance
        if error is not None and self.amplitude is not None:
            whole = np.asarray(error.variance + jnp.sum(error.seen**2, axis=1))
            variance = variance + np.exp(self.amplitude.log_factor) * whole
        ends = np.cumsum([0, *(np.sum(self.used[part]) for part in self.parts)]).tolist()
        residual, variance, sensitivity = (
            np.asarray(one)[self.used] for one in (residual, variance, sensitivity)
        )
        arms = [slice(*pair) for pair in itertools.pairwise(ends)]
        return find_mismatch(residual, variance, sensitivity, arms)

    def expected(self, error: EmulatorError | None) -> Problem:
        """The problem with photon noise and the emulator's error as it was expected to be alone.

        As residuals see it (`EmulatorError.seen`), without the floor that only a change of the
        labels meets.
        """
        if error is None or self.amplitude is None:
            return self.photons
        return self._with_error(error.variance, error.seen, self.amplitude.log_factor)

    def predict(
        self, problem: Problem, values: Float64[Any, " parameter"]
    ) -> tuple[Float64[np.ndarray, " pixel"], Float64[np.ndarray, " pixel"]]:
        """Model flux and continuum on all pixels of the spectrum; NaN where not fitted."""
        normalized, continuum = _predict(problem, values)
        flux = np.full(len(self.spectrum), np.nan)
        level = flux.copy()
        flux[self.keep] = np.asarray(normalized * continuum)[self.used]
        level[self.keep] = np.asarray(continuum)[self.used]
        return flux, level

    def _with_error(self, variance, modes, log_amplitude):
        variance = self.photon_variance + np.exp(log_amplitude) * variance
        noise = Noise.build(self.used / variance, np.exp(0.5 * log_amplitude) * modes)
        single = NoiseMixture.single(noise)
        return eqx.tree_at(lambda problem: problem.noise, self.photons, single)

    @property
    def photon_variance(self) -> Float64[np.ndarray, " pixel"]:
        """Of each pixel of a problem; without weight, that of the pixel it copies."""
        return 1 / self.spectrum.ivar[self.keep[self.places]]


class _View(NamedTuple):
    """One arm's pixels in a problem, and what is fixed of their model."""

    number: int  # that are fitted
    places: Int[np.ndarray, " pixel"]  # which of these each is
    instrument: Any
    continuum: Continuum
    line_spread: Float64[np.ndarray, " pixel"]  # FWHM in ln(wavelength)

    @classmethod
    def build(cls, arm, spectrum, emulator, prior, held):
        """Of an arm's pixels that `_reach` left."""
        good = np.flatnonzero(spectrum.good)
        places = np.minimum(np.arange(rounded_up(len(good))), len(good) - 1)
        keep = good[places]
        wavelength = spectrum.wavelength[keep]
        resolution = arm.resolution
        if isinstance(resolution, np.ndarray):
            resolution = resolution[keep]
        velocities = _velocities(prior, held, arm.zero_point)
        instrument = make_instrument(
            emulator, wavelength, spectrum.width[keep], resolution, velocities
        )
        with of_arm(arm.name):
            level = rough_level(spectrum.flux[good])
            continuum = Continuum.build(wavelength, level, arm.degree)
        line_spread = np.broadcast_to(1 / np.asarray(resolution), (len(keep),))
        return cls(len(good), places, instrument, continuum, line_spread)


def _reach(arm, emulator, prior, held):
    """The spectrum with the pixels marked that the emulator cannot reach.

    Refuses an arm that has no other.
    """
    one = arm.spectrum
    velocities = _velocities(prior, held, arm.zero_point)
    usable = usable_pixels(emulator, one.wavelength, one.width, arm.resolution, velocities)
    return arm.spectrum.masked(~usable, MaskBit.OUTSIDE)


@eqx.filter_jit
def _anchor(emulator, labels):
    return emulator.anchor_at(labels)


@eqx.filter_jit
def _predict(problem, values):
    normalized = problem.star(values)
    return normalized, problem.continuum.basis @ problem.coefficients(normalized)


@eqx.filter_jit
def _sensitivity(problem, values):
    """Change of the normalised flux for one dex in the abundance of all metals, at `values`."""
    star = problem.star
    names = star.emulator.label_space.names
    if "fe_h" not in names:
        # An optically thin line: flux exp(-tau), tau proportional to the abundance.
        flux = jnp.clip(star(values), 1e-3, 1.0)
        return jnp.log(10.0) * flux * jnp.log(flux)
    every = star.every(values)
    direction = jnp.zeros_like(every).at[names.index("fe_h")].set(1.0)
    return jax.jvp(star.whole, (every,), (direction,))[1]


def _check_overlap(spectrum, emulator):
    spectrum.check_good()
    low, high = emulator.wavelength_range
    wavelength = spectrum.wavelength[spectrum.good]
    if not ((wavelength > low) & (wavelength < high)).any():
        raise InputError(
            f"wavelength: the good pixels cover {wavelength.min():.1f} .. {wavelength.max():.1f} "
            f"Angstrom (vacuum), the emulator {low:.1f} .. {high:.1f}; nothing overlaps"
        )


def _velocities(prior, held, zero_point):
    def ends(name):
        if name in prior.names:
            i = prior.names.index(name)
            return float(prior.lower[i]), float(prior.upper[i])
        return held[name], held[name]

    v_rad = ends("v_rad")
    if zero_point is not None:
        # Both multiply wavelengths.
        pairs = zip(v_rad, ends(zero_point), strict=True)
        v_rad = [v + zero + v * zero / SPEED_OF_LIGHT for v, zero in pairs]
    return Velocities(v_rad[0], v_rad[1], ends("v_sini")[1], ends("v_mac")[1])
