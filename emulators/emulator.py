"""A trained emulator: the model, where it holds, how wrong it is, and how it was made."""

import json
import os
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from . import pretrained
from .bundle import arrays_to_tree, read_bundle, tree_to_arrays, write_bundle
from .error_model import ErrorModel
from .errors import InputError
from .labels import LabelSpace
from .precision import Precision
from .spectral_model import SpectralModel
from .storage import array_hash
from .transformer_payne import TransformerPayne

_KIND = "emulator"
_FORMAT = 4
_CHECK_PIXELS = 64
# Two machines round differently; a wrong weight or a changed formula shows far above this.
_CHECK_TOLERANCE = 2e-5


class Emulator(eqx.Module):
    """Normalised spectra from labels, with the limits inside which they can be trusted.

    Parameters
    ----------
    model
        The network: labels and wavelengths to normalised flux.
    wavelength_range
        First and last wavelength of the training grid, vacuum Angstrom.
    step
        Step of the training grid in ln(wavelength): the finest scale that was learned.
    error_model
        Covariance of the residuals on held-out spectra, or None if not measured.
    record
        How the emulator was made: JSON-able.
    name
        Of the file it came from, or of the run.
    """

    model: SpectralModel
    wavelength_range: tuple[float, float] = eqx.field(static=True)
    step: float = eqx.field(static=True)
    error_model: ErrorModel | None
    name: str = eqx.field(static=True)
    # Text, because what is static in a compiled function must be hashable.
    _record: str = eqx.field(static=True)

    def __init__(
        self,
        model: SpectralModel,
        wavelength_range: tuple[float, float],
        step: float,
        error_model: ErrorModel | None = None,
        record: dict[str, Any] | None = None,
        name: str = "",
    ):
        self.model = model
        self.wavelength_range = (float(wavelength_range[0]), float(wavelength_range[1]))
        self.step = float(step)
        self.error_model = error_model
        self.name = name
        self._record = json.dumps(record or {}, sort_keys=True)

    @property
    def label_space(self) -> LabelSpace:
        """Labels and the box they were trained in."""
        return self.model.label_space

    @property
    def record(self) -> dict[str, Any]:
        """Training row, provenance of the grid, versions, wavelength medium, solar scale."""
        return json.loads(self._record)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name these very weights; not inside ``jit``."""
        return array_hash(tree_to_arrays(self.model))[:12]

    def flux(
        self, labels: Float[Array, " labels"], wavelength: Float[Array, " pixel"]
    ) -> Float[Array, " pixel"]:
        """Normalised flux at vacuum wavelengths [Angstrom]: pure, differentiable, unchecked."""
        return self.model(labels, wavelength)

    def encode(self, wavelength: Float[Array, " pixel"]) -> Any:
        """What `flux_at` needs of a fixed wavelength grid; compute it once."""
        return self.model.encode(wavelength)

    def flux_at(
        self,
        labels: Float[Array, " labels"],
        encoding: Any,
        shift: Float[Array, ""] | float = 0.0,
        precision: Precision = "float32",
    ) -> Float[Array, " pixel"]:
        """Flux at ``wavelength * exp(shift)`` of an encoded grid: pure, differentiable, unchecked.

        A radial velocity is ``shift = -log1p(v_rad / c)``.
        """
        return self.model.flux_at(labels, encoding, shift, precision)

    def __call__(
        self,
        labels: Float[ArrayLike, " labels"],
        wavelength: Float[ArrayLike, " pixel"],
        *,
        extrapolate: bool = False,
    ) -> Float[Array, " pixel"]:
        """Normalised flux, after checks that only a host can make.

        Parameters
        ----------
        labels
            In the order and units of `label_space`.
        wavelength
            Vacuum Angstrom.
        extrapolate
            Allow labels outside the box and wavelengths outside the training range. NaN never.
        """
        values = np.asarray(labels, np.float64)
        grid = np.asarray(wavelength, np.float64)
        low, high = self.wavelength_range
        if not extrapolate:
            self.label_space.check(values)
            slack = 1.0 + self.step
            outside = (grid < low / slack) | (grid > high * slack)
            if outside.any():
                raise InputError(
                    f"emulator: wavelength {grid[outside][0]:.3f} is outside {low:.3f} .. "
                    f"{high:.3f} Angstrom (vacuum)"
                )
        if not (np.isfinite(values).all() and np.isfinite(grid).all()):
            raise InputError("emulator: labels or wavelengths hold NaN or infinity")
        return _evaluate(self.model, jnp.asarray(values), jnp.asarray(grid))

    def rounded(self) -> "Emulator":
        """The same with every weight rounded to float16, so that its file is half as large.

        The weights are still float32 in memory. Measure the error model after rounding.
        """
        model = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(leaf.dtype), self.model)
        return eqx.tree_at(lambda emulator: emulator.model, self, model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one HDF5 file that `load` reads back, sealed by its sha256."""
        if not isinstance(self.model, TransformerPayne):
            raise InputError(
                f"emulator: a {type(self.model).__name__} cannot be saved; only a TransformerPayne"
            )
        weights = tree_to_arrays(self.model)
        arrays = {f"model{name}": _smallest(array) for name, array in weights.items()}
        if self.error_model is not None:
            found = tree_to_arrays(self.error_model)
            arrays |= {f"error_model{name}": _smallest(array) for name, array in found.items()}
        labels, wavelength = self._check_point()
        arrays["check_flux"] = np.asarray(_evaluate(self.model, labels, wavelength))
        record = {
            "format": _FORMAT,
            "label_space": self.label_space.to_dict(),
            "architecture": self.model.architecture(),
            "wavelength_range": self.wavelength_range,
            "step": self.step,
            "record": self.record,
        }
        write_bundle(path, _KIND, arrays, record)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Emulator":
        """Read an emulator; a truncated, changed or wrongly evaluating file is an error."""
        arrays, record = read_bundle(path, _KIND)
        if record["format"] != _FORMAT:
            raise InputError(
                f"emulator: {path} has format {record['format']}, this version reads {_FORMAT}; "
                "make it anew with this version"
            )
        label_space = LabelSpace.from_dict(record["label_space"])
        template = TransformerPayne.from_architecture(label_space, record["architecture"])
        weights = _under("model", arrays)
        model = arrays_to_tree(template, {k: v.astype(np.float32) for k, v in weights.items()})
        errors = _under("error_model", arrays)
        error_model = ErrorModel.from_arrays(errors) if errors else None
        emulator = cls(
            model,
            tuple(record["wavelength_range"]),
            record["step"],
            error_model,
            record["record"],
            Path(path).stem,
        )
        found = np.asarray(_evaluate(model, *emulator._check_point()))
        difference = float(np.max(np.abs(found - arrays["check_flux"])))
        if not difference <= _CHECK_TOLERANCE:
            raise InputError(
                f"emulator: {path} evaluates differently here, by {difference:.1e} in flux; "
                "it was made by an incompatible version"
            )
        return emulator

    def _check_point(self) -> tuple[Array, Array]:
        """Labels and wavelengths of the stored fingerprint evaluation."""
        labels = self.label_space.from_unit(jnp.full(len(self.label_space), 0.4, jnp.float64))
        low, high = self.wavelength_range
        return labels, jnp.linspace(low, high, _CHECK_PIXELS, dtype=jnp.float64)


def load_emulator(name_or_path: str | os.PathLike[str] | None = None) -> Emulator:
    """Load a shipped emulator by name, or any emulator by path; by default the shipped default.

    Parameters
    ----------
    name_or_path
        A name from ``emulators.pretrained.available()`` or the path of an ``.h5`` file.
    """
    if name_or_path is None:
        return Emulator.load(pretrained.find(pretrained.DEFAULT))
    if os.fspath(name_or_path).endswith(".h5") or Path(name_or_path).is_file():
        return Emulator.load(name_or_path)
    return Emulator.load(pretrained.find(os.fspath(name_or_path)))


@eqx.filter_jit
def _evaluate(model: SpectralModel, labels: Array, wavelength: Array) -> Array:
    return model(labels, wavelength)


def _smallest(weights: np.ndarray) -> np.ndarray:
    """An array as float16 where that loses nothing."""
    with np.errstate(over="ignore"):
        half = weights.astype(np.float16)
    return half if np.array_equal(half.astype(weights.dtype), weights) else weights


def _under(prefix: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of one part of the bundle, their prefix removed."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(f"{prefix}.")
    }
