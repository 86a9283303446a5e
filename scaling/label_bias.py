"""What photon noise, and what an emulator's error, do to the labels of a star.

To first order a fit moves its parameters by A r for an error r in the pixels, with

    A = (J^T C^-1 J + P)^-1 J^T C^-1

where J holds the derivatives of the pixels by the parameters, C is the covariance that the fit
weighs the pixels with, and P next to nothing (see `Design`). Errors of covariance Sigma therefore
scatter the parameters with A Sigma A^T. The parameters are the free labels, the radial velocity
and the coefficients of the continuum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64
from scipy.linalg import solve_triangular
from scipy.sparse import csr_array
from scipy.special import ndtr

from emulators.emulator import Emulator
from emulators.error_model import ErrorModel
from emulators.errors import InputError
from emulators.fine_step import fine_step
from emulators.units import FWHM, SPEED_OF_LIGHT

_SIGMAS = 5.0  # reach of the line spread; 6e-7 of it lies beyond
_ANGSTROM_PER_DEGREE = 70.0  # of the continuum, as fits have it by default
_SMALLEST_DEGREE, _LARGEST_DEGREE = 2, 10
_NO_TRACE = 1000.0  # boxes: the error of a label that leaves no trace in the pixels


class Pixels(NamedTuple):
    """A Gaussian spectrograph: pixels uniform in ln(wavelength), and what each sees.

    Attributes
    ----------
    wavelength
        Centres, vacuum Angstrom.
    fine
        Wavelengths at which a spectrum is to be evaluated, uniform in ln, vacuum Angstrom.
    spread
        Weights of the fine grid in each pixel; every row sums to one.
    resolved
        Resolution elements that they cover.
    """

    wavelength: Float64[np.ndarray, " pixel"]
    fine: Float64[np.ndarray, " fine"]
    spread: csr_array
    resolved: float

    def observe(
        self, wavelength: Float64[np.ndarray, " native"], rows: Float64[np.ndarray, "row native"]
    ) -> Float64[np.ndarray, "row pixel"]:
        """What the pixels see of curves that are straight between their wavelengths in ln."""
        native, fine = np.log(wavelength), np.log(self.fine)
        return np.stack([self.spread @ np.interp(fine, native, row) for row in rows])


def make_pixels(
    wavelength_range: tuple[float, float],
    resolution: float,
    pixels_per_fwhm: float,
    native_step: float,
) -> Pixels:
    """Lay pixels into a range such that the line spread of none reaches beyond it.

    Parameters
    ----------
    wavelength_range
        Where the spectrum is known, vacuum Angstrom.
    resolution
        Resolving power, wavelength over FWHM.
    pixels_per_fwhm
        Sampling of the line spread.
    native_step
        Of the emulator in ln(wavelength), of which the fine grid has a third, or less where
        the spectrograph resolves more: see `emulators.fine_step`.

    Raises
    ------
    InputError
        If not even ten pixels fit into the range.
    """
    sigma = 1 / (FWHM * resolution)
    half = 0.5 / (resolution * pixels_per_fwhm)
    step = fine_step(native_step, resolution)
    first, last = np.log(wavelength_range)
    reach = half + _SIGMAS * sigma
    count = int(np.floor((last - first - 2 * reach - 2 * step) / (2 * half)))
    if count < 10:
        raise InputError(
            f"choose: {wavelength_range[0]:g} .. {wavelength_range[1]:g} Angstrom hold no ten "
            f"pixels at resolution {resolution:g}; give a wider range"
        )
    middle = 0.5 * (first + last) + 2 * half * (np.arange(count) - 0.5 * (count - 1))
    fine = np.arange(first, last, step)
    # The closed form of line spread and pixel, sampled on the fine grid.
    start = np.ceil((middle - reach - first) / step).astype(int)
    taps = start[:, None] + np.arange(int(2 * reach / step) + 1)
    offset = first + taps * step - middle[:, None]
    weights = ndtr((offset + half) / sigma) - ndtr((offset - half) / sigma)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(count), taps.shape[1])
    spread = csr_array((weights.ravel(), (rows, taps.ravel())), shape=(count, len(fine)))
    return Pixels(np.exp(middle), np.exp(fine), spread, count / pixels_per_fwhm)


class Covariance(NamedTuple):
    """Of errors in the pixels: ``diag(variance) + modes modes^T``."""

    variance: Float64[np.ndarray, " pixel"]
    modes: Float64[np.ndarray, "pixel mode"]

    def scaled(self, factor: float) -> "Covariance":
        """The same shape with `factor` times the variance."""
        return Covariance(factor * self.variance, np.sqrt(factor) * self.modes)


def error_model_of(emulator: Emulator) -> ErrorModel:
    """The error model of an emulator; one that has none is an `InputError`."""
    if emulator.error_model is None:
        raise InputError(
            f"choose: emulator {emulator.name} has no error model; measure it with "
            "emulators.error_model.fit_error_model"
        )
    return emulator.error_model


def observed_covariance(
    emulator: Emulator,
    labels: Float64[np.ndarray, " label"],
    pixels: Pixels,
    continuum_degree: int | None = None,
) -> Covariance:
    """Of an emulator's errors at some labels, as the spectrograph sees them: that of fits.

    Parameters
    ----------
    labels
        Of the star, in the emulator's order.
    continuum_degree
        See `make_design`.
    """
    errors = error_model_of(emulator)
    flux, by_label, by_shift = _observed_derivatives(emulator, labels, pixels)
    at = jnp.asarray(labels)
    seen = pixels.observe(np.asarray(errors.wavelength), np.asarray(errors.patterns))
    coherent = errors.coherent.first_order
    variance = errors.amplitude(at) * errors.variance(jnp.asarray(seen))
    off = coherent.displacements(
        at,
        variance,
        jnp.asarray(by_label),
        # A broadening adds a second derivative.
        jnp.asarray(np.stack([by_shift, np.gradient(by_shift)], axis=1)),
        jnp.asarray(flux[:, None] * _chebyshev(pixels.wavelength, continuum_degree)),
        pixels.resolved,
    )
    # Along whatever the labels can do, the variance of a pixel counts by a factor more.
    floor = np.sqrt(coherent.floor(len(variance), pixels.resolved) - 1)
    return Covariance(np.asarray(variance), np.hstack([off.modes, floor * off.directions]))


class Design(NamedTuple):
    """Derivatives of a star's pixels by every free parameter, the labels first.

    Attributes
    ----------
    names
        Of the free labels.
    columns
        By the free labels [per unit of each], the radial velocity [per km/s] where it is free,
        and the continuum's coefficients.
    precision
        Of each parameter beside the data. The box of a label has none, being flat inside; a
        Gaussian as wide as 1000 boxes keeps a label that leaves no trace in the pixels from an
        infinite error, and counts for nothing otherwise.
    """

    names: tuple[str, ...]
    columns: Float64[np.ndarray, "pixel parameter"]
    precision: Float64[np.ndarray, " parameter"]


def make_design(
    emulator: Emulator,
    labels: Float64[np.ndarray, " label"],
    pixels: Pixels,
    *,
    held: Sequence[str] = (),
    continuum_degree: int | None = None,
) -> Design:
    """Derivatives by the emulator, at a star.

    Parameters
    ----------
    labels
        Of the star, in the emulator's order.
    held
        Labels, or ``v_rad``, that the fit will not vary.
    continuum_degree
        Of the free polynomial that multiplies the spectrum; by default that of fits, one for
        every 70 Angstrom, from 2 to 10.
    """
    space = emulator.label_space
    flux, by_label, by_velocity = _observed_derivatives(emulator, labels, pixels)
    free = [i for i, name in enumerate(space.names) if name not in held]
    parts = [by_label[:, free]]
    if "v_rad" not in held:
        parts.append(by_velocity[:, None])
    parts.append(flux[:, None] * _chebyshev(pixels.wavelength, continuum_degree))
    columns = np.concatenate(parts, axis=1)
    precision = np.zeros(columns.shape[1])
    boxes = np.array([space.upper[i] - space.lower[i] for i in free])
    precision[: len(free)] = (_NO_TRACE * boxes) ** -2.0
    return Design(tuple(space.names[i] for i in free), columns, precision)


def _observed_derivatives(emulator, labels, pixels):
    return (
        pixels.spread @ np.asarray(part, np.float64)
        for part in _derivatives(emulator, jnp.asarray(labels), jnp.asarray(pixels.fine))
    )


@eqx.filter_jit
def _derivatives(emulator, labels, wavelength):
    """Flux, its derivatives by the labels, and by the radial velocity [per km/s]."""
    encoding = emulator.encode(wavelength)

    def flux(labels, v_rad):
        return emulator.flux_at(labels, encoding, -jnp.log1p(v_rad / SPEED_OF_LIGHT))

    still = jnp.zeros(())
    by_label = jax.jacfwd(flux)(labels, still)
    here, by_velocity = jax.jvp(lambda v: flux(labels, v), (still,), (jnp.ones(()),))
    return here, by_label, by_velocity


def _chebyshev(wavelength, degree):
    low, high = wavelength[0], wavelength[-1]
    if degree is None:
        span = np.ceil((high - low) / _ANGSTROM_PER_DEGREE)
        degree = int(np.clip(span, _SMALLEST_DEGREE, _LARGEST_DEGREE))
    return np.polynomial.chebyshev.chebvander(2 * (wavelength - low) / (high - low) - 1, degree)


class Weights(NamedTuple):
    """The inverse C^-1 of the covariance that a fit weighs the pixels with.

    Made by `make_weights`: ``C^-1 x = x / variance - factor (factor^T x)``.
    """

    variance: Float64[np.ndarray, " pixel"]
    factor: Float64[np.ndarray, "pixel mode"]

    def apply(self, columns: Float[np.ndarray, "pixel column"]) -> np.ndarray:
        """C^-1 applied to columns."""
        return columns / self.variance[:, None] - self.factor @ (self.factor.T @ columns)


def make_weights(known: Covariance, snr: float) -> Weights:
    """Of photon noise and the emulator's error that a fit knows of, by Woodbury's formula.

    Parameters
    ----------
    known
        The emulator's error; zero variance and no modes leave photon noise alone.
    snr
        Signal to noise in every pixel, at the continuum.
    """
    variance = known.variance + snr**-2.0
    scaled = known.modes / variance[:, None]
    lower = np.linalg.cholesky(np.eye(scaled.shape[1]) + known.modes.T @ scaled)
    return Weights(variance, solve_triangular(lower, scaled.T, lower=True).T)


def response(
    design: Design, weights: Weights
) -> tuple[Float[np.ndarray, "parameter pixel"], Float[np.ndarray, "parameter parameter"]]:
    """How a fit answers errors in the pixels, and the covariance that it believes to have.

    Returns
    -------
    A
        The parameters move by A r for an error r of the pixels.
    covariance
        Of the parameters, (J^T C^-1 J + P)^-1.
    """
    solved = weights.apply(design.columns)
    fisher = design.columns.T @ solved + np.diag(design.precision)
    # Parameters differ by many powers of ten: the inverse is taken with a diagonal of ones.
    scale = 1 / np.sqrt(np.diagonal(fisher))
    unit = np.linalg.inv(fisher * scale[:, None] * scale[None, :])
    covariance = unit * scale[:, None] * scale[None, :]
    return covariance @ solved.T, covariance


def scatter(
    answer: Float[np.ndarray, "parameter pixel"], errors: Covariance
) -> Float[np.ndarray, " parameter"]:
    """Standard deviation of the parameters under errors of a covariance: diag(A Sigma A^T)^1/2."""
    along = answer @ errors.modes
    return np.sqrt(answer**2 @ errors.variance + np.sum(along**2, axis=1))
