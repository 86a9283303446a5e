"""A synthesiser of the closed form of `tiny`: the truth that an exact emulator knows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tiny import LABELS, analytic_depth


class AnalyticSynthesis(NamedTuple):
    normalized: np.ndarray


class AnalyticSynthesizer:
    """Spectra at the wavelengths it was made with."""

    def __init__(self, wavelength):
        self.wavelength = np.asarray(wavelength)

    def batch(self, labels, shift):
        def one(labels, shift):
            unit = LABELS.to_unit(labels)
            return 1.0 - analytic_depth(unit, jnp.asarray(self.wavelength) * jnp.exp(shift))

        return AnalyticSynthesis(np.asarray(jax.vmap(one)(labels, shift)))
