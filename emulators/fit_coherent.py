"""Measuring the part of an emulator's error that looks like a change of the labels."""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64
from scipy.ndimage import gaussian_filter1d

from .coherent_error import SMALLEST, Basis, CoherentError, find_basis
from .error_amplitude import fit_error_amplitude
from .units import FWHM

if TYPE_CHECKING:
    from .training_data import TrainingData

# A spectrograph in native pixels (sigma of its line spread) to measure at, and one four times as
# coarse, which tells how the shares depend on the number of resolved pixels.
LINE_SPREAD, _COARSER = 1.4, 4.0
_CONTINUUM_DEGREE = 3
# Stars, and the share of a label's range to either side, over which spectra are seen to bend.
_BENT_STARS, _BEND = 200, 0.15


def fit_coherent_error(
    model: Any, held_out: "TrainingData", scaled: Float64[np.ndarray, "star pixel"]
) -> CoherentError:
    """Measure the shares on held-out stars.

    Parameters
    ----------
    model : SpectralModel
    held_out
        The spectra.
    scaled
        Residuals of the last of them, over the expected rms of each star.
    """
    first = len(held_out.labels) - len(scaled)
    labels = np.asarray(held_out.labels)[first:]
    views = [_View(scaled, sigma) for sigma in (LINE_SPREAD, LINE_SPREAD * _COARSER)]
    encoding = eqx.filter_jit(model.encode)(jnp.asarray(held_out.wavelength, jnp.float64))
    space = model.label_space
    half = 0.5 * (np.asarray(space.upper) - np.asarray(space.lower))
    step = float(held_out.step)
    for star in range(len(scaled)):
        shift = jnp.asarray(np.asarray(held_out.dither)[first + star] * step)
        flux, by_label, by_shift = (
            np.asarray(part, np.float64)
            for part in _derivatives(model, encoding, jnp.asarray(labels[star]), shift)
        )
        continuum, by_velocity = nuisances(flux, by_shift)
        bends = None
        if star < _BENT_STARS:
            bends = np.asarray(_bends(model, encoding, labels[star], shift), np.float64)
        for view in views:
            view.measure(star, by_label * half, by_velocity, continuum, bends)
    fine, coarse = (view.totals() for view in views)
    return _summary(fine, coarse, labels, space, scaled.shape[1])


class _View:
    """Residuals as a spectrograph sees them, and their energies along each star's directions."""

    def __init__(self, scaled: np.ndarray, sigma: float):
        self.smooth = partial(gaussian_filter1d, sigma=sigma, axis=0, mode="nearest")
        self.residual = self.smooth(scaled.T)
        deviation = np.sqrt(np.mean(self.residual**2, axis=1))
        self.weight = 1 / np.where(deviation > 0, deviation, 1.0)
        self.rows: list[Any] = []
        self.beyond: list[Any] = []

    def measure(
        self, star: int, by_label: Any, by_velocity: Any, continuum: Any, bends: Any
    ) -> None:
        """Add a star, from what its fit could change; bends may be None."""
        columns = self.weight[:, None]
        basis: Basis = _measure(
            columns * self.smooth(by_label),
            columns * self.smooth(by_velocity),
            columns * self.smooth(continuum),
        )
        residual = self.weight * self.residual[:, star]
        self.rows.append(_project(basis, residual))
        if bends is not None:
            nuisance = columns * np.concatenate([continuum, by_velocity, by_label], axis=1)
            self.beyond.append(_share_beyond(columns * self.smooth(bends), nuisance, residual))

    def totals(self) -> "_Totals":
        """Everything in units of the mean energy of a star."""
        *energies, parts, energy = (np.array(column) for column in zip(*self.rows, strict=True))
        scale = max(float(np.mean(energy)), np.finfo(float).tiny)
        along, velocity, error = (one / scale for one in energies)
        return _Totals(along, velocity, error, parts, float(np.mean(self.beyond)))


class _Totals(NamedTuple):
    """Of each star: energies along the directions, along the velocities, of each label's error.

    ``parts[star, label, direction]`` is how much of a direction is in a label's error; `beyond` is
    the share of a star's energy along one direction in which labels bend its spectrum, their mean.
    """

    along: Float64[np.ndarray, "star label"]
    velocity: Float64[np.ndarray, "star 2"]
    error: Float64[np.ndarray, "star label"]
    parts: Float64[np.ndarray, "star label label"]
    beyond: float


@eqx.filter_jit
def _derivatives(model, encoding, labels, shift):
    def flux(labels, shift):
        return model.flux_at(labels, encoding, shift)

    by_shift = jax.jvp(lambda s: flux(labels, s), (shift,), (jnp.ones_like(shift),))[1]
    return flux(labels, shift), jax.jacfwd(flux)(labels, shift), by_shift


