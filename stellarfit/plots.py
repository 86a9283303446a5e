"""Pictures: the fit with its residuals, its error budget, and the posterior's corner."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter

from emulators.errors import InputError

from .arms import ZERO_POINT, Arms

_INK, _MODEL, _MASK, _TRUTH = "#20252b", "#d1495b", "#c9ced6", "#1b7f79"
_SPARED, _UNUSED = "#e08e1b", "#98a1ab"
_ROW_WIDTH = 50.0  # Angstrom a row: lines of a cool star can still be told apart
_MOST_ROWS = 6
_A_LINE = 6  # labels in one line of the headline
STYLE: Any = {
    "axes.edgecolor": "#8a929c",
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "xtick.color": "#5b636d",
    "ytick.color": "#5b636d",
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "font.size": 10,
}
_TEXT = {"teff": r"$T_\mathrm{eff}$", "logg": r"$\log g$", "vmic": r"$v_\mathrm{mic}$"}
_TEXT |= {"v_rad": r"$v_\mathrm{rad}$", "v_sini": r"$v\,\sin i$", "v_mac": r"$v_\mathrm{mac}$"}
_UNIT = {"teff": "K", "vmic": "km/s", "v_rad": "km/s", "v_sini": "km/s", "v_mac": "km/s"}


def label_text(name: str) -> str:
    """A parameter as astronomers write it: ``mg_fe`` becomes [Mg/Fe]."""
    if name in _TEXT:
        return _TEXT[name]
    if name.startswith(ZERO_POINT):
        return f"zero point of {name.removeprefix(ZERO_POINT)}"
    over, _, under = name.partition("_")
    return f"[{over.capitalize()}/{under.capitalize()}]" if under else name


def _unit_text(name: str) -> str:
    unit = "km/s" if name.startswith(ZERO_POINT) else _UNIT.get(name, "")
    return unit and f" {unit}"


def value_text(value: float, error: float) -> str:
    """A value with its error, both to two digits of the error."""
    if not (np.isfinite(error) and error > 0):
        return f"{value:g}"
    digits = int(np.clip(1 - np.floor(np.log10(error)), 0, 4))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def plot_fit(fit: Any) -> Figure:
    """Data, model and residuals in sigma, in rows of wavelength, arm by arm.

    Masked pixels are crosses on hatched grey; pixels that the fit down-weighted are amber.

    Returns a figure of its own (no global state): ``figure.savefig("fit.png")``.
    """
    from matplotlib import rc_context

    spectrum = fit.spectrum
    residual = (spectrum.flux - fit.model_flux) * np.sqrt(spectrum.ivar)
    arrays = (fit.model_flux, fit.weight, residual)
    rows = lay_rows([_View(*parts) for parts in split_arms(spectrum, *arrays)])
    with rc_context(STYLE):
        head = 0.65 + 0.25 * np.ceil((len(fit.names) + len(fit.fixed)) / _A_LINE)
        figure = new_figure(13.0, 0.5 + head + 2.55 * len(rows))
        height = figure.get_figheight()
        grid = figure.add_gridspec(
            len(rows), 1, left=0.055, right=0.985, bottom=0.5 / height,
            top=1 - head / height, hspace=0.28,
        )  # fmt: skip
        for row, (view, start, stop) in enumerate(rows):
            low, high = _flux_limits(view)
            span = _residual_span(view.residual[view.spectrum.good])
            pair = grid[row].subgridspec(2, 1, height_ratios=(3, 1), hspace=0.0)
            top = figure.add_subplot(pair[0])
            bottom = figure.add_subplot(pair[1], sharex=top)
            _draw_row(top, bottom, view, start, stop)
            top.set_ylim(low, high)
            bottom.set_ylim(-span, span)
            top.set_ylabel(f"flux, {view.arm}" if view.arm else "flux")
            bottom.set_ylabel("resid. [σ]")
            if row == len(rows) - 1:
                bottom.set_xlabel("vacuum wavelength [Å]")
        _headline(figure, fit, height)
    return figure


def plot_budget(fit: Any) -> Figure:
    """What each parameter's error is made of: shares of its variance, a bar a parameter."""
    from matplotlib import rc_context

    parts = {
        "photon noise": (fit.error_stat, _MASK),
        "emulator": (fit.error_emulator, _MODEL),
        "model mismatch": (fit.error_mismatch, _SPARED),
    }
    place = np.arange(len(fit.names))
    with rc_context(STYLE):
        figure = new_figure(7.0, 1.1 + 0.27 * len(fit.names))
        height = figure.get_figheight()
        panel = figure.add_axes((0.14, 0.55 / height, 0.66, 1 - 0.95 / height))
        left = np.zeros(len(fit.names))
        for name, (part, colour) in parts.items():
            share = (part / fit.error) ** 2
            panel.barh(place, share, left=left, color=colour, label=name, height=0.8)
            left = left + share
        for y, value, error in zip(place, fit.values, fit.error, strict=True):
            panel.text(
                1.02, float(y), value_text(value, error), va="center", fontsize=8, color=_INK
            )
        panel.set_yticks(place, [label_text(name) for name in fit.names])
        panel.invert_yaxis()
        panel.set_xlim(0, 1)
        panel.set_xlabel("share of the squared error")
        panel.legend(ncols=3, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    return figure


def plot_corner(
    posterior: Any, truth: Mapping[str, float] | None = None, names: Sequence[str] | None = None
) -> Figure:
    """Marginal posteriors of every parameter and every pair (68% and 95% regions).

    Parameters
    ----------
    posterior : Posterior
    truth : mapping, optional
        Known values, drawn as lines.
    names : sequence of str, optional
        What to show of ``posterior.draws``: parameters, or [X/H] such as ``mg_h``. By default all
        parameters.

    Raises
    ------
    InputError
        A name that the posterior does not have.
    """
    from matplotlib import rc_context

    known, names = posterior.draws, list(names or posterior.names)
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"names: unknown {unknown[0]!r}; known: {', '.join(known)}")
    draws = np.stack([known[name].ravel() for name in names], axis=1)
    num = len(names)
    # Small panels carry few ticks; large ones have room for more.
    size = float(np.clip(16.0 / num, 1.15, 2.4))
    small = float(np.clip(4.2 * size, 6.5, 9))
    limits = [_range(draws[:, i], (truth or {}).get(name)) for i, name in enumerate(names)]
    with rc_context(STYLE | {"xtick.labelsize": small, "ytick.labelsize": small}):
        figure = new_figure(size * num + 1.15, size * num + 1.2)
        side_x, side_y = figure.get_size_inches()
        grid = figure.add_gridspec(
            num, num, left=0.85 / side_x, right=1 - 0.3 / side_x, bottom=0.85 / side_y,
            top=1 - 0.35 / side_y, hspace=0.06, wspace=0.06,
        )  # fmt: skip
        for i in range(num):
            for j in range(i + 1):
                axes = figure.add_subplot(grid[i, j])
                axes.set_xlim(*limits[j])
                if i == j:
                    _draw_marginal(axes, draws[:, i], names[i], small)
                else:
                    axes.set_ylim(*limits[i])
                    _draw_pair(axes, draws[:, j], draws[:, i], limits[j], limits[i])
                _draw_truth(axes, truth or {}, names[j], names[i] if i != j else None)
                _dress(axes, i, j, names, size, small)
    return figure


