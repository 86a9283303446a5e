"""Adam, Muon and SOAP at equal FLOPs: two sizes, five or six rates each, two seeds.

    python -m scaling.experiments.optimizers.run --grid grid.h5 --out OUT [--seconds 500]
                                                 [--optimizers adam muon]

Every run of one size sees the same spectra and pixels for the same number of steps, with muP for
initial values, depth and rates. Rows go to OUT/optimizers.jsonl; runs that have a row are left
out, so a killed or timed-out study goes on where it was. A summary is printed at the end.
"""

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

from emulators.grid import SpectralGrid
from emulators.labels import LabelSpace
from emulators.train_config import TrainConfig
from emulators.train_many import train_many
from emulators.training_data import TrainingData, split_grid
from scaling import MaximalUpdate
from scaling.experiments.ledger import Ledger
from scaling.experiments.optimizers.factories import FACTORIES, optimizer_flops

# (width, depth) with the steps of a run, and the seconds to leave for it on an H200.
SIZES = (((128, 8), 2500, 40.0), ((64, 4), 6000, 40.0))
# In the order in which they are run: a study cut short has the likeliest.
RATES = {
    "adam": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2),
    "muon": (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2),
    "soap": (8e-3, 1.6e-2, 4e-3, 3.2e-2, 2e-3, 1e-3),
}
# Rates that one stack holds, where all at once would leave nothing if time ran out.
STACKED = {"soap": 2}
SEEDS = (0, 1)
HELD_OUT = 1024
KEY = ("optimizer", "width", "depth", "steps", "learning_rate", "seed")


def study(
    data: TrainingData,
    validation: TrainingData,
    test: TrainingData,
    label_space: LabelSpace,
    out: Path,
    seconds: float,
    *,
    sizes: tuple[tuple[tuple[int, int], int, float], ...] = SIZES,
    rates: dict[str, tuple[float, ...]] = RATES,
    seeds: tuple[int, ...] = SEEDS,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Make the rows that are missing, in the seconds given; all rows of the ledger.

    Parameters
    ----------
    data, validation, test
        Spectra; a rate is chosen on the validation spectra and quoted on the test spectra.
    label_space
        Of the spectra.
    out
        Folder of the ledger.
    seconds
        No run is begun that would not end in them.
    sizes, rates, seeds
        What to run.
    settings
        Of `TrainConfig`, in place of this experiment's.
    """
    ledger = Ledger(out / "optimizers.jsonl", KEY, seconds)
    spectra: dict[str, Any] = {"data": data.on_device(), "validation": validation, "test": test}
    spectra |= {"label_space": label_space}
    defaults = {
        "parametrization": MaximalUpdate(base_width=64),
        "batch_size": 32,
        "num_pixels": 2048,
        "precision": "bfloat16",
        "steps_per_call": 200,
        "validate_every": 1000,
        # None on the way: a run is short.
        "checkpoint_every": 1_000_000,
    }
    for ((width, depth), steps, expected), name in itertools.product(sizes, rates):
        config = TrainConfig(steps=steps, width=width, depth=depth, **(defaults | settings))
        about = {"optimizer": name, "width": width, "depth": depth, "steps": steps}
        # Rates that lack a seed are run with all seeds.
        lacking = [
            rate
            for rate in rates[name]
            if not all(ledger.has(about | {"learning_rate": rate, "seed": s}) for s in seeds)
        ]
        stacked = STACKED.get(name, len(rates[name]))
        for first in range(0, len(lacking), stacked):
            together = lacking[first : first + stacked]
            last = about | {"learning_rate": together[-1], "seed": seeds[-1]}
            if not ledger.wants(last, expected * len(together) * len(seeds)):
                continue
            for trained in train_many(
                **spectra, config=config, learning_rates=together, seeds=seeds,
                optimizer=FACTORIES[name],
            ):  # fmt: skip
                row, one = trained.row, trained.config
                costs = {"optimizer_flops": steps * optimizer_flops(name, trained.model)}
                named = {"learning_rate": one.learning_rate, "seed": one.seed}
                ledger.add(row | about | named | costs)
                print(
                    f"{name} {width}, {depth} at {one.learning_rate:g}: {row['mse_validation']}",
                    flush=True,
                )
    return ledger.rows


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each size and optimizer the best rate: geometric means over seeds, and against Adam's.

    ``bracketed`` is false where the best rate is the lowest or highest that was run.
    """
    summary = []
    for size in sorted({(row["width"], row["depth"]) for row in rows}):
        of_size = [row for row in rows if (row["width"], row["depth"]) == size]
        for name in sorted({row["optimizer"] for row in of_size}):
            ours = [row for row in of_size if row["optimizer"] == name]
            rates = sorted({row["learning_rate"] for row in ours})
            found = [[row for row in ours if row["learning_rate"] == rate] for rate in rates]
            errors = [_mean(part, "mse_validation") for part in found]
            best = errors.index(min(errors))
            tests = [_error(row, "mse_test") for row in found[best]]
            summary.append(
                {
                    "width": size[0],
                    "depth": size[1],
                    "optimizer": name,
                    "learning_rate": rates[best],
                    "bracketed": 0 < best < len(rates) - 1,
                    "seeds": len(tests),
                    "mse_validation": errors[best],
                    "mse_test": _mean(found[best], "mse_test"),
                    "spread": max(tests) / min(tests),
                    "seconds": sum(row.get("seconds", 0.0) for row in found[best]) / len(tests),
                }
            )
    adam = {(r["width"], r["depth"]): r["mse_test"] for r in summary if r["optimizer"] == "adam"}
    for row in summary:
        row["against_adam"] = row["mse_test"] / adam.get((row["width"], row["depth"]), math.nan)
    return summary


def _error(row: dict[str, Any], column: str) -> float:
    """A run that diverged has no error: worse than any."""
    return math.inf if row[column] is None else row[column]


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return math.exp(sum(math.log(_error(row, column)) for row in rows) / len(rows))


def draw(figure: Any, rows: list[dict[str, Any]]) -> None:
    """Test error against the rate, a panel a size, a colour an optimizer.

    Parameters
    ----------
    figure
        An empty matplotlib ``Figure``: this package does not import matplotlib.
    rows
        Of the ledger.
    """
    sizes = sorted({(row["width"], row["depth"]) for row in rows})
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    for panel, (width, depth) in zip(panels, sizes, strict=True):
        for colour, name in enumerate(FACTORIES):
            ours = [
                (row["learning_rate"], row["mse_test"])
                for row in rows
                if (row["width"], row["depth"], row["optimizer"]) == (width, depth, name)
                and row["mse_test"] is not None
            ]
            if ours:
                panel.loglog(*zip(*sorted(ours), strict=True), "o", color=f"C{colour}", label=name)
        panel.set(title=f"d = {width}, N = {depth}", xlabel="learning rate", ylabel="test MSE")
        panel.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--optimizers", nargs="+", choices=FACTORIES, default=list(FACTORIES))
    arguments = parser.parse_args()
    began = time.monotonic()
    grid = SpectralGrid(arguments.grid)
    data, validation, test = split_grid(grid, 0, HELD_OUT, HELD_OUT)
    left = arguments.seconds - (time.monotonic() - began)
    rates = {name: RATES[name] for name in arguments.optimizers}
    rows = study(data, validation, test, grid.label_space, arguments.out, left, rates=rates)
    for row in summarize(rows):
        print(row)


if __name__ == "__main__":
    main()
