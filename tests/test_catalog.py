"""Catalogues: columns that mean what they say, and files that give them back."""

import numpy as np
import pytest
from fake_results import fake_fit, fake_posterior

from emulators.errors import InputError
from stellarfit.catalog import _percentiles, make_catalog, read_catalog, write_catalog
from stellarfit.flags import Flag


def test_values_and_errors_of_a_fit():
    fit = fake_fit(fixed={"vmic": 1.2})
    row = make_catalog([fit])[0]
    assert row["name"] == "fake star" and row["medium"] == "vacuum"
    assert (row["teff"], row["e_teff"]) == (5772.0, 14.0)
    assert row["e_teff_stat"] == pytest.approx(11.2) and row["e_teff_sys"] == pytest.approx(8.4)
    assert row["e_teff_emulator"] == pytest.approx(6.72)
    assert row["e_teff_mismatch"] == pytest.approx(5.04)
    assert row["v_micro"] == 1.2 and np.isnan(row["e_v_micro"])
    assert row["v_rad"] == 12.34 and row["dof"] == fit.dof
    assert row["dof_effective"] == fit.dof_effective and row["p_value"] == fit.p_value
    assert row["num_pixels"] == fit.spectrum.good.sum()
    assert "teff_p50" not in row.colnames
    assert make_catalog([fit])["teff"].unit == "K"


def test_abundances_over_hydrogen_use_the_covariance():
    fit = fake_fit()
    i, j = fit.names.index("mg_fe"), fit.names.index("fe_h")
    draws = np.random.default_rng(0).multivariate_normal(fit.values, fit.covariance, 400_000)
    row = make_catalog([fit])[0]
    assert row["mg_h"] == pytest.approx(0.03)
    assert row["e_mg_h"] == pytest.approx(np.std(draws[:, i] + draws[:, j]), rel=0.01)
    posterior = fake_posterior()
    flat = posterior.samples.reshape(-1, len(posterior.names))
    expected = np.percentile(flat[:, i] + flat[:, j], [16, 50, 84], method="weibull")
    row = make_catalog([posterior])[0]
    np.testing.assert_allclose([row[f"mg_h_p{p}"] for p in (16, 50, 84)], expected)
    np.testing.assert_allclose(row["teff_p50"], np.median(flat[:, 0]))


def test_percentiles_of_few_draws_hold_the_truth_as_often_as_they_should():
    """The truth being one more draw, which is what a posterior says of it."""
    draws = np.random.default_rng(0).normal(size=(20_000, 65))
    inside = np.empty(len(draws))
    for i, (truth, *few) in enumerate(draws):
        found = _percentiles("teff", np.array(few))
        inside[i] = found["teff_p16"] < truth < found["teff_p84"]
    # Three sigma; percentiles as of infinitely many draws hold 0.66.
    assert np.mean(inside) == pytest.approx(0.68, abs=0.01)


def test_packed_covariance_unpacks():
    fit = fake_fit(fixed={"vmic": 1.0})
    table = make_catalog([fit])
    names = table.meta["COVNAMES"].split(",")
    assert names == ["teff", "logg", "v_micro", "fe_h", "mg_fe", "v_rad", "v_sini"]
    full = np.full((len(names), len(names)), np.nan)
    full[np.triu_indices(len(names))] = table["covariance"][0]
    free = [i for i, name in enumerate(names) if name != "v_micro"]
    upper = np.triu_indices(len(free))
    np.testing.assert_array_equal(full[np.ix_(free, free)][upper], fit.covariance[upper])
    assert np.isnan(full[2, 2])


def test_flags_are_joined_and_judged():
    posterior = fake_posterior()
    posterior.fit.flags, posterior.flags = int(Flag.LOW_SNR), int(Flag.DIVERGENCES)
    row = make_catalog([posterior])[0]
    assert row["result_flags"] == Flag.LOW_SNR | Flag.DIVERGENCES
    assert row["flag_warn"] and row["flag_bad"]
    clean = make_catalog([fake_fit()])[0]
    assert not clean["flag_warn"] and not clean["flag_bad"]


@pytest.mark.parametrize("suffix", ["fits", "parquet"])
def test_files_give_the_table_back(tmp_path, suffix):
    results = [fake_fit(0, fixed={"vmic": 1.0}), fake_posterior(1), fake_fit(2)]
    table = make_catalog(results, seed=7)
    path = write_catalog(table, tmp_path / f"catalog.{suffix}")
    back = read_catalog(path)
    assert back.colnames == table.colnames and len(back) == 3
    for name in table.colnames:
        np.testing.assert_array_equal(np.asarray(back[name]), np.asarray(table[name]), name)
    assert {key: back.meta[key] for key in table.meta} == dict(table.meta)
    assert back.meta["SEED"] == 7 and back.meta["SOLSCALE"] == "grevesse2007"
    assert back["teff"].unit == "K" and back["v_rad"].unit == "km/s"
    assert back["result_flags"].dtype.newbyteorder("=") == np.int64
    assert np.isnan(back["teff_p50"][0]) and np.isfinite(back["teff_p50"][1])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_long_headers_survive_fits(tmp_path):
    table = make_catalog([fake_fit()])
    table.meta["COVNAMES"] = ",".join(f"{symbol}_fe" for symbol in "abcdefghijklmnopqrstuvwxyz")
    back = read_catalog(write_catalog(table, tmp_path / "c.fits"))
    assert back.meta["COVNAMES"] == table.meta["COVNAMES"]


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="no results"):
        make_catalog([])
    with pytest.raises(InputError, match=r"\.fits or \.parquet"):
        write_catalog(make_catalog([fake_fit()]), tmp_path / "catalog.csv")
    with pytest.raises(InputError, match="no such file"):
        read_catalog(tmp_path / "none.fits")
    assert not list(tmp_path.iterdir())
