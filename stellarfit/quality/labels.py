"""Sections of the page about labels: the Kiel diagram, and their errors against S/N."""

from typing import Any

import numpy as np

from ..catalog import unit_of
from ..plots import STYLE, new_figure
from .section import WIDTH, Picture, Section, Table, draw
from .stars import Stars, column_text, count_text, stars_text, with_unit

_MANY = 4000  # stars beyond which points would hide one another
_CELLS = (150, 110)
_KIEL = ("teff", "logg", "fe_h")
_PERCENTILES = (1, 16, 50, 84, 99)
_MOST_BINS = 8
_PARTS = {"stat": ("#1d4f91", "photon noise (stat)"), "sys": ("#c8553d", "the rest (sys)")}


def kiel_section(stars: Stars) -> Section:
    """Where the stars lie in Teff and log g, by their [Fe/H]."""
    title = "Kiel diagram"
    if lacking := stars.lacks(*_KIEL):
        return Section(title, lacking)
    shown = stars.usable & np.isfinite([stars[name] for name in _KIEL]).all(axis=0)
    num = int(shown.sum())
    text = [
        f"{stars_text(num)} that no flag forbids to use. Left out: "
        f"{count_text(stars.bad.sum())} with such a flag (flag_bad), "
        f"{count_text(stars.failed.sum())} without a result."
    ]
    if num == 0:
        return Section(title, [*text, "There is no such star to draw."])
    values = {name: stars[name][shown] for name in _KIEL}
    picture = _draw_kiel(*values.values())
    percentiles = {name: np.percentile(x, _PERCENTILES) for name, x in values.items()}
    table = Table(
        "Percentiles of the stars drawn",
        ["column", *(f"{percent}%" for percent in _PERCENTILES)],
        [[with_unit(name), *map(_value, x)] for name, x in percentiles.items()],
    )
    return Section(title, text, [picture], [table])


def _draw_kiel(teff: np.ndarray, logg: np.ndarray, fe_h: np.ndarray) -> Picture:
    from matplotlib import rc_context

    many = len(teff) > _MANY
    low, high = np.percentile(fe_h, [2, 98])
    colours: Any = {"cmap": "viridis", "vmin": low, "vmax": high}
    with rc_context(STYLE):
        figure = new_figure(WIDTH, 4.4)
        panel = figure.add_axes((0.13, 0.12, 0.84, 0.86))
        if many:
            number, x, y = np.histogram2d(teff, logg, _CELLS)
            total, *_ = np.histogram2d(teff, logg, (x, y), weights=fe_h)
            mean = np.where(number > 0, total / np.maximum(number, 1), np.nan)
            drawn: Any = panel.pcolormesh(x, y, mean.T, **colours)
        else:
            size = float(np.clip(3000 / len(teff), 4, 30))
            drawn = panel.scatter(teff, logg, c=fe_h, s=size, lw=0, **colours)
        panel.invert_xaxis()
        panel.invert_yaxis()
        panel.set_xlabel(f"{column_text('teff')} [K]")
        panel.set_ylabel(f"{column_text('logg')} [dex]")
        label = f"{'mean ' if many else ''}{column_text('fe_h')} [dex]"
        figure.colorbar(drawn, ax=panel, label=label, pad=0.02)
        alt = (
            "Kiel diagram: log g, downwards, against effective temperature, to the left, of "
            f"{stars_text(len(teff))} between {teff.min():.0f} and {teff.max():.0f} K, coloured "
            f"by {'mean ' if many else ''}[Fe/H]."
        )
        return draw(figure, alt)


