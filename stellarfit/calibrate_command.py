"""``stellarfit calibrate``: are the error bars right, on stars whose labels are known?"""

from pathlib import Path
from typing import Annotated, Any

import typer


def calibrate(
    out: Annotated[Path, typer.Option(help="Folder of the results; those in it are kept.")],
    emulator: Annotated[str | None, typer.Option(help="Name or .h5 path.")] = None,
    snr: Annotated[
        list[float] | None, typer.Option(help="S/N a pixel, at the continuum. Repeated.")
    ] = None,
    stars: Annotated[int, typer.Option(help="Of each S/N; 0 only reads what is there.")] = 0,
    resolution: Annotated[float, typer.Option(help="Resolving power lambda / FWHM.")] = 30_000.0,
    wavelength_range: Annotated[
        tuple[float, float] | None,
        typer.Option("--range", help="Vacuum wavelengths [Angstrom]; all that is known otherwise."),
    ] = None,
    noise: Annotated[
        list[str] | None,
        typer.Option(help="law, validation, none, or white for a naive fit. Repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of labels, noise and chains.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="A PNG file to write.")] = None,
    recalibrated: Annotated[
        Path | None,
        typer.Option(help="Write the emulator with errors as its fits at the highest S/N show."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fit synthesised stars, and count how often the truth lies where the error bars say.

    A star of 100 Angstrom takes minutes on two CPU cores, a third of a second on an H200.
    """
    from rich.console import Console

    from emulators.emulator import load_emulator
    from emulators.errors import InputError

    from . import report
    from .calibration import read_parts
    from .emulator_error import default_noise
    from .recalibrate import recalibrate

    if plot is not None:
        report.check_plot(plot)
    loaded = load_emulator(emulator)
    if stars < 0:
        raise InputError(f"--stars {stars}: give 1 or more, or 0 to read what is there")
    if stars:
        from .trial import Trial

        snrs = snr or [100.0]
        console = Console(stderr=True)
        with console.status("synthesising stars"):
            trial = Trial(
                loaded,
                lambda wavelength: _synthesizer(loaded, wavelength),
                resolution=resolution,
                wavelength_range=wavelength_range,
                stars=stars * len(snrs),
                seed=seed,
            )
        with console.status("fitting stars"):
            trial.run_all(out, noise or [default_noise(loaded)], snrs, tell=console.print)
    found = read_parts(out)
    if plot is not None:
        _write_plot(plot, found)
    if recalibrated is not None:
        known = found.get("law", found.get("validation"))
        if known is None:
            raise InputError("--recalibrated: there are no results with noise law or validation")
        recalibrate(loaded, known.at(float(known.snr.max()))).save(recalibrated)
    rows = [row for calibration in found.values() for row in _rows(calibration)]
    if json:
        report.print_json({"rows": rows})
    else:
        _print(rows)


def _synthesizer(emulator: Any, wavelength: Any) -> Any:
    """The synthesiser whose spectra the emulator learned from."""
    from emulators.errors import InputError
    from emulators.physics.synthesizer import LTESynthesizer

    made_by = emulator.record.get("grid", {}).get("synthesizer", {})
    lines = made_by.get("sha256_lines") if isinstance(made_by, dict) else None
    if lines is not None:
        synth = LTESynthesizer.build(wavelength, emulator.label_space, vmic=made_by.get("vmic"))
        if synth.provenance()["sha256_lines"] == lines:
            return synth
    raise InputError(
        f"calibrate: {emulator.name} did not learn from the shipped line list; test it with its "
        "own synthesiser by stellarfit.trial.Trial"
    )


def _rows(calibration: Any) -> list[dict[str, Any]]:
    """One a S/N, with every label's coverage."""
    from .calibration import LEVELS

    rows = []
    for snr in sorted(set(calibration.snr.tolist())):
        part = calibration.at(snr)
        cover = {level: part.coverage(level) for level in LEVELS}
        rows.append(
            {
                "noise": calibration.noise,
                "snr": snr,
                "stars": len(part.snr),
                "mean": {f"{100 * level:g}": float(c.mean()) for level, c in cover.items()},
                "labels": {
                    name: {
                        **{f"{100 * level:g}": float(c[i]) for level, c in cover.items()},
                        "bias": float(part.bias[i]),
                        "p_uniform": float(part.uniformity[i]),
                    }
                    for i, name in enumerate(part.names)
                },
                "diverging": float(part.diverging.mean()),
                "not_converged": float(1 - part.converged.mean()),
                "stuck": float(part.stuck.mean()),
            }
        )
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    """How often the truth lies in the central part of the posterior, mean and range of labels."""
    from rich.console import Console

    from .report import new_table

    table = new_table("noise", "S/N", "stars", "50%", "68%", "95%", "68% by label", "95% by label")
    for row in rows:
        ends = []
        for level in ("68", "95"):
            shares = {name: label[level] for name, label in row["labels"].items()}
            low = min(shares, key=shares.__getitem__)
            ends.append(f"{shares[low]:.2f} ({low})-{max(shares.values()):.2f}")
        table.add_row(
            row["noise"], f"{row['snr']:g}", str(row["stars"]),
            *(f"{row['mean'][level]:.3f}" for level in ("50", "68", "95")), *ends,
        )  # fmt: skip
    Console().print(table)


def _write_plot(path: Path, found: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    from .calibration_figure import draw_calibration
    from .report import save_figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    draw_calibration(figure, found)
    save_figure(figure, path, dpi=110)
