"""The section of the page on stars observed twice: do they agree within their errors?"""

from typing import NamedTuple

import numpy as np

from ..plots import STYLE, new_figure
from .section import WIDTH, Picture, Section, Table, draw
from .stars import Stars, column_text, count_text

_SPAN = 5.0  # sigma, drawn


class Pulls(NamedTuple):
    """Differences of repeated observations over their errors, of one column [pair]."""

    values: np.ndarray

    @property
    def width(self) -> float:
        """Root mean square: 1 where the errors are right."""
        return float(np.sqrt(np.mean(self.values**2)))

    @property
    def width_error(self) -> float:
        """Of the width, were the pulls Gaussian."""
        return self.width / np.sqrt(2 * len(self.values))

    @property
    def core(self) -> float:
        """Half of the central 68.27%: the width without regard to outliers."""
        low, high = np.percentile(self.values, [15.865, 84.135])
        return float(high - low) / 2


def pair_repeats(names: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two observations of one star each, no row twice, so that pairs are independent.

    Parameters
    ----------
    names
        Of every star [star]; one without a name is paired with none.
    usable
        Which stars may be used [star].

    Returns
    -------
    two arrays of int [pair]
        The first with the second of a name, the third with the fourth, in the catalogue's order.
    """
    rows = np.flatnonzero(usable & (names != ""))
    if not len(rows):
        return rows, rows
    rows = rows[np.argsort(names[rows], kind="stable")]
    begins = np.r_[True, names[rows][1:] != names[rows][:-1]]
    start = np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))
    place = np.arange(len(rows)) - start  # among the observations of the star
    second = np.flatnonzero(place % 2 == 1)
    return rows[second - 1], rows[second]


def find_pulls(stars: Stars) -> tuple[int, dict[str, Pulls]]:
    """Number of pairs, and the pulls of every column that was fitted in some pair."""
    one, other = pair_repeats(stars["name"], stars.usable)
    found = {}
    for name in stars.parameters:
        if not stars.has(f"e_{name}_stat"):
            continue
        value, error = stars[name], stars[f"e_{name}_stat"]
        scale = np.hypot(error[one], error[other])
        with np.errstate(invalid="ignore", divide="ignore"):
            pull = (value[one] - value[other]) / scale
        pull = pull[np.isfinite(pull)]
        if len(pull):
            found[name] = Pulls(pull)
    return len(one), found


def repeat_section(stars: Stars) -> Section:
    """Pulls of repeated observations against the unit normal distribution."""
    title = "Repeat observations"
    if lacking := stars.lacks("name"):
        return Section(title, lacking)
    num, pulls = find_pulls(stars)
    if not pulls:
        return Section(
            title,
            ["No star was observed twice: no two usable rows have the same name."],
        )
    pairs = "1 pair" if num == 1 else f"{count_text(num)} pairs"
    text = [
        f"{pairs} of usable rows with the same name, no row in two pairs. A pull is the "
        "difference of the two values over the root of the sum of their squared statistical "
        "errors, pull = (x1 - x2) / sqrt(e_stat1^2 + e_stat2^2): the systematic error of the same "
        "emulator is common to both and drops out.",
        "A width of 1 means that the statistical errors are right. Above 1 they are too small, or "
        "star and instrument changed between the two (v_rad of a binary does), or rows share a "
        "name that are not one star. Where systematic errors exceed statistical ones, a little "
        "above 1 is expected: a fit that allows for the emulator's error uses the photons less "
        "well than e_stat supposes.",
    ]
    table = Table(
        "Widths of the pulls",
        ["column", "pairs", "width (rms)", "its error", "half of central 68%", "beyond 3"],
        [
            [name, count_text(len(pull.values)), f"{pull.width:.3f}", f"{pull.width_error:.3f}",
             f"{pull.core:.3f}", count_text((np.abs(pull.values) > 3).sum())]
            for name, pull in pulls.items()
        ],
    )  # fmt: skip
    shown = [name for name in stars.main("_stat") if name in pulls] or list(pulls)[:6]
    return Section(title, text, [_draw({name: pulls[name] for name in shown})], [table])


def _draw(pulls: dict[str, Pulls]) -> Picture:
    from matplotlib import rc_context

    rows = -(-len(pulls) // 2)
    grid = np.linspace(-_SPAN, _SPAN, 201)
    with rc_context(STYLE):
        figure = new_figure(WIDTH, 0.3 + 1.9 * rows)
        figure.set_layout_engine("constrained")
        for i, (name, pull) in enumerate(pulls.items()):
            panel = figure.add_subplot(rows, min(len(pulls), 2), i + 1)
            bins = int(np.clip(np.sqrt(len(pull.values)) * 2, 10, 60))
            inside = np.clip(pull.values, -_SPAN, _SPAN)  # what lies beyond, at the ends
            panel.hist(inside, bins, range=(-_SPAN, _SPAN), density=True, color="#9db4d3")
            normal = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
            panel.plot(grid, normal, color="#20252b", lw=1.1)
            panel.set_title(
                f"{column_text(name)}: width {pull.width:.2f} ± {pull.width_error:.2f}", fontsize=10
            )
            panel.set_yticks([])
            panel.set_xlabel("pull")
        widths = ", ".join(f"{name} {pull.width:.2f}" for name, pull in pulls.items())
        alt = f"Histograms of pulls beside the unit normal distribution; widths: {widths}."
        return draw(figure, alt)
