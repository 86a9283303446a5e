"""Spectra as one spectrograph sees them: a small network, a basis, and a spline in wavelength."""

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, PRNGKeyArray

from .labels import LabelSpace
from .precision import Precision, dot, project
from .spectral_model import SpectralModel

# A cubic B-spline has the samples 1/6, 4/6, 1/6; this root of theirs says how fast its inverse
# filter fades: 24 taps further on 1e-14 is left.
_ROOT = math.sqrt(3.0) - 2.0
_TAPS = 24


class CompiledSpectra(SpectralModel):
    """Depth below the continuum as a cubic spline in ln(wavelength), coefficients from labels.

    Hidden layers with GELU, each but the first added to what came before, then a basis that all
    coefficients share. A spectrum costs two operations a weight, whatever the number of pixels.

    Attributes
    ----------
    weights, biases
        Of the hidden layers and of the last one, which gives the features.
    basis, mean
        Coefficients are ``mean + features @ basis``.
    start, step
        Wavelength of the first coefficient [vacuum Angstrom], spacing in ln(wavelength).
    """

    label_space: LabelSpace
    weights: tuple[Float32[Array, "_ _"], ...]
    biases: tuple[Float32[Array, " _"], ...]
    basis: Float32[Array, "feature coefficient"]
    mean: Float32[Array, " coefficient"]
    start: float = eqx.field(static=True)
    step: float = eqx.field(static=True)

    @classmethod
    def draw(
        cls,
        label_space: LabelSpace,
        hidden: Sequence[int],
        basis: Float32[Array, "feature coefficient"],
        mean: Float32[Array, " coefficient"],
        *,
        start: float,
        step: float,
        key: PRNGKeyArray,
    ) -> "CompiledSpectra":
        """Initial weights: normal with variance 1/fan_in; the features start at zero."""
        sizes = [len(label_space), *hidden, len(basis)]
        keys = jax.random.split(key, len(hidden))
        weights = [
            jax.random.normal(one, (fan_in, fan_out), jnp.float32) / math.sqrt(fan_in)
            for one, fan_in, fan_out in zip(keys, sizes[:-2], sizes[1:-1], strict=True)
        ]
        weights.append(jnp.zeros((sizes[-2], sizes[-1]), jnp.float32))
        biases = [jnp.zeros(size, jnp.float32) for size in sizes[1:]]
        return cls(
            label_space, tuple(weights), tuple(biases), basis, mean, float(start), float(step)
        )

    @property
    def wavelength(self) -> Float64[np.ndarray, " coefficient"]:
        """Of the coefficients [vacuum Angstrom]."""
        return self.start * np.exp(self.step * np.arange(len(self.mean)))

    def features(self, labels: Float[Array, "*batch label"]) -> Float32[Array, "*batch feature"]:
        """What the network makes of labels."""
        x = 2.0 * self.label_space.to_unit(labels).astype(jnp.float32) - 1.0
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            y = project(x, weight) + bias
            if layer == len(self.weights) - 1:
                return y
            x = jax.nn.gelu(y) + (x if layer else 0.0)
        raise AssertionError("a network has layers")

    def coefficients(
        self, labels: Float[Array, "*batch label"]
    ) -> Float32[Array, "*batch coefficient"]:
        """Of the spline."""
        return self.mix(self.features(labels))

    def mix(self, features: Float[Array, "*batch feature"]) -> Float32[Array, "*batch coefficient"]:
        """Coefficients of features."""
        return self.mean + project(features, self.basis)

    def along_basis(
        self, difference: Float[Array, "*batch coefficient"]
    ) -> Float32[Array, "*batch feature"]:
        """Features whose coefficients differ most nearly so much.

        The vectors of the basis are orthogonal and of one length.
        """
        along = dot("...c,fc->...f", difference, self.basis, "float32")
        return along / jnp.sum(self.basis[0] ** 2)

    def encode(self, wavelength: Float[Array, " pixel"]) -> Float64[Array, " pixel"]:
        """Places of vacuum wavelengths among the coefficients."""
        wavelength = jnp.asarray(wavelength, jnp.float64)
        return (jnp.log(wavelength) - math.log(self.start)) / self.step

    def flux_at(
        self,
        labels: Float[Array, " label"],
        encoding: Float64[Array, " pixel"],
        shift: Float[Array, ""] | float = 0.0,
        precision: Precision = "float32",
    ) -> Float32[Array, " pixel"]:
        """Normalised flux at ``wavelength * exp(shift)`` of an encoded grid, in float32 always."""
        del precision
        return 1.0 - evaluate_spline(self.coefficients(labels), encoding + shift / self.step)

    def __call__(
        self, labels: Float[Array, " label"], wavelength: Float[Array, " pixel"]
    ) -> Float32[Array, " pixel"]:
        return self.flux_at(labels, self.encode(wavelength))


def fit_spline(samples: Float[Array, "*batch sample"]) -> Float[Array, "*batch sample"]:
    """Coefficients of the cubic spline through samples; 24 of them at either end are not exact.

    The inverse of the filter 1/6, 4/6, 1/6 is sqrt(3) z^|k| with z = sqrt(3) - 2 (Unser 1999, IEEE
    Signal Process. Mag. 16, 22).
    """
    padded = jnp.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(_TAPS, _TAPS)], mode="edge")
    num = samples.shape[-1]
    total = jnp.zeros_like(samples)
    for k in range(-_TAPS, _TAPS + 1):
        total += _ROOT ** abs(k) * padded[..., _TAPS + k : _TAPS + k + num]
    return math.sqrt(3.0) * total


def spline_weights(
    position: Float[Array, " place"],
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """The first of the four coefficients that a place needs, and their weights."""
    left = jnp.floor(position)
    # float64 up to here: a place of a few thousand steps leaves float32 only 3 digits of a part.
    t = (position - left).astype(jnp.float32)
    s = 1.0 - t
    weights = (
        s**3 / 6,
        2 / 3 - t**2 + t**3 / 2,
        2 / 3 - s**2 + s**3 / 2,
        t**3 / 6,
    )
    return left.astype(jnp.int32) - 1, weights


def evaluate_spline(
    coefficients: Float[Array, " coefficient"], position: Float[Array, " place"]
) -> Float[Array, " place"]:
    """Value at places, in steps from the first coefficient; NaN beyond the coefficients."""
    first, weights = spline_weights(position)
    num = len(coefficients)
    outside = (first < 0) | (first + 3 >= num)
    first = jnp.clip(first, 0, num - 4)
    total = sum(weight * coefficients[first + k] for k, weight in enumerate(weights))
    return jnp.where(outside, jnp.nan, total)
