"""The picture of a posterior predictive check: data, the band of the replicates, residuals."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .plots import STYLE, bad_spans, new_figure, row_edges

_INK, _BAND, _PEAK = "#20252b", "#3d5a80", "#d1495b"
_LEVELS = ((2.5, 97.5, 0.20), (16.0, 84.0, 0.35))  # percentiles, opacity


def plot_predictive(predictive: Any) -> Figure:
    """Data over the 68% and 95% bands of the replicated spectra, in rows of wavelength.

    Below each row are the same less the mean model, in units of the photon noise; a dashed line
    marks the largest smoothed residual.

    Parameters
    ----------
    predictive : Predictive
    """
    from matplotlib import rc_context

    spectrum = predictive.fit.spectrum
    edges = row_edges(spectrum)
    num_rows = len(edges) - 1
    good, wavelength = spectrum.good, spectrum.wavelength
    # NaN where not fitted, so that no band is drawn across a gap.
    flux = np.where(good, spectrum.flux, np.nan)
    sigma = np.where(good, spectrum.ivar, np.nan) ** -0.5
    mean = predictive.model.mean(axis=0)
    residual = (flux - mean) / sigma
    bands = [np.percentile(predictive.flux, level[:2], axis=0) for level in _LEVELS]
    low, high = np.nanmin([bands[0][0], flux]), np.nanmax([bands[0][1], flux])
    span = float(np.clip(1.15 * np.nanmax(np.abs(residual)), 4.0, 40.0))
    with rc_context(STYLE):
        figure = new_figure(13.0, 1.1 + 2.55 * num_rows)
        height = figure.get_figheight()
        grid = figure.add_gridspec(
            num_rows, 1, left=0.055, right=0.985, bottom=0.5 / height,
            top=1 - 0.6 / height, hspace=0.28,
        )  # fmt: skip
        for row in range(num_rows):
            pair = grid[row].subgridspec(2, 1, height_ratios=(3, 2), hspace=0.0)
            top = figure.add_subplot(pair[0])
            bottom = figure.add_subplot(pair[1], sharex=top)
            shown = (wavelength >= edges[row]) & (wavelength <= edges[row + 1])
            x = wavelength[shown]
            for panel in (top, bottom):
                panel.set_xlim(edges[row], edges[row + 1])
                for start, stop in bad_spans(
                    wavelength, spectrum.width, good, edges[row], edges[row + 1]
                ):
                    panel.axvspan(start, stop, facecolor="#eceff3", edgecolor="#c9ced6", lw=0)
                panel.axvline(predictive.peak_wavelength, color=_PEAK, lw=0.8, ls=(0, (4, 3)))
            for band, (*_, opacity) in zip(bands, _LEVELS, strict=True):
                ends = band[:, shown]
                top.fill_between(x, *ends, color=_BAND, alpha=opacity, lw=0)
                ends = (ends - mean[shown]) / sigma[shown]
                bottom.fill_between(x, *ends, color=_BAND, alpha=opacity, lw=0)
            top.plot(x, flux[shown], ".", color=_INK, ms=2.8, mew=0)
            bottom.plot(x, residual[shown], ".", color=_INK, ms=2.2, mew=0)
            _dress(top, bottom, (low, high), span)
        figure.axes[-1].set_xlabel("vacuum wavelength [Å]")
        title = (
            f"{spectrum.name or 'star'}   p(χ²) = {predictive.p_chi2:.2g}   p(largest smoothed "
            f"residual) = {predictive.p_peak:.2g} at {predictive.peak_wavelength:.2f} Å"
        )
        figure.text(0.055, 1 - 0.35 / height, title, fontsize=12, weight="bold", color=_INK)
    return figure


def _dress(top, bottom, limits, span):
    margin = 0.05 * (limits[1] - limits[0])
    top.set_ylim(limits[0] - margin, limits[1] + margin)
    bottom.set_ylim(-span, span)
    top.set_ylabel("flux")
    bottom.set_ylabel("resid. [σ]")
    top.tick_params(labelbottom=False, direction="in")
    bottom.tick_params(direction="in")
    top.yaxis.set_major_locator(MaxNLocator(4, prune="lower"))
    bottom.yaxis.set_major_locator(MaxNLocator(4, prune="upper"))
