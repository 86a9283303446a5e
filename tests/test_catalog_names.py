"""The schema as its document has it, flags explained, and catalogues under surveys' names."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fake_results import fake_fit, fake_posterior

from emulators.errors import InputError
from stellarfit.catalog import SCHEMA, failed_row, make_catalog, read_catalog, write_catalog
from stellarfit.catalog_names import NAMINGS, rename_columns
from stellarfit.cli import main
from stellarfit.flags import BAD, HARMLESS, WARN, Flag, explain

DOCUMENT = (Path(__file__).parents[1] / "docs" / "catalog.md").read_text()
TRUTH = {  # of `fake_fit`: ours, and the survey's name of it
    "apogee": {"TEFF": "teff", "TEFF_ERR": "e_teff", "LOGG": "logg", "LOGG_ERR": "e_logg",
               "FE_H": "fe_h", "FE_H_ERR": "e_fe_h", "MG_FE": "mg_fe", "MG_FE_ERR": "e_mg_fe",
               "VMICRO": "v_micro", "VHELIO_AVG": "v_rad", "VERR": "e_v_rad", "VSINI": "v_sini",
               "SNR": "snr"},
    "galah": {"teff": "teff", "e_teff": "e_teff", "logg": "logg", "e_logg": "e_logg",
              "fe_h": "fe_h", "e_fe_h": "e_fe_h", "Mg_fe": "mg_fe", "e_Mg_fe": "e_mg_fe",
              "vmic": "v_micro", "rv_galah": "v_rad", "e_rv_galah": "e_v_rad",
              "vbroad": "v_sini", "e_vbroad": "e_v_sini"},
    "desi": {"TEFF": "teff", "TEFF_ERR": "e_teff", "LOGG": "logg", "LOGG_ERR": "e_logg",
             "FEH": "fe_h", "FEH_ERR": "e_fe_h", "VRAD": "v_rad", "VRAD_ERR": "e_v_rad",
             "VSINI": "v_sini", "CHISQ_TOT": "chi2"},
}  # fmt: skip
OURS = ["name", "frame", "result_flags", "flag_warn", "flag_bad"]


def fits(*frames, **fixed):
    results = [fake_fit(seed, fixed=fixed) for seed in range(len(frames))]
    for fit, frame in zip(results, frames, strict=True):
        fit.spectrum.meta["frame"] = frame
    return results


@pytest.mark.parametrize("survey", list(TRUTH))
def test_the_same_numbers_under_their_names(survey, tmp_path):
    table = make_catalog(fits("barycentric", "heliocentric"))
    path = write_catalog(rename_columns(table, survey), tmp_path / "theirs.fits")
    found = read_catalog(path)
    assert set(found.colnames) == {*TRUTH[survey], *OURS}
    for theirs, ours in TRUTH[survey].items():
        np.testing.assert_array_equal(found[theirs], table[ours], theirs)
        assert found[theirs].unit == table[ours].unit
    assert found.meta["COLNAMES"] == NAMINGS[survey].table and found.meta["SCHEMA"] == SCHEMA
    kept = ("EMULATOR", "EMUHASH", "SOLSCALE", "CREATOR")
    assert {key: found.meta[key] for key in kept} == {key: table.meta[key] for key in kept}
    assert "COVNAMES" not in found.meta  # the covariance is not there either


@pytest.mark.parametrize("frame", ["rest", "topocentric", "unknown", "barycentric and rest"])
def test_a_velocity_of_another_frame_is_not_theirs(frame):
    table = rename_columns(make_catalog(fits("barycentric", frame)), "apogee")
    assert table["VHELIO_AVG"][0] == 12.34 and table["VERR"][0] == 0.02
    assert np.isnan([table["VHELIO_AVG"][1], table["VERR"][1]]).all()
    assert np.isfinite(table["TEFF"]).all() and np.isfinite(table["VSINI"]).all()


def test_galahs_broadening_is_all_of_it():
    frames = ("barycentric", "barycentric")
    none, some = make_catalog(fits(*frames, v_mac=0.0)), make_catalog(fits(*frames, v_mac=3.0))
    assert rename_columns(none, "galah")["vbroad"][0] == 4.2
    found = rename_columns(some, "galah")
    assert np.isnan(found["vbroad"]).all() and np.isnan(found["e_vbroad"]).all()
    assert rename_columns(some, "apogee")["VSINI"][0] == 4.2


def test_the_input_is_left_as_it_was():
    table = make_catalog(fits("rest"))
    rename_columns(table, "desi")
    assert table["v_rad"][0] == 12.34 and "COLNAMES" not in table.meta


def test_a_frame_is_one_that_is_known():
    """A header's card of that name may be about coordinates."""
    frames = make_catalog(fits("rest", "FK5"))["frame"]
    assert frames.tolist() == ["rest", "unknown"]


