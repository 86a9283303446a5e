"""Sweeps over depth, tokens and head dimension: their runs, and what is made of their rows."""

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny import LABELS, tiny_data

from scaling.experiments.shape.run import BASE, VARIED, draw, measure, optima, shapes, summarize

RATES = tuple(1e-3 * 2.0**power for power in range(6))


def best_rate(row):
    """Of the rows below: every doubling of the depth halves it; tokens do not matter."""
    return 8e-3 * (4 / row["depth"]) * math.sqrt(row["head_dim"] / 32)


def rows_with_known_optima(widths=(64, 128)) -> list[dict[str, Any]]:
    rows = []
    for width in widths:
        for shape in shapes():
            for rate in RATES:
                log_mse = math.log(1e-4 / width) + math.log(rate / best_rate(shape)) ** 2
                row = {"width": width, **shape, "learning_rate": rate}
                rows += [row | {"seed": s, "mse_validation": math.exp(log_mse)} for s in (0, 1)]
    return rows


def test_shapes_differ_from_the_base_in_one_dimension():
    every = shapes()
    assert every[0] == BASE and len(every) == 1 + sum(len(v) - 1 for v in VARIED.values())
    for shape in every[1:]:
        assert sum(shape[name] != BASE[name] for name in BASE) == 1
    for name, values in VARIED.items():
        assert {shape[name] for shape in every} == set(values)


def test_optima_of_a_dimension_are_those_of_its_own_rows():
    rows = rows_with_known_optima()
    found = optima(rows, 128, "depth")
    assert list(found) == list(VARIED["depth"])
    for depth, optimum in found.items():
        np.testing.assert_allclose(optimum.learning_rate, 8e-3 * 4 / depth, rtol=1e-9)
        assert optimum.mse < 2e-6 and optimum.bracketed
    summary = summarize(rows)
    assert len(summary["optima"]) == 2 * sum(map(len, VARIED.values()))
    moved = {(found["width"], found["varied"]): found["octaves"] for found in summary["shifts"]}
    for width in (64, 128):
        np.testing.assert_allclose(moved[width, "depth"], -3.0, atol=1e-9)
        np.testing.assert_allclose(moved[width, "tokens"], 0.0, atol=1e-9)
        np.testing.assert_allclose(moved[width, "head_dim"], 2.0, atol=1e-9)


def test_figure_has_a_line_for_every_width():
    figure: Any = Figure()
    draw(figure, rows_with_known_optima())
    assert len(figure.axes) == 2 * len(VARIED)
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["d = 64", "d = 128"]
    shown = figure.axes[len(VARIED)].lines[0]
    np.testing.assert_allclose(np.asarray(shown.get_xdata(), float), VARIED["depth"])
    np.testing.assert_allclose(
        np.asarray(shown.get_ydata(), float), [8e-3 * 4 / n for n in VARIED["depth"]]
    )


@pytest.mark.slow
def test_the_sweep_runs_and_resumes(tmp_path):
    settings = {"steps": 20, "batch_size": 4, "num_pixels": None, "precision": "float32"}
    settings |= {"steps_per_call": 10, "validate_every": 20, "checkpoint_every": 20, "warmup": 1}
    data, held_out = (tiny_data(number, pixels=100, seed=number) for number in (32, 8))
    kept = {"widths": (32,), "rates": (1e-3, 2e-3, 4e-3), "seeds": (0, 1)}

    def run(seconds, varied):
        return measure(data, held_out, LABELS, tmp_path, seconds, **kept, varied=varied, **settings)

    assert run(0.0, {"tokens": (16, 4)}) == []
    rows = run(900.0, {"tokens": (16, 4)})
    assert [row["tokens"] for row in rows] == [16] * 6 + [4] * 6
    assert {row["depth"] for row in rows} == {4} and {row["head_dim"] for row in rows} == {32}
    assert len({row["mse_validation"] for row in rows}) == 12
    assert run(0.0, {"tokens": (16, 4)}) == rows
    # Depth 2 alone is new.
    more = run(900.0, {"tokens": (16, 4), "depth": (4, 2)})
    assert more[:12] == rows and [row["depth"] for row in more[12:]] == [2] * 6
    assert list(optima(more, 32, "tokens")) == [4, 16]
