"""Spectra of an experiment, made anew on the devices from a seed: nothing large has to travel."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emulators.physics.synthesizer import Synthesizer
from emulators.training_data import TrainingData

_BATCH = 128


def synthesize(
    synthesizer: Synthesizer, number: int, seed: int, step: float, devices: Sequence[Any]
) -> TrainingData:
    """Sobol-drawn spectra in random order, each displaced by its own fraction of a pixel.

    Parameters
    ----------
    synthesizer
        Its wavelengths are uniform in ln(wavelength).
    number
        How many spectra.
    seed
        Of the labels, the displacements and the order.
    step
        Of the wavelengths in their logarithm.
    devices
        Share the batches between them; the spectra end on the host.
    """
    rng = np.random.default_rng(seed)
    # In random order, so that the first n are a fair sample of all.
    labels = synthesizer.label_space.sobol(number, seed=seed)[rng.permutation(number)]
    dither = rng.uniform(-0.5, 0.5, number)
    wavelength = np.asarray(synthesizer.wavelength)
    flux = np.empty((number, len(wavelength)), np.float32)

    def work(place: int) -> None:
        with jax.default_device(devices[place]):
            ours = jax.device_put(synthesizer, devices[place])
            for first in range(place * _BATCH, number, _BATCH * len(devices)):
                # The last batch begins earlier, rather than compile for another size.
                part = slice(min(first, number - _BATCH), min(first, number - _BATCH) + _BATCH)
                given = jnp.asarray(labels[part]), jnp.asarray(dither[part] * step)
                flux[part] = np.asarray(ours.batch(*given).normalized)

    with ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(work, range(len(devices))))
    return TrainingData(labels, dither, flux, wavelength, step)


def split(data: TrainingData, held_out: int) -> tuple[TrainingData, TrainingData, TrainingData]:
    """Training, validation and test spectra, as many of each of the last two."""

    def part(which: slice) -> TrainingData:
        # Views: a copy would be gigabytes.
        return data._replace(
            labels=data.labels[which], dither=data.dither[which], flux=data.flux[which]
        )

    return (
        part(slice(2 * held_out, None)),
        part(slice(held_out)),
        part(slice(held_out, 2 * held_out)),
    )