def split_arms(spectrum: Any, *arrays: np.ndarray) -> list[tuple[Any, ...]]:
    """Name, spectrum and own pixels of some arrays, of every arm with a good pixel.

    The last axis of the arrays is that of the pixels; the name of a spectrum that is the only one
    is empty.
    """
    if not isinstance(spectrum, Arms):
        return [("", spectrum, *arrays)]
    parts = [spectrum.split(array) for array in arrays]
    return [
        (name, one, *(part[name] for part in parts))
        for name, one in spectrum.spectra.items()
        if name not in spectrum.unused
    ]


def lay_rows(views: Sequence[Any]) -> list[tuple[Any, float, float]]:
    """Rows of a picture: what has a `spectrum`, first and last wavelength [vacuum Angstrom]."""
    most, rows = max(_MOST_ROWS // len(views), 1), []
    for view in views:
        start, stop = view.spectrum.wavelength[view.spectrum.good][[0, -1]]
        number = int(np.clip(np.ceil((stop - start) / _ROW_WIDTH), 1, most))
        rows += [(view, *ends) for ends in pairwise(np.linspace(start, stop, number + 1))]
    return rows


def new_figure(width: float, height: float) -> Figure:
    """An empty figure [inches] without global state."""
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


class _View(NamedTuple):
    """What is drawn of one arm, or of a spectrum that is the only one."""

    arm: str
    spectrum: Any
    model_flux: np.ndarray
    weight: np.ndarray
    residual: np.ndarray


def _flux_limits(view: _View) -> tuple[float, float]:
    good = view.spectrum.good
    shown = np.concatenate([view.spectrum.flux[good], view.model_flux[good]])
    low, high = np.percentile(shown[np.isfinite(shown)], [0.05, 99.9])
    return low - 0.06 * (high - low), high + 0.10 * (high - low)


def _residual_span(residual: np.ndarray) -> float:
    return float(np.clip(1.25 * np.percentile(np.abs(residual), 99.5), 4.0, 40.0))


def _draw_row(top, bottom, view, start, stop) -> None:
    spectrum, residual = view.spectrum, view.residual
    wavelength, good = spectrum.wavelength, spectrum.good
    for axes in (top, bottom):
        axes.set_xlim(start, stop)
        for low, high in bad_spans(wavelength, spectrum.width, good, start, stop):
            axes.axvspan(low, high, facecolor="#eceff3", edgecolor=_MASK, hatch="////", lw=0)
    # Two orders may overlap, so pixels are dots joined by nothing; the model is one line.
    shown = (wavelength >= start) & (wavelength <= stop)
    used, unused = shown & good, shown & ~good & np.isfinite(spectrum.flux)
    top.plot(wavelength[used], spectrum.flux[used], ".", color=_INK, ms=2.8, mew=0)
    spared = used & (view.weight < 1)
    top.plot(wavelength[spared], spectrum.flux[spared], ".", color=_SPARED, ms=3.4, mew=0)
    top.plot(wavelength[unused], spectrum.flux[unused], "x", color=_UNUSED, ms=2.8, mew=0.6)
    line = np.where(shown, view.model_flux, np.nan)[shown]
    top.plot(wavelength[shown], line, color=_MODEL, lw=1.0)
    bottom.axhline(0, color=_MODEL, lw=0.8)
    for level in (-3, 3):
        bottom.axhline(level, color=_MASK, lw=0.7, ls=(0, (4, 3)))
    bottom.plot(wavelength[used], residual[used], ".", color=_INK, ms=1.6, mew=0)
    bottom.plot(wavelength[spared], residual[spared], ".", color=_SPARED, ms=2.8, mew=0)
    bottom.plot(wavelength[unused], residual[unused], "x", color=_UNUSED, ms=2.2, mew=0.5)
    top.tick_params(labelbottom=False, direction="in", which="both")
    bottom.tick_params(direction="in")
    top.yaxis.set_major_locator(MaxNLocator(4, prune="lower"))
    bottom.yaxis.set_major_locator(MaxNLocator(3, prune="upper"))


def bad_spans(wavelength, width, good, start, stop) -> list[tuple[float, float]]:
    """Stretches of masked pixels within the row, as edges [Angstrom]."""
    bad = np.flatnonzero(~good & (wavelength >= start) & (wavelength <= stop))
    if not len(bad):
        return []
    runs = np.split(bad, np.flatnonzero(np.diff(bad) > 1) + 1)
    low, high = wavelength - width / 2, wavelength + width / 2
    return [(low[run[0]], high[run[-1]]) for run in runs]


def _headline(figure, fit, height) -> None:
    """The star, and a line of labels under it."""
    parts = [
        f"{label_text(name)} = {value_text(value, error)}" + _unit_text(name)
        for name, value, error in zip(fit.names, fit.values, fit.error, strict=True)
    ]
    parts += [f"{label_text(name)} = {value:g} (fixed)" for name, value in fit.fixed.items()]
    lines = ["    ".join(parts[i : i + _A_LINE]) for i in range(0, len(parts), _A_LINE)]
    title = f"{fit.spectrum.name or 'star'}   χ²/dof = {fit.chi2:.0f}/{fit.dof_effective:.0f}"
    figure.text(0.055, 1 - 0.30 / height, title, fontsize=13, weight="bold", color=_INK)
    for i, line in enumerate(lines):
        figure.text(0.055, 1 - (0.58 + 0.25 * i) / height, line, fontsize=10, color=_INK)
    key = [("●", _INK, "data"), ("—", _MODEL, "model"), ("●", _SPARED, "down-weighted")]
    key.append(("×", _UNUSED, "masked"))
    for i, (mark, color, text) in enumerate(key):
        x = 0.70 + (0.0, 0.06, 0.13, 0.235)[i]
        figure.text(x, 1 - 0.30 / height, mark, fontsize=10, color=color)
        figure.text(x + 0.012, 1 - 0.30 / height, text, fontsize=10, color=_INK)


def _range(draws: np.ndarray, truth: float | None) -> tuple[float, float]:
    low, high = np.percentile(draws, [0.15, 99.85])
    if truth is not None:
        low, high = min(low, truth), max(high, truth)
    pad = 0.06 * (high - low) or 1e-6
    return low - pad, high + pad


def _draw_marginal(axes, draws, name, small) -> None:
    counts, edges = np.histogram(draws, bins=40, range=axes.get_xlim())
    smooth = gaussian_filter(counts.astype(float), 1.0)
    centers = (edges[1:] + edges[:-1]) / 2
    axes.fill_between(centers, smooth, color="#3d5a80", alpha=0.18, lw=0)
    axes.plot(centers, smooth, color="#3d5a80", lw=1.2)
    low, middle, high = np.percentile(draws, [16, 50, 84])
    for value in (low, high):
        axes.axvline(value, color="#3d5a80", lw=0.7, ls=(0, (3, 2)))
    axes.set_ylim(0, 1.15 * smooth.max())
    text = value_text(middle, (high - low) / 2) + _unit_text(name)
    axes.set_title(text, fontsize=small + 0.5, pad=3)


def _draw_pair(axes, x, y, x_range, y_range) -> None:
    bins = int(np.clip(np.sqrt(len(x)) / 2, 16, 40))
    counts, x_edges, y_edges = np.histogram2d(x, y, bins=bins, range=(x_range, y_range))
    density = gaussian_filter(counts.T, 1.0)
    ordered = np.sort(density.ravel())[::-1]
    inside = np.cumsum(ordered) / ordered.sum()
    levels = sorted({float(ordered[np.searchsorted(inside, share)]) for share in (0.95, 0.68)})
    centers_x, centers_y = (x_edges[1:] + x_edges[:-1]) / 2, (y_edges[1:] + y_edges[:-1]) / 2
    blues = LinearSegmentedColormap.from_list("region", ["#c8d3e3", "#6f8bb0"])
    axes.contourf(centers_x, centers_y, density, levels=[*levels, 1.01 * density.max()], cmap=blues)
    axes.contour(centers_x, centers_y, density, levels=levels, colors="#3d5a80", linewidths=0.7)


def _draw_truth(axes, truth, x_name, y_name) -> None:
    if x_name in truth:
        axes.axvline(truth[x_name], color=_TRUTH, lw=1.0)
    if y_name in truth:
        axes.axhline(truth[y_name], color=_TRUTH, lw=1.0)


def _dress(axes, i, j, names, size, small) -> None:
    """Ticks and names on the outer panels only."""
    axes.xaxis.set_major_locator(MaxNLocator(3, prune="both"))
    axes.yaxis.set_major_locator(MaxNLocator(3, prune="both"))
    axes.tick_params(direction="in", length=2.5)
    bottom, left = i == len(names) - 1, j == 0 and i > 0
    axes.tick_params(labelbottom=bottom, labelleft=left, left=i != j)
    for ticks in axes.get_xticklabels():
        ticks.set_rotation(45)
    if bottom:
        axes.set_xlabel(label_text(names[j]), fontsize=small + 2)
        axes.xaxis.set_label_coords(0.5, -0.62 / size)
    if left:
        axes.set_ylabel(label_text(names[i]), fontsize=small + 2)
        axes.yaxis.set_label_coords(-0.62 / size, 0.5)
