"""Limits, frontier and IsoFLOP parabolas on rows whose answers are known."""

import math
from typing import Any

import numpy as np
import pytest
from fake_ledger import TRUTH, fake_rows
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar

from emulators.errors import InputError
from scaling.cross_validation import CrossValidation
from scaling.frontier import (
    data_limit,
    frontier,
    isoflop,
    law_frontier,
    measure_exponents,
    size_limit,
)
from scaling.law import ScalingLaw
from scaling.law_figures import draw_allocation, draw_cross_validation, draw_scaling
from scaling.law_fit import ABSENT, log_mse
from scaling.runs import read_recipe, read_runs
from scaling.sizes import Recipe, flops_at

# The law of section 3 of the notes: additive, one exponent of size and one of data.
ADDITIVE = np.array([ABSENT, np.log(6e-5), 1.21, ABSENT, 1.0, np.log(4e-5), 1.34, 0.0, 10.0, 0.0])


def make_law(theta=TRUTH, spread=0.01, repeating=172):
    """A law as if fitted: the truth, and draws about it."""
    rows = fake_rows()
    runs = read_runs(rows)
    draws = theta + spread * np.random.default_rng(0).normal(size=(60, 10))
    columns = ("parameters", "unique_spectra", "spectra_seen", "flops", "mse_test")
    ends = (runs.parameters, np.minimum(runs.unique, runs.seen), runs.seen, runs.flops, runs.test)
    ranges = {name: (x.min(), x.max()) for name, x in zip(columns, ends, strict=True)}
    return ScalingLaw(
        np.array(theta),
        draws,
        0.07,
        ranges,
        read_recipe(rows),
        {"repeating": repeating, "repeated_sets": min(repeating, 3)},
    )


def row(parameters, flops, validation, test, *, unique=10**15, seen=1000, trunk=None):
    """A row with only what these analyses read."""
    rest = dict.fromkeys(("width", "depth", "tokens", "steps", "flops_spent"), 1)
    return rest | {
        "run_id": f"{parameters}-{flops}-{validation}",
        "trunk": trunk,
        "parameters": parameters,
        "unique_spectra": unique,
        "spectra_seen": seen,
        "flops": flops,
        "mse_validation": validation,
        "mse_test": test,
    }


def powers(found):
    return {(e.quantity, e.method, e.data): e.power.value for e in found}


def test_minimum_is_chosen_on_validation_and_quoted_on_test():
    rows = [
        row(10, 1.0, 0.5, 0.9),
        row(10, 2.0, 0.4, 0.8),
        row(10, 4.0, 0.45, 0.1),  # lucky on the test set alone
        row(20, 4.0, 0.3, 0.6),
        row(20, 8.0, 0.35, 0.2),
    ]
    runs = read_runs(rows)
    np.testing.assert_array_equal(size_limit(runs), [1, 3])
    np.testing.assert_array_equal(frontier(runs), [0, 1, 3])
    # a run that costs a step less is no point of its own
    cheaper = read_runs([*rows, row(20, 3.9, 0.39, 0.39)])
    np.testing.assert_array_equal(frontier(cheaper), [0, 1, 3])
    found = powers(measure_exponents(rows, draws=5))
    assert found["L(P)", "limit", "best of all"] == pytest.approx(math.log2(0.6 / 0.8))


def test_data_limit_leaves_out_what_nobody_has_seen_twice_and_streams():
    rows = [
        row(10, 1.0, 0.5, 0.5, unique=100, seen=1000),
        row(20, 2.0, 0.4, 0.4, unique=100, seen=50),
        row(20, 3.0, 0.1, 0.1, unique=1000, seen=2000),
        row(10, 3.0, 0.2, 0.2, unique=1000, seen=2000),
        row(10, 3.0, 0.3, 0.3, unique=5000, seen=5000),
        row(20, 3.5, 0.05, 0.05, unique=5000, seen=5000),
        row(20, 3.5, 0.02, 0.02, unique=5555, seen=7000),  # of a stream
    ]
    np.testing.assert_array_equal(data_limit(read_runs(rows)), [1, 2])


