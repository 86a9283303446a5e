"""The picture of a choice, drawn on a matplotlib figure that the caller brings."""

from typing import Any

from .choose import THRESHOLD, Choice
from .figures import dress

_INK = "#20252b"
_COLOURS = (
    "#1d4f91", "#d95f02", "#1b9e77", "#7570b3", "#e7298a", "#66a61e", "#a6761d", "#666666",
)  # fmt: skip
_DASHES = ("-", "--", ":")


def draw_choice(figure: Any, choice: Choice) -> None:
    """Systematic over statistical error against the size: a panel a star, a line a label.

    Sizes stand at their mean squared error, growing to the right. What is below the dashed line
    is good enough.

    Parameters
    ----------
    figure
        An empty ``matplotlib.figure.Figure``; 5 inches a star by 4 suit it.
    """
    panels = figure.subplots(1, len(choice.stars), sharey=True, squeeze=False)[0]
    errors = [size.mse for size in choice.sizes]
    for star, panel in enumerate(panels):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlim(2.0 * max(errors), 0.5 * min(errors))
        for number, label in enumerate(choice.labels):
            panel.plot(
                errors, choice.ratio[:, star, number], marker="o", markersize=3, linewidth=1.1,
                color=_COLOURS[number % len(_COLOURS)],
                linestyle=_DASHES[number // len(_COLOURS) % len(_DASHES)], label=label,
            )  # fmt: skip
        panel.axhline(THRESHOLD, color=_INK, linewidth=1.0, linestyle=(0, (4, 3)))
        dress(panel, _describe(choice.stars[star]), "size (mean squared error)", None)
        ticks = [f"{size.name}\n{size.mse:.1e}" for size in choice.sizes]
        panel.set_xticks(errors, ticks, fontsize=7)
        panel.set_xticks([], minor=True)
    settings = choice.settings
    panels[0].set_ylabel(
        f"systematic / statistical, S/N {settings['snr']:g}, R {settings['resolution']:g}"
    )
    panels[-1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _describe(star: dict[str, float]) -> str:
    shown = [f"{name} {star[name]:g}" for name in ("teff", "logg", "fe_h") if name in star]
    return ", ".join(shown)
