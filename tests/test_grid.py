"""Grids of spectra: what is stored, how a killed run goes on, and what is refused."""

import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fake_synthesizer import SPACE, FakeSynthesizer

from emulators.errors import InputError
from emulators.grid import SpectralGrid, draw_dither
from emulators.labels import LabelSpace

ARRAYS = ("labels", "dither", "flux", "log_continuum", "wavelength")


def make(path, synthesizer: Any = None, num=50, **options):
    options = {"seed": 3, "batch_size": 8, "progress": False} | options
    if synthesizer is None:
        synthesizer = FakeSynthesizer()
    return SpectralGrid.generate(synthesizer, SPACE, num, path, **options)


def contents(path):
    with h5py.File(path) as file:
        return {name: file[name][()].tobytes() for name in ARRAYS} | {"hash": file.attrs["hash"]}


def test_spectra_are_those_of_the_labels_and_dithers(tmp_path):
    grid = make(tmp_path / "grid.h5")
    synthesizer = FakeSynthesizer()
    assert len(grid) == 50
    assert grid.step == pytest.approx(1e-5, rel=1e-9)
    np.testing.assert_array_equal(grid.labels, SPACE.sobol(50, seed=3))
    for star in (0, 17, 49):
        # independent of batches: one star, its wavelengths written out
        wavelength = grid.wavelength * np.exp(grid.dither[star] * grid.step)
        centre = 5002.0 + grid.labels[star, 1] / 2
        truth = 1 - 0.5 * np.exp(-(((wavelength - centre) / 0.2) ** 2))
        np.testing.assert_allclose(grid.flux(slice(star, star + 1))[0], truth, atol=1e-6)
    continuum = synthesizer.batch(grid.labels, grid.dither * grid.step).continuum
    np.testing.assert_allclose(grid.continuum(), continuum, rtol=1e-5)
    assert grid.provenance["synthesizer"] == {"synthesizer": "fake", "pixels": 200}
    assert grid.provenance["seed"] == 3
    assert not list(tmp_path.glob("*.parts"))


def test_dither_of_a_star_does_not_depend_on_the_batch_it_is_drawn_in():
    whole = draw_dither(11, 0, 1000)
    assert -0.5 <= whole.min() < -0.49 and 0.49 < whole.max() < 0.5
    for start, num in ((0, 7), (1, 7), (123, 64), (998, 2)):
        np.testing.assert_array_equal(draw_dither(11, start, num), whole[start : start + num])
    assert abs(np.corrcoef(whole, draw_dither(12, 0, 1000))[0, 1]) < 0.15


def test_dither_can_be_left_out(tmp_path):
    assert make(tmp_path / "with.h5", num=5).dither.any()
    assert not make(tmp_path / "without.h5", num=5, dither=False).dither.any()


def test_batch_size_changes_nothing_but_the_shards(tmp_path):
    one = make(tmp_path / "a.h5", batch_size=50)
    many = make(tmp_path / "b.h5", batch_size=7)
    for name in ("labels", "dither"):
        np.testing.assert_array_equal(getattr(one, name), getattr(many, name))
    np.testing.assert_array_equal(one.flux(), many.flux())


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path):
    path = tmp_path / "killed.h5"
    script = textwrap.dedent(
        f"""
        import sys
        sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parent)!r}]
        from fake_synthesizer import SPACE, FakeSynthesizer
        from emulators.grid import SpectralGrid
        SpectralGrid.generate(FakeSynthesizer(seconds=0.05), SPACE, 200, {str(path)!r}, seed=3,
                              batch_size=8, progress=False, resume=True)
        """
    )
    kills = 0
    parts = Path(f"{path}.parts")
    while not path.exists():
        process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
        before = len(list(parts.glob("*.h5")))
        while process.poll() is None and kills < 3:
            if len(list(parts.glob("*.h5"))) >= before + 4:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        _, error = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
    assert kills == 3
    make(tmp_path / "whole.h5", FakeSynthesizer(), num=200)
    assert contents(path) == contents(tmp_path / "whole.h5")


def test_resume_makes_only_what_is_missing(tmp_path):
    path = tmp_path / "grid.h5"
    with pytest.raises(InputError, match="not finite"):
        make(path, FakeSynthesizer(hole=6900.0))
    done = len(list(Path(f"{path}.parts").glob("*.h5")))
    assert done > 0
    synthesizer = FakeSynthesizer()
    make(path, synthesizer, resume=True)
    assert synthesizer.calls == 7 - done
    again = FakeSynthesizer()
    make(path, again, resume=True)  # finished: nothing to do
    assert again.calls == 0


def test_nan_spectrum_names_its_labels(tmp_path):
    with pytest.raises(InputError, match=r"spectrum \d+ .*teff = 6\d\d\d.*logg = "):
        make(tmp_path / "grid.h5", FakeSynthesizer(hole=6000.0))
    assert not (tmp_path / "grid.h5").exists()


