"""The command line: what it prints; bad input is one line, status 2 and nothing written."""

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from fake_star import fake_star
from tiny import tiny_emulator

from emulators.parametrization import Leaf
from stellarfit.cli import main

KEYS = {"value", "error", "error_stat", "error_sys", "error_emulator", "error_mismatch"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with a small emulator and one star's spectrum, air wavelengths, no header."""
    folder = tmp_path_factory.mktemp("bench")
    tiny_emulator().save(folder / "tiny.h5")
    star = fake_star()
    Table({"wave": star.wavelength, "flux": star.flux, "ivar": star.ivar}).write(
        folder / "star.fits"
    )
    return folder


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def bad(change):
    """Spectrum files that must be refused, by what is wrong with them."""
    wave, flux, ivar = np.arange(5152.0, 5162.0, 0.03), None, None
    flux, ivar, mask = np.ones_like(wave), np.full_like(wave, 1e4), np.zeros(len(wave), int)
    if change == "nan flux everywhere":
        flux[:] = np.nan
    elif change == "all pixels masked":
        mask[:] = 1
    elif change == "outside the emulator":
        wave += 2000.0
    elif change == "ivar of wrong length":
        units = [fits.PrimaryHDU(flux), fits.ImageHDU(ivar[:-1], name="IVAR")]
        units[0].header.update({"CRVAL1": 5152.0, "CDELT1": 0.03})
        return fits.HDUList(units)
    table = Table({"wave": wave, "flux": flux, "ivar": ivar, "mask": mask})
    return fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(table)])


VACUUM = ("--medium", "vacuum", "--resolution", "47000")


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("missing file", VACUUM, "no such file"),
        ("nothing wrong", (*VACUUM, "--flux", "counts"), "no column 'counts'"),
        ("outside the emulator", VACUUM, "wavelength"),
        ("all pixels masked", VACUUM, "pixels is usable"),
        ("nan flux everywhere", VACUUM, "pixels is usable"),
        ("ivar of wrong length", VACUUM, "ivar"),
        ("nothing wrong", (*VACUUM, "--fix", "teff=9000"), "teff"),
        ("nothing wrong", (*VACUUM, "--fix", "vmicro=1"), "vmicro"),
        ("nothing wrong", (*VACUUM, "--fix", "vmic"), "name=value"),
        ("nothing wrong", (*VACUUM, "--snr", "100"), "errors of its own"),
        ("nothing wrong", ("--resolution", "47000"), "--medium"),
        ("nothing wrong", ("--medium", "vacuum"), "resolution"),
        ("nothing wrong", ("--medium", "water"), "medium"),
        ("nothing wrong", (*VACUUM, "--window", "4000", "4100"), "4000"),
        ("nothing wrong", (*VACUUM, "--noise", "pink"), "noise"),
        ("nothing wrong", (*VACUUM, "--emulator", "nope"), "nope"),
        ("truncated", VACUUM, "cut short"),
        ("nothing wrong", (*VACUUM, "--bogus"), "--bogus"),
    ],
)
def test_bad_spectra_and_options(bench, tmp_path, capsys, change, options, message):
    path = tmp_path / "in" / "star.fits"
    path.parent.mkdir()
    if change == "truncated":
        path.write_bytes((bench / "star.fits").read_bytes()[:8000])
    elif change != "missing file":
        bad(change).writeto(path)
    before = files(tmp_path)
    emulator = () if "--emulator" in options else ("--emulator", bench / "tiny.h5")
    arguments = ("fit", path, "--out", tmp_path / "out", *emulator, *options)
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == ""
    assert err.startswith("stellarfit: ") and err.count("\n") == 1 and message in err
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", ["truncated", "tampered", "not hdf5", "missing"])
@pytest.mark.parametrize("verb", ["info", "fit"])
def test_bad_emulators(bench, tmp_path, capsys, damage, verb):
    path = tmp_path / "emulator.h5"
    whole = (bench / "tiny.h5").read_bytes()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "tampered":
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            name = next(key for key in file if key.startswith("model"))
            file[name][...] = np.asarray(file[name]) * 1.01 + 1e-3
    elif damage == "not hdf5":
        path.write_text("once upon a time")
    before = files(tmp_path)
    arguments = {
        "info": ("info", path),
        "fit": ("fit", bench / "star.fits", *VACUUM, "--emulator", path, "--out", tmp_path / "o"),
    }[verb]
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == ""
    assert err.startswith("stellarfit: ") and err.count("\n") == 1 and str(path) in err
    assert files(tmp_path) == before


