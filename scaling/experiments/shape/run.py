"""Learning-rate sweeps over depth, number of tokens and size of an attention head, under muP.

    python -m scaling.experiments.shape.run --grid grid.h5 --out OUT [--seconds 300]
                                            [--widths 64 128]

One dimension is varied at a time, at two widths: does the rate stay where it is, and does the
shape that is best at one width stay best at the other? All rates and seeds of one shape are trained
in one stack. Rows go to OUT/shape.jsonl; shapes that have theirs are left out, so a killed or
timed-out job goes on where it was.
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
from scaling.transfer import Optimum, Shift, find_optima, find_shifts

WIDTHS = (64, 128)
BASE = {"depth": 4, "tokens": 16, "head_dim": 32}
VARIED = {
    "depth": (2, 4, 8, 16),
    "tokens": (2, 4, 8, 16, 32),
    "head_dim": (4, 8, 16, 32, 64),
}
RATES = tuple(2.0**power for power in range(-11, -3))  # 4.9e-4 .. 6.3e-2, factors of two
SEEDS = (0, 1, 2, 3)
HELD_OUT = 512
KEY = ("width", *BASE, "learning_rate", "seed")
# Seconds that a stack of depth 4 takes on an H200 that another job shares, compilation included.
EXPECTED = 30.0


def shapes(varied: dict[str, tuple[int, ...]] = VARIED) -> list[dict[str, int]]:
    """The base, then every other shape that differs from it in one dimension."""
    others = [
        BASE | {name: value}
        for name, values in varied.items()
        for value in values
        if value != BASE[name]
    ]
    return [BASE, *others]


def measure(
    data: TrainingData,
    validation: TrainingData,
    label_space: LabelSpace,
    out: Path,
    seconds: float,
    *,
    widths: Sequence[int] = WIDTHS,
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
    label_space
        Of the spectra.
    out
        Folder of the ledger.
    seconds
        No stack is begun that would not end in them.
    widths, rates, seeds, varied
        What to run.
    settings
        Of `TrainConfig`, in place of this experiment's.
    """
    ledger = Ledger(out / "shape.jsonl", KEY, seconds)
    data = data.on_device()
    defaults: dict[str, Any] = {
        "steps": 2000,
        "parametrization": MaximalUpdate(base_width=64, base_depth=4),
        "batch_size": 16,
        "num_pixels": 256,
        "precision": "float16",
        "steps_per_call": 500,
        "checkpoint_every": 2000,
        "validate_every": 2000,
    }
    for width in widths:
        for shape in shapes(varied):
            size: dict[str, Any] = {"width": width, **shape}
            last = size | {"learning_rate": rates[-1], "seed": seeds[-1]}
            if not ledger.wants(last, EXPECTED * max(shape["depth"] / 4, 1.0)):
                continue
            began = time.monotonic()
            for trained in train_many(
                data,
                config=TrainConfig(**(defaults | settings | size)),
                learning_rates=rates,
                seeds=seeds,
                label_space=label_space,
                validation=validation,
            ):
                ledger.add(trained.row | {"learning_rate": trained.config.learning_rate})
            print(f"{size}: {time.monotonic() - began:.0f} s", flush=True)
    return ledger.rows


def _of(rows: Sequence[dict[str, Any]], width: int, name: str) -> list[dict[str, Any]]:
    """Rows of one width whose other dimensions are those of the base, for `scaling.transfer`."""
    others = {"width": width} | {key: value for key, value in BASE.items() if key != name}
    ours = [row for row in rows if all(row[key] == value for key, value in others.items())]
    # What `scaling.transfer` calls a width may be any one number of the network.
    return [row | {"parametrization": f"{name} at {width}", "width": row[name]} for row in ours]


def optima(rows: Sequence[dict[str, Any]], width: int, name: str) -> dict[int, Optimum]:
    """The best rate for every value of one dimension at a width, all else being as in `BASE`."""
    return {optimum.width: optimum for optimum in find_optima(_of(rows, width, name))}


def shift(rows: Sequence[dict[str, Any]], width: int, name: str) -> Shift:
    """How far the best rate moves from the smallest value of a dimension to the largest."""
    return find_shifts(_of(rows, width, name))[0]


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Best rates and their shifts of all widths and dimensions that ran, ready for JSON."""
    found: dict[str, list[dict[str, Any]]] = {"optima": [], "shifts": []}
    for width in sorted({row["width"] for row in rows}):
        for name in VARIED:
            best = optima(rows, width, name)
            about = {"width": width, "varied": name}
            for value, optimum in best.items():
                told = optimum._asdict()
                del told["parametrization"], told["width"]
                found["optima"].append({**about, "value": value, **told})
            if len(best) > 1:
                moved = shift(rows, width, name)
                interval = {"lower": moved.lower, "upper": moved.upper}
                found["shifts"].append(
                    {**about, "values": moved.widths, "octaves": moved.octaves, **interval}
                )
    return found


def draw(figure: Any, rows: Sequence[dict[str, Any]]) -> None:
    """The best error and the best rate against each dimension, a line a width.

    Bars are the seeds' central 68%; an open circle is a best rate at the end of its sweep.

    Parameters
    ----------
    figure
        An empty matplotlib ``Figure``: this package does not import matplotlib.
    rows
        Of the ledger.
    """
    panels = figure.subplots(2, len(VARIED), sharey="row", sharex="col")
    for (error, rate), (name, every) in zip(panels.T, VARIED.items(), strict=True):
        for number, width in enumerate(sorted({row["width"] for row in rows})):
            found = optima(rows, width, name)
            colour, values = f"C{number}", list(found)
            mse = [one.mse for one in found.values()]
            error.plot(values, mse, "o-", color=colour, label=f"d = {width}")
            best = [one.learning_rate for one in found.values()]
            # The vertex of the mean may lie a hair outside the interval of the draws.
            below = [max(one.learning_rate - one.lower, 0.0) for one in found.values()]
            above = [max(one.upper - one.learning_rate, 0.0) for one in found.values()]
            rate.errorbar(values, best, yerr=[below, above], fmt="o-", color=colour, capsize=3)
            ends = [one for one in found.values() if not one.bracketed]
            at = [one.width for one in ends], [one.learning_rate for one in ends]
            rate.plot(*at, "o", color="white", markeredgecolor=colour, zorder=3)
        rate.set(xscale="log", xlabel=name)
        rate.set_xticks(every, [str(value) for value in every], minor=False)
        rate.set_xticks([], minor=True)
    panels[0, 0].set(ylabel="validation MSE at the best rate", ylim=(0, None))
    panels[0, 0].legend()
    panels[1, 0].set(ylabel="best rate", ylim=(0, None))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    arguments = parser.parse_args()
    began = time.monotonic()
    grid = SpectralGrid(arguments.grid)
    data, validation, _ = split_grid(grid, 0, HELD_OUT, HELD_OUT)
    left = arguments.seconds - (time.monotonic() - began)
    rows = measure(data, validation, grid.label_space, arguments.out, left, widths=arguments.widths)
    for part in summarize(rows).values():
        print(*part, sep="\n")


if __name__ == "__main__":
    main()
