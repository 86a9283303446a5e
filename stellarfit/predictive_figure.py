"""The picture of a posterior predictive check: data, the band of the replicates, residuals."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .plots import STYLE, bad_spans, lay_rows, new_figure, split_arms

_INK, _BAND, _PEAK = "#20252b", "#3d5a80", "#d1495b"
_LEVELS = ((2.5, 97.5, 0.20), (16.0, 84.0, 0.35))  # percentiles, opacity


class _View(NamedTuple):
    """What is drawn of one arm, or of a spectrum that is the only one."""

    arm: str
    spectrum: Any
    mean: np.ndarray
    low: np.ndarray  # [level, pixel], of each band
    high: np.ndarray


def plot_predictive(predictive: Any) -> Figure:
    """Data over the 68% and 95% bands of the replicated spectra, in rows of wavelength by arm.

    Below each row are the same less the mean model, in units of the photon noise; a dashed line
    marks the largest smoothed residual.

    Parameters
    ----------
    predictive : Predictive
    """
    from matplotlib import rc_context

    star = predictive.fit.spectrum
    ends = [np.percentile(predictive.flux, level[i], axis=0) for i in (0, 1) for level in _LEVELS]
    low, high = np.split(np.stack(ends), 2)
    parts = split_arms(star, predictive.model.mean(axis=0), low, high)
    rows = lay_rows([_View(*part) for part in parts])
    with rc_context(STYLE):
        figure = new_figure(13.0, 1.1 + 2.55 * len(rows))
        height = figure.get_figheight()
        grid = figure.add_gridspec(
            len(rows), 1, left=0.055, right=0.985, bottom=0.5 / height,
            top=1 - 0.6 / height, hspace=0.28,
        )  # fmt: skip
        for row, (view, start, stop) in enumerate(rows):
            pair = grid[row].subgridspec(2, 1, height_ratios=(3, 2), hspace=0.0)
            top = figure.add_subplot(pair[0])
            bottom = figure.add_subplot(pair[1], sharex=top)
            if view.arm == predictive.peak_arm:
                for panel in (top, bottom):
                    panel.axvline(predictive.peak_wavelength, color=_PEAK, lw=0.8, ls=(0, (4, 3)))
            _draw_row(top, bottom, view, start, stop)
        figure.axes[-1].set_xlabel("vacuum wavelength [Å]")
        arm = predictive.peak_arm and f" of {predictive.peak_arm}"
        title = (
            f"{star.name or 'star'}   p(χ²) = {predictive.p_chi2:.2g}   p(largest smoothed "
            f"residual) = {predictive.p_peak:.2g} at {predictive.peak_wavelength:.2f} Å{arm}"
        )
        figure.text(0.055, 1 - 0.35 / height, title, fontsize=12, weight="bold", color=_INK)
    return figure


def _draw_row(top, bottom, view, start, stop):
    spectrum, wavelength, good = view.spectrum, view.spectrum.wavelength, view.spectrum.good
    # NaN where not fitted, so that no band is drawn across a gap.
    flux = np.where(good, spectrum.flux, np.nan)
    sigma = np.where(good, spectrum.ivar, np.nan) ** -0.5
    residual = (flux - view.mean) / sigma
    shown = (wavelength >= start) & (wavelength <= stop)
    x = wavelength[shown]
    for panel in (top, bottom):
        panel.set_xlim(start, stop)
        for ends in bad_spans(wavelength, spectrum.width, good, start, stop):
            panel.axvspan(*ends, facecolor="#eceff3", edgecolor="#c9ced6", lw=0)
    for low, high, (*_, opacity) in zip(view.low, view.high, _LEVELS, strict=True):
        top.fill_between(x, low[shown], high[shown], color=_BAND, alpha=opacity, lw=0)
        ends = [((end - view.mean) / sigma)[shown] for end in (low, high)]
        bottom.fill_between(x, *ends, color=_BAND, alpha=opacity, lw=0)
    top.plot(x, flux[shown], ".", color=_INK, ms=2.8, mew=0)
    bottom.plot(x, residual[shown], ".", color=_INK, ms=2.2, mew=0)
    limits = np.nanmin([view.low[0], flux]), np.nanmax([view.high[0], flux])
    _dress(top, bottom, limits, float(np.clip(1.15 * np.nanmax(np.abs(residual)), 4.0, 40.0)))
    top.set_ylabel(f"flux, {view.arm}" if view.arm else "flux")


def _dress(top, bottom, limits, span):
    margin = 0.05 * (limits[1] - limits[0])
    top.set_ylim(limits[0] - margin, limits[1] + margin)
    bottom.set_ylim(-span, span)
    bottom.set_ylabel("resid. [σ]")
    top.tick_params(labelbottom=False, direction="in")
    bottom.tick_params(direction="in")
    top.yaxis.set_major_locator(MaxNLocator(4, prune="lower"))
    bottom.yaxis.set_major_locator(MaxNLocator(4, prune="upper"))
