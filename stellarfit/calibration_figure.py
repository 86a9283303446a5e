"""The picture of a calibration, drawn on a matplotlib figure that the caller brings."""

from typing import Any

import numpy as np
from scipy.stats import binom

from .calibration import LEVELS, Calibration

_INK = "#20252b"
_COLOURS = {"law": "#1d4f91", "validation": "#1b9e77", "white": "#d95f02", "none": "#a6761d"}


def draw_calibration(figure: Any, found: dict[str, Calibration]) -> None:
    """Coverage against S/N for every noise, and the ranks of the first noise's labels.

    Above: the share of truths in the central 50, 68 and 95%, mean over the labels (line) and
    every single label (dots). Below: how far the ranks are from uniform, cumulated, a line a
    label; inside the grey band are 95% of the labels of perfect posteriors.

    Parameters
    ----------
    figure
        An empty ``matplotlib.figure.Figure``; 10 inches by 7 suit it.
    """
    first = next(iter(found.values()))
    snrs = sorted(set(first.snr.tolist()))
    grid = figure.add_gridspec(2, max(len(snrs), 3))
    for column, level in enumerate(LEVELS):
        _coverage(figure.add_subplot(grid[0, column]), found, level)
    for column, snr in enumerate(snrs):
        _ranks(figure.add_subplot(grid[1, column]), first.at(snr), snr, column == 0)


def _coverage(panel, found, level):
    for place, (noise, calibration) in enumerate(found.items()):
        snrs = sorted(set(calibration.snr.tolist()))
        shares = [calibration.at(snr).coverage(level) for snr in snrs]
        colour = _COLOURS.get(noise, _INK)
        moved = np.array(snrs) * 1.06**place
        panel.plot(moved, np.mean(shares, axis=1), color=colour, linewidth=1.4, label=noise)
        for x, one in zip(moved, shares, strict=True):
            panel.plot(np.full(len(one), x), one, ".", color=colour, markersize=3, alpha=0.6)
    panel.axhline(level, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)))
    panel.set_xscale("log")
    panel.set_ylim(0, 1)
    panel.set_xlabel("S/N a pixel")
    panel.set_title(f"truth inside the central {100 * level:g}%", fontsize=9)
    if level == LEVELS[0]:
        panel.legend(fontsize=7, frameon=False)


def _ranks(panel, calibration, snr, leftmost):
    number = len(calibration.rank)
    grid = np.linspace(0, 1, 101)
    low, high = (binom.ppf(q, number, grid) / number - grid for q in (0.025, 0.975))
    panel.fill_between(grid, low, high, color="#dddddd", linewidth=0)
    for label, ranks in zip(calibration.names, calibration.rank.T, strict=True):
        cumulated = np.searchsorted(np.sort(ranks), grid, side="right") / number
        panel.plot(grid, cumulated - grid, linewidth=0.8, label=label)
    panel.set_title(f"ranks, S/N {snr:g}, {number} stars", fontsize=9)
    panel.set_xlabel("rank of the truth")
    if leftmost:
        panel.set_ylabel("cumulated share - rank")
