"""Small emulators for tests: one with random weights, one that is a closed form."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from emulators.coherent_error import CoherentError
from emulators.emulator import Emulator
from emulators.error_amplitude import ErrorAmplitude
from emulators.error_model import ErrorModel
from emulators.labels import LabelSpace
from emulators.spectral_model import SpectralModel
from emulators.training_data import TrainingData
from emulators.transformer_payne import TransformerPayne

LABELS = LabelSpace(
    ("teff", "logg", "fe_h", "mg_fe"), (4000.0, 1.0, -2.5, -0.5), (7000.0, 5.0, 0.5, 0.5)
)
STEP = 1e-5


def tiny_grid(start: float = 5150.0, pixels: int = 400, step: float = STEP) -> np.ndarray:
    """A ln-uniform wavelength grid, vacuum Angstrom."""
    return start * np.exp(step * np.arange(pixels))


def analytic_depth(unit, wavelength):
    """Depth of made-up lines that grow, widen and vanish with labels in the unit cube."""
    centres = jnp.asarray([5150.7, 5152.3, 5154.1, 5156.6, 5158.9])[None, :]
    strength = jnp.stack(
        [unit[2], unit[3], unit[2] * (1 - unit[0]), unit[1] * unit[3], 1 - unit[0]]
    )
    strength = (0.15 + 0.6 * strength)[None, :]
    width = (0.08 + 0.12 * unit[1]) * jnp.asarray([1.0, 2.0, 1.0, 1.5, 3.0])[None, :]
    lines = strength * jnp.exp(-0.5 * ((wavelength[:, None] - centres) / width) ** 2)
    return 1.0 - jnp.prod(1.0 - lines, axis=1)


class AnalyticModel(SpectralModel):
    """The interface of `TransformerPayne` over a closed form: exact values and derivatives."""

    label_space: LabelSpace = LABELS

    def encode(self, wavelength):
        return wavelength

    def flux_at(self, labels, encoding, shift=0.0, precision="float32"):
        return self(labels, encoding * jnp.exp(shift))

    def __call__(self, labels, wavelength):
        return 1.0 - analytic_depth(self.label_space.to_unit(labels), wavelength)


def tiny_error_model(
    wavelength: np.ndarray, mse: float = 1e-5, num_patterns: int = 8
) -> ErrorModel:
    """White noise that grows along the grid, and coherent errors; the same for all labels."""
    shape = np.linspace(0.5, 1.5, len(wavelength))
    noise = np.random.default_rng(0).normal(size=(num_patterns, len(wavelength)))
    noise *= np.sqrt(shape / np.mean(noise**2, axis=0))
    number = len(LABELS)
    return ErrorModel(
        jnp.asarray(wavelength),
        jnp.asarray(noise),
        jnp.asarray(mse),
        tiny_amplitude(mse),
        CoherentError(
            amplitude=tiny_amplitude(1.0),
            share=jnp.asarray(0.1 * 0.7 ** np.arange(number)),
            stretch=jnp.linspace(0.8, 1.2, number),
            widening=jnp.ones(number),
            response=jnp.zeros(number),
            share_velocity=jnp.asarray([0.01, 0.01]),
            resolved=jnp.asarray(len(wavelength) / 3.3),
            exponent=jnp.asarray(0.3),
            share_beyond=jnp.asarray(4.0 / len(wavelength)),
        ),
    )


def tiny_amplitude(mse: float) -> ErrorAmplitude:
    """The same for all labels, with the scatter of a shipped one."""
    number = len(LABELS)
    coefficients = jnp.zeros(1 + number + number * (number + 1) // 2).at[0].set(np.log(mse))
    lower, upper = jnp.asarray(LABELS.lower), jnp.asarray(LABELS.upper)
    return ErrorAmplitude(lower, upper, coefficients, jnp.asarray(0.3))


def tiny_emulator(
    *, seed: int = 0, width: int = 32, depth: int = 2, pixels: int = 400, analytic: bool = False
) -> Emulator:
    """An emulator with random weights, or with a closed form in place of the network.

    Its lines come from chance alone, but it depends smoothly on every label and wavelength.
    """
    grid = tiny_grid(pixels=pixels)
    if analytic:
        model = AnalyticModel()
    else:
        # Periods of twenty pixels and more: a random network with shorter ones is noise.
        architecture = {
            "width": width,
            "depth": depth,
            "tokens": 16,
            "head_dim": 32,
            "periods": (1e-4, 10.0),
            "branch_scale": depth**-0.5,
        }
        template = TransformerPayne.from_architecture(LABELS, architecture)
        # Drawn by numpy, because compiling JAX's generator would take most of the time.
        rng = np.random.default_rng(seed)

        def draw(leaf):
            weights = rng.normal(size=leaf.shape) / leaf.shape[max(leaf.ndim - 2, 0)] ** 0.5
            return jnp.asarray(weights, leaf.dtype)

        model = jax.tree.map(draw, template)
        model = eqx.tree_at(lambda tree: tree.head_out, model, 0.3 * model.head_out)
    record = {"medium": "vacuum", "solar_scale": LABELS.solar_scale}
    return Emulator(
        model, (grid[0], grid[-1]), STEP, tiny_error_model(grid), record, name=f"tiny-{seed}"
    )


def tiny_data(num: int, *, seed: int = 0, pixels: int = 400, step: float = STEP) -> TrainingData:
    """Dithered spectra of the closed form."""
    grid = tiny_grid(pixels=pixels, step=step)
    labels = LABELS.sobol(num, seed=seed)
    dither = np.random.default_rng(seed).uniform(-0.5, 0.5, num)

    def one(labels, dither):
        shifted = jnp.asarray(grid) * jnp.exp(dither * step)
        return 1.0 - analytic_depth(LABELS.to_unit(labels), shifted)

    flux = jax.vmap(one)(jnp.asarray(labels), jnp.asarray(dither))
    return TrainingData(labels, dither, np.asarray(flux, np.float32), grid, step)
