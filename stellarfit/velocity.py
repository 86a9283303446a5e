"""A first guess: cross-correlate the data with a few template spectra over all velocities.

The posterior in radial velocity has one maximum for every accidental match of lines, so the
optimiser must start in the right one. Here each template is tried at every velocity of the prior
with the continuum marginalised, on a coarse grid where a velocity is a whole number of bins.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int
from scipy.ndimage import gaussian_filter1d
from scipy.stats import qmc

from emulators.units import FWHM, SPEED_OF_LIGHT

from .arms import ZERO_POINT, Arm
from .compiled import CompiledEmulator
from .priors import VELOCITIES, Prior

WINDOW = 50.0  # km/s on either side of the first guess, in which v_rad is then free
_NUM_TEMPLATES = 64  # a power of two keeps the Sobol sequence balanced
_TYPICAL_V_SINI = 6.0  # km/s
_REACH = 2.0  # sigma of a Gaussian prior
_TIE = 1e-3  # of chi^2, which tells no two velocities apart


class Guess(NamedTuple):
    """Starting values, best first: one row a template at its best velocity."""

    values: Float64[np.ndarray, "start parameter"]
    v_rad: float


def first_guess(
    arms: Sequence[Arm], emulator: Any, prior: Prior, fixed: dict[str, float], *, seed: int = 0
) -> Guess:
    """Rank templates spread over the prior by how well they match at their best velocity.

    Parameters
    ----------
    arms
        Spectra; the median of the resolving power of each blurs the templates.
    emulator : Emulator
    prior, fixed
        Abundance ratios stay at the middle of their priors, or at 0 where that is inside.
    seed
        Of the Sobol sequence of templates.
    """
    templates, labels = spread_templates(emulator, prior, fixed, seed)
    step = emulator.step
    low, high = np.log(emulator.wavelength_range)
    count = int((high - low) / step) + 1
    grid = np.exp(low + step * np.arange(count))
    depth = 1 - np.asarray(_evaluate(emulator, jnp.asarray(labels), jnp.asarray(grid)), np.float64)
    lags = _lags(prior, fixed, step, "v_rad")
    chi2, offsets = np.zeros((len(templates), len(lags))), {}
    for arm in arms:
        line_spread = 0.0
        if not isinstance(emulator, CompiledEmulator):
            line_spread = 1 / (FWHM * float(np.median(arm.resolution)))
        blur = np.hypot(line_spread, 0.6 * _TYPICAL_V_SINI / SPEED_OF_LIGHT)
        flux = 1 - gaussian_filter1d(depth, blur / step, axis=1, mode="constant")
        if arm.zero_point is None:
            chi2 = chi2 + _match(arm.spectrum, flux, low, step, lags)
        else:
            own, offsets[arm.zero_point] = _match_shifted(arm, flux, low, step, lags, prior, fixed)
            chi2 = chi2 + own
    best_lag = np.argmin(chi2 + towards_zero(lags), axis=1)
    order = np.argsort(np.min(chi2, axis=1))
    velocity = SPEED_OF_LIGHT * np.expm1(_refine(chi2, best_lag, lags) * step)
    values = templates.copy()
    if "v_rad" in prior.names:
        values[:, prior.names.index("v_rad")] = velocity
    for name in offsets.keys() & set(prior.names):
        found = offsets[name][np.arange(len(templates)), best_lag]
        values[:, prior.names.index(name)] = found
    return Guess(values[order], float(velocity[order[0]]))


def towards_zero(lags: Int[np.ndarray, " lag"]) -> Float64[np.ndarray, " lag"]:
    """What to add to chi^2, so that of lags that match alike the smallest is the best.

    Spectra of a pixel or two match at every velocity: else rounding would choose one, that of
    another machine another, and most of them are beyond the emulator's wavelengths.
    """
    return _TIE * np.abs(lags) / max(1, np.abs(lags).max())


def spread_templates(
    emulator: Any, prior: Prior, fixed: dict[str, float], seed: int
) -> tuple[Float64[np.ndarray, "template parameter"], Float64[np.ndarray, "template label"]]:
    """Free parameters of templates, spread in the leading labels, central in the others; labels.

    A Gaussian prior spreads by its width with all else known: of labels that it ties together
    nothing wider would stay inside.
    """
    lower, upper = np.asarray(prior.lower), np.asarray(prior.upper)
    mean = np.clip(np.asarray(prior.mean), lower, upper)
    precision = np.diagonal(np.asarray(prior.precision))
    gaussian = precision > 0
    values = np.tile(np.clip(0.0, lower, upper), (_NUM_TEMPLATES, 1))
    values[:, gaussian] = mean[gaussian]
    spread = [i for i, name in enumerate(prior.names) if not name.endswith("_fe")]
    spread = [i for i in spread if prior.names[i] not in VELOCITIES]
    spread = [i for i in spread if not prior.names[i].startswith(ZERO_POINT)]
    for i, name in enumerate(prior.names):
        if name in ("v_sini", "v_mac") and not gaussian[i]:
            values[:, i] = np.clip(_TYPICAL_V_SINI, lower[i], upper[i])
    if spread:
        unit = qmc.Sobol(len(spread), rng=np.random.default_rng(seed)).random(_NUM_TEMPLATES)
        reach = _REACH / np.sqrt(np.where(gaussian, precision, 1.0))
        low = np.where(gaussian, np.maximum(lower, mean - reach), lower)[spread]
        high = np.where(gaussian, np.minimum(upper, mean + reach), upper)[spread]
        values[:, spread] = low + (high - low) * unit
    labels = [
        values[:, prior.names.index(name)]
        if name in prior.names
        else np.full(len(values), fixed[name])
        for name in emulator.label_space.names
    ]
    return values, np.stack(labels, axis=1)


@eqx.filter_jit
def _evaluate(emulator, labels, wavelength):
    encoding = emulator.encode(wavelength)
    return jax.lax.map(lambda one: emulator.flux_at(one, encoding), labels)


def _lags(prior, fixed, step, name):
    """Velocities of the prior of a parameter in whole bins."""
    if name in prior.names:
        i = prior.names.index(name)
        ends = np.array([float(prior.lower[i]), float(prior.upper[i])])
    else:
        ends = np.full(2, fixed[name])
    first, last = np.round(np.log1p(ends / SPEED_OF_LIGHT) / step).astype(int)
    return np.arange(first, last + 1)


def _match_shifted(arm, flux, low, step, lags, prior, fixed):
    """As `_match`, with the arm's zero point at its best, which comes with it [km/s]."""
    offsets = _lags(prior, fixed, step, arm.zero_point)
    velocity, penalty = SPEED_OF_LIGHT * np.expm1(offsets * step), np.zeros(len(offsets))
    if arm.zero_point in prior.names:
        i = prior.names.index(arm.zero_point)
        velocity = np.clip(velocity, float(prior.lower[i]), float(prior.upper[i]))
        penalty = _precision_alone(prior, i) * (velocity - float(prior.mean[i])) ** 2
    wide = np.arange(lags[0] + offsets[0], lags[-1] + offsets[-1] + 1)
    chi2 = _match(arm.spectrum, flux, low, step, wide)
    shifted = np.stack([chi2[:, k : k + len(lags)] for k in range(len(offsets))])
    shifted = shifted + penalty[:, None, None]
    best = np.argmin(shifted, axis=0)
    return np.min(shifted, axis=0), velocity[best]


