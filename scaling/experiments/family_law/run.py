"""The sweep behind the law of the shipped emulators' label space. One GPU job, called again.

    python -m scaling.experiments.family_law.run --out OUT [--seconds 500]

Spectra are made anew from a seed. Copy the committed ledger into OUT first: runs that have a row
in OUT/runs.jsonl are not made again.
"""

import argparse
import time
from pathlib import Path

import jax

from emulators.fresh_spectra import FreshSpectra
from emulators.physics.synthesizer import LTESynthesizer
from scaling.experiments.family.build import STEP, WAVELENGTH, label_space
from scaling.experiments.spectra import split, synthesize
from scaling.sweep import Sweep
from scaling.train_sweep import Spectra, train_sweep

SPECTRA, HELD_OUT, SEED = 100_000, 1024, 11
# New after every call of a run on fresh spectra: as many as it sees in a call, 100 steps of 64.
NEW = 6400


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500.0)
    arguments = parser.parse_args()
    began = time.monotonic()
    synth = LTESynthesizer.build(WAVELENGTH, label_space())
    data = synthesize(synth, SPECTRA + 2 * HELD_OUT, SEED, STEP, jax.devices())
    print(f"{len(data.labels)} spectra after {time.monotonic() - began:.0f} s", flush=True)
    fresh = FreshSpectra(synth, size=2 * NEW, batch=NEW, seed=SEED + 1)
    spectra = Spectra(label_space(), *split(data, HELD_OUT), fresh)
    sweep = Sweep.load(Path(__file__).with_name("sweep.toml"))
    left = arguments.seconds - (time.monotonic() - began)
    rows = train_sweep(sweep, spectra, arguments.out, seconds=left, progress=False)
    for row in sorted(rows, key=lambda row: (row["width"], row["unique_spectra"], row["flops"])):
        print(*(row[name] for name in ("width", "depth", "unique_spectra", "steps", "mse_test")))


if __name__ == "__main__":
    main()
