"""The Payne and The Cannon: emulators of one fixed grid of pixels, to compare with.

Both give all pixels of their training grid at once. Between the pixels, and under a shift, they
interpolate with cubic Hermite polynomials in ln(wavelength) (Catmull-Rom: continuous first
derivative, exact at the pixels). That error is theirs, and grows with the sharpness of the lines:
they are trained and judged on spectra without dither (`emulators.train_baselines`).
"""

import abc
import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Float32, Float64, PRNGKeyArray

from .errors import InputError
from .labels import LabelSpace
from .precision import Precision, dot
from .spectral_model import SpectralModel

_ACTIVATIONS = {
    "leaky_relu": jax.nn.leaky_relu,
    "sigmoid": jax.nn.sigmoid,
    "gelu": jax.nn.gelu,
}


class FixedGridModel(SpectralModel):
    """A model that knows its flux at fixed, ln-uniform pixels alone, and interpolates.

    Up to one step beyond its ends the last polynomial goes on; further out lies no number: an
    `InputError` where the wavelengths are known, NaN inside ``jit``.

    Attributes
    ----------
    start
        Wavelength of the first pixel, vacuum Angstrom.
    step
        Spacing of the pixels in ln(wavelength).
    """

    start: eqx.AbstractVar[float]
    step: eqx.AbstractVar[float]

    @property
    @abc.abstractmethod
    def num_pixels(self) -> int:
        """Pixels of the grid."""

    @property
    def num_parameters(self) -> int:
        """Fitted numbers."""
        return sum(leaf.size for leaf in jax.tree.leaves(self))

    @abc.abstractmethod
    def pixel_depth(
        self, labels: Float[Array, "*batch labels"], precision: Precision = "float32"
    ) -> Float32[Array, "*batch pixel"]:
        """Depth below the continuum at the pixels of the grid, of one star or many."""

    def encode(self, wavelength: Float[Array, " pixel"]) -> Float64[Array, " pixel"]:
        """Places of vacuum wavelengths on the grid, in pixels from its first one."""
        wavelength = jnp.asarray(wavelength, jnp.float64)
        position = (jnp.log(wavelength) - math.log(self.start)) / self.step
        if not isinstance(wavelength, Tracer):
            outside = np.asarray(_outside(position, self.num_pixels))
            if outside.any():
                end = self.start * math.exp(self.step * (self.num_pixels - 1))
                raise InputError(
                    f"{type(self).__name__}: wavelength {float(wavelength[outside][0]):.3f} is "
                    f"outside its grid, {self.start:.3f} .. {end:.3f} Angstrom (vacuum)"
                )
        return position

    def flux_at(
        self,
        labels: Float[Array, " labels"],
        encoding: Float64[Array, " pixel"],
        shift: Float[Array, ""] | float = 0.0,
        precision: Precision = "float32",
    ) -> Float32[Array, " pixel"]:
        """Normalised flux at ``wavelength * exp(shift)`` of an encoded grid; NaN outside."""
        depth = self.pixel_depth(labels, precision)
        return 1.0 - _interpolate(depth, encoding + shift / self.step)

    def __call__(
        self, labels: Float[Array, " labels"], wavelength: Float[Array, " pixel"]
    ) -> Float32[Array, " pixel"]:
        """Normalised flux at vacuum wavelengths [Angstrom] within the grid, in any order."""
        return self.flux_at(labels, self.encode(wavelength))


class ThePayne(FixedGridModel):
    """Scaled labels, two hidden layers, and all pixels at once (Ting et al. 2019).

    The paper trains a network with sigmoids for every pixel; its authors' later code, and this
    one, a single network for all of them, with leaky rectifiers, the default here. Gradients in
    the labels then have kinks; "gelu" is smooth. The network predicts the depth below the
    continuum, of labels scaled to [-0.5, 0.5].

    Parameters
    ----------
    label_space
        Labels and their box.
    start, step, num_pixels
        The grid: its first wavelength [vacuum Angstrom], its step in ln(wavelength), its length.
    hidden
        Units of each hidden layer.
    activation
        "leaky_relu", "sigmoid" or "gelu".
    key
        Seed of the initial weights: normal, variance 1/fan_in; the output starts at zero.

    References
    ----------
    Ting, Conroy, Rix & Cargile 2019, ApJ 879, 69; https://github.com/tingyuansen/The_Payne
    """

    label_space: LabelSpace
    weight_in: Float32[Array, "labels hidden"]
    bias_in: Float32[Array, " hidden"]
    weight_hidden: Float32[Array, "hidden hidden"]
    bias_hidden: Float32[Array, " hidden"]
    weight_out: Float32[Array, "hidden pixel"]
    bias_out: Float32[Array, " pixel"]
    start: float = eqx.field(static=True)
    step: float = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        label_space: LabelSpace,
        *,
        start: float,
        step: float,
        num_pixels: int,
        hidden: int = 300,
        activation: str = "leaky_relu",
        key: PRNGKeyArray,
    ):
        if activation not in _ACTIVATIONS:
            raise InputError(
                f"the_payne: activation is {activation!r}; allowed: {', '.join(_ACTIVATIONS)}"
            )
        self.label_space, self.activation = label_space, activation
        self.start, self.step = float(start), float(step)
        self.weight_in, self.weight_hidden = _draw(key, len(label_space), hidden)
        self.bias_in = self.bias_hidden = jnp.zeros(hidden, jnp.float32)
        self.weight_out = jnp.zeros((hidden, num_pixels), jnp.float32)
        self.bias_out = jnp.zeros(num_pixels, jnp.float32)

    @property
    def num_pixels(self) -> int:
        return len(self.bias_out)

    def flops(self) -> int:
        """Operations of one spectrum: two a weight; a training step costs three times this."""
        return 2 * (self.weight_in.size + self.weight_hidden.size + self.weight_out.size)

    def pixel_depth(
        self, labels: Float[Array, "*batch labels"], precision: Precision = "float32"
    ) -> Float32[Array, "*batch pixel"]:
        activate = _ACTIVATIONS[self.activation]
        x = self.label_space.to_unit(labels).astype(jnp.float32) - 0.5
        x = activate(dot("...f,fd->...d", x, self.weight_in, precision) + self.bias_in)
        x = activate(dot("...f,fd->...d", x, self.weight_hidden, precision) + self.bias_hidden)
        return dot("...f,fd->...d", x, self.weight_out, precision) + self.bias_out


