"""From a spectrum and an emulator to a problem that can be optimised and sampled."""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int

from emulators.errors import InputError

from .continuum import Continuum
from .instrument import Instrument, Velocities, fine_step, inside, log_shift
from .mask import Mismatch, find_mismatch
from .model import Problem, StarModel
from .noise import Noise
from .priors import Prior
from .spectrum import MaskBit
from .velocity import first_guess

_WINDOW = 50.0  # km/s on either side of the first guess, in which v_rad is then free


@dataclass(frozen=True, eq=False)
class Setup:
    """A spectrum prepared for an emulator.

    Attributes
    ----------
    spectrum : Spectrum
        With the pixels that the emulator cannot reach marked ``OUTSIDE``.
    keep : [good]
        Indices of the pixels that are fitted.
    prior : Prior
        With v_rad restricted to 50 km/s about the first guess.
    held : dict
        Fixed parameters.
    starts : [start, parameter]
        Starting values, best first.
    photons : Problem
        With photon noise only.
    num_outside : int
        Good pixels that the emulator cannot reach.
    """

    spectrum: Any
    emulator: Any
    keep: Int[np.ndarray, " good"]
    prior: Prior
    held: dict[str, float]
    starts: Float64[np.ndarray, "start parameter"]
    photons: Problem
    num_outside: int
    emulator_error: bool

    @classmethod
    def build(
        cls,
        spectrum: Any,
        emulator: Any,
        prior: Prior,
        held: dict[str, float],
        *,
        resolution: Any = None,
        continuum_degree: int | None = None,
        emulator_error: bool = True,
    ) -> "Setup":
        """Check, find the velocity, choose the pixels and lay out the arrays.

        Parameters
        ----------
        prior, held
            From `stellarfit.priors.make_prior`.
        resolution
            Resolving power; by default the spectrum's own.
        continuum_degree
            See `Continuum.build`.
        emulator_error
            Whether `freeze` adds the emulator's covariance.
        """
        resolution = _resolution(spectrum, resolution)
        _check_overlap(spectrum, emulator)
        guess = first_guess(spectrum, emulator, prior, held, resolution)
        if "v_rad" in prior.names:
            prior = prior.narrowed("v_rad", guess.v_rad - _WINDOW, guess.v_rad + _WINDOW)
        step = fine_step(emulator.step, resolution)
        velocities = _velocities(prior, held)
        usable = inside(
            spectrum.wavelength,
            spectrum.width,
            resolution,
            step=step,
            velocities=velocities,
            limits=emulator.wavelength_range,
        )
        num_outside = int(np.sum(spectrum.good & ~usable))
        spectrum = spectrum.masked(~usable, MaskBit.OUTSIDE)  # refuses if nothing is left
        keep = np.flatnonzero(spectrum.good)
        wavelength, flux = spectrum.wavelength[keep], spectrum.flux[keep]
        instrument = Instrument.build(
            wavelength,
            spectrum.width[keep],
            resolution[keep] if isinstance(resolution, np.ndarray) else resolution,
            step=step,
            velocities=velocities,
        )
        level = float(np.percentile(flux, 90))
        if not level > 0:
            raise InputError(
                f"flux: the 90th percentile of the good pixels is {level:g}; a spectrum to be "
                "fitted has a positive continuum"
            )
        error_model = emulator.error_model if emulator_error else None
        num_modes = 0 if error_model is None else error_model.modes.shape[1]
        ivar = jnp.asarray(spectrum.ivar[keep])
        problem = Problem(
            star=StarModel.build(emulator, instrument, prior.names, held),
            prior=prior,
            continuum=Continuum.build(wavelength, level, continuum_degree),
            noise=Noise.build(ivar, jnp.zeros((len(keep), num_modes))),
            flux=jnp.asarray(flux),
        )
        return cls(
            spectrum=spectrum,
            emulator=emulator,
            keep=keep,
            prior=prior,
            held=held,
            starts=guess.values,
            photons=problem,
            num_outside=num_outside,
            emulator_error=error_model is not None,
        )

    def emulator_covariance(
        self, values: Float64[Any, " parameter"]
    ) -> tuple[Float64[np.ndarray, " good"], Float64[np.ndarray, "good mode"]]:
        """The emulator's error in the pixels, as variance and modes, in the unit of the flux^2.

        Zeros, of the same shape, where the emulator's error is not to be used.
        """
        if not self.emulator_error:
            return np.zeros(len(self.keep)), np.zeros((len(self.keep), 0))
        variance, modes = _push_covariance(self.photons, self.emulator.error_model, values)
        return np.asarray(variance), np.asarray(modes)

    def freeze(
        self, values: Float64[Any, " parameter"], mismatch: Mismatch | None = None
    ) -> Problem:
        """The problem with the emulator's error and the mismatch as they are at `values`."""
        variance, modes = self.emulator_covariance(values)
        variance = variance + self._photon_variance
        weight = 1 / variance if mismatch is None else mismatch.inverse_variance(variance)
        noise = Noise.build(jnp.asarray(weight), jnp.asarray(modes))
        return eqx.tree_at(lambda problem: problem.noise, self.photons, noise)

    def find_mismatch(self, values: Float64[Any, " parameter"]) -> Mismatch:
        """Apply the rule of `stellarfit.mask` to the residuals at `values`."""
        variance, modes = self.emulator_covariance(values)
        normalized, continuum = _predict(self.photons, values)
        residual = np.asarray(self.photons.flux - normalized * continuum)
        sensitivity = np.asarray(_sensitivity(self.photons, values) * continuum)
        variance = self._photon_variance + variance + np.sum(modes**2, axis=1)
        return find_mismatch(residual, variance, sensitivity)

    def chi2(self, values: Float64[Any, " parameter"]) -> float:
        """Of the residuals at `values`, with photon noise and the emulator's covariance."""
        problem = self.freeze(values)
        normalized, continuum = _predict(problem, values)
        return float(problem.noise.chi2(problem.flux - normalized * continuum))

    def predict(
        self, problem: Problem, values: Float64[Any, " parameter"]
    ) -> tuple[Float64[np.ndarray, " pixel"], Float64[np.ndarray, " pixel"]]:
        """Model flux and continuum on all pixels of the spectrum; NaN where not fitted."""
        normalized, continuum = _predict(problem, values)
        flux = np.full(len(self.spectrum), np.nan)
        level = flux.copy()
        flux[self.keep], level[self.keep] = normalized * continuum, continuum
        return flux, level

    @property
    def _photon_variance(self):
        return 1 / self.spectrum.ivar[self.keep]


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
    every = star.held.at[np.array(star.free)].set(values)
    whole = replace(star, free=tuple(range(len(every))))
    direction = jnp.zeros_like(every).at[names.index("fe_h")].set(1.0)
    return jax.jvp(whole, (every,), (direction,))[1]


