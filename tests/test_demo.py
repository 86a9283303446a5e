"""The demo: its star is what it says, and the whole run finds a known truth."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table
from fake_star import TRUTH, fake_star
from tiny import tiny_emulator

from emulators.emulator import load_emulator
from emulators.errors import InputError
from stellarfit import demo
from stellarfit.readers import read_spectrum


@pytest.fixture(scope="module")
def maker():
    """The script that makes the star; it is not part of a package."""
    path = Path(__file__).parents[1] / "examples" / "make_demo_star.py"
    spec = importlib.util.spec_from_file_location("make_demo_star", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_star_says_how_it_was_made(maker):
    spectrum: Any = read_spectrum(demo.STAR)
    truth = demo.read_truth(spectrum)
    assert (spectrum.medium, spectrum.resolution) == ("vacuum", 47_000)
    assert spectrum.meta["seed"] == maker.SEED and spectrum.good.all()
    assert spectrum.snr == pytest.approx(100, rel=0.1)
    # Every label of the shipped emulator, with the value of the script that made the star.
    expected = {name: maker.TRUTH.get(name, 0.0) for name in load_emulator().label_space.names}
    assert truth == expected | {"v_rad": maker.V_RAD, "v_sini": maker.V_SINI}


def test_the_demo_finds_the_truth(tmp_path, monkeypatch, capsys):
    star = fake_star(snr=100.0)
    meta = {f"truth_{name}": value for name, value in TRUTH.items()}
    meta |= {"medium": "vacuum", "resolution": 47_000.0, "object": "a star"}
    table = Table({"wave": star.wavelength, "flux": star.flux, "ivar": star.ivar}, meta=meta)
    table.write(tmp_path / "star.ecsv")
    emulator = tiny_emulator(analytic=True)
    monkeypatch.setattr(type(emulator), "fingerprint", "0123abcd")
    monkeypatch.setattr(demo, "STAR", tmp_path / "star.ecsv")
    monkeypatch.setattr(demo, "load_emulator", lambda name: emulator)
    pulls = demo.run_demo(tmp_path / "out", seed=3)
    assert set(pulls) == set(TRUTH)
    assert max(abs(pull) for pull in pulls.values()) < 3.5
    printed = capsys.readouterr().out
    assert "truth" in printed and "5200" in printed
    found = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert set(found) == {"catalog.fits", "posterior.nc", "fit.png", "corner.png"}
    assert min(found.values()) > 1000


def test_a_star_without_truth_is_refused(tmp_path):
    table = Table({"wave": np.arange(5100.0, 5101, 0.1), "flux": np.ones(10), "ivar": np.ones(10)})
    table.write(tmp_path / "star.ecsv")
    with pytest.raises(InputError, match="truth_"):
        demo.read_truth(read_spectrum(tmp_path / "star.ecsv", medium="vacuum"))


def test_rotation_of_one_line_is_grays_profile(maker):
    grid = np.exp(np.arange(np.log(5000), np.log(5003), 2e-6))
    line = 0.5 * np.exp(-0.5 * (np.log(grid / 5001.5) / 4e-6) ** 2)
    depth = 1 - maker.rotate(grid, 1 - line, 30.0)
    x = np.log(grid / 5001.5) * maker.C / 30.0
    root = np.sqrt(np.clip(1 - x**2, 0, None))
    profile = 2 * 0.4 * root + 0.5 * np.pi * 0.6 * root**2
    profile *= line.sum() / profile.sum()
    assert depth.sum() == pytest.approx(line.sum(), rel=1e-4)
    # The line is not infinitely narrow, so the sharp rim of the profile is left out.
    inner = np.abs(x) < 0.9
    np.testing.assert_allclose(depth[inner], profile[inner], atol=0.01 * profile.max())


def test_line_spread_and_pixels(maker):
    grid = np.exp(np.arange(np.log(5000), np.log(5003), 2e-6))
    sigma = 1 / (47_000 * np.sqrt(8 * np.log(2)))
    line = np.exp(-0.5 * (np.log(grid / 5001.5) / 5e-6) ** 2)
    broad = maker.spread(grid, line, 47_000.0)
    width = np.hypot(sigma, 5e-6)
    expected = 5e-6 / width * np.exp(-0.5 * (np.log(grid / 5001.5) / width) ** 2)
    np.testing.assert_allclose(broad, expected, atol=2e-3)
    pixels = np.arange(5001.0, 5002.0, 0.05)
    # The mean of a straight line over a pixel is its value in the middle.
    np.testing.assert_allclose(maker.observe(grid, grid - 5000, pixels, 0.05), pixels - 5000)
