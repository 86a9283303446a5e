"""Calibrate a shipped emulator on a GPU, for every S/N and noise, until the time is over.

    PYTHONPATH=. python benchmarks/calibration_run.py --out OUT --resolution 30000 --seconds 500

Every piece of stars leaves a file in OUT; pieces that have one are not made again. Stars of every
S/N are different ones, those of every noise the same. `stellarfit calibrate` makes the table of
all files.
"""

import argparse
import time
from pathlib import Path

import jax

from emulators.emulator import load_emulator
from emulators.physics.synthesizer import LTESynthesizer
from stellarfit.calibration import Trial, chunks

SNRS = (1000, 100, 300, 50)
# Pieces of so many stars run in lockstep; the draws of a chain.
SIZE = 26
SAMPLES = {"law": 240, "none": 100, "white": 100, "validation": 100}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--emulator", default="fgk-mgb-s")
    parser.add_argument("--resolution", type=float, required=True)
    parser.add_argument("--wavelength", type=float, nargs=2, default=(5150.0, 5250.0))
    parser.add_argument("--stars", type=int, default=104, help="of each S/N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=500.0)
    parser.add_argument("--wait", type=Path, help="an emulator that is to come, tested instead")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds

    def trial(emulator):
        return Trial(
            emulator,
            lambda wavelength: LTESynthesizer.build(wavelength, emulator.label_space),
            resolution=given.resolution,
            wavelength_range=tuple(given.wavelength),
            stars=given.stars * len(SNRS),
            seed=given.seed,
        )

    jax.config.update("jax_enable_x64", True)
    tested = trial(load_emulator(given.emulator))
    print(f"{given.resolution:g}: {tested.flux.shape} after {left(end, given):.0f} s", flush=True)
    if given.wait is not None:
        # Compile while it is being made.
        tested.run("law", SNRS[0], slice(0, SIZE), num_samples=SAMPLES["law"])
        print(f"compiled after {left(end, given):.0f} s", flush=True)
        while not given.wait.exists():
            time.sleep(0.5)
        tested = tested.of(load_emulator(given.wait))
    pace = 0.0
    for noise, samples in SAMPLES.items():
        for place, snr in enumerate(SNRS):
            for part in chunks(given.stars, SIZE):
                path = given.out / f"{noise}-{snr}-{given.resolution:.0f}-{part.start}.h5"
                if path.exists() or time.monotonic() + pace > end:
                    continue
                since = time.monotonic()
                stars = slice(place * given.stars + part.start, place * given.stars + part.stop)
                keep = 60 if noise == "law" else 2
                found = tested.run(noise, snr, stars, num_samples=samples, keep=keep)
                found.save(path)
                pace = time.monotonic() - since
                mean = found.coverage(0.68).mean()
                print(f"{path.stem}: {mean:.3f} after {pace:.1f} s", flush=True)


def left(end: float, given: argparse.Namespace) -> float:
    """Seconds since the start."""
    return given.seconds - (end - time.monotonic())


if __name__ == "__main__":
    main()
