"""What the commands of scaling do with their arguments: coordinate-check, law and plan."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emulators.errors import InputError
from emulators.grid import SpectralGrid
from emulators.labels import LabelSpace
from emulators.ledger import read_rows
from emulators.parametrization import Standard
from emulators.storage import atomic_write
from emulators.training_data import TrainingData
from scaling.coordinate_check import CHECK, Slope, check_coordinates, is_flat, slopes, steepest
from scaling.cross_validation import cross_validate
from scaling.frontier import measure_exponents
from scaling.law import ScalingLaw
from scaling.mup import MaximalUpdate
from scaling.plan import PAPER_PLAN, PAPER_TARGET, plan
from scaling.toy import TOY_LABELS, toy_spectra

from .report import check_folder, new_table

_STARS, _PIXELS = 64, 128
_MEASURED = ("activation", "change")


def coordinate_check(
    grid: Path | None,
    widths: Sequence[int],
    num_seeds: int,
    *,
    seed: int,
    out: Path | None,
    progress: bool,
) -> tuple[dict[str, Any], list[Slope]]:
    """Train for five steps at every width, with and without muP; measure, and write what was found.

    Parameters
    ----------
    grid
        Spectra to learn from: 128 pixels of the first 64. Made-up lines otherwise.
    widths
        Of the networks; the smallest one is the base of muP.
    num_seeds
        Seeds to average over: `seed` and those after it.
    out
        Folder for ``coordinates.jsonl`` (a row a width, seed and step), ``slopes.json`` and
        ``coordinates.png``; None writes nothing.

    Returns
    -------
    What ``--json`` prints, and the slopes.
    """
    widths = sorted(set(widths))
    if len(widths) < 2:
        raise InputError("coordinate-check: give --width at least twice, with two widths")
    wrong = [width for width in widths if width < 1 or width % CHECK.head_dim]
    if wrong:
        raise InputError(
            f"coordinate-check: width {wrong[0]}; give multiples of {CHECK.head_dim}, the size of "
            "an attention head"
        )
    if num_seeds < 1:
        raise InputError(f"coordinate-check: seeds is {num_seeds}; give at least 1")
    check_folder(out)
    space, data = (TOY_LABELS, toy_spectra(_STARS)) if grid is None else _from_grid(grid)
    seeds = range(seed, seed + num_seeds)
    schemes = (MaximalUpdate(widths[0], CHECK.depth), Standard())
    configs = [
        dataclasses.replace(CHECK, width=width, parametrization=scheme)
        for scheme in schemes
        for width in widths
    ]
    rows = []
    for config in _track(configs, progress):
        rows += check_coordinates(data, space, [config], seeds)
    found = slopes(rows)
    summary = {
        "spectra": "made up" if grid is None else str(grid),
        "widths": widths,
        "depth": CHECK.depth,
        "steps": CHECK.steps,
        "learning_rate": CHECK.learning_rate,
        "seeds": list(seeds),
        "is_flat": is_flat(found),
        "steepest": {name: _to_dict(slope) for name, slope in steepest(found).items()},
        "slopes": [_to_dict(slope) for slope in found],
    }
    if out is not None:
        _write(out, rows, summary)
    return summary, found


def print_slopes(found: Sequence[Slope], summary: dict[str, Any], out: Path | None) -> None:
    """A table a parametrization: slopes of every layer after every step."""
    from rich.console import Console

    console = Console()
    steps = sorted({slope.step for slope in found})
    for name in summary["steepest"]:
        table = new_table(name, *(f"step {step}" for step in steps))
        ours = [slope for slope in found if slope.parametrization == name]
        for layer in dict.fromkeys(slope.layer for slope in ours):
            values = [slope.slope for slope in ours if slope.layer == layer]
            table.add_row(layer, *(f"{v:+.2f}" if math.isfinite(v) else "-" for v in values))
        console.print(table)
    widths = ", ".join(map(str, summary["widths"]))
    seeds = len(summary["seeds"])
    print(f"d ln(change of activation) / d ln(width), widths {widths}, {seeds} seeds")
    print("muP is flat and the control is not" if summary["is_flat"] else "muP is NOT flat")
    if out is not None:
        print(f"written to {out}")


def fit_law(ledger: Path, out: Path, *, seed: int) -> dict[str, Any]:
    """Fit the scaling law of a ledger, say how well it predicts, and write it.

    Returns
    -------
    What ``--json`` prints: fit, exponents beside the paper's, and errors of runs left out.
    """
    if out.is_dir():
        raise InputError(f"--out {out}: a folder; give a file, such as law.json")
    rows = read_rows(ledger)
    law = ScalingLaw.fit(rows, seed=seed)
    exponents = measure_exponents(rows, law, seed=seed)
    try:
        held_out = {
            name: found.to_dict() for name, found in cross_validate(rows, seed=seed).items()
        }
    except InputError:
        held_out = None  # enough for a law, and not for one without a size or a decade
    law.save(out)
    return {
        "law": str(out),
        **law.record,
        "ranges": law.ranges,
        "recipe": law.recipe._asdict(),
        "floor": law.floor._asdict(),
        "noise": law.noise,
        "exponents": [exponent.to_dict() for exponent in exponents],
        "left_out": held_out,
    }


def print_law(summary: dict[str, Any]) -> None:
    """The exponents as a table, and what to know about the fit."""
    from rich.console import Console

    table = new_table("exponent", "by", "of", "power", "68%", "95%", "paper")
    for row in summary["exponents"]:
        ends = (f"{row[f'low{p}']:+.2f} {row[f'high{p}']:+.2f}" for p in (68, 95))
        paper = "" if row["paper"] is None else f"{row['paper']:+.2f}"
        names = (row["quantity"], row["method"], row["data"])
        table.add_row(*names, f"{row['value']:+.2f}", *ends, paper)
    Console().print(table)
    print(
        f"{summary['runs']} runs of {summary['sizes']} sizes ({summary['diverged']} diverged), "
        f"scatter of ln(MSE) {summary['noise']:.3f}, irreducible error "
        f"{summary['floor']['value']:.2g} (95%: up to {summary['floor']['high95']:.2g})"
    )
    if summary["left_out"] is None:
        print("too few runs to leave any out: not checked on runs that it was not fitted to")
    else:
        for name, found in summary["left_out"].items():
            print(
                f"without a {name}: half of its runs predicted within a factor "
                f"{found['median_factor']:.2f}, {found['coverage68']:.0%} of them in 68% intervals"
            )
    print(f"written to {summary['law']}")


def make_plan(law: str, **goal: Any) -> dict[str, Any]:
    """What to train by a law, beside what the paper says of an error of 1e-8."""
    found = plan(ScalingLaw.load(law), **goal)
    return {"law": law, **found.to_dict(), "paper": {"target_mse": PAPER_TARGET, **PAPER_PLAN}}


def print_plan(summary: dict[str, Any]) -> None:
    """The plan as a table, the paper's, and what not to trust."""
    from rich.console import Console

    table = new_table("", "plan", "68%", "95%")
    rows = (
        "width", "depth", "parameters", "unique_spectra", "spectra_seen", "steps", "flops",
        "gpu_hours", "mse",
    )  # fmt: skip
    for name in rows:
        value, low68, high68, low95, high95 = summary[name].values()
        table.add_row(
            name.replace("_", " "), _brief(value), f"{_brief(low68)} - {_brief(high68)}",
            f"{_brief(low95)} - {_brief(high95)}",
        )  # fmt: skip
    Console().print(table)
    rate = summary["learning_rate"]
    print(
        f"batches of {summary['batch_size']} spectra, learning rate "
        f"{'that of the ledger' if rate is None else f'{rate:g}'} under muP, "
        f"{summary['gpu']} at {summary['tflops']:.0f} TFLOP/s"
    )
    paper = summary["paper"]
    print(
        f"the paper, for an error of {paper['target_mse']:g}: {paper['flops']:g} FLOPs, "
        f"{paper['parameters']:.2g} weights, {paper['spectra']:.3g} spectra, "
        f"{paper['gpu_days']:.0f} GPU-days"
    )
    for warning in summary["warnings"]:
        print(f"warning: {warning}")


