"""Ionisation and molecular equilibrium against the equations it solves and a model's electrons."""

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emulators.physics import data_path
from emulators.physics.abundances import SOLAR_SCALES, SYMBOLS
from emulators.physics.chemistry import (
    MOLECULES,
    TRACE_MOLECULES,
    EquilibriumTables,
    equilibrium,
    pressure_from_electrons,
)
from emulators.physics.constants import BOLTZMANN, BOLTZMANN_EV, ELECTRON_MASS, PLANCK

CHEMISTRY = data_path("chemistry.h5")
STARS = {"warm": (7000.0, 4.0, -2.0), "solar": (5750.0, 4.5, 0.0), "cool": (4000.0, 4.5, 0.0)}


@pytest.fixture(scope="module")
def tables():
    return EquilibriumTables.load(CHEMISTRY)


@pytest.fixture(scope="module")
def solve(tables):
    return jax.jit(lambda *state: equilibrium(*state, tables))  # pyright: ignore


def structure(star):
    """T, P_gas, P_e of a MARCS model and its abundances."""
    with h5py.File(data_path("atmospheres.h5")) as file:
        node = tuple(
            int(np.argmin(np.abs(file[name][()] - value)))
            for name, value in zip(("teff", "logg", "fe_h"), STARS[star], strict=True)
        )
        temperature = file["temperature"][node].astype(float)
        gas, electrons = (10.0 ** file[f"log_{n}_pressure"][node] for n in ("gas", "electron"))
    abundance = np.array(SOLAR_SCALES["grevesse2007"])
    abundance[2:] += STARS[star][2]
    return tuple(jnp.asarray(x, float) for x in (temperature, gas, electrons, abundance))


def element(symbol):
    return SYMBOLS.index(symbol)


@pytest.mark.parametrize("star", STARS)
def test_charge_nuclei_and_pressure_are_conserved(star, solve):
    temperature, pressure, _, abundance = structure(star)
    # odd mixtures too: more carbon than oxygen, much magnesium, no lithium at all
    abundance = abundance.at[element("C")].add(0.4).at[element("Mg")].add(0.8)
    abundance = abundance.at[element("Li")].set(-jnp.inf)
    gas = solve(temperature, pressure, abundance)
    ions = np.sum(gas.atoms[1] + 2 * gas.atoms[2], axis=0)
    np.testing.assert_allclose(gas.electrons + gas.hminus, ions, rtol=1e-10)

    with h5py.File(CHEMISTRY) as file:
        names = [name.decode() for name in file["molecule"][()]]
        pairs = dict(zip(names, file["molecule_atoms"][()], strict=True))
    nuclei = np.sum(np.asarray(gas.atoms), axis=0)
    nuclei[0] += gas.hminus
    for name, density in zip(
        (*MOLECULES, *TRACE_MOLECULES), (*gas.molecules, *gas.trace_molecules), strict=True
    ):
        for z in pairs[name]:
            nuclei[z - 1] += density
    expected = 10.0 ** (np.asarray(abundance)[:, None] - 12) * np.asarray(gas.hydrogen_nuclei)
    present = np.isfinite(abundance)
    np.testing.assert_allclose(nuclei[present], expected[present], rtol=1e-10)

    particles = gas.electrons + gas.hminus + np.sum(gas.atoms, axis=(0, 1))
    particles += np.sum(gas.molecules, axis=0) + np.sum(gas.trace_molecules, axis=0)
    np.testing.assert_allclose(particles * BOLTZMANN * temperature, pressure, rtol=1e-10)


