"""Spectra in memory: what training learns from, and how far an emulator is from them."""

from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .errors import InputError
from .spectral_model import SpectralModel
from .storage import array_hash

if TYPE_CHECKING:
    from .grid import SpectralGrid

_EVALUATION_STARS = 8


class TrainingData(NamedTuple):
    """Spectra in memory, on the host or already on the device.

    Star s, pixel i lies at ``wavelength[i] * exp(dither[s] * step)``.
    """

    labels: Float[Array | np.ndarray, "star labels"]
    dither: Float[Array | np.ndarray, " star"]
    flux: Float[Array | np.ndarray, "star pixel"]
    wavelength: Float[Array | np.ndarray, " pixel"]
    step: float | Float[Array, ""]

    def select(self, indices: np.ndarray) -> "TrainingData":
        """Some of the stars."""
        return self._replace(
            labels=self.labels[indices], dither=self.dither[indices], flux=self.flux[indices]
        )

    def on_device(self) -> "TrainingData":
        """The same with every array on the device; what is there already is not copied."""
        return self._replace(
            labels=jnp.asarray(self.labels, jnp.float64),
            dither=jnp.asarray(self.dither, jnp.float64),
            flux=jnp.asarray(self.flux),
            wavelength=jnp.asarray(self.wavelength, jnp.float64),
            step=jnp.asarray(self.step, jnp.float64),
        )

    def check(self, name: str, num_labels: int) -> None:
        """Refuse shapes that do not fit each other, and labels or spectra that hold NaN."""
        stars, pixels = self.flux.shape
        if len(self.labels) != stars or len(self.dither) != stars:
            raise InputError(
                f"train: {name} has {stars} spectra, {len(self.labels)} rows of labels and "
                f"{len(self.dither)} dithers"
            )
        if len(self.wavelength) != pixels:
            raise InputError(
                f"train: {name} has {pixels} pixels and {len(self.wavelength)} wavelengths"
            )
        if self.labels.shape[1] != num_labels:
            raise InputError(
                f"train: {name} has {self.labels.shape[1]} labels a spectrum, the label space "
                f"{num_labels}"
            )
        numbers = np.column_stack([np.asarray(self.labels), np.asarray(self.dither)])
        if not np.isfinite(numbers).all():
            bad = int(np.argmin(np.isfinite(numbers).all(axis=1)))
            raise InputError(f"train: labels or dither {bad} of {name} hold NaN")
        good = jnp.isfinite(jnp.sum(jnp.asarray(self.flux), axis=1, dtype=jnp.float32))
        if not bool(good.all()):
            raise InputError(f"train: spectrum {int(jnp.argmin(good))} of {name} holds NaN")

    def hash(self) -> str:
        """Hash of the labels, the grid and every 64th spectrum: enough to tell data apart."""
        arrays = {
            "labels": np.asarray(self.labels),
            "dither": np.asarray(self.dither),
            "flux": np.asarray(self.flux[::64]),
            "wavelength": np.asarray(self.wavelength),
        }
        return array_hash(arrays)[:12]


def evaluate(model: SpectralModel, data: TrainingData, *, residuals: bool = False) -> np.ndarray:
    """Mean squared error of each star in float32, or the residuals emulator minus truth.

    Returns
    -------
    [star], or [star, pixel] where `residuals`.
    """
    data = data.on_device()
    return np.asarray(
        _evaluate(
            model, model.encode(jnp.asarray(data.wavelength)), data.step, *data[:3], residuals
        )
    )


@eqx.filter_jit
def _evaluate(model, encoding, step, labels, dither, flux, residuals):
    def one(star):
        labels, dither, flux = star
        error = model.flux_at(labels, encoding, dither * step) - flux.astype(jnp.float32)
        return error if residuals else jnp.mean(error**2)

    stars = (labels, dither, flux)
    return jax.lax.map(one, stars, batch_size=_batch_of_stars())


def _batch_of_stars() -> int | None:
    """A CPU takes one star at a time, which fills its cache; a GPU takes several."""
    return None if jax.default_backend() == "cpu" else _EVALUATION_STARS


def split_grid(
    grid: "SpectralGrid", seed: int, validation: Any, test: Any
) -> tuple[TrainingData, TrainingData, TrainingData]:
    """Training, validation and test spectra of a grid; each held-out number may be None."""
    default = min(1024, len(grid) // 10)
    counts = [default if count is None else count for count in (validation, test)]
    if any(isinstance(count, TrainingData) for count in counts):
        raise InputError("train: with a grid, give the numbers of validation and test spectra")
    if min(counts) < 1 or sum(counts) >= len(grid):
        raise InputError(
            f"train: {counts[0]} validation and {counts[1]} test spectra of {len(grid)}; "
            "give at least 1 of each and leave some to train on"
        )
    parts = grid.split(seed, *counts)
    # Imported spectra may lie on any grid: their dither is 0, and their finest pixel the scale.
    step = float(np.min(np.diff(np.log(grid.wavelength)))) if grid.step is None else grid.step
    everything = TrainingData(
        np.asarray(grid.labels),
        np.asarray(grid.dither),
        np.asarray(grid.flux()),
        np.asarray(grid.wavelength),
        step,
    )
    return (
        everything.select(parts["train"]),
        everything.select(parts["validation"]),
        everything.select(parts["test"]),
    )
