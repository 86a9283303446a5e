"""Learning-rate sweeps over depth, number of tokens and size of an attention head, under muP.

    python -m scaling.experiments.shape.run --grid grid.h5 --out OUT [--seconds 300]

The other dimensions of the network, at width 64: does the rate stay
where it is, and which shape is worth its FLOPs? All rates and seeds of one shape are trained in
one stack. Rows go to OUT/shape.jsonl; shapes that have theirs are left out.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emulators.grid import SpectralGrid
from emulators.labels import LabelSpace
from emulators.train_config import TrainConfig
from emulators.train_many import train_many
from emulators.training_data import TrainingData, split_grid
from scaling.experiments.ledger import Ledger
from scaling.mup import MaximalUpdate
from scaling.transfer import Optimum, find_optima

BASE = {"width": 64, "depth": 4, "tokens": 16, "head_dim": 32}
VARIED = {
    "depth": (2, 4, 8, 16),
    "tokens": (2, 4, 8, 16, 32),
    "head_dim": (4, 8, 16, 32, 64),
}
RATES = tuple(2.0**power for power in range(-10, -4))  # 9.8e-4 .. 3.1e-2, factors of two
SEEDS = (0, 1, 2)
HELD_OUT = 256
KEY = (*BASE, "learning_rate", "seed")
EXPECTED = 25.0  # seconds of a stack on an H200, its compilation with it


def shapes(varied: dict[str, tuple[int, ...]] = VARIED) -> list[dict[str, int]]:
    """Every shape once, the base first."""
    every = [BASE | {name: value} for name, values in varied.items() for value in values]
    return [dict(shape) for shape in dict.fromkeys(tuple(s.items()) for s in (BASE, *every))]


def measure(
    data: TrainingData,
    validation: TrainingData,
    label_space: LabelSpace,
    out: Path,
    seconds: float,
    *,
    rates: tuple[float, ...] = RATES,
    seeds: tuple[int, ...] = SEEDS,
    varied: dict[str, tuple[int, ...]] = VARIED,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Make the rows that are missing, in the seconds given; all rows of the ledger.

    Parameters
    ----------
    data, validation
        Spectra; the sweep looks at the error on the validation spectra.
    out
        Folder of the ledger.
    seconds
        No stack is begun that would not end in them.
    rates, seeds, varied
        What to run.
    settings
        Of `TrainConfig`, in place of this experiment's.
    """
    ledger = Ledger(out / "shape.jsonl", KEY, seconds)
    data = data.on_device()
    defaults: dict[str, Any] = {
        "steps": 2000,
        "parametrization": MaximalUpdate(base_width=64),
        "batch_size": 16,
        "num_pixels": 256,
        "precision": "float16",
        "steps_per_call": 500,
        "checkpoint_every": 2000,
        "validate_every": 2000,
    }
    for shape in shapes(varied):
        wanted = shape | {"learning_rate": rates[-1], "seed": seeds[-1]}
        if not ledger.wants(wanted, EXPECTED):
            continue
        began = time.monotonic()
        for trained in train_many(
            data,
            config=TrainConfig(**(defaults | settings | shape)),
            learning_rates=rates,
            seeds=seeds,
            label_space=label_space,
            validation=validation,
        ):
            ledger.add(trained.row | {"learning_rate": trained.config.learning_rate})
        print(f"{shape}: {time.monotonic() - began:.0f} s", flush=True)
    return ledger.rows


def optima(rows: Sequence[dict[str, Any]], name: str) -> dict[int, Optimum]:
    """The best rate for every value of one dimension, all others being those of `BASE`."""
    others = {key: value for key, value in BASE.items() if key != name}
    ours = [row for row in rows if all(row[key] == value for key, value in others.items())]
    # What `find_optima` calls a width may be any one number of the network.
    named = [row | {"parametrization": name, "width": row[name]} for row in ours]
    return {optimum.width: optimum for optimum in find_optima(named)}


def draw(figure: Any, rows: Sequence[dict[str, Any]]) -> None:
    """The best error and the best rate against each dimension.

    Parameters
    ----------
    figure
        An empty matplotlib ``Figure``: this package does not import matplotlib.
    rows
        Of the ledger.
    """
    panels = figure.subplots(2, len(VARIED), sharey="row", sharex="col")
    for (error, rate), name in zip(panels.T, VARIED, strict=True):
        found = optima(rows, name)
        values = list(found)
        error.loglog(values, [one.mse for one in found.values()], "o-")
        best = [one.learning_rate for one in found.values()]
        # Rounding may put the vertex a hair outside of its interval.
        below = [max(one.learning_rate - one.lower, 0.0) for one in found.values()]
        above = [max(one.upper - one.learning_rate, 0.0) for one in found.values()]
        rate.errorbar(values, best, yerr=[below, above], fmt="o-", capsize=3)
        rate.set(xscale="log", yscale="log", xlabel=name)
        rate.set_xticks(values, [str(value) for value in values], minor=False)
        rate.minorticks_off()
    panels[0, 0].set_ylabel("validation MSE at the best rate")
    panels[1, 0].set_ylabel("best rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    arguments = parser.parse_args()
    grid = SpectralGrid(arguments.grid)
    data, validation, _ = split_grid(grid, 0, HELD_OUT, HELD_OUT)
    rows = measure(data, validation, grid.label_space, arguments.out, arguments.seconds)
    for name in VARIED:
        for optimum in optima(rows, name).values():
            print(name, optimum)


if __name__ == "__main__":
    main()