def test_lines_of_exact_powers_give_the_powers():
    # Every size ends at P^-1.2, every number of spectra at U^-1.3, the frontier is C^-0.8.
    rows = [row(p, 1e9 * p, 5 * p**-1.2, 5 * p**-1.2, seen=int(p)) for p in (10, 100, 1000)]
    rows += [
        row(p, 1e15, u**-1.3 * 1e6, u**-1.3 * 1e6, unique=u, seen=10 * u)
        for u in (10, 100, 1000)
        for p in (4, 5)
    ]
    found = {(e.quantity, e.method, e.data): e for e in measure_exponents(rows, draws=20)}
    assert found["L(D)", "limit", "unique"].power.value == pytest.approx(-1.3)
    assert found["L(D)", "limit", "unique"].paper == -1.34
    once = found["L(C)", "frontier", "one epoch"]
    assert once.power.value == pytest.approx(-1.2) and once.points == 3
    assert found["P_opt(C)", "frontier", "one epoch"].power.value == pytest.approx(1.0)
    assert found["D_opt(C)", "frontier", "seen"].power.value == pytest.approx(1.0)
    assert math.isnan(found["P_opt(C)", "isoflop", "all runs"].power.value)


def test_isoflop_parabola_has_the_vertex_of_its_points():
    rows = []
    for budget in (1e13, 1e14, 1e15):
        best = 1e5 * (budget / 1e13) ** 0.6
        for number, factor in enumerate((0.1, 0.3, 1.0, 4.0, 9.0)):
            mse = 1e-3 * (budget / 1e13) ** -0.7 * math.exp(0.2 * math.log(factor) ** 2)
            size = best * factor
            actual = budget * (1 + 0.03 * number)  # as near as whole steps come to it
            rows.append(row(size, actual, mse, mse, seen=actual / size))
            rows.append(row(size, actual, 2 * mse, 0.1 * mse, seen=actual / size))
    found = isoflop(read_runs(rows))
    np.testing.assert_allclose(found.parameters, [1e5, 1e5 * 10**0.6, 1e5 * 10**1.2], rtol=1e-6)
    np.testing.assert_allclose(found.mse, [1e-3, 1e-3 * 10**-0.7, 1e-3 * 10**-1.4], rtol=1e-6)
    np.testing.assert_allclose(found.seen * found.parameters, found.flops, rtol=0.03)
    lines = powers(measure_exponents(rows, draws=5))
    assert lines["P_opt(C)", "isoflop", "all runs"] == pytest.approx(0.6)
    assert lines["D_opt(C)", "isoflop", "seen"] == pytest.approx(0.4, abs=0.01)


def test_isoflop_without_a_minimum_inside_is_none():
    rising = [row(p, 1e13, p / 1e6, p / 1e6) for p in (10, 100, 1000, 10000)]
    few = [row(p, 1e14, 1e-4, 1e-4) for p in (10, 100, 1000)]
    assert len(isoflop(read_runs(rising + few)).flops) == 0


def test_best_size_of_the_law_is_that_of_another_minimiser():
    recipe = Recipe(16, 42, 1024, 64)
    budgets = np.geomspace(1e13, 1e19, 5)
    found = law_frontier(np.stack([TRUTH, ADDITIVE]), recipe, budgets)
    for number, theta in enumerate((TRUTH, ADDITIVE)):
        for column, budget in enumerate(budgets):

            def error(x, theta=theta, budget=budget):
                seen = budget / flops_at(np.exp(x), recipe)
                return float(log_mse(theta, np.exp(x), seen, seen))

            grid = np.linspace(math.log(1e4), math.log(1e10), 400)
            start = grid[np.argmin([error(x) for x in grid])]
            best: Any = minimize_scalar(error, bounds=(start - 0.1, start + 0.1), method="bounded")
            assert math.log(found.mse[number, column]) == pytest.approx(best.fun, abs=1e-3)
            ours = math.log(found.parameters[number, column])
            assert ours == pytest.approx(best.x, abs=0.06)


