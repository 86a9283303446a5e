"""A sweep's branches are runs, a killed sweep ends as one that was not, bad settings are named."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np
import pytest
from fake_synthesizer import SPACE, FakeSynthesizer
from tiny import LABELS, tiny_data

from emulators.errors import InputError
from emulators.fresh_spectra import FreshSpectra
from emulators.ledger import read_rows
from emulators.train import train
from scaling.sweep import Branch, Sweep
from scaling.train_sweep import SWEEP_COLUMNS, Spectra, train_sweep

SETTINGS = {
    "batch_size": 4, "num_pixels": 128, "steps_per_call": 10, "warmup": 5, "cooldown": 0.25,
    "tokens": 4, "learning_rate": 2e-3,
}  # fmt: skip
# On 200 pixels these are 40, 80 and 160 steps of the one, 40 and 80 of the other.
BLOCKS = (
    {"sizes": [[32, 1]], "unique_spectra": [8, 24], "flops": [1.4e9, 2.8e9, 5.7e9], "seeds": [0]},
    {"sizes": [[32, 2]], "unique_spectra": [24], "flops": [2.7e9, 5.4e9], "seeds": [0, 1]},
)
TRAINING, VALIDATION, TEST = (tiny_data(num, pixels=200, seed=num) for num in (24, 8, 9))
SPECTRA = Spectra(LABELS, TRAINING, VALIDATION, TEST)


def sweep(blocks=BLOCKS, **changes):
    return Sweep(SETTINGS | changes, blocks)


def without_clock(rows):
    """Rows as they must come out again; what a clock says left out."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "tflops")} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep")
    return train_sweep(sweep(), SPECTRA, out, progress=False), out


def test_every_run_is_made_once(whole):
    rows, out = whole
    assert len(rows) == 3 * 2 + 2 * 2 == len({row["run_id"] for row in rows})
    assert all(set(row) == set(SWEEP_COLUMNS) for row in rows)
    assert {(row["width"], row["depth"], row["unique_spectra"], row["seed"]) for row in rows} == {
        *((32, 1, number, 0) for number in (8, 24)),
        *((32, 2, 24, seed) for seed in (0, 1)),
    }
    for row in rows:
        assert row["steps"] == row["steps_trunk"] + row["steps_cooldown"]
        assert row["spectra_seen"] == 4 * row["steps"] and row["mse_test"] > 0
        assert row["loss"][-1][0] == row["steps"]
    again = train_sweep(sweep(), SPECTRA, out, progress=False)
    assert again == rows


def test_flops_spent_add_up_to_the_trunks_and_their_branches(whole):
    rows, _ = whole
    for trunk in {row["trunk"] for row in rows}:
        ours = sorted((r for r in rows if r["trunk"] == trunk), key=lambda row: row["steps"])
        assert len({row["seed"] for row in ours}) == 1
        a_step = ours[0]["flops"] / ours[0]["steps"]
        steps = ours[-1]["steps_trunk"] + sum(row["steps_cooldown"] for row in ours)
        assert sum(row["flops_spent"] for row in ours) == pytest.approx(steps * a_step, rel=1e-12)
        assert all(row["flops"] == pytest.approx(row["steps"] * a_step) for row in ours)


@pytest.mark.parametrize("place", [3, 9])
def test_a_branch_is_a_run_of_its_own(whole, place, tmp_path):
    """The same numbers as from `train` with the branch's budget and data."""
    row = whole[0][place]
    config = sweep().config(row["width"], row["depth"], row["seed"], row["steps"])
    data = SPECTRA.training.select(np.arange(row["unique_spectra"]))
    alone = train(
        data, config=config, run_dir=tmp_path / "run", label_space=LABELS, progress=False,
        validation=SPECTRA.validation, test=SPECTRA.test,
    )  # fmt: skip
    assert row["config_hash"] == alone.row["config_hash"]
    assert row["mse_test"] == pytest.approx(alone.row["mse_test"], rel=2e-3)
    assert row["flops"] == alone.row["flops"]
    assert row["loss"][-1][1] == pytest.approx(float(alone.loss[-1]), rel=2e-2)


