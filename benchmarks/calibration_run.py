"""Calibrate a shipped emulator on a GPU, for every S/N and noise, until the time is over.

    PYTHONPATH=. python benchmarks/calibration_run.py --out OUT --resolution 30000 --seconds 500

What ``stellarfit calibrate`` does, on a machine without the libraries of the command line. Stars of
every S/N are different ones, those of every noise the same. Call ``stellarfit calibrate --out OUT``
for the table of all files.
"""

import argparse
import time
from pathlib import Path

from emulators.emulator import load_emulator
from emulators.physics.synthesizer import LTESynthesizer
from stellarfit.trial import Trial

SNRS = (1000.0, 100.0, 300.0, 50.0)
# Draws of a chain, and how many of them are kept.
DRAWS = {"law": (240, 60), "validation": (240, 60), "none": (100, 2), "white": (100, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--emulator", default="fgk-mgb-s")
    parser.add_argument("--resolution", type=float, required=True)
    parser.add_argument("--wavelength", type=float, nargs=2, default=(5150.0, 5250.0))
    parser.add_argument("--stars", type=int, default=104, help="of each S/N")
    parser.add_argument("--snr", type=float, nargs="+", default=SNRS)
    parser.add_argument("--noise", nargs="+", default=list(DRAWS), choices=list(DRAWS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=500.0)
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    emulator = load_emulator(given.emulator)
    trial = Trial(
        emulator,
        lambda wavelength: LTESynthesizer.build(wavelength, emulator.label_space),
        resolution=given.resolution,
        wavelength_range=tuple(given.wavelength),
        stars=given.stars * len(given.snr),
        seed=given.seed,
    )
    print(f"{len(trial.truth)} stars of {trial.flux.shape[1]} pixels", flush=True)
    for noise in given.noise:
        samples, keep = DRAWS[noise]
        settings = {"num_samples": samples, "keep": keep}
        trial.run_all(given.out, [noise], given.snr, end=end, tell=print, **settings)


if __name__ == "__main__":
    main()
