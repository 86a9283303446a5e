"""Posterior predictive checks: does the model make spectra like the one observed?

For every draw of the posterior one spectrum is made as the data are thought to be made: the model
at these labels, continuum coefficients from their posterior given them, photon noise, and an error
of the emulator whose two amplitudes are drawn too. Two numbers compare spectrum and model, for the
data and for the replicate at the same draw (realised discrepancies: Gelman, Meng & Stern 1996,
Statistica Sinica 6, 733, eq. 8):

chi2
    With photon noise and the expected covariance of the emulator's error: are residuals as large
    as they should be?
peak
    The largest residual, up or down, averaged by weight over two resolution elements about each
    pixel of the same arm, in units of its expected sigma: a line that the model lacks is many
    pixels wide, and one line in thousands of pixels does not show in chi^2.

The noise is that which was expected of the star: what the fit did to pixels that it described
badly (`stellarfit.mask`) is left out, and the amplitudes are drawn from their prior, not from
what the residuals made of them. Otherwise a misfit would widen its own yardstick (such a check is
called mixed: Marshall & Spiegelhalter 2003, Statistics in Medicine 22, 1649).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from emulators.errors import InputError

from ..arms import Arms
from ..model import Problem


@dataclass(frozen=True, eq=False, repr=False)
class Predictive:
    """Replicated spectra of a posterior, and how the data compare.

    Attributes
    ----------
    fit : Fit
        Of the posterior.
    flux, model : [draw, pixel]
        With and without noise, on the pixels of ``fit.spectrum`` and in the unit of its flux; NaN
        where not fitted.
    chi2, peak : [draw]
        Of the data at each draw.
    replicated_chi2, replicated_peak : [draw]
        Of the replicate of the same draw.
    peak_wavelength : float
        Where the largest smoothed residual is, at the mean model [vacuum Angstrom].
    peak_arm : str
        The arm that it is in; empty for a spectrum that is the only one.
    seed : int
    """

    fit: Any
    flux: Float64[np.ndarray, "draw pixel"]
    model: Float64[np.ndarray, "draw pixel"]
    chi2: Float64[np.ndarray, " draw"]
    replicated_chi2: Float64[np.ndarray, " draw"]
    peak: Float64[np.ndarray, " draw"]
    replicated_peak: Float64[np.ndarray, " draw"]
    peak_wavelength: float
    peak_arm: str
    seed: int

    @property
    def p_chi2(self) -> float:
        """Chance of a chi^2 as large as that of the data; near 1 says that errors are too large."""
        return _chance(self.replicated_chi2, self.chi2)

    @property
    def p_peak(self) -> float:
        """Chance of a smoothed residual as large as the largest of the data."""
        return _chance(self.replicated_peak, self.peak)

    def plot(self) -> Any:
        """Data, the band of the replicates, and residuals, as a matplotlib figure."""
        from ..predictive_figure import plot_predictive

        return plot_predictive(self)

    def __repr__(self) -> str:
        arm = self.peak_arm and f" of {self.peak_arm}"
        return (
            f"Predictive({len(self.chi2)} draws, p_chi2={self.p_chi2:.2g}, "
            f"p_peak={self.p_peak:.2g} at {self.peak_wavelength:.2f} Angstrom{arm})"
        )


def _chance(replicated, observed):
    # Never 0: so many draws cannot tell (Davison & Hinkley 1997, Bootstrap Methods, eq. 4.11).
    return float((1 + np.sum(replicated >= observed)) / (1 + len(observed)))


class Window(NamedTuple):
    """Sums of residuals over two resolution elements about each pixel, with their sigma.

    Attributes
    ----------
    first, last
        First pixel of each sum, and the one after its last.
    weight
        Of each residual [1/flux]: the inverse variance in a unit of the arm, so that pixels of
        flux in other units lose no digits where sums run through all.
    sigma
        Of each sum, by photon noise and the emulator's error.
    """

    first: Int[Array, " pixel"]
    last: Int[Array, " pixel"]
    weight: Float64[Array, " pixel"]
    sigma: Float64[Array, " pixel"]

    @classmethod
    def build(
        cls,
        log_wavelength: Float64[np.ndarray, " pixel"],
        line_spread: Float64[np.ndarray, " pixel"],
        weight: Float64[np.ndarray, " pixel"],
        modes: Float64[np.ndarray, "pixel mode"],
        arms: Sequence[slice] = (slice(None),),
    ) -> "Window":
        """Lay out the sums.

        Parameters
        ----------
        log_wavelength
            ln of the wavelength of the pixels, ascending within each arm.
        line_spread
            FWHM of the line spread at each pixel, in ln(wavelength).
        weight, modes
            Of the residuals' covariance, diag(1/weight) + modes modes^T [flux^2]; 0 counts for
            nothing.
        arms
            Pixels of each arm: no sum is over those of two.
        """
        first, last = np.zeros((2, len(weight)), int)
        weight, white = weight.copy(), np.zeros(len(weight))
        for arm in arms:
            own, reach = log_wavelength[arm], line_spread[arm]
            start = arm.start or 0
            first[arm] = start + np.searchsorted(own, own - reach, side="left")
            last[arm] = start + np.searchsorted(own, own + reach, side="right")
            white[arm] = weight[arm] / np.mean(weight[arm])
            weight[arm] /= np.sqrt(np.mean(weight[arm]))
        alone = _sums(jnp.asarray(white)[:, None], first, last)[:, 0]
        coherent = _sums(jnp.asarray(weight[:, None] * modes), first, last)
        sigma = jnp.sqrt(alone + jnp.sum(coherent**2, axis=1))
        return cls(jnp.asarray(first), jnp.asarray(last), jnp.asarray(weight), sigma)

    def __call__(self, residual: Float[Array, " pixel"]) -> Float64[Array, " pixel"]:
        """Smoothed residuals in sigma."""
        return _sums((self.weight * residual)[:, None], self.first, self.last)[:, 0] / self.sigma


def _sums(columns, first, last):
    """Of each column from pixel `first` to the one before `last`."""
    total = jnp.concatenate([jnp.zeros((1, columns.shape[1])), jnp.cumsum(columns, axis=0)])
    return total[last] - total[first]


def predict(posterior: Any, num: int, seed: int) -> Predictive:
    """See `Posterior.predictive`."""
    fit = posterior.fit
    flat = posterior.samples.reshape(-1, len(posterior.names))
    if not 1 <= num <= len(flat):
        raise InputError(f"num: {num}; the posterior has {len(flat)} draws, give 1 .. {len(flat)}")
    setup, pixels = fit.setup, fit.setup.keep[fit.setup.places]
    rng = np.random.default_rng(seed)
    values = flat[rng.choice(len(flat), num, replace=False)]
    error = setup.emulator_error(fit.values)
    photons = setup.photon_variance
    if error is None:
        known, unit = 0.0, (np.zeros(len(pixels)), np.zeros((len(pixels), 0)))
        log_amplitudes = np.zeros((num, 2))
    else:
        known, unit = setup.amplitude.log_factor, (error.variance, error.seen)
        # Means of the amplitudes, not of their logarithms, are what is known.
        width = np.array([setup.amplitude.sigma, setup.amplitude.coherent])
        log_amplitudes = rng.normal([known, 0.0] - 0.5 * width**2, width, (num, 2))
    variance, modes = map(np.asarray, unit)
    window = Window.build(
        np.log(setup.spectrum.wavelength[pixels]),
        np.asarray(setup.sizes[1]),
        setup.used / (photons + np.exp(known) * variance),
        np.exp(0.5 * known) * modes,
        setup.parts,
    )
    model, flux, seen, made = _replicate(
        fit.problem,
        setup.expected(error),
        window,
        (jnp.asarray(photons), jnp.asarray(variance), jnp.asarray(modes)),
        jnp.asarray(values),
        jnp.asarray(log_amplitudes),
        jax.random.split(jax.random.key(seed), num),
    )
    residual = fit.problem.flux - jnp.mean(model, axis=0)
    place = int(pixels[int(jnp.argmax(jnp.abs(window(residual))))])
    chi2, peak, replicated_chi2, replicated_peak = map(np.asarray, (*seen, *made))
    return Predictive(
        fit=fit,
        flux=_spread(flux, setup),
        model=_spread(model, setup),
        chi2=chi2,
        replicated_chi2=replicated_chi2,
        peak=peak,
        replicated_peak=replicated_peak,
        peak_wavelength=float(setup.spectrum.wavelength[place]),
        peak_arm=_arm_of(place, setup.spectrum),
        seed=seed,
    )


def _arm_of(pixel, spectrum):
    if not isinstance(spectrum, Arms):
        return ""
    pixels = spectrum.split(np.arange(len(spectrum)))
    return next(name for name, own in pixels.items() if pixel in own)


def _spread(flux, setup):
    """Onto all pixels of the spectrum, NaN where not fitted."""
    whole = np.full((len(flux), len(setup.spectrum)), np.nan)
    whole[:, setup.keep] = np.asarray(flux)[:, setup.used]
    return whole


@eqx.filter_jit
def _replicate(problem, expected, window, parts, values, log_amplitudes, keys):
    """Of every draw: model, replicate, and (chi^2, peak) of data and of replicate."""
    photons, variance, modes = parts

    def one(inputs):
        values, (log_amplitude, log_coherent), key = inputs
        first, second, third = jax.random.split(key, 3)
        normalized = problem.star(values)
        model = normalized * (problem.continuum.basis @ _coefficients(problem, normalized, first))
        white = jnp.sqrt(photons + jnp.exp(log_amplitude) * variance)
        flux = model + white * jax.random.normal(second, model.shape, model.dtype)
        coherent = jax.random.normal(third, modes.shape[1:], model.dtype)
        flux += jnp.exp(0.5 * (log_amplitude + log_coherent)) * (modes @ coherent)

        def compare(flux):
            residual = flux - model
            chi2 = expected.noise.central.chi2(residual)
            return chi2, jnp.max(jnp.abs(window(residual)))

        return model, flux, compare(problem.flux), compare(flux)

    return jax.lax.map(one, (values, log_amplitudes, keys))


def _coefficients(problem: Problem, normalized, key):
    """Of the continuum, drawn from their posterior at the most likely amplitude of the noise."""
    columns = normalized[:, None] * problem.continuum.basis
    precision = columns.T @ problem.noise.central.solve(columns)
    lower = jnp.linalg.cholesky(precision + jnp.diag(1 / problem.continuum.variance))
    draw = jax.random.normal(key, problem.continuum.mean.shape, columns.dtype)
    shift = jax.scipy.linalg.solve_triangular(lower, draw, lower=True, trans="T")
    return problem.coefficients(normalized) + shift
