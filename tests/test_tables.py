"""The shipped physics tables against physics they were not made with."""

from importlib import resources

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import qmc

from emulators.physics import build_atmospheres, build_hydrogen, build_metal_bf
from emulators.physics.abundances import ATOMIC_WEIGHTS
from emulators.physics.atmosphere import AtmosphereGrid
from emulators.physics.constants import ATOMIC_MASS, BOLTZMANN, BOLTZMANN_EV, PLANCK
from emulators.physics.linelist import LineList


def table(name):
    path = resources.files("emulators.physics").joinpath("data").joinpath(name)
    with resources.as_file(path) as file, h5py.File(file) as h5:
        return {key: h5[key][()] for key in h5}, dict(h5.attrs)


@pytest.mark.parametrize(
    "name", ["atmospheres.h5", "chemistry.h5", "hydrogen.h5", "lines.h5", "metal_bf.h5"]
)
def test_tables_say_where_they_come_from_and_are_small(name):
    path = resources.files("emulators.physics").joinpath("data").joinpath(name)
    _, attributes = table(name)
    assert {"citation", "source", "sha256_of_inputs"} <= attributes.keys() | {"source"}
    assert len(attributes["sha256_of_inputs"].split()[1].rstrip(";")) == 64
    with resources.as_file(path) as file:
        assert file.stat().st_size < 3.2e6


def test_every_node_of_the_label_box_has_an_atmosphere():
    grid, _ = table("atmospheres.h5")
    inside = np.ix_(
        *(
            (grid[name] >= low) & (grid[name] <= high)
            for name, (low, high) in build_atmospheres.BOX.items()
        )
    )
    assert grid["available"][inside].all()
    assert grid["filled"].sum() == 24
    for name in build_atmospheres.QUANTITIES:
        finite = np.isfinite(grid[name]).all(axis=-1)
        np.testing.assert_array_equal(finite, grid["available"])


@pytest.mark.parametrize("which", ["published", "filled"])
def test_atmospheres_are_in_hydrostatic_equilibrium(which):
    # P_gas = g m where gravity does not change with height and turbulence is absent: dwarfs within
    # a few per cent; filled nodes at low gravity, where radiation also pushes, less tightly.
    grid, _ = table("atmospheres.h5")
    choose = grid["filled"] if which == "filled" else grid["available"] & ~grid["filled"]
    choose = choose & (grid["logg"] >= (3.5 if which == "published" else 1.0))[None, :, None]
    logg = np.broadcast_to(grid["logg"][None, :, None], choose.shape)[choose]
    weight = logg[:, None] + grid["log_column_mass"][choose]
    difference = (grid["log_gas_pressure"][choose] - weight)[:, 10:50]
    bound = 0.02 if which == "published" else 0.2
    assert np.percentile(np.abs(difference), 99) < bound
    assert difference.max() < 0.02  # radiation helps the gas to carry the weight, never adds to it
    if which == "published":
        assert np.all(np.diff(grid["temperature"][choose], axis=1)[:, 20:50] > 0)


def test_interpolated_atmospheres_grow_heavier_inwards():
    # Near the Eddington limit the deepest layers of the nodes lie so close together that their
    # logarithms, interpolated, cross.
    with resources.as_file(resources.files("emulators.physics") / "data/atmospheres.h5") as file:
        grid = AtmosphereGrid.load(file).cover((4000.0, 1.0, -2.5), (7000.0, 5.0, 0.5))
    stars = qmc.Sobol(3, rng=np.random.default_rng(0)).random(2**15)
    stars = jnp.asarray([4000.0, 1.0, -2.5] + stars * [3000.0, 4.0, 3.0])
    mass = jax.lax.map(lambda star: grid(*star).column_mass, stars, batch_size=256)
    assert np.diff(np.asarray(mass, np.float64), axis=1).min() > 0


@pytest.mark.parametrize(("logg", "bound"), [(3.0, 0.001), (1.5, 0.005)])
def test_filled_atmospheres_are_as_good_as_stated(logg, bound):
    # Published nodes as if missing: alone, and with all lower gravities, where it extrapolates.
    grid, _ = table("atmospheres.h5")
    published = grid["available"] & ~grid["filled"]
    ln_mass = np.log(np.diff(10.0 ** grid["log_column_mass"].astype(float), prepend=0.0))
    gravity = int(np.searchsorted(grid["logg"], logg))
    errors = []
    for t, m in np.argwhere(published[:, gravity]).tolist():
        if not 5750 <= grid["teff"][t] <= 7000 or not -2.5 <= grid["fe_h"][m] <= 0.5:
            continue
        missing = np.zeros_like(published)
        missing[t, gravity, m] = True
        known = published & ~missing
        if logg == 1.5:
            known[t, :gravity, m] = False
        axes = [grid[name] for name in ("teff", "logg", "fe_h")]
        for values in (np.log(grid["temperature"].astype(float)), ln_mass):
            guess = build_atmospheres.smoothest(values, known, missing, axes)[0]
            errors.append(np.sqrt(np.mean((guess - values[t, gravity, m])[5:50] ** 2)))
    temperature, mass = np.reshape(errors, (-1, 2)).T
    assert len(temperature) > 60
    assert np.median(temperature) < bound and np.percentile(temperature, 95) < 3 * bound
    assert np.median(mass) < 10 * bound and np.percentile(mass, 95) < 30 * bound


