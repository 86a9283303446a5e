"""Spectra for ever: a store on the device whose oldest part is made anew as training goes."""

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .errors import InputError
from .labels import LabelSpace
from .training_data import TrainingData

if TYPE_CHECKING:
    from .physics.synthesizer import Synthesizer

# Stars that are synthesised at once: what fits the memory of a GPU beside a training run.
_PORTION = 128
# Share of the draws for which the synthesiser may give no number.
_MOST_FAILED = 0.01


class FreshSpectra:
    """Training spectra that a run does not see for long: one batch is new after every call.

    Batch ``k`` of the stream depends on the seed and ``k`` alone, and the store before call ``c``
    holds batches ``c .. c + size/batch - 1``: so a resumed run sees what an uninterrupted one saw.
    The device synthesises the next batch while the host prepares the next call.

    Parameters
    ----------
    synthesizer
        Its wavelengths must be uniform in ln(wavelength).
    size
        Spectra in the store, a multiple of `batch`.
    batch
        Spectra that are new after every call (`TrainConfig.steps_per_call` steps).
    seed
        Of the labels and dithers.

    Raises
    ------
    InputError
        A store that is no whole number of batches, wavelengths that are not uniform; as spectra
        are made, more than 1% of a batch that are no numbers. Fewer are left out: another star of
        the batch stands twice.
    """

    def __init__(self, synthesizer: "Synthesizer", *, size: int, batch: int = 128, seed: int):
        if batch < 1 or size < batch or size % batch:
            raise InputError(
                f"fresh_spectra: size is {size}; give a multiple of batch ({batch}), above 0"
            )
        self.synthesizer, self.size, self.batch, self.seed = synthesizer, size, batch, seed
        self.wavelength = np.asarray(synthesizer.wavelength, np.float64)
        steps = np.diff(np.log(self.wavelength))
        self.step = float(steps.mean())
        if np.abs(steps - self.step).max() > 1e-3 * self.step:
            raise InputError("fresh_spectra: the wavelengths are not uniform in their logarithm")

    @property
    def label_space(self) -> LabelSpace:
        """Labels and the box they are drawn from."""
        return self.synthesizer.label_space

    def unique(self, calls: int) -> int:
        """Different spectra that were in the store during the first `calls` calls."""
        return self.size + max(calls - 1, 0) * self.batch

    def before(self, call: int) -> TrainingData:
        """The store before a call."""
        count = self.size // self.batch
        parts = [self._synthesize(number) for number in range(call, call + count)]
        # Batch k lies in slot k modulo the number of slots.
        parts = [parts[(slot - call) % count] for slot in range(count)]
        labels, dither, flux = (jnp.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return TrainingData(
            labels, dither, flux, jnp.asarray(self.wavelength), jnp.asarray(self.step)
        )

    def renew(self, store: TrainingData, call: int) -> TrainingData:
        """The store after that call: its oldest batch replaced, in place where the device can."""
        count = self.size // self.batch
        first = call % count * self.batch
        return _replace(store, self._synthesize(call + count), first)

    def _synthesize(self, number: int) -> tuple[Array, Array, Array]:
        labels = self.label_space.sobol(self.batch, seed=self.seed, start=number * self.batch)
        dither = np.random.default_rng((self.seed, number)).uniform(-0.5, 0.5, self.batch)
        parts = []
        for first in range(0, self.batch, _PORTION):
            part = slice(first, first + _PORTION)
            shift = jnp.asarray(dither[part] * self.step)
            spectra = self.synthesizer.batch(jnp.asarray(labels[part]), shift)
            parts.append(jnp.asarray(spectra.normalized).astype(jnp.float32))
        flux = jnp.concatenate(parts)
        good = np.flatnonzero(np.asarray(jnp.isfinite(flux).all(axis=1)))
        if len(good) < (1.0 - _MOST_FAILED) * self.batch:
            raise InputError(
                f"fresh_spectra: {self.batch - len(good)} of {self.batch} spectra of batch {number}"
                " are no numbers; shrink the label space"
            )
        # Draws that failed give their place to the first that did not.
        place = np.full(self.batch, good[0])
        place[good] = good
        if len(good) < self.batch:
            labels, dither, flux = labels[place], dither[place], flux[place]
        return jnp.asarray(labels), jnp.asarray(dither), flux

    def provenance(self) -> dict[str, Any]:
        """What made the spectra, JSON-able."""
        return {
            **self.synthesizer.provenance(),
            "label_space": self.label_space.to_dict(),
            "fresh": {"size": self.size, "batch": self.batch, "seed": self.seed},
            "wavelength_sha256": hashlib.sha256(self.wavelength.tobytes()).hexdigest(),
        }

    def hash(self) -> str:
        """Twelve hexadecimal digits that change with anything that changes the spectra."""
        text = json.dumps(self.provenance(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@partial(jax.jit, donate_argnums=0)
def _replace(
    store: TrainingData, part: tuple[Array, Array, Array], first: int | Array
) -> TrainingData:
    labels, dither, flux = (
        jax.lax.dynamic_update_slice_in_dim(whole, new, first, axis=0)
        for whole, new in zip(store[:3], part, strict=True)
    )
    return store._replace(labels=labels, dither=dither, flux=flux)
