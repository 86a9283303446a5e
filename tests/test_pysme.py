"""PySME as a second synthesiser; the comparison itself runs where PySME is installed."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.physics import pysme as ours
from emulators.physics.linelist import LineList, abo_width

SPACE = LabelSpace(
    ("teff", "logg", "vmic", "fe_h", "mg_fe"), (4000, 1, 0.5, -2.5, -0.5), (7000, 5, 3, 0.5, 0.8)
)
WAVELENGTH = 5165.0 * np.exp(1e-5 * np.arange(600))


def installed():
    return importlib.util.find_spec("pysme") is not None


@pytest.mark.parametrize(
    ("species", "name"),
    [
        (2601, "Fe 2"),
        (1200, "Mg 1"),
        (10600, "CH 1"),
        (60600, "C2 1"),
        (60700, "CN 1"),
        (11200, "MgH 1"),
        (82200, "TiO 1"),
        (60800, "CO 1"),
    ],
)
def test_species_have_the_names_that_vald_gives_them(species, name):
    assert ours.species_name(species) == name


def test_abo_code_gives_the_cross_section_back():
    log_gamma, exponent = abo_width(np.array([730.0]), np.array([0.239]), np.array([24.305]))
    code = ours.abo_code(float(log_gamma[0]), float(exponent[0]), 24.305)
    assert code == pytest.approx(730.239, abs=1e-6)


def test_line_table_holds_the_columns_of_vald():
    pytest.importorskip("pandas")
    lines = LineList.build(
        [5185.0, 5166.0, 5170.0],
        [1200, 2600, 10600],
        [2.7, 0.0, 0.5],
        [-0.24, -4.2, -3.0],
        vdw=[730.239, -7.84, 0.0],
    )
    table = ours.line_table(lines)
    assert (table["species"] == "H 1").sum() == 4
    assert table["wlcent"].is_monotonic_increasing
    rest = table[table["species"] != "H 1"]
    assert rest["species"].tolist() == ["Fe 1", "CH 1", "Mg 1"]
    np.testing.assert_allclose(rest["gamvw"], [-7.84, 0.0, 730.239], atol=1e-6)
    assert rest["gamqst"].iloc[1] == 0.0
    balmer = table[table["species"] == "H 1"].iloc[-1]
    assert (balmer["gamqst"], balmer["gamvw"]) == (2.0, 4.0)


@pytest.mark.skipif(installed(), reason="PySME is installed")
def test_without_pysme_the_error_names_the_extra():
    with pytest.raises(InputError, match=r"pip install 'stellarfit\[pysme\]'"):
        ours.PySMESynthesizer.build(WAVELENGTH, SPACE)


@pytest.mark.skipif(not installed(), reason="PySME is not installed (extra 'pysme')")
def test_both_codes_agree_on_the_sun():
    from emulators.physics.synthesizer import LTESynthesizer

    labels = jnp.array([5777.0, 4.44, 1.0, 0.0, 0.0])
    theirs = ours.PySMESynthesizer.build(WAVELENGTH, SPACE)
    mine = LTESynthesizer.build(WAVELENGTH, SPACE)
    assert theirs.provenance()["pysme"]
    one = theirs(labels, 2e-6)
    other = mine(labels, 2e-6)
    difference = np.asarray(other.normalized) - np.asarray(one.normalized)
    assert np.sqrt(np.mean(difference**2)) < 0.006
    ratio = np.asarray(other.continuum) / np.asarray(one.continuum)
    assert np.abs(ratio - 1).max() < 0.03
    pair = theirs.batch(jnp.stack([labels, labels]), jnp.array([2e-6, 0.0]))
    np.testing.assert_allclose(pair.flux[0], one.flux, rtol=1e-6)
    assert pair.flux.shape == (2, 600)
