"""The paper's two figures from a ledger, and predicted against measured errors.

Drawn on a matplotlib figure that the caller brings, as in `scaling.figures`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .cross_validation import CrossValidation
from .figures import dress, shade
from .frontier import data_limit, frontier, isoflop, law_frontier, size_limit
from .law import PERCENTILES, ScalingLaw
from .law_fit import log_mse
from .runs import Runs, read_runs

_INK = "#20252b"
_LAW = "#d95f02"


def draw_scaling(figure: Any, rows: Sequence[dict[str, Any]], law: ScalingLaw) -> None:
    """The paper's Figure 1: test error against compute, against data and against size.

    Left all runs, coloured by size, filled where no spectrum was seen twice, with the frontier;
    upper right the best error of every number of unique spectra, lower right of every size. The
    joint law is in orange: at each budget with fresh spectra, and in the limit of the other terms.

    Parameters
    ----------
    figure
        An empty ``matplotlib.figure.Figure``; 11 by 6 inches suit it.
    rows
        Of a ledger.
    law
        Fitted to it.
    """
    runs = read_runs(rows)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.6, 1.0))
    left = figure.add_subplot(grid[:, 0])
    _scatter(left, runs)
    best = runs.select(frontier(runs))
    left.loglog(
        best.flops, best.test, color=_INK, linewidth=1.2, label=_slope(best.flops, best.test)
    )
    flops = np.geomspace(*law.ranges["flops"], 60)
    optima = law_frontier(law.theta[None], law.recipe, flops)
    left.loglog(flops, optima.mse[0], color=_LAW, linewidth=1.2, label="joint law, fresh spectra")
    _finish(left, "compute", "training FLOPs")
    limits = (
        (data_limit(runs), "unique", "data", "unique spectra"),
        (size_limit(runs), "parameters", "size", "weights"),
    )
    for row, (which, column, title, x) in enumerate(limits):
        panel = figure.add_subplot(grid[row, 1])
        ours = runs.select(which)
        values = getattr(ours, column)
        panel.loglog(
            values, ours.test, "o", color=_INK, markersize=4, label=_slope(values, ours.test)
        )
        if len(values):
            line = np.geomspace(values.min(), values.max(), 60)
            panel.loglog(line, _limit(law, line, column), color=_LAW, linewidth=1.2)
        _finish(panel, title, x)


def draw_allocation(figure: Any, rows: Sequence[dict[str, Any]], law: ScalingLaw) -> None:
    """The paper's Figure 2: error, spectra and size of the best runs at every budget.

    Circles are the runs of the frontier, filled where no spectrum was seen twice; diamonds the
    vertices of the IsoFLOP parabolas; orange the joint law with its 68% interval.

    Parameters
    ----------
    figure
        An empty ``matplotlib.figure.Figure``; 12 by 4 inches suit it.
    rows
        Of a ledger.
    law
        Fitted to it.
    """
    runs = read_runs(rows)
    best, iso = runs.select(frontier(runs)), isoflop(runs)
    flops = np.geomspace(*law.ranges["flops"], 30)
    optima = law_frontier(np.vstack([law.theta, law.draws]), law.recipe, flops)
    columns = (
        ("error", "test mean squared error", best.test, iso.mse, optima.mse),
        ("data", "spectra seen", best.seen, iso.seen, optima.seen),
        ("size", "weights", best.parameters, iso.parameters, optima.parameters),
    )
    for panel, (title, y, ours, vertex, theirs) in zip(figure.subplots(1, 3), columns, strict=True):
        faces = [_INK if once else "none" for once in best.one_epoch]
        panel.scatter(
            best.flops, ours, s=18, c=faces, edgecolors=_INK, label=_slope(best.flops, ours)
        )
        panel.scatter(
            iso.flops, vertex, s=22, marker="D", c="none", edgecolors="#1d91c0", label="IsoFLOP"
        )
        panel.plot(flops, theirs[0], color=_LAW, linewidth=1.2, label=_slope(flops, theirs[0]))
        low, high = np.percentile(theirs[1:], PERCENTILES[:2], axis=0)
        panel.fill_between(flops, low, high, color=_LAW, alpha=0.25, linewidth=0)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_ylabel(y)
        _finish(panel, title, "training FLOPs")


def draw_cross_validation(figure: Any, held_out: dict[str, CrossValidation]) -> None:
    """Predicted against measured test error of runs whose size, or decade, was left out.

    Parameters
    ----------
    figure
        An empty ``matplotlib.figure.Figure``; 10 by 5 inches suit it.
    held_out
        From `scaling.cross_validation.cross_validate`.
    """
    panels = figure.subplots(1, len(held_out), squeeze=False)[0]
    for panel, (name, found) in zip(panels, held_out.items(), strict=True):
        groups = np.unique(found.group)
        for number, value in enumerate(groups):
            ours = found.group == value
            panel.loglog(
                found.measured[ours], found.predicted[ours], "o", markersize=3,
                color=shade(number, len(groups)), label=f"{value:.2g}",
            )  # fmt: skip
        ends = np.array([found.measured.min(), found.measured.max()])
        panel.loglog(ends, ends, color=_INK, linewidth=0.8)
        panel.text(
            0.04, 0.96,
            f"median factor {found.median_factor:.2f}\n{found.coverage68:.0%} in 68% intervals",
            transform=panel.transAxes, va="top", fontsize=8,
        )  # fmt: skip
        dress(panel, f"without the {name}", "measured mean squared error", None)
        panel.set_ylabel("predicted")
        panel.legend(
            fontsize=6, frameon=False, title=found.held, title_fontsize=7, loc="lower right"
        )


def _scatter(panel: Any, runs: Runs) -> None:
    sizes = np.unique(runs.parameters)
    for number, size in enumerate(sizes):
        ours = runs.select(runs.parameters == size)
        colour = shade(number, len(sizes))
        faces = [colour if once else "none" for once in ours.one_epoch]
        panel.scatter(
            ours.flops, ours.test, s=12, c=faces, edgecolors=colour, linewidths=0.8,
            label=f"{size:.2g} weights",
        )  # fmt: skip


def _limit(law: ScalingLaw, values: np.ndarray, column: str) -> np.ndarray:
    """The law with all but one of its resources unlimited."""
    enough = 1e18
    parameters, unique = (enough, values) if column == "unique" else (values, enough)
    return np.exp(np.asarray(log_mse(law.theta, parameters, unique, enough)))


def _slope(x: np.ndarray, y: np.ndarray) -> str:
    if len(x) < 2:
        return "measured"
    return f"power {np.polyfit(np.log(x), np.log(y), 1)[0]:+.2f}"


def _finish(panel: Any, title: str, x: str) -> None:
    dress(panel, title, x, None)
    panel.legend(fontsize=7, frameon=False)