def test_densities_obey_the_laws_of_saha_and_of_mass_action(solve):
    """At a node of the tables, with the tables' own numbers read here and not by the product."""
    with h5py.File(CHEMISTRY) as file:
        row = int(np.argmin(np.abs(file["temperature"][()] - 3000.0)))
        temperature = float(file["temperature"][row])
        partition, energy = file["atom_partition"][..., row], file["ionization_energy"][()]
        names = [name.decode() for name in file["molecule"][()]]
        log_pk = dict(zip(names, file["molecule_log_pk"][..., row], strict=True))
    _, _, _, abundance = structure("solar")
    # as many layers as the other tests have: one compilation serves all
    gas = solve(jnp.full(56, temperature), jnp.full(56, 1e5), abundance)
    kt = BOLTZMANN * temperature
    thermal = (2 * np.pi * ELECTRON_MASS * kt / PLANCK**2) ** 1.5
    for symbol in ("H", "Na", "Ca", "Fe", "La"):
        z = element(symbol)
        ratio = gas.electrons * gas.atoms[1, z] / gas.atoms[0, z]
        boltzmann = np.exp(-energy[z, 0] / (BOLTZMANN_EV * temperature))
        saha = 2 * thermal * partition[z, 1] / partition[z, 0] * boltzmann
        np.testing.assert_allclose(ratio, saha, rtol=2e-4)
    for name, first, second, density in (
        ("CO", "C", "O", gas.molecules[list(MOLECULES).index("CO")]),
        ("H2", "H", "H", gas.molecules[list(MOLECULES).index("H2")]),
        ("ZrO", "Zr", "O", gas.trace_molecules[TRACE_MOLECULES.index("ZrO")]),
        ("CaH", "Ca", "H", gas.trace_molecules[TRACE_MOLECULES.index("CaH")]),
    ):
        product = gas.atoms[0, element(first)] * gas.atoms[0, element(second)] * kt / density
        np.testing.assert_allclose(np.log10(product), log_pk[name], atol=2e-4)


@pytest.mark.parametrize("star", STARS)
def test_electrons_agree_with_those_of_the_marcs_model(star, solve):
    """MARCS solved the same equations with its own data for the same abundances."""
    temperature, pressure, electron_pressure, abundance = structure(star)
    gas = solve(temperature, pressure, abundance)
    ratio = gas.electrons * BOLTZMANN * temperature / electron_pressure
    assert abs(np.median(ratio) - 1) < 0.02
    np.testing.assert_allclose(ratio, 1, atol=0.06)


def test_magnesium_gives_electrons(solve):
    temperature, pressure, _, abundance = structure("solar")
    richer = solve(temperature, pressure, abundance.at[element("Mg")].add(0.3))
    gas = solve(temperature, pressure, abundance)
    line_forming = (temperature > 4300) & (temperature < 5500)
    gain = np.asarray(richer.electrons / gas.electrons - 1)[line_forming]
    # Mg gives a quarter of the electrons there; twice as much Mg, about a quarter more
    assert np.all((gain > 0.15) & (gain < 0.35))


def test_carbon_takes_the_oxygen_from_zirconium(solve):
    temperature, pressure, _, abundance = structure("cool")
    carbon_rich = solve(temperature, pressure, abundance.at[element("C")].add(0.5))
    normal = solve(temperature, pressure, abundance)
    oxide = TRACE_MOLECULES.index("ZrO")
    cool = np.asarray(temperature) < 3200
    bound = normal.trace_molecules[oxide] / np.sum(normal.atoms[:, element("Zr")], axis=0)
    assert np.all(np.asarray(bound)[cool] > 0.5)
    left = carbon_rich.trace_molecules[oxide] / normal.trace_molecules[oxide]
    assert np.all(np.asarray(left)[cool] < 0.05)


def test_derivatives_match_central_differences(solve):
    temperature, pressure, _, abundance = structure("cool")

    def observed(x):
        metals = abundance + x[2] * (jnp.arange(92) >= 2)
        metals = metals.at[element("C")].add(x[3])
        gas = solve(temperature * jnp.exp(x[0]), pressure * jnp.exp(x[1]), metals)
        seen = [gas.electrons, gas.hminus, gas.atoms[0, element("Zr")], gas.molecules[7]]
        return jnp.log(jnp.stack([*seen, gas.trace_molecules[0]]))

    step = 1e-6  # short beside the tables' cells, at whose ends the slope changes a little
    exact = jax.jit(lambda direction: jax.jvp(observed, (jnp.zeros(4),), (direction,))[1])
    for unit in jnp.eye(4):
        difference = (observed(step * unit) - observed(-step * unit)) / (2 * step)
        np.testing.assert_allclose(exact(unit), difference, rtol=1e-4, atol=1e-5)


def test_pressure_from_electrons_undoes_equilibrium(solve, tables):
    find = jax.jit(lambda *state: pressure_from_electrons(*state, tables))  # pyright: ignore
    for star in STARS:
        temperature, pressure, _, abundance = structure(star)
        gas = solve(temperature, pressure, abundance)
        found = find(temperature, gas.electrons, 1.3 * pressure, abundance)
        np.testing.assert_allclose(found, pressure, rtol=1e-9)
