"""Surveys whose stars are fitted in lockstep: their rows are those of single fits."""

from pathlib import Path
from typing import Any

import numpy as np
import numpyro.distributions as dist
import pytest
from astropy.table import Table
from fake_star import compile_tiny, fake_star

import stellarfit as sf
from emulators.errors import InputError
from stellarfit import fit_together as together
from stellarfit.catalog import make_catalog, read_catalog, result_row, widen_row
from stellarfit.cli import main
from stellarfit.draws import draw_alone
from stellarfit.flags import Flag
from stellarfit.readers import read_spectrum
from stellarfit.survey import run_survey

READING: dict[str, Any] = {"medium": "vacuum", "resolution": 47_000}
FITTING: dict[str, Any] = {"fixed": {"v_sini": 0.0}, "robust": False}
# Of those that are read: velocity, temperature, first pixel, S/N.
STARS = {
    0: (23.4, 5200.0, 5153.0, 200.0),
    1: (-61.0, 4700.0, 5153.0, 200.0),
    3: (10.0, 5300.0, 5153.0, 10.0),
    4: (10.0, 5600.0, 5148.0, 200.0),
}


@pytest.fixture(scope="module")
def emulator():
    return compile_tiny()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Five stars of the same pixels: one has a gap, one no light, one is damaged; one of others."""
    folder = tmp_path_factory.mktemp("spectra")
    paths = [folder / f"star{i}.fits" for i in range(6)]
    for i, (v_rad, teff, start, snr) in STARS.items():
        truth = {"v_sini": 0.01, "v_rad": v_rad, "teff": teff}
        star = fake_star(truth, seed=i, start=start, stop=5161.2, snr=snr)
        flux, ivar = star.flux.copy(), star.ivar.copy()
        if i == 1:
            flux[25:40], ivar[40:60] = np.nan, 0.0
        Table({"wave": star.wavelength, "flux": flux, "ivar": ivar}).write(paths[i])
        if i == 0:
            Table({"wave": star.wavelength, "flux": -flux, "ivar": ivar}).write(paths[5])
    paths[2].write_bytes(paths[0].read_bytes()[:8000])
    return paths


@pytest.fixture(scope="module")
def small_chunks():
    """Of as many stars as there are: a processor fits the copies that fill a chunk as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together, "_CHUNK_ON_CPU", 2)
        yield


@pytest.fixture(scope="module")
def out(sources, emulator, small_chunks, tmp_path_factory):
    """The catalogue of a run in parts of three stars, of which none was fitted by itself."""
    out = tmp_path_factory.mktemp("whole") / "catalog.fits"
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stellarfit.fit_stars.fit", None)
        patch.setattr("stellarfit.survey_progress.Progress.add", lambda _, *n: told.append(n))
        run_survey(sources, emulator, out=out, part_size=3, **READING, **FITTING)
    assert sorted(told) == [(1, 0)] * 4 + [(1, 1)] * 2
    return out


def test_rows_are_those_of_single_fits(out, sources, emulator):
    found = read_catalog(out)[list(STARS)]
    fits = [sf.fit(read_spectrum(sources[i], **READING), emulator, **FITTING) for i in STARS]
    one = make_catalog(fits)
    assert found.colnames == [*one.colnames, "source", "row", "reason"]
    flags = [Flag(int(bits)) for bits in one["result_flags"]]
    assert Flag.SYSTEMATIC in flags[0] and Flag.AIR_VACUUM in flags[1]
    assert Flag.LOW_SNR in flags[2]
    assert [Flag.OUTSIDE in one for one in flags] == [False, False, False, True]
    for name in ("result_flags", "flag_warn", "flag_bad", "frame", "v_sini", "v_macro"):
        assert found[name].tolist() == one[name].tolist(), name
    # Where the emulator ends, stars in lockstep keep pixels that single fits leave out, here of a
    # line.
    off = np.array([0, 0, 0, 12])
    for name in ("dof", "num_pixels"):
        assert (np.abs(found[name] - one[name]) <= off).all(), name
    off = np.array([0.02, 0.02, 0.02, 0.6])
    free = ["teff", "logg", "fe_h", "mg_fe", "mg_h", "v_rad"]
    for name in free:
        assert (np.abs(found[name] - one[name]) < off * one[f"e_{name}"]).all(), name
        parts = ("stat", "sys", "emulator", "mismatch") if name != "mg_h" else ()
        for error in (f"e_{name}", *(f"e_{name}_{part}" for part in parts)):
            assert (np.abs(found[error] - one[error]) < off * one[f"e_{name}"]).all(), error
    assert found["e_teff_mismatch"].tolist() == [0.0] * 4 and np.isnan(found["e_v_sini"]).all()
    np.testing.assert_array_equal(np.isnan(found["covariance"]), np.isnan(one["covariance"]))
    largest = np.nanmax(np.abs(one["covariance"]), axis=1)
    gap = np.nanmax(np.abs(found["covariance"] - one["covariance"]), axis=1)
    assert (gap < 2 * off * largest).all()
    np.testing.assert_allclose(found["snr"], one["snr"], rtol=0.01)
    np.testing.assert_allclose(found["dof_effective"] - found["dof"],
                               one["dof_effective"] - one["dof"], atol=0.2)  # fmt: skip
    np.testing.assert_allclose(found["chi2"][:3], one["chi2"][:3], atol=0.2)
    np.testing.assert_allclose(found["p_value"][:3], one["p_value"][:3], atol=0.02)


