"""Redraw the figures of `scaling.experiments`, and fit its laws, from the ledgers beside them.

    python benchmarks/draw_experiments.py

Writes transfer/transfer.png and shape/shape.png, each with its optima.json, and optimizers.png and
baselines.png in their folders, and prints the best rate of each optimizer and the chosen baselines.
In paper and family_law it writes law.json, scaling.png (the paper's Figure 1), allocation.png (its
Figure 2), held_out.png and exponents.json.
"""

import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import scaling.experiments
from emulators.labels import LabelSpace
from emulators.ledger import read_rows
from scaling import ScalingLaw
from scaling.cross_validation import cross_validate
from scaling.experiments.baselines import run as baselines
from scaling.experiments.family import build as family
from scaling.experiments.optimizers import run as optimizers
from scaling.experiments.paper import box as paper
from scaling.experiments.shape import run as shape
from scaling.figures import draw_transfer
from scaling.frontier import measure_exponents
from scaling.law_figures import draw_allocation, draw_cross_validation, draw_scaling
from scaling.transfer import find_optima, find_shifts

FOLDER = Path(scaling.experiments.__file__).parent


def fit_law(folder: Path, space: LabelSpace, wavelength: np.ndarray) -> None:
    """Law, figures and exponents of a sweep's ledger."""
    notes = {
        "label_space": space.to_dict(),
        "wavelength": [float(wavelength[0]), float(wavelength[-1])],
    }
    rows = read_rows(folder / "runs.jsonl")
    law = ScalingLaw.fit(rows, notes=notes)
    law.save(folder / "law.json")
    held_out = cross_validate(rows)
    # Where most bootstrap draws have no such line there is no interval, and JSON has no NaN.
    exponents = [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in exponent.to_dict().items()
        }
        for exponent in measure_exponents(rows, law)
    ]
    found = {
        "exponents": exponents,
        "held_out": {name: left_out.to_dict() for name, left_out in held_out.items()},
    }
    text = json.dumps(found, indent=1, allow_nan=False)
    (folder / "exponents.json").write_text(text, encoding="utf-8")
    for name, size, paint in (
        ("scaling", (11, 6), lambda figure: draw_scaling(figure, rows, law)),
        ("allocation", (12, 4), lambda figure: draw_allocation(figure, rows, law)),
        ("held_out", (9, 4), lambda figure: draw_cross_validation(figure, held_out)),
    ):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        figure.savefig(folder / f"{name}.png", dpi=110)
    print(folder.name, found["held_out"])


def draw_transfer_experiment(folder: Path) -> None:
    """Figure and optima of the widths."""
    rows = read_rows(folder / "transfer.jsonl")
    figure = Figure(figsize=(10, 4))
    draw_transfer(figure, rows)
    figure.savefig(folder / "transfer.png", dpi=100, bbox_inches="tight")
    found = {
        "optima": [optimum._asdict() for optimum in find_optima(rows)],
        "shifts": [shift._asdict() for shift in find_shifts(rows)],
    }
    (folder / "optima.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def draw_shape(folder: Path) -> None:
    """Figure and optima of depth, tokens and head dimension."""
    rows = read_rows(folder / "shape.jsonl")
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    shape.draw(figure, rows)
    figure.savefig(folder / "shape.png", dpi=100)
    text = json.dumps(shape.summarize(rows), indent=1)
    (folder / "optima.json").write_text(text, encoding="utf-8")


def draw_optimizers(folder: Path) -> None:
    """Figure of the optimizers; the best rate of each, printed."""
    rows = read_rows(folder / "optimizers.jsonl")
    figure = Figure(figsize=(9, 4), layout="constrained")
    optimizers.draw(figure, rows)
    figure.savefig(folder / "optimizers.png", dpi=100)
    for row in optimizers.summarize(rows):
        print(row)


def draw_baselines(folder: Path) -> None:
    """Figure of the baselines; the chosen ones, printed."""
    rows = read_rows(folder / "baselines.jsonl")
    figure = Figure(figsize=(5.5, 4))
    baselines.draw(figure.subplots(), rows)
    figure.savefig(folder / "baselines.png", dpi=100, bbox_inches="tight")
    columns = ("mse_test", "mse_test_median", "seconds", "seconds_one_star")
    for row in baselines.choose(rows):
        figures = "".join(f"  {row[name]:.2e}" for name in columns)
        print(f"{row['model']:18}{row['unique_spectra']:7}{figures}  {row['settings']}")


def main() -> None:
    fit_law(FOLDER / "paper", paper.box(paper.ELEMENTS), paper.WAVELENGTH)
    fit_law(FOLDER / "family_law", family.label_space(), family.WAVELENGTH)
    draw_transfer_experiment(FOLDER / "transfer")
    draw_shape(FOLDER / "shape")
    draw_optimizers(FOLDER / "optimizers")
    draw_baselines(FOLDER / "baselines")


if __name__ == "__main__":
    main()
