"""Pictures of what this package measures, drawn on a matplotlib figure that the caller brings.

Nothing here imports matplotlib: a machine that only trains does not have it.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.coordinate_check import slopes
from scaling.transfer import find_optima, sweeps

_INK, _GRID = "#20252b", "#d8dce1"
_DASHES = ("-", "--", ":", "-.")
# From narrow to wide; and from the first layer to the last.
_RAMP = ("#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494", "#081d58")


def draw_coordinates(figure: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Change of every layer's activations after the last step, against the width.

    One panel a parametrization; every line begins at 1, and is labelled by its layer and slope.

    Parameters
    ----------
    figure
        An empty ``matplotlib.figure.Figure``; 10 by 5 inches suit two parametrizations.
    rows
        From `check_coordinates`.
    """
    last = max(row["step"] for row in rows)
    found = [s for s in slopes(rows) if s.step == last and np.isfinite(s.slope)]
    names = list(dict.fromkeys(slope.parametrization for slope in found))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        layers = [slope for slope in found if slope.parametrization == name]
        for number, slope in enumerate(layers):
            chosen = [
                row
                for row in rows
                if (row["parametrization"], row["layer"], row["step"]) == (name, slope.layer, last)
            ]
            widths = sorted({row["width"] for row in chosen})
            changes = ([r["change"] for r in chosen if r["width"] == width] for width in widths)
            mean = np.exp([np.mean(np.log(change)) for change in changes])
            colour = shade(number, len(layers))
            label = f"{slope.layer}  {slope.slope:+.2f}"
            style = _DASHES[number % len(_DASHES)]
            panel.loglog(widths, mean / mean[0], style, color=colour, linewidth=1.2, label=label)
        dress(panel, f"{name}: step {last}", "width", widths)
        panel.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    panels[0].set_ylabel(f"mean change of activation, relative to width {widths[0]}")


def draw_transfer(figure: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Validation error against the learning rate for every width, with the optima.

    Points are means over seeds, bars from the best seed to the worst; a diamond marks the
    optimum, with its 68% interval.

    Parameters
    ----------
    figure
        An empty ``matplotlib.figure.Figure``; 10 by 4 inches suit two parametrizations.
    rows
        Of learning-rate sweeps; see `scaling.transfer`.
    """
    every, optima = sweeps(rows), find_optima(rows)
    names = sorted({name for name, _ in every})
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        found = [optimum for optimum in optima if optimum.parametrization == name]
        for number, optimum in enumerate(found):
            sweep = every[name, optimum.width]
            mse = np.exp(sweep.log_mse)
            kept = np.isfinite(mse).all(axis=1)
            mean = np.exp(sweep.log_mse[kept].mean(axis=1))
            spread = np.abs([mse[kept].min(axis=1) - mean, mse[kept].max(axis=1) - mean])
            colour = shade(number, len(found))
            panel.errorbar(
                sweep.rates[kept], mean, yerr=spread, fmt="o-", color=colour, markersize=3,
                linewidth=1, elinewidth=0.7, label=str(optimum.width),
            )  # fmt: skip
            interval = [
                [optimum.learning_rate - min(optimum.lower, optimum.learning_rate)],
                [max(optimum.upper, optimum.learning_rate) - optimum.learning_rate],
            ]
            panel.errorbar(
                optimum.learning_rate, optimum.mse, xerr=interval, fmt="D", color=colour,
                markersize=6, markeredgecolor=_INK, capsize=3,
            )  # fmt: skip
        panel.set_xscale("log")
        panel.set_yscale("log")
        dress(panel, name, "learning rate", None)
        panel.legend(fontsize=8, frameon=False, title="width", title_fontsize=8)
    panels[0].set_ylabel("validation mean squared error")


def dress(panel: Any, title: str, x: str, ticks: Sequence[int] | None) -> None:
    """Title, name of the abscissa and grid; with ticks, only these."""
    panel.set_title(title, fontsize=10, color=_INK)
    panel.set_xlabel(x)
    panel.grid(color=_GRID, linewidth=0.5)
    if ticks is not None:
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.set_xticks([], minor=True)


def shade(number: int, total: int) -> str:
    """Colour of one of a sequence, from light to dark."""
    place = number / max(total - 1, 1) * (len(_RAMP) - 1)
    return _RAMP[math.floor(place + 0.5)]
