"""Continuous opacity against published cross-sections, and what abundances do to it."""

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emulators.physics import continuum, data_path
from emulators.physics.abundances import SOLAR_SCALES
from emulators.physics.chemistry import CODES, EquilibriumTables, equilibrium
from emulators.physics.constants import BOHR_RADIUS, BOLTZMANN, BOLTZMANN_EV
from emulators.physics.continuum import MetalEdges, continuous_opacity


@pytest.fixture(scope="module")
def layers():
    """Three layers of a solar-like photosphere: temperature, and its gas for [Mg/Fe] 0 and 0.5."""
    tables = EquilibriumTables.load(data_path("chemistry.h5"))
    temperature, pressure = jnp.array([4400.0, 5000.0, 6400.0]), jnp.array([2e3, 4e4, 1.3e5])
    abundance = jnp.asarray(SOLAR_SCALES["grevesse2007"])
    solve = jax.jit(lambda mixture: equilibrium(temperature, pressure, mixture, tables))
    return temperature, solve(abundance), solve(abundance.at[11].add(0.5))


def test_hminus_bound_free_agrees_with_close_coupling_cross_sections():
    # McLaughlin et al. (2017, J. Phys. B 50, 114001): vacuum Angstrom and 1e-18 cm^2
    wavelength = jnp.array([4012.04, 5000.55, 6507.50, 8474.31, 10446.4, 12721.34])
    published = np.array([23.06, 29.11, 36.07, 39.51, 35.88, 23.87])
    temperature, none, one = jnp.asarray(5000.0), jnp.asarray(0.0), jnp.asarray(1.0)
    opacity = continuum.hminus(wavelength, temperature, none, none, one)
    sigma = opacity / continuum.stimulated(wavelength, temperature)
    np.testing.assert_allclose(sigma * 1e18, published, rtol=0.02)


def test_hminus_free_free_agrees_with_bell_and_berrington():
    # Bell & Berrington (1987, J. Phys. B 20, 801): 1e-26 cm^4/dyn at theta = 0.5, 0.8 and 1
    wavelength = jnp.array([5064.41, 6511.80, 9115.50, 15193.15])
    published = {
        0.5: [0.0965, 0.154, 0.293, 0.781],
        0.8: [0.157, 0.249, 0.468, 1.24],
        1.0: [0.195, 0.309, 0.576, 1.52],
    }
    for theta, values in published.items():
        temperature = jnp.asarray(5040.0 / theta)
        electrons = 1.0 / (BOLTZMANN * temperature)  # at a pressure of 1 dyn/cm^2
        one, none = jnp.asarray(1.0), jnp.asarray(0.0)
        opacity = continuum.hminus(wavelength, temperature, electrons, one, none)
        np.testing.assert_allclose(opacity * 1e26, values, rtol=0.02)


@pytest.mark.parametrize(("level", "edge", "gaunt"), [(2, 3647.0, 0.876), (3, 8205.8, 0.90)])
def test_hydrogen_edges_have_the_height_of_the_photoionisation_cross_section(level, edge, gaunt):
    temperature = jnp.asarray(8000.0)
    atoms = jnp.zeros((3, 92)).at[0, 0].set(1.0)[..., None]
    sides = jnp.array([edge - 3.0, edge + 3.0])
    below, above = continuum.hydrogen(sides, temperature, atoms, jnp.asarray(0.0))
    # the threshold cross-section is 7.907e-18 cm^2 times n and the Gaunt factor
    excited = level**2 * np.exp(-13.5984 * (1 - level**-2) / (BOLTZMANN_EV * temperature))
    expected = 7.907e-18 * level * gaunt * excited
    expected *= continuum.stimulated(jnp.asarray(edge), temperature)
    np.testing.assert_allclose(below - above, expected, rtol=0.04)


def test_rayleigh_scattering_tends_to_the_static_polarisabilities():
    wavelength = 5e4  # Angstrom, where dispersion is gone
    polarisability = np.array([4.5, 5.41, 1.383]) * BOHR_RADIUS**3  # H, H2, He
    classical = 128 * np.pi**5 / 3 * polarisability**2 / (wavelength * 1e-8) ** 4
    for particle, expected in zip(jnp.eye(3), classical, strict=True):
        ours = continuum.rayleigh(jnp.asarray(wavelength), *particle)
        np.testing.assert_allclose(ours, expected, rtol=0.03)


def test_metal_edges_return_the_table_at_its_nodes(layers):
    edges = MetalEdges.load(data_path("metal_bf.h5"))
    _, gas, _ = layers
    with h5py.File(data_path("metal_bf.h5")) as file:
        node = int(np.argmin(np.abs(file["temperature"][()] - 5000.0)))
        temperature = jnp.full(3, file["temperature"][node])
        wavelength = jnp.asarray(file["wavelength"][()], float)
        sigma = 10.0 ** file["log_cross_section"][:, node]
        species = file["species"][()]
    density = np.array(
        [
            gas.molecules[CODES.index(code)] if code in CODES else gas.atoms[0, code // 100 - 1]
            for code in species
        ]
    )
    expected = np.einsum("sl,sw->lw", density, sigma)
    expected *= np.asarray(continuum.stimulated(wavelength, temperature[0]))
    np.testing.assert_allclose(edges(wavelength, temperature, gas), expected, rtol=1e-9)


def test_magnesium_raises_the_continuum(layers):
    temperature, gas, richer = layers
    edges = MetalEdges.load(data_path("metal_bf.h5"))
    wavelength = jnp.array([4500.0, 5200.0])
    ratio = continuous_opacity(wavelength, temperature, richer, edges)
    ratio /= continuous_opacity(wavelength, temperature, gas, edges)
    # H- follows the electrons where metals give them; at 6400 K hydrogen gives its own
    gain = np.asarray(richer.electrons / gas.electrons)
    assert gain[0] > 1.3
    np.testing.assert_allclose(ratio[0], gain[0], rtol=0.05)
    assert np.all(np.asarray(ratio[0]) > np.asarray(ratio[2]))


def test_opacity_of_the_solar_photosphere_is_mostly_hminus(layers):
    temperature, gas, _ = layers
    edges = MetalEdges.load(data_path("metal_bf.h5"))
    wavelength = jnp.array([5000.0])
    total = continuous_opacity(wavelength, temperature, gas, edges)[:, 0] * gas.density
    column = temperature[:, None]
    share = continuum.hminus(
        wavelength,
        column,
        gas.electrons[:, None],
        gas.atoms[0, 0][:, None],
        gas.hminus[:, None],
    )[:, 0]
    share = np.asarray(share / total)
    assert np.all((share > 0.85) & (share < 0.995))
