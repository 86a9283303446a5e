"""Pictures: what is drawn is the data, and no global state is touched."""

import sys
from typing import Any

import numpy as np
import pytest
from fake_results import fake_fit, fake_posterior
from matplotlib.patches import Rectangle

from emulators.errors import InputError
from stellarfit.plots import label_text, plot_budget, plot_corner, plot_fit, value_text


def test_every_pixel_is_drawn_once_and_masked_ones_are_marked():
    fit = fake_fit()
    figure = plot_fit(fit)
    tops = figure.axes[::2]
    dots = sum(np.size(line.get_xdata()) for top in tops for line in top.lines[:1])
    crosses = sum(np.size(line.get_xdata()) for top in tops for line in top.lines[2:3])
    # Rows share their edges; no pixel lies exactly on one but the first and the last.
    assert dots == fit.spectrum.good.sum()
    assert crosses == (~fit.spectrum.good & np.isfinite(fit.spectrum.flux)).sum()
    spans = [patch for top in tops for patch in top.patches if isinstance(patch, Rectangle)]
    hatched = [span.get_x() for span in spans if span.get_hatch()]
    edge = fit.spectrum.wavelength[[100, 2000]] - fit.spectrum.width[[100, 2000]] / 2
    assert set(np.round(edge, 6)) <= set(np.round(hatched, 6))


def test_residuals_are_in_sigma():
    fit = fake_fit()
    bottom = plot_fit(fit).axes[1]
    drawn = bottom.lines[3]
    index = np.searchsorted(fit.spectrum.wavelength, drawn.get_xdata())
    expected = ((fit.spectrum.flux - fit.model_flux) * 100)[index]
    np.testing.assert_allclose(np.asarray(drawn.get_ydata()), expected)


def test_headline_names_every_label():
    text = " ".join(item.get_text() for item in plot_fit(fake_fit(fixed={"vmic": 1.5})).texts)
    for part in ("[Mg/Fe] = 0.050 ± 0.020", "5772 ± 14", "1.5 (fixed)", "fake star"):
        assert part in text


def test_budget_is_whole_for_every_parameter():
    fit = fake_fit()
    panel: Any = plot_budget(fit).axes[0]
    ends: dict[int, float] = {}
    for bar in panel.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = ends.get(row, 0.0) + bar.get_width()
    np.testing.assert_allclose([ends[row] for row in range(len(fit.names))], 1.0)
    emulator = panel.patches[len(fit.names)]
    assert emulator.get_x() == pytest.approx(0.64) and emulator.get_width() == pytest.approx(0.2304)


def test_corner_has_every_pair_and_the_truth():
    posterior = fake_posterior()
    figure = plot_corner(posterior, truth={"teff": 5777.0})
    num = len(posterior.names)
    assert len(figure.axes) == num * (num + 1) // 2
    truth = [line for axes in figure.axes for line in axes.lines if line.get_color() == "#1b7f79"]
    assert len(truth) == num  # the first column
    assert len(plot_corner(posterior, names=("teff", "logg")).axes) == 3
    derived: Any = plot_corner(posterior, names=("teff", "mg_h"), truth={"mg_h": 0.03})
    assert derived.axes[-1].get_xlabel() == "[Mg/H]"
    with pytest.raises(InputError, match="names: unknown 'ca_h'; known: teff, logg"):
        plot_corner(posterior, names=("ca_h",))


def test_saving_needs_no_pyplot(tmp_path):
    before = "matplotlib.pyplot" in sys.modules
    plot_fit(fake_fit()).savefig(tmp_path / "fit.png")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (5772.4, 14.2, "5772 ± 14"),
        (0.0512, 0.0201, "0.051 ± 0.020"),
        (4.44, 0.3, "4.44 ± 0.30"),
        (1.0, np.nan, "1"),
    ],
)
def test_two_digits_of_the_error(value, error, text):
    assert value_text(value, error) == text


def test_label_text():
    assert [label_text(name) for name in ("fe_h", "mg_fe")] == ["[Fe/H]", "[Mg/Fe]"]
