"""From physics to an emulator on a laptop: 20 Angstrom, three labels.

    python examples/train_small_emulator.py --out small

Both steps go on where they were when the script is stopped and started again. The result is small
and coarse: enough to see how the pieces fit, not enough to fit a star with.
"""

import argparse
from pathlib import Path

import numpy as np

from emulators.grid import SpectralGrid
from emulators.labels import LabelSpace
from emulators.physics.synthesizer import LTESynthesizer
from emulators.train import train
from emulators.train_config import TrainConfig


def main() -> None:
    """Synthesise, train, and say how wrong the result is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("small"))
    parser.add_argument("--spectra", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()

    space = LabelSpace(("teff", "logg", "fe_h"), (5000.0, 3.5, -1.0), (6500.0, 5.0, 0.5))
    wavelength = 5160.0 * np.exp(1e-5 * np.arange(400))
    synthesizer = LTESynthesizer.build(wavelength, space, vmic=1.0)
    grid = SpectralGrid.generate(
        synthesizer,
        space,
        arguments.spectra,
        arguments.out / "grid.h5",
        seed=0,
        batch_size=32,
        resume=True,
    )
    every = max(1, arguments.steps // 4)
    config = TrainConfig(
        steps=arguments.steps,
        width=32,
        depth=2,
        tokens=8,
        num_pixels=128,
        checkpoint_every=every,
        validate_every=every,
        steps_per_call=every,
    )
    run = arguments.out / "run"
    result = train(grid, config=config, run_dir=run, resume=run.exists())
    print(f"rms error on validation spectra: {result.row['mse_validation'] ** 0.5:.4f}")
    print(f"rms error on test spectra:       {result.row['mse_test'] ** 0.5:.4f}")

    star = np.array([5772.0, 4.44, 0.0])
    flux = result.emulator(star, wavelength)
    print(f"deepest point of a Sun with vmic 1 km/s: {float(flux.min()):.3f}")


if __name__ == "__main__":
    main()
