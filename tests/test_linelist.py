"""Line lists: damping against closed forms and published values, air and vacuum, files."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulators.errors import InputError
from emulators.physics.linelist import (
    NO_BROADENING,
    LineList,
    abo_width,
    species_mass,
    unsold_width,
)
from emulators.wavelength import air_to_vacuum, vacuum_to_air


@given(st.floats(3000.0, 25000.0))
def test_air_and_vacuum_undo_each_other(wavelength):
    assert vacuum_to_air(air_to_vacuum(wavelength)) == pytest.approx(wavelength, abs=1e-9)


def test_air_wavelengths_of_the_sodium_and_hydrogen_lines():
    # NIST: D2 5889.950954 air, 5891.583264 vacuum; H-alpha 6562.819 air, 6564.632 vacuum
    assert air_to_vacuum(5889.950954) == pytest.approx(5891.583264, abs=2e-4)
    assert vacuum_to_air(6564.632) == pytest.approx(6562.819, abs=1e-3)


def test_conversion_is_the_same_in_numpy_and_jax_and_leaves_the_far_ultraviolet():
    wavelength = np.array([1500.0, 2500.0, 5000.0, 9000.0])
    ours = air_to_vacuum(jnp.asarray(wavelength, jnp.float64))
    np.testing.assert_allclose(ours, air_to_vacuum(wavelength), rtol=1e-7)
    assert air_to_vacuum(wavelength)[0] == 1500.0


def test_abo_width_of_a_published_line():
    # Fe I 5232.94, sigma 713, alpha 0.238: VALD gives log gamma = -7.280
    log_gamma, exponent = abo_width(np.array([713.0]), np.array([0.238]), np.array([55.845]))
    assert log_gamma[0] == pytest.approx(-7.280, abs=0.005)
    assert exponent[0] == pytest.approx(0.381)


def test_widths_agree_with_the_parsed_gaia_eso_list(shared):
    lines = np.load(shared / "inputs" / "ges_lines.npz")
    fdamp, truth = lines["ts_fdamp"], lines["log_gamma_vdw_10000K"]
    built = LineList.build(
        np.arange(len(fdamp)) * 0.05 + 4000,  # keeps the order
        lines["Z"] * 100 + lines["ion"],
        lines["elow_ev"],
        lines["loggf"],
        vdw=fdamp,
    )
    given = truth != 0
    np.testing.assert_allclose(built.log_gamma_vdw[given], truth[given], atol=1e-5)
    assert given.sum() == 6704 + 73741
    assert np.isclose(built.vdw_exponent[fdamp > 20], (1 - fdamp[fdamp > 20] % 1) / 2).all()


def test_unsold_is_the_textbook_formula():
    # Unsold (1955): gamma = 17 C6^(2/5) v^(3/5) N, C6 = 1.61e-33 (n_up^4 - n_low^4) [cm^6/s]
    ionization, e_low, e_up = 7.9025, 2.94, 5.31
    n4_up, n4_low = ((13.598 / (ionization - energy)) ** 2 for energy in (e_up, e_low))
    speed = np.sqrt(8 * 1.380649e-16 * 1e4 / np.pi / 1.6735e-24)
    truth = np.log10(17.0 * (1.61e-33 * (n4_up - n4_low)) ** 0.4 * speed**0.6)
    arrays = [np.array([x]) for x in (0, ionization, e_low, e_up)]
    assert unsold_width(*arrays)[0] == pytest.approx(truth, abs=0.01)


def build(**options):
    columns = {
        "wavelength": [5200.0, 5100.0, 5150.0],
        "species": [2600, 2601, 10600],
        "e_low": [2.0, 3.0, 0.5],
        "loggf": [-1.0, -2.0, -3.0],
    }
    return LineList.build(**(columns | options))


def test_build_sorts_and_fills_what_is_missing():
    lines = build(gamma_rad=[1e5, 8.0, 3e8])
    np.testing.assert_array_equal(lines.wavelength, [5100.0, 5150.0, 5200.0])
    np.testing.assert_array_equal(lines.species, [2601, 10600, 2600])
    # VALD's logarithm, a width as it is, and the placeholder replaced by the classical width
    np.testing.assert_allclose(lines.gamma_rad, [1e8, 3e8, 0.2223e16 / 5200.0**2])
    assert lines.log_gamma_vdw[1] == NO_BROADENING
    assert lines.log_gamma_stark[1] == NO_BROADENING
    assert (lines.log_gamma_vdw[[0, 2]] > -9).all()


def test_enhancement_and_factor_multiply_the_unsold_width():
    plain = build(enhancement=1.0).log_gamma_vdw
    atoms = [0, 2]
    np.testing.assert_allclose(build().log_gamma_vdw[atoms] - plain[atoms], np.log10(2.5))
    np.testing.assert_allclose(build(vdw=1.4).log_gamma_vdw[atoms] - plain[atoms], np.log10(1.4))
    np.testing.assert_array_equal(build(vdw=-7.5).log_gamma_vdw, -7.5)


def test_stark_default_can_be_none():
    assert (build(stark_default="none").log_gamma_stark == NO_BROADENING).all()
    assert (build(stark=-5.5).log_gamma_stark == -5.5).all()
    with pytest.raises(InputError, match="'cowley', 'none'"):
        build(stark_default="some")


def test_hydrogenic_widths_stay_finite_at_the_ionisation_limit():
    # upper level 0.001 eV below, and above the limit of Fe I (7.9025 eV)
    for e_up in (7.9015, 8.5):
        e_low = e_up - 12398.42 / 5000
        lines = LineList.build([5000.0], [2600], [e_low], [0.0])
        assert -99 <= lines.log_gamma_vdw[0] < -6
        assert -99 <= lines.log_gamma_stark[0] < -2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"species": [9300, 2600, 2600]}, "species 9300"),
        ({"species": [2603, 2600, 2600]}, "species 2603"),
        ({"e_low": [np.nan, 1.0, 1.0]}, "e_low of row 0"),
        ({"loggf": [1.0]}, "loggf has"),
    ],
)
def test_build_refuses_what_it_cannot_use(change, message):
    with pytest.raises(InputError, match=message):
        build(**change)


def test_select_concatenate_and_strength():
    lines = build()
    assert lines.select(5120.0, 5160.0).species.tolist() == [10600]
    joined = LineList.concatenate([lines.select(5160.0, 6000.0), lines.select(5000.0, 5120.0)])
    np.testing.assert_array_equal(joined.wavelength, [5100.0, 5200.0])
    assert len(joined) == 2
    # 1 eV of excitation costs 5040/T dex, a hundredfold gf is worth 2
    strength = lines.strength(5040.0)
    expected = (-2.0 + np.log10(5100) - 3.0) - (-1.0 + np.log10(5200) - 2.0)
    assert strength[0] - strength[2] == pytest.approx(expected, abs=2e-3)


def test_mass_of_atoms_and_molecules():
    assert species_mass(2601) == pytest.approx(55.845, abs=1e-3)
    assert species_mass(60700) == pytest.approx(26.018, abs=2e-3)


def test_saved_list_comes_back(tmp_path):
    lines = build()
    lines.save(tmp_path / "lines.h5")
    back = LineList.load(tmp_path / "lines.h5")
    np.testing.assert_array_equal(back.wavelength, lines.wavelength)
    np.testing.assert_array_equal(back.species, lines.species)
    for name in ("e_low", "loggf", "gamma_rad", "log_gamma_vdw", "vdw_exponent"):
        np.testing.assert_allclose(getattr(back, name), getattr(lines, name), rtol=1e-6)


def test_a_file_that_is_no_line_list_is_refused(tmp_path):
    (tmp_path / "lines.h5").write_text("not HDF5")
    with pytest.raises(InputError, match=r"lines.h5: not a line list"):
        LineList.load(tmp_path / "lines.h5")
