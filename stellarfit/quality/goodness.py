"""The section of the page on chi^2: does the model describe the stars?"""

import numpy as np

from ..plots import STYLE, new_figure
from .section import WIDTH, Picture, Section, Table, draw
from .stars import Stars, count_text, stars_text

_PERCENTILES = (1, 16, 50, 84, 99)
_LEVELS = (0.001, 0.01, 0.05, 0.5)
_BLUE, _INK = "#1d4f91", "#20252b"


def chi2_ratio(stars: Stars) -> np.ndarray:
    """chi^2 over its effective degrees of freedom [star]; NaN where there is none."""
    dof = stars["dof_effective"]
    return np.where(dof > 0, stars["chi2"] / np.where(dof > 0, dof, 1.0), np.nan)


def chi2_section(stars: Stars) -> Section:
    """Distributions of chi^2/dof and of its p-value."""
    title = "Goodness of fit"
    if lacking := stars.lacks("chi2", "dof_effective", "p_value"):
        return Section(title, lacking)
    ratio = chi2_ratio(stars)
    ratio = ratio[np.isfinite(ratio)]
    p_value = stars["p_value"][np.isfinite(stars["p_value"])]
    if not len(ratio) or not len(p_value):
        return Section(title, ["No star has a χ²: none was fitted."])
    text = [
        f"{stars_text(len(ratio))} with a result, flagged or not. χ² is over the effective "
        "degrees of freedom (dof_effective), with the emulator's error in the noise. Were errors "
        "and model right, p-values would be uniform: too many near 0 say that errors are too "
        "small or the model misses something, too many near 1 that errors are too large or "
        "that pixels share their noise."
    ]
    tables = [
        Table(
            "Percentiles of χ²/dof",
            ["", *(f"{percent}%" for percent in _PERCENTILES)],
            [["χ²/dof", *(f"{x:.3f}" for x in np.percentile(ratio, _PERCENTILES))]],
        ),
        Table(
            "p-values, were they uniform and as they are",
            ["p below", "expected", "found", "stars"],
            [
                [f"{level:g}", f"{100 * level:g}%", _percent(p_value < level),
                 count_text((p_value < level).sum())]
                for level in _LEVELS
            ],
        ),
    ]  # fmt: skip
    return Section(title, text, [_draw(ratio, p_value)], tables)


def _draw(ratio: np.ndarray, p_value: np.ndarray) -> Picture:
    from matplotlib import rc_context
    from matplotlib.ticker import LogLocator, NullFormatter

    bins = int(np.clip(np.sqrt(len(ratio)), 8, 60))
    positive = ratio[ratio > 0]
    # A few stars at hundreds must not squeeze all others into one bar.
    low, high = np.percentile(positive, [0.5, 99.5]) if len(positive) else (0.5, 2.0)
    low, high = min(low, 0.9), max(high, 1.1)
    wide = high > 3 * low
    edges = (np.geomspace if wide else np.linspace)(low, high, bins + 1)
    outside = int(((ratio < edges[0]) | (ratio > edges[-1])).sum())
    with rc_context(STYLE):
        figure = new_figure(WIDTH, 4.6)
        figure.set_layout_engine("constrained")
        top, bottom = figure.subplots(2, 1)
        top.hist(ratio, edges, color=_BLUE)
        top.axvline(1, color=_INK, lw=0.9, ls=(0, (4, 3)))
        if wide:
            top.set_xscale("log")
            top.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
            top.xaxis.set_major_formatter("{x:g}")
            top.xaxis.set_minor_formatter(NullFormatter())
        top.set_xlabel("χ²/dof" + (f"   ({outside:,} outside)" if outside else ""))
        top.set_ylabel("stars")
        tenths = int(np.clip(bins, 10, 20))
        bottom.hist(p_value, np.linspace(0, 1, tenths + 1), color=_BLUE)
        bottom.axhline(len(p_value) / tenths, color=_INK, lw=0.9, ls=(0, (4, 3)))
        bottom.set_xlabel("p-value (dashed: uniform)")
        bottom.set_ylabel("stars")
        alt = (
            f"Two histograms of {stars_text(len(ratio))}: χ²/dof, median "
            f"{np.median(ratio):.3f}, beside a line at 1; and p-values, "
            f"{_percent(p_value < 0.05)} of them below 0.05, beside the line of a uniform "
            "distribution."
        )
        return draw(figure, alt)


def _percent(which: np.ndarray) -> str:
    return f"{100 * which.mean():.3g}%"