@pytest.fixture
def exact(monkeypatch):
    """The closed form as the default emulator: it describes the star, so fits are quick."""
    emulator = tiny_emulator(analytic=True)
    monkeypatch.setattr("emulators.emulator.load_emulator", lambda name=None: emulator)
    monkeypatch.setattr(type(emulator), "fingerprint", "0123abcd")


def test_fit_as_json_is_one_object(bench, tmp_path, capsys, exact):
    out = tmp_path / "out"
    status, text, _ = run(
        capsys, "fit", bench / "star.fits", *VACUUM, "--fix", "logg=3.0", "--json", "--out", out
    )
    assert status == 0
    found = json.loads(text)
    assert {"labels", "v_rad", "v_sini", "chi2", "dof", "flags", "emulator", "seconds"} <= set(
        found
    )
    assert set(found["labels"]["teff"]) == KEYS
    assert isinstance(found["flags"], int) and isinstance(found["dof"], int)
    assert files(out) == ["catalog.fits", "fit.png"]


@pytest.mark.filterwarnings("default:.*sample longer")
def test_sample_writes_everything(bench, tmp_path, capsys, exact):
    out = tmp_path / "out"
    status, text, err = run(
        capsys, "sample", bench / "star.fits", *VACUUM, "--fix", "logg=3", "--fix", "mg_fe=0.1",
        "--chains", 2, "--warmup", 10, "--samples", 10, "--out", out,
    )  # fmt: skip
    assert "warning: fewer than 100 effective draws" in err
    assert status == 0 and "R-hat" in text and "fe_h" in text and "mg_h" in text
    assert files(out) == ["catalog.fits", "corner.png", "fit.png", "posterior.nc"]
    with h5py.File(out / "posterior.nc") as file:
        assert file["posterior/teff"].shape == file["posterior/mg_h"].shape == (2, 10)


def test_info(bench, capsys):
    status, text, _ = run(capsys, "info", bench / "tiny.h5", "--json")
    found = json.loads(text)
    assert status == 0 and found["labels"]["teff"] == {"lower": 4000, "upper": 7000, "unit": "K"}
    assert found["error"]["rms"] == pytest.approx(1e-5**0.5, rel=1e-3)
    status, text, _ = run(capsys, "info")
    assert status == 0 and "Barklem" in text and "lines.h5" in text


def test_grid_import_and_train(tmp_path, capsys):
    rng = np.random.default_rng(0)
    wavelength = 5150 * np.exp(1e-5 * np.arange(64))
    rows = []
    for star in range(12):
        depth = 0.5 * np.exp(-0.5 * ((wavelength - 5151.5) / 0.1) ** 2) * rng.uniform()
        np.savez(tmp_path / f"{star}.npz", wavelength=wavelength, flux=1 - depth)
        rows.append((f"{star}.npz", rng.uniform(4000, 7000), rng.uniform(1, 5)))
    Table(rows=rows, names=("file", "teff", "logg")).write(tmp_path / "labels.csv")
    grid = tmp_path / "grid.h5"
    status, text, _ = run(
        capsys, "grid", "import", tmp_path / "labels.csv", grid, "--medium", "vacuum", "--json"
    )
    assert status == 0 and json.loads(text)["spectra"] == 12
    options = ("--steps", 4, "--width", 32, "--depth", 1, "--checkpoint-every", 2, "--json")
    command = ("train", grid, "--run-dir", tmp_path / "run", *options)
    status, text, _ = run(capsys, *command)
    assert status == 0 and json.loads(text)["steps"] == 4
    status, text, _ = run(capsys, "info", tmp_path / "run" / "emulator.h5", "--json")
    found = json.loads(text)
    assert status == 0 and set(found["labels"]) == {"teff", "logg"}
    assert found["parametrization"]["leaves"]["up"]["learning_rate_factor"] == 64 / 32
    status, text, err = run(capsys, *command)
    assert status == 2 and text == "" and err.count("\n") == 1
    (tmp_path / "sweep.toml").write_text(
        "[train]\nbatch_size = 2\nsteps_per_call = 2\nwarmup = 1\n"
        "[[runs]]\nsizes = [[32, 1]]\nunique_spectra = [8]\nflops = [2e8]\nseeds = [0]\n"
    )
    command = ("sweep", tmp_path / "sweep.toml", "--grid", grid, "--out", tmp_path / "sweep")
    for _ in range(2):
        status, text, _ = run(capsys, *command, "--held-out", 2, "--json")
        found = json.loads(text)
        assert status == 0 and (found["runs"], found["missing"]) == (1, 0)


