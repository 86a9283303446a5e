"""What every model of spectra offers to inference."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from .labels import LabelSpace
from .precision import Precision


class SpectralModel(eqx.Module):
    """Labels and wavelengths to normalised flux, differentiable in both.

    `encode` does once what depends only on the wavelengths; `flux_at` does the rest, and shifts
    all wavelengths by a common factor.
    """

    label_space: eqx.AbstractVar[LabelSpace]

    @abc.abstractmethod
    def encode(self, wavelength: Float[Array, " pixel"]) -> Any:
        """Whatever `flux_at` needs of vacuum wavelengths [Angstrom, float64]."""

    @abc.abstractmethod
    def flux_at(
        self,
        labels: Float[Array, " labels"],
        encoding: Any,
        shift: Float[Array, ""] | float = 0.0,
        precision: Precision = "float32",
    ) -> Float[Array, " pixel"]:
        """Normalised flux at ``wavelength * exp(shift)`` of an encoded grid.

        A model may do better than the asked precision.
        """

    @abc.abstractmethod
    def __call__(
        self, labels: Float[Array, " labels"], wavelength: Float[Array, " pixel"]
    ) -> Float[Array, " pixel"]:
        """Normalised flux at vacuum wavelengths [Angstrom, float64]."""
