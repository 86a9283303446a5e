"""Training: what it learns, what it refuses, and that a killed run ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LABELS, tiny_data

from emulators.bundle import read_bundle
from emulators.emulator import Emulator
from emulators.errors import InputError
from emulators.grid import SpectralGrid
from emulators.ledger import COLUMNS, append_row, read_rows
from emulators.parametrization import Leaf, Standard
from emulators.train import train
from emulators.train_config import TrainConfig
from emulators.training_data import TrainingData, evaluate

SMALL = {
    "width": 32,
    "depth": 1,
    "tokens": 4,
    "batch_size": 4,
    "steps_per_call": 10,
    "checkpoint_every": 30,
    "validate_every": 40,
    "periods": (1e-5, 1.0),
    "learning_rate": 5e-3,
    "warmup": 10,
}
DATA = tiny_data(64, pixels=200)
VALIDATION = tiny_data(16, pixels=200, seed=1)
TEST = tiny_data(16, pixels=200, seed=2)


def run(folder, *, data=DATA, resume=False, validation=VALIDATION, test=TEST, **settings):
    config = TrainConfig(**{"steps": 100, **SMALL, **settings})
    return train(
        data,
        config=config,
        run_dir=folder,
        label_space=LABELS,
        validation=validation,
        test=test,
        resume=resume,
        progress=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    return folder, run(folder)


def test_learns_and_records(finished):
    folder, result = finished
    untrained = float(np.mean((1 - TEST.flux) ** 2))
    assert result.row["mse_test"] < 0.1 * untrained
    assert result.loss.shape == (100,) and result.loss[-10:].mean() < result.loss[:10].mean() / 5
    assert result.validation[:, 0].tolist() == [40, 80, 100]
    again = Emulator.load(folder / "emulator.h5")
    assert eqx.tree_equal(again.model, result.emulator.model)
    # The row's figures, computed by other means than the training code's.
    flux = jax.vmap(again.flux, (0, None))(jnp.asarray(TEST.labels), jnp.asarray(TEST.wavelength))
    undithered = float(np.mean((flux - TEST.flux) ** 2))
    exact = np.stack(
        [
            again(labels, TEST.wavelength * np.exp(dither * TEST.step), extrapolate=True)
            for labels, dither in zip(TEST.labels, TEST.dither, strict=True)
        ]
    )
    np.testing.assert_allclose(result.row["mse_test"], np.mean((exact - TEST.flux) ** 2), rtol=1e-3)
    assert undithered != pytest.approx(result.row["mse_test"], rel=1e-4)
    fitted = again.error_model
    assert fitted is not None
    np.testing.assert_allclose(fitted.mse, result.row["mse_validation"], rtol=1e-6)


def test_ledger_row(finished):
    folder, result = finished
    (row,) = read_rows(folder / "runs.jsonl")
    assert row == result.row and tuple(row) == COLUMNS
    model = run_start()
    assert row["spectra_seen"] == 400 and row["unique_spectra"] == 64
    assert row["flops"] == 3 * 400 * model.flops(200)
    assert row["flops_spent"] == 3 * 400 * model.flops(256)
    assert row["parameters"] == (4 + 12 + 1) * 32**2 + 5 * 32
    assert result.emulator.record["training"] == row


def test_resuming_a_finished_run_changes_nothing(finished):
    folder, result = finished
    again = run(folder, resume=True)
    assert eqx.tree_equal(again.emulator.model, result.emulator.model)
    assert len(read_rows(folder / "runs.jsonl")) == 1


def test_used_folder_and_changed_settings_are_refused(finished):
    folder, _ = finished
    with pytest.raises(InputError, match="in use; resume it"):
        run(folder)
    with pytest.raises(InputError, match=r"learning_rate is 0\.001 but .* with 0\.005"):
        run(folder, resume=True, learning_rate=1e-3)
    with pytest.raises(InputError, match="other spectra"):
        run(folder, resume=True, data=tiny_data(64, pixels=200, seed=5))


def test_impossible_sizes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="width 40 is no multiple"):
        run(tmp_path / "run", width=40)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="in use"):
        run(tmp_path)
    with pytest.raises(InputError, match="no run to resume"):
        run(tmp_path, resume=True)


CHILD = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_train import run
print("ready", flush=True)
run({folder!r}, resume={resume}, steps=405)
"""