def test_draws_come_with_the_rows(out, sources, emulator, small_chunks, tmp_path):
    """Of stars in lockstep and of those that are fitted by themselves; the seed is a part of it."""
    drawing: dict[str, Any] = {"draws": 256, "seed": 5, "progress": False, **READING}
    several = tmp_path / "several.fits"
    found = sf.fit_survey([sources[0], sources[2]], emulator, out=several, **drawing, **FITTING)
    plain = read_catalog(out)
    assert found.meta["SEED"] == 5 and found["reason"][1] == plain["reason"][2]
    names = found.meta["COVNAMES"].split(",")
    draws = np.reshape(found["draws"], (2, 256, len(names)))
    assert np.isnan(draws[1]).all() and np.isnan(found["k_hat"][1])
    assert found["k_hat"][0] < 0.7
    one = draws[0, :, names.index("teff")]
    percents = [found[f"teff_p{percent}"][0] for percent in (16, 50, 84)]
    np.testing.assert_allclose(percents, np.percentile(one, (16, 50, 84), method="weibull"))
    assert found["teff"][0] == pytest.approx(plain["teff"][0])
    # Whatever else is in its part.
    single = {"out": tmp_path / "alone.fits", **drawing}
    alone = sf.fit_survey(sources[0], emulator, **single, **FITTING)
    assert alone["k_hat"][0] == pytest.approx(found["k_hat"][0], rel=1e-6)
    # By itself, and with a velocity that may be anything: other draws of the same posterior.
    single["out"] = tmp_path / "robust.fits"
    robust = sf.fit_survey(sources[0], emulator, **single, fixed={"v_sini": 0.0})
    for name in ("teff", "logg", "fe_h", "mg_fe", "mg_h"):
        assert abs(robust[f"{name}_p50"][0] - found[f"{name}_p50"][0]) < 0.5 * found[f"e_{name}"][0]
        width = [row[f"{name}_p84"] - row[f"{name}_p16"] for row in (found[0], robust[0])]
        np.testing.assert_allclose(width, 2 * found[f"e_{name}"][0], rtol=0.35)
    with pytest.raises(InputError, match="seed: 6 now, but .* was begun with 5"):
        again: dict[str, Any] = single | {"out": tmp_path / "alone.fits", "seed": 6}
        sf.fit_survey(sources[0], emulator, **again, **FITTING, resume=True)