def test_budgets_are_whole_calls_and_leave_before_their_cooldown():
    (small, large) = sweep((BLOCKS[1],)).trunks(LABELS, 200)[0].branches
    assert small == Branch(40, 30) and large == Branch(80, 60)
    # 0.3 of 70 steps is 21: the last call that ends before is the fifth.
    cool = sweep((BLOCKS[1] | {"flops": [4.8e9]},), cooldown=0.3)
    assert cool.trunks(LABELS, 200)[0].branches == (Branch(70, 40),)


def test_a_run_of_several_blocks_is_made_once():
    blocks = (BLOCKS[0], BLOCKS[0] | {"flops": [1.4e9], "unique_spectra": [8]})
    trunks = sweep(blocks).trunks(LABELS, 200)
    assert [len(t.members) * len(t.branches) for t in trunks] == [6]


def test_devices_share_the_work(whole, tmp_path):
    """Two devices that are one: the rows are those of one worker, in any order."""
    rows = train_sweep(sweep(), SPECTRA, tmp_path, devices=jax.devices() * 2, progress=False)
    by_id = {row["run_id"]: row for row in without_clock(rows)}
    assert by_id == {row["run_id"]: row for row in without_clock(whole[0])}


def test_no_time_leaves_runs_for_the_next_call(tmp_path, capsys):
    assert train_sweep(sweep(), SPECTRA, tmp_path, seconds=0.0, progress=False) == []
    assert capsys.readouterr().err.count("left out, no time") == 2


def test_a_diverged_run_is_a_row_without_errors(tmp_path):
    rows = train_sweep(
        sweep((BLOCKS[0] | {"flops": [1.4e9]},), learning_rate=1e12), SPECTRA, tmp_path,
        progress=False,
    )  # fmt: skip
    assert [row["mse_test"] for row in rows] == [None, None]


def test_a_torn_row_is_made_again(whole, tmp_path):
    """From the checkpoint of its trunk, with a table of the progress."""
    rows, out = whole
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "runs.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert len(read_rows(path)) == len(rows) - 1
    again = train_sweep(sweep(), SPECTRA, tmp_path, progress=True)
    assert without_clock(again) == without_clock(rows)


def test_other_settings_begin_anew_in_the_same_folder(tmp_path):
    """Killed after the checkpoint, then called with another rate: nothing of the old is taken."""
    block = (BLOCKS[1] | {"seeds": [0], "flops": [2.7e9]},)
    train_sweep(sweep(block), SPECTRA, tmp_path / "used", progress=False)
    (tmp_path / "used/runs.jsonl").unlink()
    rows = [
        train_sweep(sweep(block, learning_rate=1e-5), SPECTRA, tmp_path / name, progress=False)
        for name in ("used", "clean")
    ]
    assert without_clock(rows[0]) == without_clock(rows[1])


def test_a_larger_budget_goes_on_from_the_last_turn(whole, tmp_path):
    block = BLOCKS[1] | {"seeds": [0]}
    train_sweep(sweep((block | {"flops": [2.7e9]},)), SPECTRA, tmp_path, progress=False)
    first, second = train_sweep(sweep((block,)), SPECTRA, tmp_path, progress=False)
    alone = [row for row in whole[0] if (row["depth"], row["seed"]) == (2, 0)]
    for row, expected in zip((first, second), alone, strict=True):
        assert row["mse_test"] == pytest.approx(expected["mse_test"], rel=2e-3)
        assert row["flops_spent"] == expected["flops_spent"]


