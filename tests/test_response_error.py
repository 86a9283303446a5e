"""The error of an emulator's response to a label, against emulators whose error is known."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d
from tiny import LABELS, AnalyticModel, tiny_error_model

from emulators.errors import InputError
from emulators.response_error import measure_response

WAVELENGTH = np.exp(np.arange(np.log(5150.0), np.log(5250.0), 1e-5))
MODEL = AnalyticModel()


class Synthesiser:
    """The truth: an analytic model."""

    label_space, wavelength = LABELS, WAVELENGTH

    def __call__(self, labels, shift=0.0):
        return SimpleNamespace(
            normalized=MODEL.flux_at(labels, MODEL.encode(jnp.asarray(WAVELENGTH)), shift)
        )


class Wrong:
    """An emulator off by a pattern, and by another for half a box of its last label."""

    name, label_space = "wrong", LABELS
    error_model = tiny_error_model(WAVELENGTH, num_patterns=200)

    def __init__(self, size):
        rng = np.random.default_rng(2)
        noise = gaussian_filter1d(rng.normal(size=(2, len(WAVELENGTH))), 3.0, axis=1)
        self.always, self.by_last = 1e-3 * noise / noise.std(axis=1, keepdims=True)
        self.size = size

    def encode(self, wavelength):
        return MODEL.encode(wavelength)

    def flux_at(self, labels, encoding, shift=0.0, precision="float32"):
        last = 2 * LABELS.to_unit(labels)[-1] - 1
        wrong = self.always + self.size * last * self.by_last
        return MODEL.flux_at(labels, encoding, shift) + wrong


def test_finds_the_energy_of_a_wrong_response():
    size = 0.5
    found = measure_response(Wrong(size), Synthesiser(), stars=60, seed=1)
    # Over the error of the star itself, whose last label is anywhere in the box.
    last = np.random.default_rng(3).uniform(-1, 1, 10_000)
    expected = np.median(size**2 / (1 + (size * last) ** 2))
    assert found[-1] == pytest.approx(expected, rel=0.15)
    assert np.all(found[:-1] < 1e-4)


def test_an_emulator_that_is_off_alike_everywhere_has_none():
    assert np.all(measure_response(Wrong(0.0), Synthesiser(), stars=3) < 1e-4)


def test_refuses_what_it_cannot_compare():
    synth: Any = Synthesiser()
    with pytest.raises(InputError, match="0 stars; give 1 or more"):
        measure_response(Wrong(0.0), synth, stars=0)
    bare: Any = Wrong(0.0)
    bare.error_model = None
    with pytest.raises(InputError, match="has no error model"):
        measure_response(bare, synth)
    synth.wavelength = WAVELENGTH[:-1]
    with pytest.raises(InputError, match="other wavelengths"):
        measure_response(Wrong(0.0), synth)
    synth = Synthesiser()
    synth.label_space = SimpleNamespace()
    with pytest.raises(InputError, match="other labels"):
        measure_response(Wrong(0.0), synth)