def error_section(stars: Stars) -> Section:
    """How errors fall with S/N, what photon noise makes of them and what the rest does."""
    title = "Errors against S/N"
    if lacking := stars.lacks("snr"):
        return Section(title, lacking)
    names = stars.main("_stat", "_sys")
    shown = stars.usable & np.isfinite(stars["snr"]) & (stars["snr"] > 0)
    if not names or not shown.any():
        return Section(title, ["There is no star with an S/N and errors that could be drawn."])
    snr = stars["snr"][shown]
    edges = _edges(snr)
    place = np.clip(np.searchsorted(edges, snr, side="right") - 1, 0, len(edges) - 2)
    errors = {(name, part): stars[f"e_{name}_{part}"][shown] for name in names for part in _PARTS}
    binned = {key: _bin(x, place, len(edges) - 1) for key, x in errors.items()}
    number = np.bincount(place, minlength=len(edges) - 1)
    rows = [
        [
            f"{edges[i]:.3g} to {edges[i + 1]:.3g}",
            count_text(number[i]),
            *(f"{binned[key][i, 1]:.3g}" for key in errors),
        ]
        for i in range(len(number))
        if number[i]
    ]
    head = [f"e_{name}_{part} [{unit_of(name) or 'dex'}]" for name, part in errors]
    text = [
        f"{stars_text(len(snr))} that no flag forbids to use. Photon noise falls with S/N; the "
        "rest (emulator error and model mismatch) need not, and does not average down over stars.",
    ]
    table = Table("Median error by S/N a pixel", ["S/N", "stars", *head], rows)
    picture = _draw_errors(names, snr, errors, binned, place)
    return Section(title, text, [picture], [table])


def _edges(snr: np.ndarray) -> np.ndarray:
    """Edges of bins of S/N, uniform in its logarithm; fewer where stars are few."""
    low, high = float(snr.min()), float(snr.max())
    num = int(np.clip(len(snr) // 10, 1, _MOST_BINS))
    if high / low < 1.01:
        return np.array([low, high])
    return np.geomspace(low, high, num + 1)


def _bin(values: np.ndarray, place: np.ndarray, num: int) -> np.ndarray:
    """16th, 50th and 84th percentile [bin, percentile]; NaN where nothing is finite."""
    found = np.full((num, 3), np.nan)
    for i in range(num):
        inside = values[(place == i) & np.isfinite(values)]
        if len(inside):
            found[i] = np.percentile(inside, (16, 50, 84))
    return found


def _draw_errors(names, snr, errors, binned, place) -> Picture:
    from matplotlib import rc_context
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = -(-len(names) // 2)
    used = sorted(set(place.tolist()))
    dots: Any = {"ms": 2.5, "alpha": 0.35} if len(snr) > 100 else {"ms": 5.0, "alpha": 0.7}
    middle = np.array([np.exp(np.log(snr[place == i]).mean()) for i in used])
    with rc_context(STYLE):
        figure = new_figure(WIDTH, 0.6 + 2.1 * rows)
        figure.set_layout_engine("constrained")
        for i, name in enumerate(names):
            panel = figure.add_subplot(rows, min(len(names), 2), i + 1)
            for part, (colour, label) in _PARTS.items():
                low, median, high = binned[name, part][used].T
                if len(snr) <= _MANY:
                    panel.plot(snr, errors[name, part], ".", color=colour, mew=0, **dots)
                panel.fill_between(middle, low, high, color=colour, alpha=0.18, lw=0)
                panel.plot(middle, median, "o-", color=colour, lw=1.3, ms=3.5, label=label)
            panel.set_xscale("log")
            panel.set_yscale("log")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_locator(LogLocator(10, (1, 3)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
            panel.set_title(f"error of {column_text(name)} [{unit_of(name) or 'dex'}]", fontsize=10)
            panel.set_xlabel("S/N a pixel")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
        alt = (
            f"Errors of {', '.join(names)} against S/N from {snr.min():.3g} to {snr.max():.3g}, "
            "both logarithmic: medians, with bands of the central 68%, of the part by photon "
            "noise and of the rest. The medians are in the table below."
        )
        return draw(figure, alt)


def _value(value: float) -> str:
    """Four digits of a label, none of them lost to an exponent."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3f}"