@eqx.filter_jit
def _bends(model, encoding, labels, shift):
    """Second differences of the flux by each label, [pixel, label]."""
    space = model.label_space
    lower, upper = jnp.asarray(space.lower), jnp.asarray(space.upper)
    step = _BEND * (upper - lower)

    def bend(label):
        # As near to the star as the box allows.
        middle = jnp.clip(labels, lower + step, upper - step)
        middle = jnp.where(jnp.arange(len(labels)) == label, middle, labels)
        move = jnp.zeros_like(step).at[label].set(step[label])
        before, at, after = (
            model.flux_at(middle + sign * move, encoding, shift).astype(jnp.float64)
            for sign in (-1.0, 0.0, 1.0)
        )
        return before - 2 * at + after

    return jax.lax.map(bend, jnp.arange(len(labels))).T


def _share_beyond(bends, nuisance, residual):
    """Mean share of a residual's energy along bends, beyond what the nuisance columns can do."""
    left = beyond(nuisance, bends)
    directions, size, _ = np.linalg.svd(left, full_matrices=False)
    # What is left of a bend that first order explains is rounding.
    seen = size**2 > SMALLEST * np.sum(bends**2)
    if not seen.any():
        return 0.0
    return np.mean((directions[:, seen].T @ residual) ** 2) / (residual @ residual)


def nuisances(
    flux: Float64[np.ndarray, " pixel"], by_shift: Float64[np.ndarray, " pixel"]
) -> tuple[Float64[np.ndarray, "pixel column"], Float64[np.ndarray, "pixel 2"]]:
    """What a continuum can do to a spectrum, and what a shift and a broadening can."""
    place = np.linspace(-1, 1, len(flux))
    degree = np.polynomial.chebyshev.chebvander(place, min(_CONTINUUM_DEGREE, len(flux) - 1))
    # A broadening adds a second derivative.
    return flux[:, None] * degree, np.stack([by_shift, np.gradient(by_shift)], axis=1)


def beyond(known: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """What of columns is no sum of known ones, both [pixel, column]."""
    basis, _ = np.linalg.qr(known)
    return columns - basis @ (basis.T @ columns)


_measure = jax.jit(find_basis)


def _project(basis, residual):
    """Energies along the directions, along the velocity, of each label's error, and in all."""
    coordinates = np.asarray(basis.projected.T @ residual)
    right, inverse = np.asarray(basis.right), np.asarray(basis.inverse)
    along = inverse * (right.T @ coordinates)
    # What a fit would take for a change of each label, and the directions' part in it.
    error = right @ (inverse * along)
    parts = (right * inverse) ** 2
    velocity = np.asarray(basis.velocity).T @ residual
    return along**2, velocity**2, error**2, parts, float(residual @ residual)


def _summary(fine, coarse, labels, space, pixels):
    """Shares, stretches and how they depend on labels and resolution."""
    tiny = np.finfo(float).tiny
    share = np.maximum(np.mean(fine.along, axis=0), tiny)
    ratio = np.maximum(np.mean(fine.along / share, axis=1), 1e-12)
    amplitude = fit_error_amplitude(ratio, labels, space)
    factor = np.asarray(jax.vmap(amplitude)(jnp.asarray(labels)))
    share = np.maximum(np.mean(fine.along / factor[:, None], axis=0), tiny)
    # The logarithm of a mean of so many squares of random numbers scatters by itself.
    own = np.log(np.random.default_rng(0).chisquare(len(space), 10_000)).var()
    scatter = np.sqrt(max(float(amplitude.scatter) ** 2 - own, 0.0))
    expected = np.einsum("slk,k,s->sl", fine.parts, share, factor)
    stretch = np.sqrt(np.mean(fine.error / np.where(expected > 0, expected, np.inf), axis=0))
    resolved = pixels / (FWHM * LINE_SPREAD)
    growth = np.log(max(float(coarse.along.mean()), tiny) / max(float(fine.along.mean()), tiny))
    return CoherentError(
        amplitude=eqx.tree_at(lambda a: a.scatter, amplitude, jnp.asarray(scatter)),
        share=jnp.asarray(share),
        stretch=jnp.asarray(np.where(stretch > 0, stretch, 1.0)),
        widening=jnp.ones(len(space)),
        response=jnp.zeros(len(space)),
        share_velocity=jnp.asarray(np.mean(fine.velocity, axis=0)),
        resolved=jnp.asarray(resolved),
        exponent=jnp.asarray(max(growth / np.log(_COARSER), 0.0)),
        share_beyond=jnp.asarray(fine.beyond),
    )