def test_fresh_spectra_are_the_same_after_a_kill(tmp_path):
    """Once whole; and with the last rows lost, from the checkpoint and the stream."""
    synthesizer: Any = FakeSynthesizer(pixels=128)
    stream = FreshSpectra(synthesizer, size=8, batch=4, seed=3)
    other = FreshSpectra(synthesizer, size=8, batch=8, seed=4)
    spectra = Spectra(SPACE, other.before(0), other.before(1), other.before(2), stream)
    runs = sweep(
        ({"sizes": [[32, 1]], "unique_spectra": ["fresh"], "flops": [1e9, 2e9], "seeds": [0]},)
    )
    rows = train_sweep(runs, spectra, tmp_path, progress=False)
    assert [row["unique_spectra"] for row in rows] == [
        8 + 4 * (row["steps"] // 10 - 1) for row in rows
    ]
    ledger = tmp_path / "runs.jsonl"
    ledger.write_text(ledger.read_text().splitlines(keepends=True)[0])
    again = train_sweep(runs, spectra, tmp_path, progress=False)
    assert without_clock(again) == without_clock(rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sizes": [[33, 4]]}, r"sizes holds \[33, 4\].*multiple of head_dim \(32\)"),
        ({"sizes": ["large"]}, "sizes holds 'large'"),
        ({"unique_spectra": ["all"]}, "unique_spectra holds 'all'.*fresh"),
        ({"unique_spectra": []}, r"unique_spectra is \[\]; give a list"),
        ({"flops": [-1.0]}, "flops holds -1.0; give operations above 0"),
        ({"seeds": [0.5]}, "seeds holds 0.5"),
        ({"sedes": [0]}, "a block of runs has .*sedes"),
    ],
)
def test_bad_blocks(change, says):
    with pytest.raises(InputError, match=says):
        sweep((BLOCKS[0] | change,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("runs = 3", r"must hold a table \[train\] and blocks"),
        ("[train]\nbatch_size = 4", r"no \[\[runs\]\]"),
        ("[train]\nwidht = 4", "unknown training setting 'widht'; allowed: accumulate"),
        ("[train]\nbatch_size = '4'", "batch_size is '4'; give a whole number from 1"),
        ("[train]\nlearning_rate = '4e-3'", "learning_rate is '4e-3'; give a number"),
        ("[train]\nhead_dim = 0", "head_dim is 0; give a whole number from 1"),
        ("[train]\nperiods = 3", "periods is 3; give two numbers"),
        ("[train]\nsteps_per_call = 2.5", "steps_per_call is 2.5; give a whole number"),
        ("[[runs]\n", "is no TOML"),
        ("[trian]", "has 'trian'; allowed"),
    ],
)
def test_bad_files(text, says, tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        Sweep.load(path)


def test_more_spectra_than_there_are(tmp_path):
    with pytest.raises(InputError, match="unique_spectra holds 25, but there are 24"):
        train_sweep(sweep((BLOCKS[0] | {"unique_spectra": [25]},)), SPECTRA, tmp_path)
    with pytest.raises(InputError, match="give a FreshSpectra"):
        train_sweep(sweep((BLOCKS[0] | {"unique_spectra": ["fresh"]},)), SPECTRA, tmp_path)


@pytest.mark.slow
def test_workers_of_a_cluster_share_the_work(whole, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs dask's distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as here,
        distributed.Client(here) as client,
    ):
        rows = train_sweep(sweep(), SPECTRA, tmp_path, client=client, progress=False)
    by_id = {row["run_id"]: row for row in without_clock(rows)}
    assert by_id == {row["run_id"]: row for row in without_clock(whole[0])}


PROGRAM = """
import sys
sys.path.insert(0, "tests")
from test_sweep import SPECTRA, sweep
from scaling.train_sweep import train_sweep
train_sweep(sweep(), SPECTRA, sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    """Five kills -9, then the end: the ledger of a sweep that was never killed, on one machine."""
    rng = random.Random(0)
    command = [sys.executable, "-c", PROGRAM]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    ledger = tmp_path / "killed/runs.jsonl"
    kills = 0
    for done in (0, 1, 3, 5, 8):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
        while process.poll() is None:
            if done == 0 or (ledger.exists() and len(ledger.read_bytes().splitlines()) >= done):
                time.sleep(rng.uniform(0.0, 8.0 if done == 0 else 1.0))
                process.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        kills += process.returncode == -signal.SIGKILL
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment)
    rows, again = (
        [json.loads(line) for line in (tmp_path / name / "runs.jsonl").read_text().splitlines()]
        for name in ("whole", "killed")
    )
    assert kills >= 4
    assert without_clock(again) == without_clock(rows)