def child(folder, resume):
    tests = Path(__file__).parent
    code = CHILD.format(root=str(tests.parent), tests=str(tests), folder=str(folder), resume=resume)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_killed_run_ends_with_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", steps=405)
    killed = tmp_path / "killed"
    process = child(killed, resume=False)
    try:
        deadline = time.monotonic() + 300
        while not (killed / "checkpoint.h5").exists():
            assert process.poll() is None, "the child ended before its first checkpoint"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "emulator.h5").exists()
    arrays, _ = read_bundle(killed / "checkpoint.h5", "checkpoint")
    assert 0 < int(arrays[".step"]) < 405
    resumed = run(killed, resume=True, steps=405)
    np.testing.assert_array_equal(resumed.loss, whole.loss)
    np.testing.assert_array_equal(resumed.validation, whole.validation)
    expected, _ = read_bundle(tmp_path / "whole/checkpoint.h5", "checkpoint")
    found, _ = read_bundle(killed / "checkpoint.h5", "checkpoint")
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    for key in set(COLUMNS) - {"run_id", "seconds", "tflops"}:
        assert resumed.row[key] == whole.row[key], key
    assert len(read_rows(killed / "runs.jsonl")) == 1


def test_nan_loss_stops_and_names_the_step(tmp_path, monkeypatch):
    # A rate that is NaN from step 37 on makes the loss NaN at step 38.
    monkeypatch.setattr(
        TrainConfig,
        "rate",
        lambda self, step, budget: jnp.where(jnp.asarray(step) < 37, 1e-3, jnp.nan),
    )
    with pytest.raises(InputError, match="loss is nan at step 38; lower learning_rate"):
        run(tmp_path / "run")
    assert not (tmp_path / "run/emulator.h5").exists()
    arrays, _ = read_bundle(tmp_path / "run/checkpoint.h5", "checkpoint")
    assert int(arrays[".step"]) == 30 and np.isfinite(arrays[".model.up"]).all()


def test_rate_by_hand():
    config = TrainConfig(steps=1000, learning_rate=2e-3, warmup=10, cooldown=0.2)
    rates = [float(config.rate(step)) for step in (0, 4, 9, 500, 800, 850, 1000)]
    np.testing.assert_allclose(rates, [2e-4, 1e-3, 2e-3, 2e-3, 2e-3, 1e-3, 0.0], atol=1e-9)


class Uneven(Standard):
    """Freezes the queries and halves the rate of the output."""

    def learning_rate_factor(self, leaf: Leaf) -> float:
        return {"query": 0.0, "head_out": 0.5}.get(leaf.name, 1.0)


def test_leaf_rates_hold_through_the_public_path(tmp_path):
    # Adam's first step is the rate times the sign of the gradient, so factors can be read off.
    settings = {"steps": 1, "warmup": 1, "cooldown": 0.0, "learning_rate": 1e-3}
    plain = run(tmp_path / "plain", **settings).emulator.model
    uneven = run(tmp_path / "uneven", parametrization=Uneven(), **settings).emulator.model
    start = run_start()
    for name in ("head_out", "query"):
        before = np.asarray(getattr(start, name))
        moved = np.abs(np.asarray(getattr(plain, name)) - before)
        moved_uneven = np.abs(np.asarray(getattr(uneven, name)) - before)
        if name == "head_out":
            np.testing.assert_allclose(np.median(moved), 1e-3, rtol=1e-3)
            np.testing.assert_allclose(moved_uneven, 0.5 * moved, rtol=1e-4)
        else:
            assert moved_uneven.max() == 0.0
    # The configuration records the scheme by name, so the hash tells them apart.
    assert TrainConfig(steps=1).hash != TrainConfig(steps=1, parametrization=Uneven()).hash


def run_start():
    """The weights that `run` starts from."""
    from emulators.transformer_payne import TransformerPayne

    names = ("width", "depth", "tokens", "periods")
    return TransformerPayne(LABELS, **{name: SMALL[name] for name in names}, key=jax.random.key(0))


