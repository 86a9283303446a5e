"""The part of an emulator's error that looks like a change of the labels of the star itself."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Float64, Real

from .error_amplitude import ErrorAmplitude

# Squared singular values below this, relative to the largest, have no direction in float64.
SMALLEST = 1e-11
_LARGEST_SHARE = 0.999  # of a response that is taken for an error
_NOTHING = 1e-10  # of a column's length: what rounding leaves of one that others make up


class Displacements(NamedTuple):
    """The coherent error of a star, as what its labels and velocities are wrong by.

    Attributes
    ----------
    labels
        Its labels are off by a sum of the columns, each times a standard normal number: the label
        that errs most and what moves with it, the one that errs most where that is right, ...
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
    response
        Energy of the error of the emulator's response to a label, half its box, across its
        responses to all else, over the expected energy of its error; 0 where it is not known.
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
    response: Float[Array, " label"]
    share_velocity: Float[Array, "2"]
    resolved: Float[Array, ""]
    exponent: Float[Array, ""]
    share_beyond: Float[Array, ""]

    @property
    def first_order(self) -> "CoherentError":
        """Without what fits do from afar: for estimates about the labels that a star has."""
        nothing = jnp.ones_like(self.widening), jnp.zeros_like(self.response)
        return eqx.tree_at(lambda c: (c.widening, c.response), self, nothing)

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
        good = variance > 0
        weight = jnp.where(good, 1 / jnp.sqrt(jnp.where(good, variance, 1.0)), 0.0)
        basis = find_basis(
            weight[:, None] * by_label * self._half_box,
            weight[:, None] * by_velocity,
            weight[:, None] * continuum,
        )
        pixels = jnp.sum(good)
        energy = self._energy(pixels, resolved)
        # So much the incoherent part has along any direction already.
        floor = self.floor(pixels, resolved)
        size = jnp.sqrt(energy * self.amplitude(labels) * self.share)
        shift = (self.stretch * self.widening)[:, None] * (basis.inverted * size)
        unanswered = self._unanswered(basis, energy, jnp.sum(shift**2, axis=1))
        shift = basis.beyond(jnp.concatenate([shift, unanswered], axis=1), floor)
        velocity = jnp.sqrt(jnp.maximum(energy * self.share_velocity - floor, 0.0))
        modes = [basis.projected @ shift, basis.velocity * velocity]
        directions = [basis.projected @ basis.inverted, basis.velocity]
        deviation = jnp.sqrt(variance)
        return Displacements(
            self._half_box[:, None] * _one_by_one(shift @ shift.T),
            jnp.concatenate(modes, axis=1) * deviation[:, None],
            jnp.concatenate(directions, axis=1) * deviation[:, None],
            deviation,
            basis.nuisance,
        )

    @property
    def _half_box(self):
        return 0.5 * (self.amplitude.upper - self.amplitude.lower)

    def _unanswered(self, basis, energy, variance):
        """Change of all labels [half box] beyond some variance of them, a column for each label.

        A share of the emulator's response to a label is its error, so a residual means a change of
        the label that is larger by 1/(1 - share); the others move with it as a fit has them tied.
        """
        tied = basis.inverted @ basis.inverted.T
        own = jnp.diagonal(tied)
        share = jnp.minimum(self.response * energy * own, _LARGEST_SHARE)
        scatter = jnp.sqrt(variance * ((1 - share) ** -2 - 1))
        # No label is off by more than its box.
        scatter = jnp.minimum(scatter, 2.0)
        return tied * jnp.where(own > 0, scatter / jnp.where(own > 0, own, 1.0), 0.0)


class Basis(eqx.Module):
    """Weighted derivatives: ``projected = U S right^T`` by labels, unit vectors by velocity."""

    projected: Float[Array, "pixel label"]
    right: Float[Array, "label label"]
    inverse: Float[Array, " label"]  # 1/S, or 0 where there is no direction
    velocity: Float[Array, "pixel 2"]
    nuisance: Float[Array, "pixel column"]  # orthonormal, the velocities last

    @property
    def inverted(self) -> Float[Array, "label label"]:
        """Change of each label that goes one unit along each direction."""
        return self.right * self.inverse

    def beyond(self, shift, floor):
        """Columns like those of `shift`, without the variance `floor` along every direction."""
        seen = self.inverse > 0
        along = jnp.where(seen, 1 / jnp.where(seen, self.inverse, 1.0), 0.0)[:, None]
        along = along * (self.right.T @ shift)
        variance, turn = jnp.linalg.eigh(along @ along.T)
        return self.inverted @ (turn * jnp.sqrt(jnp.maximum(variance - floor, 0.0)))


def find_basis(by_label, by_velocity, continuum):
    """Project continuum and velocity out, and turn the labels into orthogonal directions."""
    nuisance = _orthonormal(jnp.concatenate([continuum, by_velocity], axis=1))
    velocity = nuisance[:, continuum.shape[1] :]
    projected = by_label - nuisance @ (nuisance.T @ by_label)
    squares, right = jnp.linalg.eigh(projected.T @ projected)
    squares, right = squares[::-1], right[:, ::-1]
    seen = squares > SMALLEST * squares[0]
    inverse = jnp.where(seen, 1 / jnp.sqrt(jnp.where(seen, squares, 1.0)), 0.0)
    return Basis(projected, right, inverse, velocity, nuisance)


def _one_by_one(covariance):
    """Columns whose outer product is the covariance, each that of one variable given the others.

    By Cholesky, the largest variance first. Principal axes would mix labels that are equally open.
    """
    smallest = _NOTHING * jnp.max(jnp.diagonal(covariance))
    found = []
    for _ in range(len(covariance)):
        largest = jnp.argmax(jnp.diagonal(covariance))
        variance = covariance[largest, largest]
        seen = variance > smallest
        scale = jnp.where(seen, 1 / jnp.sqrt(jnp.where(seen, variance, 1.0)), 0.0)
        column = covariance[:, largest] * scale
        found.append(column)
        covariance = covariance - column[:, None] * column
    return jnp.stack(found, axis=1)


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
