"""The optimum of a learning-rate sweep: synthetic rows whose optimum is known."""

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from emulators.errors import InputError
from scaling.figures import draw_transfer
from scaling.transfer import find_optima, find_shifts

RATES = [2e-3 * 2.0**k for k in range(-4, 5)]
# The optimum stays in one scheme; in the other it falls by 2 for every doubling of the width.
BEST = {
    ("MaximalUpdate", 64): 2.4e-3,
    ("MaximalUpdate", 512): 2.4e-3,
    ("Standard", 64): 3e-3,
    ("Standard", 512): 3e-3 / 8,
}


def sweep_rows(noise=0.0, seeds=5):
    """Rows whose ln(MSE) is a parabola in ln(rate), with a scatter from seed to seed."""
    rng = np.random.default_rng(0)
    rows = []
    for (name, width), best in BEST.items():
        for seed in range(seeds):
            for rate in RATES:
                log_mse = math.log(1e-4) + 0.3 * math.log(rate / best) ** 2
                rows.append(
                    {
                        "parametrization": name,
                        "width": width,
                        "learning_rate": rate,
                        "seed": seed,
                        "mse_validation": math.exp(log_mse + noise * rng.normal()),
                    }
                )
    return rows


def test_exact_rows_give_the_optimum_exactly():
    found = find_optima(sweep_rows())
    assert [(f.parametrization, f.width) for f in found] == sorted(BEST)
    for optimum in found:
        best = BEST[optimum.parametrization, optimum.width]
        np.testing.assert_allclose(
            [optimum.learning_rate, optimum.lower, optimum.upper], best, rtol=1e-9
        )
        assert optimum.bracketed and optimum.seeds == 5
    shifts = {shift.parametrization: shift for shift in find_shifts(sweep_rows())}
    assert shifts["Standard"].widths == (64, 512)
    np.testing.assert_allclose(shifts["Standard"].octaves, -3.0, atol=1e-9)
    np.testing.assert_allclose(shifts["MaximalUpdate"].octaves, 0.0, atol=1e-9)


def test_interval_is_that_of_the_seeds():
    # By error propagation through the vertex of three points an octave apart: ln(rate) scatters by
    # noise / sqrt(seeds) times the norm of its derivatives by the three values.
    noise, seeds, step, curvature = 0.01, 40, math.log(2), 0.3
    for optimum in find_optima(sweep_rows(noise, seeds)):
        best = BEST[optimum.parametrization, optimum.width]
        nearest = min(RATES, key=lambda rate: abs(math.log(rate / best)))
        offset = math.log(best / nearest) / step
        slope = np.array([0.5 - offset, 2 * offset, -0.5 - offset]) / (2 * curvature * step)
        expected = noise * np.linalg.norm(slope) / math.sqrt(seeds)
        half = 0.5 * math.log(optimum.upper / optimum.lower)
        assert 0.6 * expected < half < 1.5 * expected
        assert abs(math.log(optimum.learning_rate / best)) < 4 * expected


def test_diverged_runs_bound_the_sweep():
    rows = sweep_rows()
    for row in rows:
        if row["learning_rate"] > 2e-3:
            row["mse_validation"] = None if row["seed"] == 3 else math.nan
    first = find_optima(rows)[0]
    assert first.learning_rate == pytest.approx(2e-3) and first.bracketed
    draw_transfer(Figure(), rows)


def test_an_optimum_at_the_end_is_told():
    rows = [row for row in sweep_rows() if row["learning_rate"] > 9e-4]
    told = {(f.parametrization, f.width): f.bracketed for f in find_optima(rows)}
    assert told == {key: key != ("Standard", 512) for key in BEST}


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda row: row["learning_rate"] < 3e-4, "2 rates; give three"),
        (lambda row: (row["learning_rate"], row["seed"]) != (2e-3, 1), "rate 0.002 with seed 1"),
        (lambda row: row["width"] == 64, "width 64 only"),
    ],
)
def test_incomplete_sweeps_are_refused(keep, message):
    with pytest.raises(InputError, match=message):
        find_shifts([row for row in sweep_rows() if keep(row)])


def test_sweep_that_diverged_everywhere_is_refused():
    with pytest.raises(InputError, match="diverged at every rate"):
        find_optima([row | {"mse_validation": math.inf} for row in sweep_rows()])


def test_figure_shows_every_width_and_its_optimum():
    figure: Any = Figure(figsize=(10, 4))
    draw_transfer(figure, sweep_rows(0.05))
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("MaximalUpdate", "Standard")
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["64", "512"]
    marked = [line.get_xdata()[0] for line in right.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(marked, [3e-3, 3e-3 / 8], rtol=0.2)