def _precision_alone(prior, i):
    """Of one parameter, whatever those are that a prior ties it to; 0 where it is uniform."""
    precision = np.asarray(prior.precision)
    gaussian = np.flatnonzero(np.diagonal(precision))
    covariance = np.linalg.inv(precision[np.ix_(gaussian, gaussian)])
    return 1 / covariance[gaussian == i, gaussian == i][0] if i in gaussian else 0.0


def _match(spectrum, flux, low, step, lags):
    """chi^2 of each template at each lag, continuum coefficients at their best: [template, lag]."""
    good = spectrum.good
    bins = np.round((np.log(spectrum.wavelength[good]) - low) / step).astype(int)
    count = flux.shape[1]
    near = (bins >= lags.min()) & (bins < count + lags.max())
    bins, values = bins[near], spectrum.flux[good][near]
    weights = spectrum.ivar[good][near]
    start, size = bins.min(), bins.max() - bins.min() + 1
    weight = np.bincount(bins - start, weights, minlength=size)
    data = np.bincount(bins - start, weights * values, minlength=size)
    data = np.where(weight > 0, data / np.where(weight > 0, weight, 1.0), 0.0)
    degree = int(np.clip(np.ceil(size * step * 5000 / 70), 1, 6))
    basis = np.polynomial.chebyshev.chebvander(np.linspace(-1, 1, size), degree)
    linear = (weight * data)[:, None] * basis
    square = weight[:, None] * (basis[:, :, None] * basis[:, None, :]).reshape(size, -1)
    total = float(np.sum(weight * data**2))
    # Bin i of the data sees bin i + start - lag of the template; beyond it there are no lines.
    left = max(0, int(lags.max() - start))
    right = max(0, int(start + size - lags.min() - count))
    padded = np.pad(flux, ((0, 0), (left, right)), constant_values=1.0)
    result = np.empty((len(flux), len(lags)))
    for i, template in enumerate(padded):
        windows = np.lib.stride_tricks.sliding_window_view(template, size)[start + left - lags]
        right_side = windows @ linear
        matrix = (windows**2 @ square).reshape(len(lags), degree + 1, degree + 1)
        matrix += 1e-9 * np.trace(matrix, axis1=1, axis2=2)[:, None, None] * np.eye(degree + 1)
        solution = np.linalg.solve(matrix, right_side[:, :, None])[:, :, 0]
        result[i] = total - np.sum(right_side * solution, axis=1)
    return result


def _refine(chi2, best, lags):
    """Lag of the minimum of the parabola through the best lag and its neighbours."""
    row = np.arange(len(chi2))
    if len(lags) < 3:
        return lags[best].astype(float)
    middle = np.clip(best, 1, len(lags) - 2)
    left, center, right = chi2[row, middle - 1], chi2[row, middle], chi2[row, middle + 1]
    bend = left - 2 * center + right
    offset = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    return lags[middle] + np.clip(offset, -1.0, 1.0)
