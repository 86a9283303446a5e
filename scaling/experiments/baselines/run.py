"""TransformerPayne, The Payne and The Cannon on one grid: error, training and inference cost.

    python -m scaling.experiments.baselines.run --grid grid.h5 --out OUT [--seconds 200]

The grid must be made with ``dither=False``, which the two models of fixed pixels need, and hold
the largest number of training spectra and 2048 to validate and to test on. For each number of
training spectra every model is tuned by the small sweep below, on the validation spectra; every
run of the sweep is a row of OUT/baselines.jsonl, with its error on the test spectra. Runs that
have a row are left out, so that a killed or timed-out job goes on where it was.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emulators.baselines import num_quadratic_features
from emulators.grid import SpectralGrid
from emulators.labels import LabelSpace
from emulators.spectral_model import SpectralModel
from emulators.train import train
from emulators.train_baselines import evaluate_on_grid, fit_the_cannon, train_the_payne
from emulators.train_config import TrainConfig
from emulators.training_data import TrainingData, evaluate, split_grid
from emulators.transformer_payne import TransformerPayne
from scaling.experiments.ledger import Ledger
from scaling.experiments.recipe import RECIPE

SPECTRA = (1_000, 10_000, 100_000)
HELD_OUT = 1024
BATCH = 256  # stars of one call, where the time of a star among many is measured
KEY = ("model", "unique_spectra", "settings")

RIDGES = (0.0, 1e-6, 1e-4)
# Sizes near 300, 1000 and 3000 (whole tiles of a matrix unit but for the published 300), the
# published activation and a smooth one, at two rates each; the better activation also for longer.
PAYNES = tuple(
    {"hidden": hidden, "activation": activation, "learning_rate": rate}
    for hidden, activation in ((300, "leaky_relu"), (1024, "gelu"), (3072, "gelu"))
    for rate in (5e-4, 2e-3)
)
LONG_PAYNES = tuple(
    {"hidden": hidden, "activation": "gelu", "learning_rate": 5e-4} for hidden in (1024, 3072)
)
PAYNE_STEPS = {
    1_000: (4_000, 40_000),
    10_000: (10_000, 40_000, 160_000),
    100_000: (20_000, 80_000),
}
# (width, depth, steps), at the rate of the shipped family, which muP carries across widths.
TRANSFORMERS = {
    1_000: ((64, 4, 4_000), (128, 4, 4_000), (128, 4, 12_000)),
    10_000: ((64, 4, 8_000), (128, 4, 8_000), (128, 8, 8_000), (128, 8, 24_000), (256, 4, 16_000)),
    100_000: ((128, 4, 12_000), (128, 8, 12_000)),
}


class Spectra(NamedTuple):
    """What all models learn from and are judged by."""

    training: TrainingData
    validation: TrainingData
    test: TrainingData
    label_space: LabelSpace


class Candidate(NamedTuple):
    """One run of the sweep, and the seconds of an H200 that it takes with its compilation."""

    model: str
    settings: dict[str, Any]
    seconds: float


def load(path: Path) -> Spectra:
    """A grid's spectra, split as `train` splits a grid of seed 0."""
    grid = SpectralGrid(path)
    return Spectra(*split_grid(grid, 0, HELD_OUT, HELD_OUT), grid.label_space)


def candidates(spectra: int) -> Iterator[Candidate]:
    """The sweep at one number of training spectra."""
    for ridge in RIDGES:
        yield Candidate("the_cannon", {"ridge": ridge}, 3.0)
    for width, depth, steps in TRANSFORMERS[spectra]:
        settings = {"width": width, "depth": depth, "steps": steps}
        # At 150 TFLOP/s, and 15 s for compilation and evaluation.
        seconds = 15.0 + steps * 32 * 3 * 2048 * depth * 21 * width**2 / 150e12
        yield Candidate("transformer_payne", settings, seconds)
    for number, steps in enumerate(PAYNE_STEPS[spectra]):
        for settings in LONG_PAYNES if number else PAYNES:
            yield Candidate("the_payne", settings | {"steps": steps}, 12.0 + 6e-4 * steps)


def compare(
    spectra: Spectra,
    out: Path,
    seconds: float,
    *,
    numbers: Sequence[int] = SPECTRA,
    sweep: Callable[[int], Iterable[Candidate]] = candidates,
) -> list[dict[str, Any]]:
    """Make the rows that are missing, in the seconds given; all rows of the ledger.

    Parameters
    ----------
    spectra
        To learn from and to be judged by.
    out
        Folder of the ledger and of the runs.
    seconds
        No run is begun that would not end in them.
    numbers
        Of training spectra, the first ones each time; those that there are not are left out.
    sweep
        The runs at a number of training spectra.
    """
    ledger = Ledger(out / "baselines.jsonl", KEY, seconds)
    for number in numbers:
        if number > len(spectra.training.labels):
            print(f"left out, {len(spectra.training.labels)} training spectra: {number}")
            continue
        part = None
        for candidate in sweep(number):
            row = {"model": candidate.model, "unique_spectra": number}
            row |= {"settings": candidate.settings}
            if not ledger.wants(row, candidate.seconds):
                continue
            if part is None:
                part = spectra.training.select(np.arange(number)).on_device()
            run_dir = out / "-".join(map(str, (number, *candidate.settings.values())))
            row |= make(candidate, spectra._replace(training=part), run_dir)
            ledger.add(row)
            print(
                f"{number} {candidate.model} {candidate.settings}: test MSE "
                f"{row['mse_test']:.2e} after {row['seconds']:.1f} s",
                flush=True,
            )
    return ledger.rows