def test_additive_law_has_the_frontier_of_the_closed_form():
    """P ~ C^(b / (a + b)) and L ~ C^(-a b / (a + b)) where FLOPs are as P D: the notes' Tension."""
    optima = law_frontier(ADDITIVE[None], Recipe(16, 42, 1024, 64), np.geomspace(1e13, 1e21, 9))
    x = np.log(optima.flops[0])
    assert np.polyfit(x, np.log(optima.parameters[0]), 1)[0] == pytest.approx(0.525, abs=0.01)
    assert np.polyfit(x, np.log(optima.mse[0]), 1)[0] == pytest.approx(-0.636, abs=0.01)


def test_methods_agree_on_a_ledger_of_a_known_law():
    truth = make_law(ADDITIVE, spread=0.0)
    # Below, the best size is smaller than any of the ledger.
    budgets = np.geomspace(3e14, 1e17, 20)
    expected = law_frontier(ADDITIVE[None], truth.recipe, budgets)
    x = np.log(budgets)
    loss, size = (np.polyfit(x, np.log(y[0]), 1)[0] for y in (expected.mse, expected.parameters))
    rows = fake_rows(0, noise=0.03, theta=ADDITIVE, budgets=budgets, unique=(1e9, 1e12, 1e15))
    found = {(e.quantity, e.method, e.data): e for e in measure_exponents(rows, truth, draws=100)}
    for method in ("frontier", "isoflop", "law"):
        data = "one epoch" if method == "law" else "all runs"
        # The frontier is biased: at either end the best size is not among the ten.
        assert found["L(C)", method, data].power.value == pytest.approx(loss, abs=0.05)
        assert found["P_opt(C)", method, data].power.value == pytest.approx(size, abs=0.07)
    spread = found["L(C)", "frontier", "all runs"].power
    assert spread.low95 <= spread.low68 < spread.high68 <= spread.high95 < spread.low95 + 0.2
    term = found["L(P)", "law", "term"]
    assert term.power.value == -ADDITIVE[2] and term.paper == -1.21


def test_law_of_a_ledger_without_repeats_has_no_exponent_of_unique_spectra():
    found = powers(measure_exponents(fake_rows(), make_law(repeating=0), draws=3))
    assert ("L(D)", "law", "seen") in found and ("L(D)", "law", "unique") not in found


def test_empty_ledger_is_refused():
    with pytest.raises(InputError, match="no rows"):
        measure_exponents([])


def test_figures_show_every_run_and_the_frontier():
    rows, law = fake_rows(), make_law()
    figure: Any = Figure(figsize=(11, 6))
    draw_scaling(figure, rows, law)
    compute, data, size = figure.axes
    shown = sum(len(points.get_offsets()) for points in compute.collections)
    assert shown == len(rows)
    assert [panel.get_xlabel() for panel in (data, size)] == ["unique spectra", "weights"]
    assert len(size.lines[0].get_xdata()) == 9
    once = read_runs(rows).one_epoch.sum()
    filled = sum(len(p.get_facecolors()) for p in compute.collections if len(p.get_facecolors()))
    assert filled >= once
    figure = Figure(figsize=(12, 4))
    draw_allocation(figure, rows, law)
    assert [panel.get_ylabel() for panel in figure.axes] == [
        "test mean squared error", "spectra seen", "weights",
    ]  # fmt: skip


def test_figure_of_runs_left_out():
    measured = np.geomspace(1e-5, 1e-3, 12)
    found = CrossValidation(
        "parameters", np.repeat([1e5, 1e6, 1e7], 4), measured, 1.1 * measured, measured < 1e-4
    )
    figure: Any = Figure(figsize=(10, 5))
    draw_cross_validation(figure, {"size": found, "decade": found})
    assert found.median_factor == pytest.approx(1.1) and found.coverage68 == 0.5
    assert "median factor 1.10" in figure.axes[0].texts[0].get_text()
