"""The part of an emulator's error that looks like a change of the labels of the star itself."""

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Real
from scipy.ndimage import gaussian_filter1d

from .error_amplitude import ErrorAmplitude, fit_error_amplitude
from .units import FWHM

if TYPE_CHECKING:
    from .training_data import TrainingData

# A spectrograph in native pixels (sigma of its line spread) to measure at, and one four times as
# coarse, which tells how the shares depend on the number of resolved pixels.
_LINE_SPREAD, _COARSER = 1.4, 4.0
_CONTINUUM_DEGREE = 3
# Stars, and the share of a label's range to either side, over which spectra are seen to bend.
_BENT_STARS, _BEND = 200, 0.15
# Squared singular values below this, relative to the largest, have no direction in float64.
_SMALLEST = 1e-11
_NOTHING = 1e-10  # of a column's length: what rounding leaves of one that others make up


class Displacements(NamedTuple):
    """The coherent error of a star, as what its labels and velocities are wrong by.

    Attributes
    ----------
    labels
        Principal axes, the longest first: its labels are off by a sum of the columns, each times a
        standard normal number.
    modes
        Columns whose outer product is the coherent part of the covariance, to first order in the
        labels; a shift and a broadening of the spectrum are the last two.
    directions
        Columns in which labels and velocities move the spectrum to first order, of the size that
        the incoherent part has along them.
    deviation
        Root of the incoherent part of each pixel; 0 where it is not used.
    nuisance
        Orthonormal columns: what continuum, shift and broadening do, over `deviation`.
    """

    labels: Float64[Array, "label axis"]
    modes: Float64[Array, "pixel mode"]
    directions: Float64[Array, "pixel mode"]
    deviation: Float64[Array, " pixel"]
    nuisance: Float64[Array, "pixel column"]

    @property
    def velocity(self) -> Float64[Array, "pixel 2"]:
        """Those of the modes that are a shift and a broadening of the spectrum."""
        return self.modes[:, -2:]

    def project(
        self, columns: Float[Array, "pixel change"], velocities: int
    ) -> Float64[Array, "pixel change"]:
        """Changes of the spectrum without what the continuum could do too.

        Parameters
        ----------
        columns
            The changes, 0 in pixels that are not used.
        velocities
            1 for a shift besides, 2 for a broadening too.
        """
        used = self.deviation > 0
        weight = jnp.where(used, 1 / jnp.where(used, self.deviation, 1.0), 0.0)[:, None]
        free = self.nuisance[:, : self.nuisance.shape[1] - 2 + velocities]
        return columns - self.deviation[:, None] * (free @ (free.T @ (weight * columns)))


class CoherentError(eqx.Module):
    """Share of the error's energy along each direction in which the labels move the spectrum.

    Directions are the left singular vectors of the derivatives by the labels, each per half its
    box, in pixels divided by the error's rms d, with continuum and velocity projected out. In a
    spectrum of many pixels a random error would have the share 1/pixels along any of them.

    Parameters
    ----------
    amplitude
        Factor on the shares, about 1, from the labels. Its `scatter` is that from star to star,
        beyond the scatter of twenty random numbers.
    share
        Of the expected energy along each direction, the strongest first.
    stretch
        By which factor each label errs more than directions alone would say, to first order.
    widening
        Factor on that, which fits of synthesised stars showed; 1 where none were made.
    share_velocity
        Along the derivatives by a shift and by a broadening of all lines.
    resolved
        Resolution elements in the spectra that the shares were measured on.
    exponent
        A share grows with ``(resolved / elements)^exponent`` for a spectrum of other length or
        resolution.
    share_beyond
        Along each direction of what else the labels can do to a spectrum, beyond first order. An
        emulator's errors look like its spectra: it is ten times that of any direction.
    """

    amplitude: ErrorAmplitude
    share: Float[Array, " label"]
    stretch: Float[Array, " label"]
    widening: Float[Array, " label"]
    share_velocity: Float[Array, "2"]
    resolved: Float[Array, ""]
    exponent: Float[Array, ""]
    share_beyond: Float[Array, ""]

    @property
    def first_order(self) -> "CoherentError":
        """The same without the widening: for estimates that are linear in the labels."""
        return eqx.tree_at(lambda c: c.widening, self, jnp.ones_like(self.widening))

    def floor(
        self, pixels: Real[Array, ""] | int, resolved: Float[Array, ""] | float
    ) -> Float[Array, ""]:
        """Factor on the incoherent variance of a pixel, as a change of the labels sees it.

        Parameters
        ----------
        pixels, resolved
            Pixels that are used, and the resolution elements that they cover.
        """
        return jnp.maximum(self._energy(pixels, resolved) * self.share_beyond, 1.0)

    def _energy(self, pixels, resolved):
        """Of all pixels, each with the variance 1, as the shares count it."""
        return pixels * (self.resolved / resolved) ** self.exponent

    def displacements(
        self,
        labels: Float[Array, " label"],
        variance: Float[Array, " pixel"],
        by_label: Float[Array, "pixel label"],
        by_velocity: Float[Array, "pixel 2"],
        continuum: Float[Array, "pixel column"],
        resolved: Float[Array, ""] | float,
    ) -> Displacements:
        """What the labels and velocities of a star are wrong by.

        Parameters
        ----------
        labels
            Of the star.
        variance
            The incoherent part, in all pixels of the spectrum; 0 marks one that is not used. The
            modes are what the covariance has beside ``floor`` times this.
        by_label
            Derivatives of the model by each label, per unit of it.
        by_velocity
            By a shift and by a broadening, each in any unit.
        continuum
            What the continuum can do to the model.
        resolved
            Resolution elements that the used pixels cover.
        """
        basis, size, velocity, deviation = self._measured(
            labels, variance, by_label, by_velocity, continuum, resolved
        )
        shift = self._shift(basis, size)
        axes, length, _ = jnp.linalg.svd(shift)
        modes = [basis.projected @ shift, basis.velocity * velocity]
        directions = [basis.projected @ (basis.right * basis.inverse), basis.velocity]
        return Displacements(
            self._half_box[:, None] * axes * length,
            jnp.concatenate(modes, axis=1) * deviation,
            jnp.concatenate(directions, axis=1) * deviation,
            deviation[:, 0],
            basis.nuisance,
        )

    @property
    def _half_box(self):
        return 0.5 * (self.amplitude.upper - self.amplitude.lower)

    def _measured(self, labels, variance, by_label, by_velocity, continuum, resolved):
        """The star's directions, the error along them and the velocities, the rms of a pixel."""
        good = variance > 0
        weight = jnp.where(good, 1 / jnp.sqrt(jnp.where(good, variance, 1.0)), 0.0)
        basis = _basis(
            weight[:, None] * by_label * self._half_box,
            weight[:, None] * by_velocity,
            weight[:, None] * continuum,
        )
        pixels = jnp.sum(good)
        energy = self._energy(pixels, resolved)
        # So much the incoherent part has along any direction already.
        floor = self.floor(pixels, resolved)
        size = jnp.sqrt(jnp.maximum(energy * self.amplitude(labels) * self.share - floor, 0.0))
        velocity = jnp.sqrt(jnp.maximum(energy * self.share_velocity - floor, 0.0))
        return basis, size, velocity, jnp.sqrt(variance)[:, None]

    def _shift(self, basis, size):
        """Change of each label [half box] along each direction."""
        return (self.stretch * self.widening)[:, None] * (basis.right * basis.inverse * size)