def test_smoothest_continues_quadratics_exactly():
    rng = np.random.default_rng(0)
    axes = [np.sort(rng.uniform(size=number)) for number in (6, 5, 7)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    values = np.stack([1 + x * y - z**2 + 2 * y**2, x**2 - 3 * y * z + 0.5], axis=-1)
    values += 1e-9 * rng.normal(size=values.shape)  # or the known nodes would have no roughness
    missing = np.zeros(x.shape, bool)
    missing[0, 0, 3] = missing[2, 2, 2] = missing[2, 3, 2] = missing[5, 4, 6] = True
    holes = np.where(missing[..., None], np.nan, values)
    found = build_atmospheres.smoothest(holes, ~missing, missing, axes)
    np.testing.assert_allclose(found, values[missing], atol=1e-6)


@pytest.mark.parametrize(
    ("molecule", "energy"),
    [("H2", 4.478), ("CH", 3.465), ("CO", 11.117), ("MgH", 1.28), ("SiO", 8.24), ("TiO", 6.87)],
)
def test_equilibrium_constants_follow_from_the_partition_functions(molecule, energy):
    # p_A p_B / p_AB = (2 pi mu k T / h^2)^(3/2) k T Q_A Q_B / Q_AB exp(-D0 / kT), D0 Huber-Herzberg
    chemistry, _ = table("chemistry.h5")
    row = list(chemistry["molecule"]).index(molecule.encode())
    first, second = chemistry["molecule_atoms"][row]
    temperature = chemistry["temperature"]
    masses = ATOMIC_WEIGHTS[[first - 1, second - 1]] * ATOMIC_MASS
    reduced = masses.prod() / masses.sum()
    kt = BOLTZMANN * temperature
    atoms = chemistry["atom_partition"][[first - 1, second - 1], 0].prod(axis=0)
    truth = (2 * np.pi * reduced * kt / PLANCK**2) ** 1.5 * kt * atoms
    truth = np.log10(truth / chemistry["molecule_partition"][row])
    truth -= energy / (BOLTZMANN_EV * temperature) * np.log10(np.e)
    cool = temperature >= 3000
    np.testing.assert_allclose(chemistry["molecule_log_pk"][row][cool], truth[cool], atol=0.1)


def test_ionisation_energies_and_partition_functions():
    chemistry, _ = table("chemistry.h5")
    for z, stage, value in ((1, 0, 13.598), (26, 0, 7.902), (12, 1, 15.035), (92, 0, 6.194)):
        assert chemistry["ionization_energy"][z - 1, stage] == pytest.approx(value, abs=1e-3)
    assert np.isnan(chemistry["ionization_energy"][0, 1])
    np.testing.assert_allclose(chemistry["atom_partition"][0, 0], 2.0, atol=1e-3)
    # Na I has one electron: 2 at low temperature; Fe I counts more levels as it warms
    assert chemistry["atom_partition"][10, 0, 0] == pytest.approx(2.0, abs=0.01)
    assert np.all(np.diff(chemistry["atom_partition"][25, 0]) > 0)


def test_line_list_holds_the_landmarks_and_no_hydrogen():
    data, attributes = table("lines.h5")
    path = resources.files("emulators.physics").joinpath("data").joinpath("lines.h5")
    with resources.as_file(path) as file:
        lines = LineList.load(file)
    assert np.all(np.diff(lines.wavelength) >= 0)
    assert attributes["hydrogen"].startswith("left out")
    assert 100 not in lines.species
    # Mg b1 (VALD: 5183.604 air = 5185.048 vacuum), Fe I 5232.94, Ca II K by its wing
    for wavelength, species, loggf in (
        (5185.048, 1200, -0.239),
        (5234.396, 2600, -0.058),
        (3934.777, 2001, 0.135),
    ):
        near = np.abs(lines.wavelength - wavelength) < 0.01
        match = near & (lines.species == species)
        total = np.log10(np.sum(10 ** lines.loggf[match]))
        assert total == pytest.approx(loggf, abs=0.15)
    window = lines.select(4000.0, 5500.0)
    counts = {code: int((window.species == code).sum()) for code in (10600, 11200, 60600, 60700)}
    assert min(counts.values()) > 3000
    # where a sharp head is: C2 (0,0) at 5165.2 air
    c2 = window.take(window.species == 60600)
    head = np.sum(10 ** c2.loggf[(c2.wavelength > 5164.5) & (c2.wavelength < 5166.7)])
    beyond = np.sum(10 ** c2.loggf[(c2.wavelength > 5167.5) & (c2.wavelength < 5169.7)])
    assert head > 10 * beyond
    for name in ("gamma_rad", "log_gamma_stark", "log_gamma_vdw", "loggf", "e_low"):
        assert np.isfinite(getattr(lines, name)).all()
    assert data["log_strength"].shape == lines.wavelength.shape
    assert data["log_strength"].min() >= -3.01


def test_no_seam_in_the_line_list_at_4200_angstrom():
    lines, _ = table("lines.h5")
    atoms = (lines["species"] < 10000) & (lines["log_strength"] > 0)
    below = atoms & (np.abs(lines["wavelength"] - 4181.2) < 20)
    above = atoms & (np.abs(lines["wavelength"] - 4221.2) < 20)
    assert 0.5 < below.sum() / above.sum() < 2


def test_hydrogen_profiles_are_normalised_and_fall_like_holtsmark():
    hydrogen, _ = table("hydrogen.h5")
    log_alpha, profile = hydrogen["log_alpha"], hydrogen["log_profile"].astype(float)
    fine = np.linspace(log_alpha[0], log_alpha[-1], 4001)
    for line in profile.reshape(-1, len(log_alpha)):
        values = 10 ** np.interp(fine, log_alpha, line)
        total = 2 * np.trapezoid(values * 10**fine * np.log(10), fine)
        total += 2 * values[0] * 10 ** fine[0]
        assert total == pytest.approx(1.0, abs=0.02)
    slope = np.diff(profile[..., -5:], axis=-1) / np.diff(log_alpha[-5:])
    np.testing.assert_allclose(slope, -2.5, atol=0.01)
    # at 10^10 per cm^3 the core is the thermal Doppler profile
    field = 1.25e-9 * 1e10 ** (2 / 3)
    width = 4862.683 * np.sqrt(2 * BOLTZMANN * 1e4 / (1.008 * ATOMIC_MASS)) / 2.99792458e10
    assert profile[0, 2, 0, 0] == pytest.approx(np.log10(field / width / np.sqrt(np.pi)), abs=0.02)


def test_metal_edges_hold_the_molecules_and_atoms_of_the_blue():
    edges, _ = table("metal_bf.h5")
    assert set(edges["species"]) >= {1200, 1300, 1400, 2000, 2600, 10600, 10800}
    assert np.isfinite(edges["log_cross_section"]).all()
    assert np.all(np.diff(edges["wavelength"]) > 0)
    # Kurucz et al. (1987): CH at 5000 K and 2.9 eV (4275 A) has 3.2 cm^2/g of its molecule... the
    # cross section falls steeply to the red; an excited atom's rises with temperature
    ch = edges["log_cross_section"][list(edges["species"]).index(10600)]
    at = [int(np.argmin(np.abs(edges["wavelength"] - w))) for w in (4000.0, 4769.0)]
    warm = list(edges["temperature"]).index(5000.0)
    assert ch[warm, at[0]] - ch[warm, at[1]] > 1
    mg = edges["log_cross_section"][list(edges["species"]).index(1200)]
    assert np.all(np.diff(mg[:, at[0]]) > 0)


COMPONENT = """\
Xx I    a component                                         ( 7) [ 3]
   ILOGL=0   KVADL=0   MINEX=0   MAXEX=0  NLATB= 3           to Vacuum 98-05 /BE
   3000.00   4000.00   5000.00
   ILOGT=1   KVADT=1   MINET=1   MAXET=0  NTETB= 2   ITETA=0
     3000.     6000.
 1.000E-20 1.000E-22 1.000E-24
 1.000E-18 1.000E-20 1.000E-22
"""


def test_a_component_is_read_and_goes_on_like_a_boltzmann_factor():
    wavelengths, temperatures, values = build_metal_bf.read_component(COMPONENT.splitlines(), 0)
    np.testing.assert_array_equal(wavelengths, [3000, 4000, 5000])
    np.testing.assert_array_equal(temperatures, [3000, 6000])
    assert values[1, 0] == 1e-18
    grid = build_metal_bf.to_grid(wavelengths, temperatures, values, np.array([3500.0, 5000.0]))
    row = {t: i for i, t in enumerate(build_metal_bf.TEMPERATURES)}
    np.testing.assert_allclose(grid[row[3000]], [-21, -24])
    # two dex between 1/3000 and 1/6000, so two dex a step of 1/6000 below 3000 K: 1/2000
    np.testing.assert_allclose(grid[row[2000]], [-23, -26])


def test_a_profile_is_resampled_onto_its_own_points_and_then_its_wing():
    alpha = np.concatenate([[0.0], 10 ** np.arange(-2, 2.01, 0.2)])
    truth = 0.4 / (1 + alpha**2.5)
    result = build_hydrogen.resample(alpha, truth, wing=0.4)
    at = np.flatnonzero((build_hydrogen.LOG_ALPHA >= -2) & (build_hydrogen.LOG_ALPHA <= 2))
    expected = np.log10(0.4 / (1 + 10 ** (2.5 * build_hydrogen.LOG_ALPHA[at])))
    np.testing.assert_allclose(result[at], expected, atol=0.003)
    assert result[-1] == pytest.approx(np.log10(0.4) - 2.5 * 5.0)
    assert result[0] == pytest.approx(np.log10(0.4), abs=1e-3)
