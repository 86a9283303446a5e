"""The scaling experiment of the paper, on our own spectra. One GPU job, called again and again.

    python -m scaling.experiments.paper.run --out OUT [--seconds 500] [--teams 2 1 1]

Spectra are made anew from a seed. Copy the committed ledger into OUT first: runs that have a row
in OUT/runs.jsonl are not made again.
"""

import argparse
import time
from itertools import islice
from pathlib import Path

import jax
import numpy as np

from emulators.errors import InputError
from emulators.fresh_spectra import FreshSpectra
from emulators.training_data import TrainingData
from scaling.experiments.paper.box import ELEMENTS, STEP, build
from scaling.experiments.spectra import split, synthesize
from scaling.sweep import Sweep
from scaling.train_sweep import Spectra, train_sweep

SPECTRA, HELD_OUT, SEED = 100_000, 1024, 21
# Made besides, in place of those whose chemistry or transfer gives no number.
SPARE = 256
# New after every call of a run on fresh spectra: as many as it sees in a call, 100 steps of 64.
NEW = 6400
# One pixel in so many of the held-out spectra is looked at: three million in all.
EVERY = 8


def thin(data: TrainingData) -> TrainingData:
    """Every eighth pixel."""
    return data._replace(flux=data.flux[:, ::EVERY], wavelength=data.wavelength[::EVERY])


def finite(data: TrainingData, number: int) -> TrainingData:
    """The first so many spectra that hold no NaN; says how many others there are."""
    good = np.flatnonzero([np.isfinite(spectrum).all() for spectrum in data.flux])
    print(
        f"{len(data.labels) - len(good)} of {len(data.labels)} spectra are no numbers", flush=True
    )
    if len(good) < number:
        raise InputError(f"paper: {len(good)} spectra are finite, {number} are needed")
    # Views where nothing is left out: these are gigabytes.
    if good[number - 1] == number - 1:
        return data._replace(
            labels=data.labels[:number], dither=data.dither[:number], flux=data.flux[:number]
        )
    return data.select(good[:number])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument(
        "--teams", type=int, nargs="+", help="devices that share a run, the dearest run first"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    synth = build(ELEMENTS)
    number = SPECTRA + 2 * HELD_OUT
    data = synthesize(synth, number + SPARE, SEED, STEP, jax.devices())
    print(f"{len(data.labels)} spectra after {time.monotonic() - began:.0f} s", flush=True)
    training, validation, test = split(finite(data, number), HELD_OUT)
    fresh = FreshSpectra(synth, size=2 * NEW, batch=NEW, seed=SEED + 1)
    spectra = Spectra(synth.label_space, training, thin(validation), thin(test), fresh)
    sweep = Sweep.load(Path(__file__).with_name("sweep.toml"))
    devices = iter(jax.devices())
    teams = [list(islice(devices, n)) for n in arguments.teams or [1] * len(jax.devices())]
    left = arguments.seconds - (time.monotonic() - began)
    rows = train_sweep(sweep, spectra, arguments.out, devices=teams, seconds=left, progress=False)
    for row in sorted(rows, key=lambda row: (row["width"], row["unique_spectra"], row["flops"])):
        print(*(row[name] for name in ("width", "depth", "unique_spectra", "steps", "mse_test")))


if __name__ == "__main__":
    main()