class _Basis(eqx.Module):
    """Weighted derivatives: ``projected = U S right^T`` by labels, unit vectors by velocity."""

    projected: Float[Array, "pixel label"]
    right: Float[Array, "label label"]
    inverse: Float[Array, " label"]  # 1/S, or 0 where there is no direction
    velocity: Float[Array, "pixel 2"]
    nuisance: Float[Array, "pixel column"]  # orthonormal, the velocities last


def _basis(by_label, by_velocity, continuum):
    """Project continuum and velocity out, and turn the labels into orthogonal directions."""
    nuisance = _orthonormal(jnp.concatenate([continuum, by_velocity], axis=1))
    velocity = nuisance[:, continuum.shape[1] :]
    projected = by_label - nuisance @ (nuisance.T @ by_label)
    squares, right = jnp.linalg.eigh(projected.T @ projected)
    squares, right = squares[::-1], right[:, ::-1]
    seen = squares > _SMALLEST * squares[0]
    inverse = jnp.where(seen, 1 / jnp.sqrt(jnp.where(seen, squares, 1.0)), 0.0)
    return _Basis(projected, right, inverse, velocity, nuisance)


def _orthonormal(columns):
    """Unit vectors of what each column adds to those before it; 0 where that is nothing.

    By Gram and Schmidt, twice, which is as good as rotations are. Of a batch of tall matrices a GPU
    makes those one after another.
    """
    found = jnp.zeros((len(columns), 0))
    for column in columns.T:
        left = column
        for _ in range(2):
            left = left - found @ (found.T @ left)
        size, length = jnp.linalg.norm(column), jnp.linalg.norm(left)
        seen = length > _NOTHING * size
        unit = jnp.where(seen, left / jnp.where(seen, length, 1.0), 0.0)
        found = jnp.concatenate([found, unit[:, None]], axis=1)
    return found


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
    views = [_View(scaled, sigma) for sigma in (_LINE_SPREAD, _LINE_SPREAD * _COARSER)]
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
        degree = np.polynomial.chebyshev.chebvander(
            np.linspace(-1, 1, len(flux)), min(_CONTINUUM_DEGREE, len(flux) - 1)
        )
        # A broadening adds a second derivative.
        by_velocity = np.stack([by_shift, np.gradient(by_shift)], axis=1)
        bends = None
        if star < _BENT_STARS:
            bends = np.asarray(_bends(model, encoding, labels[star], shift), np.float64)
        for view in views:
            view.measure(star, by_label * half, by_velocity, flux[:, None] * degree, bends)
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
        basis: _Basis = _measure(
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
    known, _ = np.linalg.qr(nuisance)
    left = bends - known @ (known.T @ bends)
    directions, size, _ = np.linalg.svd(left, full_matrices=False)
    # What is left of a bend that first order explains is rounding.
    seen = size**2 > _SMALLEST * np.sum(bends**2)
    if not seen.any():
        return 0.0
    return np.mean((directions[:, seen].T @ residual) ** 2) / (residual @ residual)


_measure = jax.jit(_basis)


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
    resolved = pixels / (FWHM * _LINE_SPREAD)
    growth = np.log(max(float(coarse.along.mean()), tiny) / max(float(fine.along.mean()), tiny))
    return CoherentError(
        amplitude=eqx.tree_at(lambda a: a.scatter, amplitude, jnp.asarray(scatter)),
        share=jnp.asarray(share),
        stretch=jnp.asarray(np.where(stretch > 0, stretch, 1.0)),
        widening=jnp.ones(len(space)),
        share_velocity=jnp.asarray(np.mean(fine.velocity, axis=0)),
        resolved=jnp.asarray(resolved),
        exponent=jnp.asarray(max(growth / np.log(_COARSER), 0.0)),
        share_beyond=jnp.asarray(fine.beyond),
    )