@pytest.mark.parametrize(
    "settings", [{"num_pixels": 64}, {"precision": "bfloat16"}, {"precision": "float16"}]
)
def test_other_ways_to_train_learn_the_same(finished, tmp_path, settings):
    _, result = finished
    other = run(tmp_path / "other", **settings)
    np.testing.assert_allclose(
        np.log(other.row["mse_test"]), np.log(result.row["mse_test"]), atol=0.7
    )
    if "num_pixels" in settings:
        assert other.row["flops"] == 3 * 400 * run_start().flops(64)


def test_dither_is_applied():
    model = run_start()
    head = np.random.default_rng(0).normal(size=32)
    model = eqx.tree_at(lambda tree: tree.head_out, model, jnp.asarray(head, jnp.float32))
    # Spectra that this very network made at dithered wavelengths: only the dither explains them.
    grid, step = DATA.wavelength, DATA.step
    flux = np.stack(
        [
            eqx.filter_jit(model)(jnp.asarray(x), jnp.asarray(grid * np.exp(d * step)))
            for x, d in zip(DATA.labels[:4], DATA.dither[:4], strict=True)
        ]
    )
    own = TrainingData(DATA.labels[:4], DATA.dither[:4], flux, grid, step)
    assert evaluate(model, own).max() < 1e-8
    assert evaluate(model, own._replace(dither=-own.dither)).min() > 1e-5


@pytest.mark.parametrize("uniform", [True, False])
def test_trains_from_a_grid(tmp_path, uniform):
    wavelength = np.asarray(DATA.wavelength)
    if not uniform:
        wavelength = wavelength + np.linspace(0, 0.5, 200) ** 2
    grid = SpectralGrid.from_arrays(
        wavelength,
        np.asarray(DATA.labels),
        np.asarray(DATA.flux),
        label_space=LABELS,
        path=tmp_path / "grid.h5",
        provenance={"code": "closed form"},
    )
    config = TrainConfig(**{**SMALL, "steps": 10})
    result = train(grid, config=config, run_dir=tmp_path / "run", progress=False)
    assert result.row["unique_spectra"] == 64 - 12
    assert result.emulator.record["grid"]["code"] == "closed form"
    assert result.emulator.record["grid"]["hash"] == grid.hash
    np.testing.assert_allclose(result.emulator.step, 1e-5, rtol=0.05)
    with pytest.raises(InputError, match="60 validation and 6 test spectra of 64"):
        train(grid, config=config, run_dir=tmp_path / "b", validation=60, progress=False)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.full_like(DATA.flux, np.nan)}, "spectrum 0 of training holds NaN"),
        ({"dither": DATA.dither[:-1]}, "64 spectra, 64 rows of labels and 63 dithers"),
        ({"labels": np.full_like(DATA.labels, np.nan)}, "labels or dither 0 of training hold NaN"),
        ({"labels": DATA.labels[:, :3]}, "training has 3 labels a spectrum, the label space 4"),
        ({"wavelength": DATA.wavelength[:-1]}, "200 pixels and 199 wavelengths"),
    ],
)
def test_bad_data_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "run", data=DATA._replace(**change))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float8"}, "allowed: float32, tf32, float16, bfloat16"),
        ({"cooldown": 1.5}, "cooldown is 1.5"),
        ({"steps": 0}, "steps is 0"),
        ({"checkpoint_every": 250}, r"checkpoint_every is 250; .* steps_per_call \(200\)"),
        ({"num_pixels": 0}, "num_pixels is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**{"steps": 10, **settings})


def test_ledger_refuses_what_it_does_not_know(tmp_path):
    row: dict[str, Any] = dict.fromkeys(COLUMNS, 0)
    append_row(tmp_path / "runs.jsonl", row)
    append_row(tmp_path / "runs.jsonl", {**row, "run_id": 1})
    append_row(tmp_path / "runs.jsonl", row)
    assert [known["run_id"] for known in read_rows(tmp_path / "runs.jsonl")] == [0, 1]
    with pytest.raises(InputError, match="columns: colour"):
        append_row(tmp_path / "runs.jsonl", {**row, "colour": 1})
    # A line without an end is one whose writer was killed, and none; with one it is damage.
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n{")
    assert read_rows(tmp_path / "bad.jsonl") == [row]
    (tmp_path / "bad.jsonl").write_text(json.dumps(row) + "\n{\n")
    with pytest.raises(InputError, match="line 2"):
        read_rows(tmp_path / "bad.jsonl")