def make(candidate: Candidate, spectra: Spectra, run_dir: Path) -> dict[str, Any]:
    """Train one model; its error, and its cost in training and inference.

    `run_dir` is for the model whose trainer keeps a folder.
    """
    training, validation, test, label_space = spectra
    settings: dict[str, Any] = candidate.settings
    stars, pixels = training.flux.shape
    if candidate.model == "the_cannon":
        fit_the_cannon(training, label_space, **settings)  # compiles
        began = time.perf_counter()
        model = fit_the_cannon(training, label_space, **settings)
        seconds = time.perf_counter() - began
        size = num_quadratic_features(len(label_space))
        row = {
            "parameters": model.num_parameters,
            "spectra_seen": stars,
            # The normal equations; the factorisation of a matrix of 200 rows is nothing to them.
            "flops": 2 * stars * size * (size + pixels),
            "seconds": seconds,
            "mse_validation": float(evaluate_on_grid(model, validation).mean()),
            "flops_inference": 2 * size * pixels,
        }
        star = evaluate_on_grid(model, test)
    elif candidate.model == "the_payne":
        fitted = train_the_payne(
            training, label_space=label_space, validation=validation, **settings
        )
        model = fitted.model
        row = fitted.row | {"flops_inference": model.flops()}
        star = evaluate_on_grid(model, test)
    else:
        # No checkpoints on the way: a run is short.
        every: dict[str, Any] = {"validate_every": 1000, "checkpoint_every": 1_000_000}
        trained = train(
            training,
            config=TrainConfig(**(RECIPE | every | settings)),
            run_dir=run_dir,
            label_space=label_space,
            validation=validation,
            resume=True,
            progress=False,
        )
        model = trained.emulator.model
        assert isinstance(model, TransformerPayne)
        row = trained.row | {"flops_inference": model.flops(pixels)}
        star = evaluate(model, test)
    row |= {
        "mse_test": float(star.mean()),
        "mse_test_median": float(np.median(star)),
        "mse_test_worst": float(star.max()),
        "device": jax.devices()[0].device_kind,
    }
    return row | inference_seconds(model, test)


def inference_seconds(
    model: SpectralModel, data: TrainingData, repeats: int = 11
) -> dict[str, float]:
    """Median seconds of a spectrum of all pixels: one star, and one of many in a call."""
    encoding = model.encode(jnp.asarray(data.wavelength))
    labels = jnp.asarray(data.labels[:BATCH])

    def flux_at(model, labels, encoding):
        return model.flux_at(labels, encoding)

    found = {}
    for name, function, given in (
        ("seconds_one_star", flux_at, labels[0]),
        ("seconds_a_star_of_many", jax.vmap(flux_at, (None, 0, None)), labels),
    ):
        compiled = jax.jit(function).lower(model, given, encoding).compile()
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            jax.block_until_ready(compiled(model, given, encoding))
            times.append(time.perf_counter() - began)
        # The first call pays for the program's way to the device.
        found[name] = float(np.median(times[1:])) / (1 if given.ndim == 1 else len(given))
    return found


def choose(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each model and number of spectra the row of the lowest validation error."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["mse_validation"], reverse=True):
        best[row["model"], row["unique_spectra"]] = row
    return [best[key] for key in sorted(best)]


def draw(panel: Any, rows: list[dict[str, Any]]) -> None:
    """Test error against the number of spectra: every run, and a line through the chosen ones.

    Parameters
    ----------
    panel
        Matplotlib ``Axes`` to draw into: this package does not import matplotlib.
    rows
        Of the ledger.
    """
    for colour, name in enumerate(("transformer_payne", "the_payne", "the_cannon")):
        every = [(row["unique_spectra"], row["mse_test"]) for row in rows if row["model"] == name]
        best = [
            (row["unique_spectra"], row["mse_test"]) for row in choose(rows) if row["model"] == name
        ]
        if every:
            panel.loglog(*zip(*every, strict=True), ".", color=f"C{colour}", alpha=0.4)
            panel.loglog(*zip(*best, strict=True), "o-", color=f"C{colour}", label=name)
    panel.set(xlabel="training spectra", ylabel="test MSE")
    panel.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--spectra", type=int, nargs="+", default=SPECTRA, help="to train on")
    arguments = parser.parse_args()
    began = time.monotonic()
    spectra = load(arguments.grid)
    left = arguments.seconds - (time.monotonic() - began)
    rows = compare(spectra, arguments.out, left, numbers=arguments.spectra)
    for row in choose(rows):
        print(row)


if __name__ == "__main__":
    main()