def test_draws_that_cannot_be_trusted_are_a_warning(sources, emulator, monkeypatch):
    star = read_spectrum(sources[0], **READING)
    fit = sf.fit(star, emulator, **FITTING)
    drawn = draw_alone(fit, 64, 0)
    other = draw_alone(fit, 64, 1)
    assert drawn.flags == 0 and (drawn.samples != other.samples).any()
    fine, _ = result_row(drawn)
    monkeypatch.setattr("stellarfit.draws.TRUSTED", -9.0)
    poor, _ = result_row(drawn)
    assert poor["result_flags"] == fine["result_flags"] | int(Flag.POOR_DRAWS)
    assert poor["flag_warn"] and poor["flag_bad"] == fine["flag_bad"]
    wider, _ = result_row(drawn)
    names = [*fit.emulator.label_space.names, *("v_rad", "v_sini", "v_mac")]
    wide = widen_row(wider, names, [*names, "zero_point_blue"])
    draws = np.reshape(wide["draws"], (64, len(names) + 1))
    np.testing.assert_array_equal(draws[:, names.index("v_rad")], drawn.samples[:, -1])
    assert np.isnan(draws[:, -1]).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draws": 8}, "draws: 8; give 32 or more"),
        ({"draws": 64, "seed": -1}, "seed: -1; give a whole number"),
    ],
)
def test_draws_and_their_seed_are_whole_numbers(sources, emulator, tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        sf.fit_survey(sources[0], emulator, out=tmp_path / "few.fits", **options, **READING)


@pytest.mark.parametrize(("place", "reason"), [(2, "cut short"), (5, "a positive continuum")])
def test_a_star_that_cannot_be_fitted_is_a_row_that_says_why(out, place, reason):
    row = read_catalog(out)[place]
    assert row["result_flags"] == int(Flag.FAILED) and reason in row["reason"]
    assert np.isnan(row["teff"])


def copy_parts(out, again, *names):
    """A survey that was stopped with these parts there."""
    folder = Path(f"{again}.parts")
    folder.mkdir()
    for name in ("manifest.json", "stars.parquet", *names):
        (folder / name).write_bytes((Path(f"{out}.parts") / name).read_bytes())


def test_a_run_that_was_stopped_ends_with_the_same_rows(out, sources, emulator, tmp_path):
    again = tmp_path / "catalog.fits"
    copy_parts(out, again, "part-00001.parquet")
    built = together._share.cache_info().misses
    options = {"part_size": 3, "progress": False, "resume": True, **READING, **FITTING}
    sf.fit_survey(sources, emulator, out=again, **options)
    assert again.read_bytes() == out.read_bytes()
    assert together._share.cache_info().misses == built


def test_the_command_line_asks_for_the_same(out, sources, emulator, tmp_path, monkeypatch):
    monkeypatch.setattr("stellarfit.compiled.load_emulator", lambda *_: emulator)
    again = tmp_path / "catalog.fits"
    copy_parts(out, again, "part-00000.parquet", "part-00001.parquet")
    arguments = [*map(str, sources), "--out", str(again), "--medium", "vacuum", "--json"]
    arguments += ["--resolution", "47000", "--part-size", "3", "--fix", "v_sini=0", "--resume"]
    assert main(["survey", *arguments]) == 2  # robust now
    assert main(["survey", *arguments, "--no-robust"]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_a_row_does_not_depend_on_its_neighbours(out, sources, emulator, small_chunks, tmp_path):
    alone = tmp_path / "catalog.fits"
    catalog = sf.fit_survey(sources[1], emulator, out=alone, progress=False, **READING, **FITTING)
    one, among = catalog[0], read_catalog(out)[1]
    for name in ("teff", "e_teff", "v_rad", "chi2", "p_value", "result_flags"):
        assert one[name] == pytest.approx(among[name], rel=1e-6), name


def test_what_cannot_be_fitted_together_is_fitted_alone(sources, emulator, monkeypatch, tmp_path):
    """Stars that may rotate, robust fits, and velocities with a prior, go by `fit`."""
    options: dict[str, Any] = {"noise": "none", "continuum_degree": None, "priors": {}, **FITTING}
    assert together.can_fit_together(emulator, options)
    for change in ({"robust": True}, {"fixed": {}}, {"fixed": {"v_sini": 0.0, "v_rad": 1.0}}):
        assert not together.can_fit_together(emulator, options | change)
    assert not together.can_fit_together(emulator.parent, options)
    fits = []

    def fit(spectrum, *_, **options):
        fits.append(options)
        raise ValueError("seen")

    monkeypatch.setattr("stellarfit.fit_stars.fit", fit)
    near: dict[str, Any] = {"priors": {"v_rad": dist.Normal(0.0, 50.0)}}
    run_survey(sources[:2], emulator, out=tmp_path / "near.fits", progress=False,
               **READING, **FITTING, **near)  # fmt: skip
    assert [one["priors"] for one in fits] == [near["priors"]] * 2


def test_stars_of_a_group_that_breaks_are_fitted_alone(sources, emulator, monkeypatch, tmp_path):
    def broken(*_):
        raise RuntimeError("out of memory")

    def fit(spectrum, *_, **__):
        raise ValueError("seen")

    monkeypatch.setattr("stellarfit.fit_stars.fit_together", broken)
    monkeypatch.setattr("stellarfit.fit_stars.fit", fit)
    with pytest.warns(UserWarning, match="2 stars are fitted one by one.*out of memory"):
        catalog = sf.fit_survey(sources[:2], emulator, out=tmp_path / "broken.fits",
                                progress=False, **READING, **FITTING)  # fmt: skip
    assert catalog["reason"].tolist() == ["ValueError: seen"] * 2