@eqx.filter_jit
def _push_covariance(problem, error_model, values):
    """Shift, broaden and scale the emulator's variance and modes like the star's spectrum.

    The variance goes through the same weights as the flux. That is an upper bound for the mean of
    residuals that are correlated in an unknown way, which neighbouring ones are.
    """
    star = problem.star
    _, v_rad, v_sini, v_mac = star.split(values)
    rest = jnp.log(star.instrument.wavelength) + log_shift(v_rad)
    native = jnp.log(error_model.wavelength)
    rows = jnp.concatenate([error_model.variance[None, :], error_model.modes.T])
    fine = jax.vmap(lambda row: jnp.interp(rest, native, row))(rows.astype(jnp.float64))
    pixels = star.instrument(fine, v_sini, v_mac)
    _, continuum = _predict(problem, values)
    variance = jnp.maximum(pixels[0], 0.0) * continuum**2
    return variance, (pixels[1:] * continuum).T


def _resolution(spectrum, resolution):
    """A positive resolving power: a number, or one a pixel."""
    resolution = spectrum.resolution if resolution is None else resolution
    if resolution is None:
        raise InputError(
            "resolution: the spectrum does not carry its resolving power; give resolution= "
            "(--resolution), lambda / FWHM"
        )
    array = np.asarray(resolution, np.float64)
    if array.shape not in ((), (len(spectrum),)):
        raise InputError(f"resolution: shape {array.shape}; give one number or one a pixel")
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise InputError("resolution: give a positive resolving power lambda / FWHM")
    return array if array.ndim else float(array)


def _check_overlap(spectrum, emulator):
    low, high = emulator.wavelength_range
    wavelength = spectrum.wavelength[spectrum.good]
    if not ((wavelength > low) & (wavelength < high)).any():
        raise InputError(
            f"wavelength: the good pixels cover {wavelength.min():.1f} .. {wavelength.max():.1f} "
            f"Angstrom (vacuum), the emulator {low:.1f} .. {high:.1f}; nothing overlaps"
        )


def _velocities(prior, held):
    def ends(name):
        if name in prior.names:
            i = prior.names.index(name)
            return float(prior.lower[i]), float(prior.upper[i])
        return held[name], held[name]

    v_rad = ends("v_rad")
    return Velocities(v_rad[0], v_rad[1], ends("v_sini")[1], ends("v_mac")[1])