def _from_grid(path: Path) -> tuple[LabelSpace, TrainingData]:
    """A few stars of a grid at a few pixels, spread over all of it."""
    grid = SpectralGrid.open(path)
    stars = slice(0, _STARS)
    pixels = np.unique(np.linspace(0, len(grid.wavelength) - 1, _PIXELS).astype(int))
    step = 0.0 if grid.step is None else grid.step  # imported spectra have no dither
    flux = grid.flux(stars)[:, pixels]
    data = TrainingData(grid.labels[stars], grid.dither[stars], flux, grid.wavelength[pixels], step)
    return grid.label_space, data


def _by_step(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a run and step in place of one a layer: a fifth of the file."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        known = {key: row[key] for key in row if key not in ("layer", *_MEASURED)}
        step = found.setdefault(tuple(known.values()), known | {name: {} for name in _MEASURED})
        for name in _MEASURED:
            step[name][row["layer"]] = float(f"{row[name]:.6g}")
    return list(found.values())


def _brief(value: float) -> str:
    return f"{value:.0f}" if 1 <= value < 1e4 else f"{value:.3g}"


def _to_dict(slope: Slope) -> dict[str, Any]:
    """As JSON knows it: null where the layer has not moved."""
    values = slope._asdict().items()
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values
    }


def _track(configs: Sequence[Any], show: bool) -> Any:
    from rich.progress import track

    return track(configs, "coordinate check") if show else configs


def _write(out: Path, rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    from scaling.figures import draw_coordinates

    from .report import save_figure

    with atomic_write(out / "coordinates.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(run) + "\n" for run in _by_step(rows)))
    with atomic_write(out / "slopes.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1, allow_nan=False))
    figure = Figure(figsize=(10, 5), layout="constrained")
    draw_coordinates(figure, rows)
    save_figure(figure, out / "coordinates.png", dpi=150)