def test_coordinate_check(tmp_path, capsys, monkeypatch):
    def measure(data, label_space, configs, seeds):
        """Rows of one layer that moves in proportion to its learning rate times the width."""
        (config,) = configs
        scheme, width = config.parametrization, config.width
        factor = scheme.learning_rate_factor(Leaf("up", "hidden", width, width))
        row = {"parametrization": type(scheme).__name__, "layer": "up", "width": width}
        return [
            {
                **row,
                "step": step,
                "seed": seed,
                "activation": 1.0,
                "change": (step - 1) * factor * width,
            }
            for seed in seeds
            for step in (1, 2)
        ]

    monkeypatch.setattr("stellarfit.scaling_commands.check_coordinates", measure)
    options = ("--seeds", 2, "--seed", 5, "--out", tmp_path / "c")
    status, text, _ = run(capsys, "coordinate-check", *options, "--json")
    found = json.loads(text)
    assert status == 0 and found["seeds"] == [5, 6] and found["widths"] == [64, 128, 256, 512]
    assert found["is_flat"] and found["slopes"][0]["slope"] is None
    assert found["steepest"]["MaximalUpdate"]["slope"] == pytest.approx(0.0, abs=1e-9)
    assert found["steepest"]["Standard"]["slope"] == pytest.approx(1.0)
    assert files(tmp_path / "c") == ["coordinates.jsonl", "coordinates.png", "slopes.json"]
    assert json.loads((tmp_path / "c/slopes.json").read_text()) == found
    rows = [
        json.loads(line) for line in (tmp_path / "c/coordinates.jsonl").read_text().splitlines()
    ]
    assert {(row["width"], row["seed"]) for row in rows} == {
        (width, seed) for width in (64, 128, 256, 512) for seed in (5, 6)
    }
    assert rows[-1]["change"] == {"up": 512} and len(rows) == 2 * 4 * 2 * 2
    status, text, _ = run(capsys, "coordinate-check", "--seeds", 1)
    assert status == 0 and "+1.00" in text and "muP is flat and the control is not" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("coordinate-check", "--width", 64, "--out", "new"), "at least twice"),
        (("coordinate-check", "--width", 64, "--width", 100, "--out", "new"), "width 100"),
        (("coordinate-check", "--seeds", 0, "--out", "new"), "seeds is 0"),
        (("coordinate-check", "--grid", "none.h5", "--out", "new"), "none.h5"),
        (("sweep", "none.toml", "--grid", "grid.h5", "--out", "new"), "none.toml"),
        (("grid", "generate", "grid.h5", "--num", 4, "--label", "teff=hot"), "name=lower:upper"),
        (("grid", "generate", "grid.h5", "--num", 4, "--label", "teff=7000:4000"), "teff"),
        (("grid", "generate", "grid.h5", "--num", 4, "--stop", 10), "stop 10"),
        (("grid", "import", "none.csv", "grid.h5", "--medium", "air"), "none.csv"),
        (("train", "none.h5", "--run-dir", "run", "--steps", 4), "none.h5"),
        (("sample", "none.fits"), "none.fits"),
        (("demo", "--out", "file"), "a file of that name exists"),
        (("nonsense",), "nonsense"),
    ],
)
def test_other_verbs_refuse_bad_input(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == ""
    assert err.startswith("stellarfit: ") and err.count("\n") == 1 and message in err
    assert files(tmp_path) == ["file"]


def test_help_is_quick_because_nothing_heavy_is_imported():
    script = "import sys; from stellarfit.cli import main; main(['--help']); print(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "demo" in done.stdout
    assert not {"jax", "astropy", "numpyro", "matplotlib"} & set(done.stdout.split())


def test_status_reaches_the_shell():
    command = [sys.executable, "-m", "stellarfit.cli", "fit", "/nowhere.fits"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "stellarfit: /nowhere.fits: no such file\n"
