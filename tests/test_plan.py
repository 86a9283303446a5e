"""Plans of a known law, the sizes they choose from, and the two commands."""

import json
import math
from typing import Any

import numpy as np
import pytest
from fake_ledger import TRUTH, fake_rows
from scipy.optimize import brentq
from test_frontier import make_law
from tiny import LABELS

from emulators.errors import InputError
from emulators.transformer_payne import TransformerPayne
from scaling import plan
from scaling.law_fit import ABSENT, log_mse
from scaling.plan import PAPER_PLAN
from scaling.runs import read_recipe
from scaling.sizes import (
    PAPER_SIZES,
    Recipe,
    flops_at,
    make_ladder,
    num_parameters,
    training_flops,
)
from stellarfit.cli import main


@pytest.fixture(scope="module")
def law():
    return make_law()


@pytest.mark.parametrize(("width", "depth"), [(32, 4), (96, 8), (384, 16)])
def test_counts_are_those_of_the_network(width, depth):
    architecture = {
        "width": width, "depth": depth, "tokens": 16, "head_dim": 32, "periods": (1e-4, 10.0),
        "branch_scale": 0.5,
    }  # fmt: skip
    model = TransformerPayne.from_architecture(LABELS, architecture)
    labels = len(LABELS)
    assert num_parameters(width, depth, 16, labels) == model.num_parameters
    assert training_flops(width, depth, 16, labels, 1024) == 3 * model.flops(1024)


def test_ladder_begins_with_the_sizes_of_the_paper():
    ladder = make_ladder(Recipe(16, 42, 1024, 64))
    sizes = list(zip(ladder.width, ladder.depth, strict=True))
    assert sizes[:10] == list(PAPER_SIZES)
    # 69.6k to 30.9M weights in the paper
    assert ladder.parameters[[0, 9]] == pytest.approx([69.6e3, 30.9e6], rel=0.03)
    assert (ladder.width % 32 == 0).all() and (ladder.depth % 4 == 0).all()
    growth = ladder.parameters[1:] / ladder.parameters[:-1]
    assert (growth > 1.4).all() and (growth < 2.7).all() and ladder.parameters[-1] > 1e11
    aspect = ladder.width / ladder.depth
    assert (np.diff(aspect[9:]) >= 0).all()
    recipe = Recipe(16, 42, 1024, 64)
    np.testing.assert_allclose(flops_at(ladder.parameters, recipe), ladder.flops)
    ends = flops_at(np.array([1e3, 1e12]), recipe)
    assert ends[0] < ladder.flops[0] and ends[1] > ladder.flops[-1]


def test_recipe_is_read_from_the_rows():
    rows = [row | {"learning_rate": 4e-3} for row in fake_rows()]
    assert read_recipe(rows) == Recipe(16, 42, 1024, 64, 4e-3)
    assert read_recipe(fake_rows()).learning_rate is None


def test_cheapest_run_that_reaches_a_target(law):
    found = plan(law, target_mse=3e-6)
    run = (found.parameters.value, found.unique_spectra.value, found.spectra_seen.value)
    assert float(law.predict(*run).value) == pytest.approx(3e-6, rel=1e-3)
    assert found.mse.low68 < found.mse.value < found.mse.high68
    # by brute force: for every size, the fewest fresh spectra
    ladder = make_ladder(law.recipe)

    def fewest(size):
        def over(log_seen):
            seen = np.exp(log_seen)
            return float(log_mse(law.theta, size, seen, seen)) - math.log(3e-6)

        if not over(45.0) < 0 < over(5.0):
            return math.inf
        log_seen: Any = brentq(over, 5.0, 45.0)
        return math.exp(log_seen)

    seen = np.array([fewest(size) for size in ladder.parameters])
    cost = seen * ladder.flops
    best = int(np.argmin(cost))
    assert (found.width.value, found.depth.value) == (ladder.width[best], ladder.depth[best])
    assert found.flops.value == pytest.approx(1.1 * cost[best], rel=1e-6)
    assert found.spectra_seen.value == pytest.approx(1.1 * seen[best], rel=1e-3)
    assert found.steps.value * found.batch_size == found.spectra_seen.value
    assert found.gpu_hours.value == pytest.approx(found.flops.value / found.tflops / 1e12 / 3600)
    assert 15.0 <= found.tflops <= 240.0
    # a tenth more training, and far fewer distinct spectra
    assert found.unique_spectra.value < 0.5 * found.spectra_seen.value
    assert found.flops.low95 < found.flops.low68 < found.flops.high68 < found.flops.high95
    assert found.unreachable == 0.0


