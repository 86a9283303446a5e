"""Learning-rate sweeps at widths 64 to 512 under muP and under the standard parametrisation.

    python -m scaling.experiments.transfer.run --grid grid.h5 --out OUT [--seconds 300]

All rates and seeds of one width are trained in one stack. Rows go to OUT/transfer.jsonl, one a
run; widths that have their rows are left out, so a killed or timed-out job goes on where it was.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from emulators.grid import SpectralGrid
from emulators.labels import LabelSpace
from emulators.parametrization import Standard
from emulators.train_config import TrainConfig
from emulators.train_many import train_many
from emulators.training_data import TrainingData, split_grid
from scaling.experiments.ledger import Ledger
from scaling.mup import MaximalUpdate
from scaling.transfer import find_optima, find_shifts

WIDTHS = (64, 128, 256, 512)
RATES = tuple(2.0**power for power in range(-13, -4))  # 1.2e-4 .. 3.1e-2, factors of two
SEEDS = (0, 1, 2, 3)
SCHEMES = {"MaximalUpdate": MaximalUpdate(base_width=64), "Standard": Standard()}
HELD_OUT = 256
KEY = ("parametrization", "width", "learning_rate", "seed")
# Seconds that a stack takes on an H200, its compilation with it.
EXPECTED = {64: 25.0, 128: 30.0, 256: 45.0, 512: 75.0}


def measure(
    data: TrainingData,
    validation: TrainingData,
    label_space: LabelSpace,
    out: Path,
    seconds: float,
    *,
    widths: tuple[int, ...] = WIDTHS,
    rates: tuple[float, ...] = RATES,
    seeds: tuple[int, ...] = SEEDS,
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
    settings
        Of `TrainConfig`, in place of this experiment's.
    """
    ledger = Ledger(out / "transfer.jsonl", KEY, seconds)
    data = data.on_device()
    defaults = {
        "steps": 1000,
        "depth": 4,
        "batch_size": 16,
        "num_pixels": 256,
        "precision": "float16",
        "steps_per_call": 500,
        "checkpoint_every": 1000,
        "validate_every": 1000,
    }
    # The ends first: a sweep cut short then still tells how far the optimum moved.
    for width in sorted(widths, key=lambda width: -abs(width - sum(widths) / len(widths))):
        for name, scheme in SCHEMES.items():
            wanted = {
                "parametrization": name,
                "width": width,
                "learning_rate": rates[-1],
                "seed": seeds[-1],
            }
            if not ledger.wants(wanted, EXPECTED.get(width, 20.0)):
                continue
            began = time.monotonic()
            config = TrainConfig(width=width, parametrization=scheme, **(defaults | settings))
            for trained in train_many(
                data,
                config=config,
                learning_rates=rates,
                seeds=seeds,
                label_space=label_space,
                validation=validation,
            ):
                rate = trained.config.learning_rate
                ledger.add(trained.row | {"parametrization": name, "learning_rate": rate})
            print(f"{name} at width {width}: {time.monotonic() - began:.0f} s", flush=True)
    return ledger.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    arguments = parser.parse_args()
    grid = SpectralGrid(arguments.grid)
    data, validation, _ = split_grid(grid, 0, HELD_OUT, HELD_OUT)
    rows = measure(data, validation, grid.label_space, arguments.out, arguments.seconds)
    for optimum in find_optima(rows):
        print(optimum)
    for shift in find_shifts(rows):
        print(shift)


if __name__ == "__main__":
    main()
