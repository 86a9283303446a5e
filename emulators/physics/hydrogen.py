"""Balmer lines: Stark profiles by interpolation in a table, plus broadening by hydrogen atoms."""

from pathlib import Path

import equinox as eqx
import h5py
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emulators.physics.abundances import ATOMIC_WEIGHTS
from emulators.physics.chemistry import Equilibrium, EquilibriumTables
from emulators.physics.constants import (
    ATOMIC_MASS,
    BOLTZMANN,
    BOLTZMANN_EV,
    CLASSICAL_CROSS_SECTION,
    RYDBERG_EV,
    SPEED_OF_LIGHT,
)
from emulators.physics.continuum import stimulated
from emulators.physics.linelist import abo_width
from emulators.physics.voigt import voigt

_EXCITATION = RYDBERG_EV * 0.75  # eV, the lower level n = 2
_RADIATIVE = 5e8  # s^-1, widths of both levels: what a Balmer line has without a perturber
_RANGE = 400.0  # Angstrom; farther away even Balmer wings of the hottest star are below 1e-3


class HydrogenLines(eqx.Module):
    """H-beta to H-epsilon as they fall on a wavelength grid.

    Stark profiles (with thermal Doppler broadening) of Stehle & Hutcheon (1999), interpolated
    linearly in the logarithms of temperature, electron density and detuning. The damping wings
    from collisions with H atoms (Barklem, Piskunov & O'Mara 2000) are added to them: far from
    the core the convolution of two profiles is the sum of their wings.
    """

    wavelength: Float[Array, " balmer"]  # vacuum Angstrom
    gf: Float[Array, " balmer"]
    log_profile: Float[Array, "balmer temperature electrons detuning"]
    log_temperature: Float[Array, " temperature"]
    log_electrons: Float[Array, " electrons"]
    log_alpha: Float[Array, " detuning"]
    log_gamma_self: Float[Array, " balmer"]
    self_exponent: Float[Array, " balmer"]

    @classmethod
    def load(cls, path: Path, wavelength: Float[np.ndarray, " wavelength"]) -> "HydrogenLines":
        """Read `hydrogen.h5` and keep the lines within 400 A of a grid [vacuum Angstrom]."""
        with h5py.File(path) as file:
            table = {name: file[name][()].astype(float) for name in file}
        near = (table["wavelength"] > wavelength[0] - _RANGE) & (
            table["wavelength"] < wavelength[-1] + _RANGE
        )
        log_gamma, exponent = abo_width(
            table["self_cross_section"][near],
            table["self_exponent"][near],
            np.full(int(near.sum()), ATOMIC_WEIGHTS[0]),
        )
        return cls(
            wavelength=jnp.asarray(table["wavelength"][near]),
            gf=jnp.asarray(10.0 ** table["loggf"][near]),
            log_profile=jnp.asarray(table["log_profile"][near]),
            log_temperature=jnp.asarray(table["log_temperature"]),
            log_electrons=jnp.asarray(table["log_electron_density"]),
            log_alpha=jnp.asarray(table["log_alpha"]),
            log_gamma_self=jnp.asarray(log_gamma),
            self_exponent=jnp.asarray(exponent),
        )

    def __call__(
        self,
        wavelength: Float[Array, " wavelength"],
        temperature: Float[Array, " layer"],
        gas: Equilibrium,
        tables: EquilibriumTables,
    ) -> Float[Array, "layer wavelength"]:
        """Absorption per gram [cm^2/g] at vacuum wavelengths [Angstrom]."""
        total = jnp.zeros((temperature.shape[0], wavelength.shape[0]))
        neutral = gas.atoms[0, 0] / jnp.exp(tables.partition_atoms(temperature)[0, 0])
        excited = neutral * jnp.exp(-_EXCITATION / (BOLTZMANN_EV * temperature)) / gas.density
        for line in range(self.wavelength.shape[0]):
            strength = CLASSICAL_CROSS_SECTION * self.gf[line] * excited
            profile = self._stark(line, wavelength, temperature, gas.electrons)
            profile += self._self_wings(line, wavelength, temperature, gas)
            total += strength[:, None] * profile
        return total * stimulated(wavelength[None, :], temperature[:, None])

    def _stark(
        self, line: int, wavelength: Array, temperature: Array, electrons: Array
    ) -> Float[Array, "layer wavelength"]:
        """Profile per Hz."""
        tables = self.log_profile[line]
        row, row_weight = _bracket(self.log_temperature, jnp.log10(temperature))
        column, column_weight = _bracket(self.log_electrons, jnp.log10(electrons))
        wt, we = row_weight[:, None], column_weight[:, None]
        at_layer = (1 - wt) * ((1 - we) * tables[row, column] + we * tables[row, column + 1]) + (
            wt * ((1 - we) * tables[row + 1, column] + we * tables[row + 1, column + 1])
        )
        field = 1.25e-9 * electrons ** (2.0 / 3.0)  # F0: Angstrom per unit of alpha
        distance = jnp.abs(wavelength - self.wavelength[line])
        alpha = jnp.maximum(distance[None, :] / field[:, None], 10.0 ** self.log_alpha[0])
        place, weight = _bracket(self.log_alpha, jnp.log10(alpha))
        left = jnp.take_along_axis(at_layer, place, axis=1)
        right = jnp.take_along_axis(at_layer, place + 1, axis=1)
        per_angstrom = 10.0 ** (left + weight * (right - left)) / field[:, None]
        return per_angstrom * wavelength**2 / (SPEED_OF_LIGHT * 1e8)

    def _self_wings(
        self, line: int, wavelength: Array, temperature: Array, gas: Equilibrium
    ) -> Float[Array, "layer wavelength"]:
        """Profile per Hz of the Lorentz wings alone: Voigt less its Doppler core."""
        gamma = (
            10.0 ** self.log_gamma_self[line]
            * (temperature / 1e4) ** self.self_exponent[line]
            * gas.atoms[0, 0]
            + _RADIATIVE
        )
        velocity = jnp.sqrt(2.0 * BOLTZMANN * temperature / (ATOMIC_WEIGHTS[0] * ATOMIC_MASS))
        doppler = velocity / (self.wavelength[line] * 1e-8)  # Hz
        damping = gamma / (4.0 * np.pi * doppler)
        ratio = jnp.log(wavelength / self.wavelength[line])
        distance = ratio[None, :] * (SPEED_OF_LIGHT / velocity)[:, None]
        wings = voigt(damping[:, None], distance) - jnp.exp(-(distance**2))
        return jnp.maximum(wings, 0.0) / (np.sqrt(np.pi) * doppler[:, None])


def _bracket(nodes: Array, value: Array) -> tuple[Array, Array]:
    """Cell and weight for linear interpolation on even nodes; past an end the line goes on."""
    position = (value - nodes[0]) / (nodes[1] - nodes[0])
    cell = jnp.clip(jnp.floor(position), 0, nodes.shape[0] - 2)
    return cell.astype(jnp.int32), position - cell