def test_budget_is_spent_on_the_best_size(law):
    found = plan(law, flops=1e17)
    assert found.flops.value == pytest.approx(1e17)
    ladder = make_ladder(law.recipe)
    seen = 1e17 / ladder.flops / 1.1
    best = int(np.argmin(np.asarray(log_mse(law.theta, ladder.parameters, seen, seen))))
    assert found.parameters.value == ladder.parameters[best] and found.warnings == ()
    hours = plan(law, gpu_hours=2.0, gpu="a100")
    same = plan(law, flops=2 * 3600 * hours.tflops * 1e12)
    assert hours.gpu_hours.value == pytest.approx(2.0)
    assert hours.spectra_seen == same.spectra_seen and hours.width == same.width
    measured = plan(law, gpu_hours=2.0, tflops=500.0)
    assert measured.flops.value == pytest.approx(2 * 3600 * 500e12)
    # what the budget reaches, as a target, costs the budget
    back = plan(law, target_mse=found.mse.value)
    assert back.flops.value == pytest.approx(1e17, rel=1e-3)


def test_larger_targets_cost_less(law):
    costs = [plan(law, target_mse=target).flops.value for target in (1e-6, 1e-5, 1e-4, 1e-3)]
    assert (np.diff(costs) < 0).all()


def test_plan_far_beyond_the_ledger_warns():
    theta = TRUTH.copy()
    theta[0] = ABSENT
    found = plan(make_law(theta, spread=0.0), target_mse=1e-8)
    assert any(warning.startswith("parameters 1.9") for warning in found.warnings)
    assert any(warning.startswith("flops") for warning in found.warnings)
    assert found.flops.value > 1e20 and found.unreachable == 0.0


def test_draws_that_cannot_reach_the_target_have_no_upper_end():
    law = make_law()
    law.draws[:20, 0] = math.log(5e-6)
    found = plan(law, target_mse=3e-6)
    assert found.unreachable == pytest.approx(1 / 3)
    assert math.isinf(found.flops.high68) and math.isfinite(found.flops.low68)
    assert any("33% of its bootstrap" in warning for warning in found.warnings)


def test_unreachable_target_is_refused(law):
    with pytest.raises(InputError, match="below 1e-07, where the law levels off"):
        plan(law, target_mse=0.9e-7)


def test_law_that_knows_no_repeats_takes_all_spectra_as_distinct():
    found = plan(make_law(repeating=0), target_mse=1e-5)
    assert found.unique_spectra == found.spectra_seen
    assert any("no run of the ledger repeats" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "0 goals; give one"),
        ({"flops": 1e17, "target_mse": 1e-5}, "2 goals; give one"),
        ({"flops": -1.0}, "flops is -1"),
        ({"target_mse": math.nan}, "target_mse is nan"),
        ({"flops": 1e17, "gpu": "abacus"}, "unknown GPU abacus; give one of h200"),
        ({"flops": 1e17, "tflops": 0.0}, "tflops is 0"),
    ],
)
def test_plans_without_sense_are_refused(law, options, message):
    with pytest.raises(InputError, match=message):
        plan(law, **options)


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_commands_fit_a_law_and_plan_by_it(tmp_path, capsys):
    budgets = np.geomspace(1e14, 9e16, 4)
    rows = fake_rows(unique=(3e3, 3e4, 1e15), sizes=PAPER_SIZES[:9:2], budgets=budgets)
    ledger, law = tmp_path / "runs.jsonl", tmp_path / "law.json"
    ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, text, _ = run(capsys, "law", ledger, "--out", law, "--json")
    found = json.loads(text)
    assert status == 0 and law.is_file() and found["runs"] == len(rows)
    names = {(row["quantity"], row["method"]) for row in found["exponents"]}
    assert {("L(P)", "law"), ("L(C)", "frontier"), ("P_opt(C)", "isoflop")} <= names
    assert found["left_out"]["size"]["median_factor"] < 1.5
    status, text, _ = run(capsys, "plan", "--law", law, "--target-mse", 1e-4, "--json")
    found = json.loads(text)
    assert status == 0 and found["paper"]["flops"] == PAPER_PLAN["flops"] == 1e21
    assert found["mse"]["value"] == pytest.approx(1e-4, rel=1e-2)
    status, text, _ = run(capsys, "plan", "--law", law, "--gpu-hours", 1)
    assert status == 0 and "unique spectra" in text and "3.56e+06 spectra" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("law", "none.jsonl"), "no file none.jsonl"),
        (("law", "empty.jsonl"), "no rows"),
        (("law", "empty.jsonl", "--out", "."), "a folder"),
        (("plan", "--law", "none.json", "--flops", 1), "no file none.json"),
        (("plan", "--law", "empty.jsonl", "--flops", 1), "is no law.json"),
        (("plan",), "0 goals; give one"),
    ],
)
def test_commands_refuse_bad_input(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == "" and not (tmp_path / "law.json").exists()
    assert err.startswith("stellarfit: ") and err.count("\n") == 1 and message in err
