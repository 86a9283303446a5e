"""Redraw the figures of `scaling.experiments` from the ledgers that are committed beside them.

    python benchmarks/draw_experiments.py

Writes transfer/transfer.png with transfer/optima.json, and baselines/baselines.png, and prints
the chosen baselines as a table.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

import scaling.experiments
from scaling.experiments.baselines.run import choose, draw
from scaling.figures import draw_transfer
from scaling.transfer import find_optima, find_shifts

FOLDER = Path(scaling.experiments.__file__).parent


def read(name: str) -> list[dict[str, Any]]:
    """The rows of an experiment's ledger."""
    lines = (FOLDER / name / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    rows = read("transfer")
    figure = Figure(figsize=(10, 4))
    draw_transfer(figure, rows)
    figure.savefig(FOLDER / "transfer/transfer.png", dpi=100, bbox_inches="tight")
    found = {
        "optima": [optimum._asdict() for optimum in find_optima(rows)],
        "shifts": [shift._asdict() for shift in find_shifts(rows)],
    }
    (FOLDER / "transfer/optima.json").write_text(json.dumps(found, indent=1), encoding="utf-8")

    rows = read("baselines")
    figure = Figure(figsize=(5.5, 4))
    draw(figure.subplots(), rows)
    figure.savefig(FOLDER / "baselines/baselines.png", dpi=100, bbox_inches="tight")
    columns = ("mse_test", "mse_test_median", "seconds", "seconds_one_star")
    for row in choose(rows):
        figures = "".join(f"  {row[name]:.2e}" for name in columns)
        print(f"{row['model']:18}{row['unique_spectra']:7}{figures}  {row['settings']}")


if __name__ == "__main__":
    main()