def test_used_names_are_refused(tmp_path):
    path = tmp_path / "grid.h5"
    with pytest.raises(InputError):
        make(path, FakeSynthesizer(hole=6900.0))
    with pytest.raises(InputError, match="unfinished run"):
        make(path)
    make(path, resume=True)
    with pytest.raises(InputError, match="exists already"):
        make(path)


@pytest.mark.parametrize("change", [{"seed": 4}, {"num": 51}, {"batch_size": 9}, {"dither": False}])
def test_resume_with_another_configuration_is_refused(tmp_path, change):
    path = tmp_path / "grid.h5"
    with pytest.raises(InputError):
        make(path, FakeSynthesizer(hole=6900.0))
    with pytest.raises(InputError, match=next(iter(change))):
        make(path, resume=True, **change)
    with pytest.raises(InputError, match=r"another (wavelength|synthesizer)"):
        make(path, FakeSynthesizer(pixels=100), resume=True)
    make(path, resume=True)
    with pytest.raises(InputError, match="another configuration"):
        make(path, resume=True, **change)


def test_full_disk_is_one_clear_line_and_leaves_no_rubbish(tmp_path):
    path = tmp_path / "grid.h5"
    make(path, num=16, batch_size=8)
    path.unlink()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # One shard fits, the merged file does not: the write fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (13_000, limit[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*resume=True"):
            make(path, num=16, batch_size=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not path.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(make(path, num=16, batch_size=8, resume=True)) == 16


def test_split_is_a_partition_that_the_seed_fixes(tmp_path):
    grid = make(tmp_path / "grid.h5")
    parts = grid.split(0, 10, 5)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [35, 10, 5]
    joined = np.concatenate(list(parts.values()))
    np.testing.assert_array_equal(np.sort(joined), np.arange(50))
    for name, part in grid.split(0, 10, 5).items():
        np.testing.assert_array_equal(part, parts[name])
    assert not np.array_equal(grid.split(1, 10, 5)["test"], parts["test"])
    with pytest.raises(InputError, match="leave at least one"):
        grid.split(0, 40, 10)


def test_truncated_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "grid.h5"
    make(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a whole grid file"):
        SpectralGrid.open(path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match="not a whole grid file"):
        SpectralGrid.open(tmp_path / "other.h5")
    with pytest.raises(InputError, match="no such file"):
        SpectralGrid.open(tmp_path / "none.h5")


def arrays(stars=6, pixels=130):
    rng = np.random.default_rng(0)
    wavelength = 5100 * np.exp(1e-5 * np.arange(pixels))
    labels = np.column_stack([rng.uniform(4000, 7000, stars), rng.uniform(1, 5, stars)])
    return wavelength, labels, rng.uniform(0.2, 1.0, (stars, pixels))


def test_from_arrays_divides_by_the_continuum_and_keeps_it(tmp_path):
    wavelength, labels, flux = arrays()
    continuum = np.linspace(1.0e6, 1.1e6, 130) * np.ones((6, 1))
    grid = SpectralGrid.from_arrays(
        wavelength,
        labels,
        flux * continuum,
        label_space=("teff", "logg"),
        path=tmp_path / "grid.h5",
        continuum=continuum,
    )
    np.testing.assert_allclose(grid.flux(), flux, rtol=1e-6)
    np.testing.assert_allclose(grid.continuum(), continuum, rtol=0.005)
    assert grid.step == pytest.approx(1e-5)
    assert not grid.dither.any()
    assert grid.label_space.lower == tuple(labels.min(axis=0))


def test_from_arrays_converts_air_and_keeps_any_increasing_grid(tmp_path):
    wavelength, labels, flux = arrays()
    wavelength = np.linspace(5100, 5110, 130)
    grid = SpectralGrid.from_arrays(
        wavelength, labels, flux, label_space=SPACE, path=tmp_path / "a.h5", medium="air"
    )
    assert grid.wavelength[0] == pytest.approx(5101.421, abs=0.001)
    assert grid.step is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.ones((5, 130))}, "do not fit"),
        ({"wavelength": np.ones(130)}, "increase"),
        ({"medium": "water"}, "'vacuum', 'air'"),
        ({"label_space": ("teff",)}, "1 label names but 2"),
        ({"label_space": LabelSpace(("teff", "logg"), (1, 1), (2, 2))}, "teff"),
        ({"flux": np.full((6, 130), np.nan)}, "spectrum 0"),
    ],
)
def test_from_arrays_refuses_what_does_not_fit(tmp_path, change, message):
    wavelength, labels, flux = arrays()
    given = {"wavelength": wavelength, "labels": labels, "flux": flux, "label_space": SPACE}
    with pytest.raises(InputError, match=message):
        SpectralGrid.from_arrays(path=tmp_path / "grid.h5", **(given | change))
    assert not list(tmp_path.iterdir())
