"""Continuous opacity: what a star absorbs between its lines.

H- bound-free and free-free, H bound-free and free-free, H2+, He- free-free, Rayleigh scattering
by H, H2 and He, Thomson scattering, and the bound-free edges of metals. Scattering is counted as
absorption (source function = Planck function), which is good to a percent at the wavelengths and
temperatures of F, G and K stars.
"""

from pathlib import Path

import equinox as eqx
import h5py
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emulators.physics.chemistry import CODES, Equilibrium
from emulators.physics.constants import (
    BOLTZMANN,
    BOLTZMANN_EV,
    HC_OVER_K,
    RYDBERG_EV,
    SPEED_OF_LIGHT,
    THOMSON,
)

# John (1988, A&A 193, 189), Table 3a: H- free-free for wavelengths above 0.3645 micron.
_HMINUS_FF = np.array(
    [
        [2483.3460, 285.8270, -2054.2910, 2827.7760, -1341.5370, 208.9520],
        [-3449.8890, -1158.3820, 8746.5230, -11485.6320, 5303.6090, -812.9390],
        [2200.0400, 2427.7190, -13651.1050, 16755.5240, -7510.4940, 1132.7380],
        [-696.2710, -1841.4000, 8624.9700, -10051.5300, 4400.0670, -655.0200],
        [88.2830, 444.5170, -1863.8640, 2095.2880, -901.7880, 132.9850],
    ]
)
# John (1988), equation 5: H- bound-free cross-section.
_HMINUS_BF = (152.519, 49.534, -118.858, 92.536, -34.194, 4.982)
_HMINUS_THRESHOLD = 1.6419  # micron
_LEVELS = np.arange(2, 9)  # hydrogen levels whose bound-free edges are summed one by one


def stimulated(wavelength: Array, temperature: Array) -> Array:
    """1 - exp(-h nu / k T) for wavelengths in Angstrom and temperatures in K."""
    return -jnp.expm1(-HC_OVER_K / (wavelength * temperature))


def hminus(
    wavelength: Array, temperature: Array, electrons: Array, neutral_h: Array, ions: Array
) -> Array:
    """H- bound-free and free-free [cm^-1] (John 1988), stimulated emission included.

    The number of H- ions comes from the chemistry, whose electron affinity (0.754 eV, measured) is
    lower than the 0.755 eV of John's equation 3: 0.25% at 4000 K.
    """
    micron = wavelength * 1e-4
    excess = jnp.maximum(1.0 / micron - 1.0 / _HMINUS_THRESHOLD, 0.0)
    root = jnp.sqrt(excess)
    series = sum(c * root**n for n, c in enumerate(_HMINUS_BF))
    cross_section = 1e-18 * micron**3 * excess**1.5 * series
    bound_free = ions * cross_section * stimulated(wavelength, temperature)
    powers = jnp.stack([micron**2, micron**0, micron**-1, micron**-2, micron**-3, micron**-4])
    theta = 5040.0 / temperature
    # per neutral H atom and unit electron pressure
    free_free = 1e-29 * sum(
        theta ** ((n + 1) / 2) * jnp.tensordot(jnp.asarray(row), powers, 1)
        for n, row in enumerate(_HMINUS_FF, start=2)
    )
    electron_pressure = electrons * BOLTZMANN * temperature
    return bound_free + neutral_h * electron_pressure * free_free


def hydrogen(wavelength: Array, temperature: Array, atoms: Array, electrons: Array) -> Array:
    """H bound-free and free-free [cm^-1] with the Gaunt factors of Gray (2005, equations 8.5-8.9).

    Levels 2-8 are summed with their edges; the higher ones are an integral to the continuum
    (Unsold's approximation).
    """
    neutral, protons = atoms[0, 0], atoms[1, 0]
    inverse = wavelength * 1.0968e-3  # lambda * Rydberg constant
    kt = BOLTZMANN_EV * temperature
    total = jnp.zeros_like(wavelength * temperature)
    for level in _LEVELS:
        gaunt = 1.0 - 0.3456 / inverse ** (1.0 / 3.0) * (inverse / level**2 - 0.5)
        open_edge = wavelength < 911.75 * level**2
        excitation = RYDBERG_EV * (1.0 - 1.0 / level**2)
        total += jnp.where(open_edge, gaunt, 0.0) / level**3 * jnp.exp(-excitation / kt)
    # sum over n > 8 of exp(-chi_n/kT)/n^3 -> kT / (2 Ry) [exp(-chi_9/kT) - exp(-Ry/kT)]
    highest = RYDBERG_EV * (1.0 - 1.0 / (_LEVELS[-1] + 0.5) ** 2)
    boltzmann = jnp.exp(-highest / kt) - jnp.exp(-RYDBERG_EV / kt)
    total += kt / (2.0 * RYDBERG_EV) * boltzmann
    bound_free = 1.0449e-26 * wavelength**3 * total * neutral
    kt_photon = temperature * wavelength / HC_OVER_K  # kT / h nu
    gaunt_ff = 1.0 + 0.3456 / inverse ** (1.0 / 3.0) * (kt_photon + 0.5)
    frequency = SPEED_OF_LIGHT * 1e8 / wavelength
    free_free = 3.6919e8 * gaunt_ff * electrons * protons / jnp.sqrt(temperature) / frequency**3
    return (bound_free + free_free) * stimulated(wavelength, temperature)