class TheCannon(FixedGridModel):
    """Every pixel a quadratic form in the scaled labels (Ness et al. 2015).

    Parameters
    ----------
    label_space
        Labels and their box, scaled to [-1, 1] inside.
    coefficients
        Of the depth below the continuum: constant, linear, then products, by pixel.
    start, step
        The grid: its first wavelength [vacuum Angstrom] and its step in ln(wavelength).

    References
    ----------
    Ness, Hogg, Rix, Ho & Zasowski 2015, ApJ 808, 16.
    """

    label_space: LabelSpace
    coefficients: Float32[Array, "feature pixel"]
    start: float = eqx.field(static=True)
    step: float = eqx.field(static=True)

    @property
    def num_pixels(self) -> int:
        return self.coefficients.shape[1]

    def pixel_depth(
        self, labels: Float[Array, "*batch labels"], precision: Precision = "float32"
    ) -> Float32[Array, "*batch pixel"]:
        features = quadratic_features(self.label_space.to_unit(labels)).astype(jnp.float32)
        return dot("...f,fd->...d", features, self.coefficients, precision)


def num_quadratic_features(num_labels: int) -> int:
    """Coefficients a pixel of The Cannon: 210 for 19 labels."""
    return (num_labels + 1) * (num_labels + 2) // 2


def quadratic_features(unit: Float[Array, "*batch labels"]) -> Float[Array, "*batch feature"]:
    """1, the labels in [-1, 1], and all their products of two."""
    x = 2.0 * unit - 1.0
    first, second = np.triu_indices(x.shape[-1])
    one = jnp.ones((*x.shape[:-1], 1), x.dtype)
    return jnp.concatenate([one, x, x[..., first] * x[..., second]], axis=-1)


@partial(jax.jit, static_argnums=(1, 2))
def _draw(key: PRNGKeyArray, num_labels: int, hidden: int) -> tuple[Array, Array]:
    """Normal weights of both hidden layers, in one compiled call."""
    first, second = jax.random.split(key)
    return (
        jax.random.normal(first, (num_labels, hidden), jnp.float32) / math.sqrt(num_labels),
        jax.random.normal(second, (hidden, hidden), jnp.float32) / math.sqrt(hidden),
    )


def _outside(position: Float[Array, " pixel"], num: int) -> Array:
    """Whether places lie more than a pixel beyond the grid; NaN does."""
    return ~((position >= -1.0) & (position <= num))


@jax.jit
def _interpolate(
    values: Float[Array, " node"], position: Float64[Array, " pixel"]
) -> Float[Array, " pixel"]:
    """Cubic Hermite interpolation with central differences as slopes; NaN outside."""
    num = len(values)
    low = jnp.clip(jnp.floor(position), 0, num - 2)
    # float64 up to here: a place of a few thousand pixels leaves float32 only 3 digits of a part.
    t = (position - low).astype(values.dtype)
    low = low.astype(jnp.int32)
    ends = jnp.diff(values)
    slopes = jnp.concatenate([ends[:1], 0.5 * (values[2:] - values[:-2]), ends[-1:]])
    left, right = values[low], values[low + 1]
    rise, fall = slopes[low], slopes[low + 1]
    between = (
        left
        + (right - left) * t**2 * (3.0 - 2.0 * t)
        + t * (1.0 - t) * (rise * (1.0 - t) - fall * t)
    )
    return jnp.where(_outside(position, num), jnp.nan, between)