def test_what_is_no_catalogue_of_ours_is_refused():
    table = make_catalog(fits("rest"))
    with pytest.raises(InputError, match=r"'rave' is not known; give one of apogee, galah, desi"):
        rename_columns(table, "rave")
    with pytest.raises(InputError, match="names of APOGEE allStar DR17 already"):
        rename_columns(rename_columns(table, "apogee"), "desi")
    del table.meta["SCHEMA"]
    with pytest.raises(InputError, match="no SCHEMA"):
        rename_columns(table, "apogee")


def test_convert(tmp_path, capsys):
    source = write_catalog(make_catalog(fits("rest")), tmp_path / "ours.parquet")
    out = tmp_path / "theirs.fits"
    assert main(["convert", str(source), str(out), "--names", "sdss"]) == 2
    assert "give one of apogee, galah, desi" in capsys.readouterr().err and not out.exists()
    assert main(["convert", str(source), str(out), "--names", "desi", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["names"] == "DESI MWS RVTAB" and "FEH_ERR" in found["columns"]
    assert read_catalog(out)["TEFF"][0] == 5772.0
    before = out.read_bytes()
    assert main(["convert", str(source), str(out), "--names", "apogee"]) == 2
    assert "the file exists" in capsys.readouterr().err and out.read_bytes() == before


def test_flags_are_explained(capsys):
    assert main(["flags", str(int(Flag.MISMATCH | Flag.NOT_CONVERGED)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["flags"]
    assert [(one["bit"], one["name"], one["meaning"]) for one in found] == [
        (0, "not_converged", "bad"),
        (13, "mismatch", "warn"),
    ]
    assert main(["flags", "0x2000"]) == 0
    assert re.match(r"13 +8192 +mismatch +warn +the model misses", capsys.readouterr().out)
    assert main(["flags"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(Flag)
    assert main(["flags", "0"]) == 0
    assert "nothing to report" in capsys.readouterr().out


@pytest.mark.parametrize("bits", ["many", "-1", str(2 * max(Flag)), "1.5"])
def test_what_is_no_bit_mask_is_refused(bits, capsys):
    assert main(["flags", "--", bits]) == 2
    assert "give a value of the column result_flags" in capsys.readouterr().err


def test_the_document_has_every_flag():
    table = re.findall(r"^\| (\d+) \| `(\w+)` \| (\w+) \| (.*) \|$", DOCUMENT, re.MULTILINE)
    expected = [
        (str(one["bit"]), one["name"], one["meaning"], one["sentence"]) for one in explain(~0)
    ]
    assert table == expected and len(table) == len(Flag)
    for one in explain(~0):
        weight = {"bad": BAD, "warn": WARN, "harmless": HARMLESS}[one["meaning"]]
        assert Flag(one["value"]) in weight


def test_the_document_has_every_column_and_key():
    columns = re.findall(r"^\| (`.*?`) \|", DOCUMENT, re.MULTILINE)
    known = {name for cell in columns for name in re.findall(r"`(.*?)`", cell)}
    table = make_catalog([fake_posterior(0), fake_fit(1)], seed=3)
    parameters = {"teff", "logg", "v_micro", "fe_h", "mg_fe", "v_rad", "v_sini"}
    for name in table.colnames:
        stem = re.sub(r"^e_", "", name)
        stem = re.sub(r"_(stat|sys|emulator|mismatch|p16|p50|p84)$", "", stem)
        if stem in parameters:
            assert name.replace(stem, "x") in known, name
        elif stem != "mg_h":  # [X/H], in the text
            assert name in known, name
    assert {*table.meta, "NFAILED", "NMISSING", "COLNAMES"} <= known
    assert table.meta["SCHEMA"] == SCHEMA == int(re.findall(r"of version (\d+)", DOCUMENT)[0])
    assert set(failed_row("star", ["teff"])) <= {*table.colnames}


def test_the_document_has_the_surveys_names():
    for naming in NAMINGS.values():
        for ours, theirs in naming.columns.items():
            if not ours.endswith("_fe") or ours.endswith("mg_fe"):
                assert f"`{theirs}`" in DOCUMENT, theirs