def hydrogen_molecular_ion(
    wavelength: Array, temperature: Array, neutral: Array, protons: Array
) -> Array:
    """H2+ bound-free and free-free [cm^-1]: the fits of Kurucz (1970, SAO Special Report 309)."""
    nu = SPEED_OF_LIGHT * 1e8 / wavelength
    x = jnp.log(nu)
    ln_cross = -3.0233e3 + (3.7797e2 + (-1.82496e1 + (3.9207e-1 - 3.1672e-3 * x) * x) * x) * x
    energy = (
        -7.342e-3
        + (-2.409e-15 + (1.028e-30 + (-4.230e-46 + (1.224e-61 - 1.351e-77 * nu) * nu) * nu) * nu)
        * nu
    )
    cross = jnp.exp(ln_cross - energy / (BOLTZMANN_EV * temperature))
    # each factor alone fits float64; their product in this order stays in range in float32 too
    return (cross * neutral) * protons * stimulated(wavelength, temperature)


def helium_minus(
    wavelength: Array, temperature: Array, electrons: Array, neutral_he: Array
) -> Array:
    """He- free-free [cm^-1]: the fit of Carbon, Gingerich & Latham (1969) as used by Kurucz."""
    nu = SPEED_OF_LIGHT * 1e8 / wavelength
    a = 3.397e-46 + (-5.216e-31 + 7.039e-15 / nu) / nu
    b = -4.116e-42 + (1.067e-26 + 8.135e-11 / nu) / nu
    c = 5.081e-37 + (-8.724e-23 - 5.659e-8 / nu) / nu
    return (a * temperature + b + c / temperature) * electrons * neutral_he


def rayleigh(wavelength: Array, hydrogen_atoms: Array, molecules: Array, helium: Array) -> Array:
    """Rayleigh scattering by H (Dalgarno), H2 (Dalgarno & Williams 1962) and He [cm^-1]."""
    x = 1.0 / wavelength**2
    h = x**2 * (5.799e-13 + x * (1.422e-6 + x * 2.784))
    h2 = x**2 * (8.14e-13 + x * (1.28e-6 + x * 1.61))
    he = 5.484e-14 * x**2 * (1.0 + (2.44e5 + 5.94e10 / (1.0 / x - 2.90e5)) * x) ** 2
    return hydrogen_atoms * h + molecules * h2 + helium * he


class MetalEdges(eqx.Module):
    """Bound-free absorption of metals, CH and OH from the cross-sections of `metal_bf.h5`.

    log10 of the cross-section per particle is interpolated linearly in wavelength and in 1/T;
    beyond the table's ends it keeps its last value.
    """

    wavelength: Float[Array, " table"]  # vacuum Angstrom
    inverse_temperature: Float[Array, " node"]  # 1/K, increasing
    log_cross_section: Float[Array, "species node table"]  # cm^2
    species: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def load(cls, path: Path) -> "MetalEdges":
        """Read `metal_bf.h5` (see `emulators.physics.build_tables`)."""
        with h5py.File(path) as file:
            return cls(
                wavelength=jnp.asarray(file["wavelength"][()], float),
                inverse_temperature=jnp.asarray(1.0 / file["temperature"][()][::-1]),
                log_cross_section=jnp.asarray(file["log_cross_section"][()][:, ::-1], float),
                species=tuple(int(code) for code in file["species"][()]),
            )

    def __call__(
        self,
        wavelength: Float[Array, " wavelength"],
        temperature: Float[Array, " layer"],
        gas: Equilibrium,
    ) -> Float[Array, "layer wavelength"]:
        """Absorption coefficient [cm^-1], stimulated emission included."""
        left, weight = _bracket(self.wavelength, wavelength)
        table = self.log_cross_section
        table = table[..., left] * (1.0 - weight) + table[..., left + 1] * weight
        left, weight = _bracket(self.inverse_temperature, 1.0 / temperature)
        weight = weight[:, None]
        log_sigma = table[:, left] * (1.0 - weight) + table[:, left + 1] * weight
        absorbers = jnp.stack([_number_density(code, gas) for code in self.species])
        total = jnp.sum(absorbers[:, :, None] * 10.0**log_sigma, axis=0)
        return total * stimulated(wavelength[None, :], temperature[:, None])


def _number_density(code: int, gas: Equilibrium) -> Float[Array, " layer"]:
    if code in CODES:
        return gas.molecules[CODES.index(code)]
    return gas.atoms[code % 100, code // 100 - 1]


def _bracket(nodes: Array, value: Array) -> tuple[Array, Array]:
    """Cell and weight for linear interpolation on uneven nodes, constant beyond the ends."""
    cell = jnp.clip(jnp.searchsorted(nodes, value, side="right") - 1, 0, nodes.shape[0] - 2)
    weight = (value - nodes[cell]) / (nodes[cell + 1] - nodes[cell])
    return cell, jnp.clip(weight, 0.0, 1.0)


def continuous_opacity(
    wavelength: Float[Array, " node"],
    temperature: Float[Array, " layer"],
    gas: Equilibrium,
    edges: MetalEdges,
) -> Float[Array, "layer node"]:
    """Continuous absorption per gram [cm^2/g] at vacuum wavelengths in Angstrom.

    Valid from 3800 A to 15000 A: metals that absorb below that are not in the tables.
    """
    wave = wavelength[None, :]
    t = temperature[:, None]
    electrons = gas.electrons[:, None]
    neutral = gas.atoms[0, 0][:, None]
    protons = gas.atoms[1, 0][:, None]
    helium = gas.atoms[0, 1][:, None]
    total = (
        hminus(wave, t, electrons, neutral, gas.hminus[:, None])
        + hydrogen(wave, t, gas.atoms[..., None], electrons)
        + hydrogen_molecular_ion(wave, t, neutral, protons)
        + helium_minus(wave, t, electrons, helium)
        + rayleigh(wave, neutral, gas.molecules[0][:, None], helium)
        + THOMSON * electrons
        + edges(wavelength, temperature, gas)
    )
    return total / gas.density[:, None]
