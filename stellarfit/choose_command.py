"""``stellarfit choose``: which emulator is good enough, and what to train if none is."""

from pathlib import Path
from typing import Annotated, Any

import typer

_SUN = "teff=5772,logg=4.44,vmic=1.0"


def choose(
    snr: Annotated[float, typer.Option(help="S/N a pixel, at the continuum.")],
    resolution: Annotated[float, typer.Option(help="Resolving power lambda / FWHM.")],
    wavelength_range: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", help="Vacuum wavelengths [Angstrom]; all that is known otherwise."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Labels that must be good: --labels teff,logg,fe_h.")
    ] = None,
    star: Annotated[
        list[str] | None,
        typer.Option(help=f"A star, its other abundances solar: --star {_SUN}. Repeated."),
    ] = None,
    hold: Annotated[
        str | None, typer.Option(help="Labels, or v_rad, that the fit will not vary: vmic,v_rad.")
    ] = None,
    emulator: Annotated[
        list[str] | None,
        typer.Option(help="A candidate: name or .h5 path; the shipped ones otherwise. Repeated."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="A candidate that nobody has trained, by the mean squared error that `stellarfit "
            "plan` predicts: --size xl=2e-7. Repeated."
        ),
    ] = None,
    pixels_per_fwhm: Annotated[float, typer.Option(help="Pixels a resolution element.")] = 3.0,
    synthesize: Annotated[
        bool,
        typer.Option(
            help="Measure errors on 32 spectra synthesised near each star, over a minute a star; "
            "or else compare the candidates with one another."
        ),
    ] = True,
    plot: Annotated[Path | None, typer.Option(help="A PNG file to write.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """The smallest emulator whose error is small beside photon noise, for your labels and stars."""
    from rich.console import Console

    from emulators.emulator import load_emulator
    from scaling.choose import choose_emulator

    from . import report

    stars = [_parse_star(text) for text in star or [_SUN]]
    sizes = _parse_sizes(size or [])
    if plot is not None:
        report.check_plot(plot)
    candidates = None if emulator is None else [load_emulator(name) for name in emulator]
    with Console(stderr=True).status("how wrong emulators are near the star"):
        choice = choose_emulator(
            candidates, stars=stars, snr=snr, resolution=resolution, labels=_split(labels),
            wavelength_range=wavelength_range, pixels_per_fwhm=pixels_per_fwhm,
            held=_split(hold) or (), synthesize=synthesize, sizes=sizes,
        )  # fmt: skip
    if plot is not None:
        _write_plot(plot, choice)
    if json:
        report.print_json(choice.to_dict())
    else:
        _print(choice, sizes, plot, "fgk-mgb" if candidates is None else "LAW")


def _split(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _parse_star(text: str) -> dict[str, float]:
    from .report import parse_pair

    complaint = f"--star {text}: give label=value, such as {_SUN}"
    return dict(parse_pair(pair, complaint) for pair in text.split(","))


def _parse_sizes(texts: list[str]) -> dict[str, float]:
    from emulators.errors import InputError

    from .report import parse_pair

    found: dict[str, float] = {}
    for text in texts:
        complaint = f"--size {text}: give name=mean squared error, such as xl=2e-7"
        name, mse = parse_pair(text, complaint)
        if not name:
            raise InputError(complaint)
        if name in found:
            raise InputError(f"--size {text}: there is one of that name already; give it its own")
        found[name] = mse
    return found


def _write_plot(path: Path, choice: Any) -> None:
    from matplotlib.figure import Figure

    from scaling.choose_figure import draw_choice

    from .report import save_figure

    figure = Figure(figsize=(5 * len(choice.stars) + 1, 4), layout="constrained")
    draw_choice(figure, choice)
    save_figure(figure, path, dpi=150)


def _print(choice: Any, sizes: dict[str, float], plot: Path | None, law: str) -> None:
    """A table a star: photon noise, and every size's error with its share of photon noise."""
    import math

    from rich.console import Console

    from scaling.choose import THRESHOLD

    from .report import decimals, new_table

    console = Console()
    rows = choice.table()
    for number, star in enumerate(choice.stars):
        known = (f"{n} {v:g}" for n, v in star.items() if v != 0 or not n.endswith("_fe"))
        console.print(", ".join(known), highlight=False)
        table = new_table("label", "unit", "photon noise", *(size.name for size in choice.sizes))
        for row in rows:
            if row["star"] != number:
                continue
            noise = row["statistical"]
            digits = min(decimals(noise) + 1, 5)
            table.add_row(
                row["label"], row["unit"], f"{noise:.{digits}f}",
                *(f"{s:.{digits}f} ({s / noise:.2f})" for s in row["systematic"].values()),
            )  # fmt: skip
        console.print(table)
    print(
        f"systematic error (over photon noise), {choice.settings['pixels']} pixels; good enough "
        f"is below {THRESHOLD:g} for every label"
    )
    untrained = {size.name: size.mse for size in choice.sizes if size.name in sizes}
    if choice.chosen in untrained:
        mse = untrained[choice.chosen]
        print(
            f"{choice.chosen} would be good enough: train it to a mean squared error of {mse:.1e} "
            f"(stellarfit plan --law {law} --target-mse {mse:.1e})"
        )
    elif choice.chosen is not None:
        print(f"{choice.chosen} is good enough")
    elif math.isfinite(choice.needed_mse):
        print(
            f"none is good enough: train one to a mean squared error of {choice.needed_mse:.1e} "
            f"(stellarfit plan --law {law} --target-mse {choice.needed_mse:.1e})"
        )
    if plot is not None:
        print(f"written to {plot}")
