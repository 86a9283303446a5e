"""How the shipped emulators are made: synthesise, train, round, test. One GPU job a line.

    python -m scaling.experiments.family.build grid --out grid.h5 --spectra 200000 [--no-dither]
    python -m scaling.experiments.family.build train --grid grid.h5 --size m --out OUT --seconds 200
    python -m scaling.experiments.family.build errors --emulator OUT/*.h5 --out NEW

The grid is made from a seed, so it need not travel. `train` leaves OUT/fgk-mgb-<size>.h5, its
ledger row in OUT/runs.jsonl and its errors on held-out spectra, by star, label region and
wavelength, in OUT/fgk-mgb-<size>.json. `errors`, which a laptop can do, measures any emulator
anew on fresh spectra, and leaves a copy that carries the error model of these.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from emulators.emulator import Emulator
from emulators.error_model import fit_error_model
from emulators.grid import SpectralGrid
from emulators.labels import LabelSpace
from emulators.physics.synthesizer import LTESynthesizer
from emulators.response_error import measure_response
from emulators.storage import atomic_write
from emulators.train import train
from emulators.train_config import TrainConfig
from emulators.training_data import TrainingData, evaluate, split_grid
from emulators.transformer_payne import TransformerPayne
from scaling.experiments.recipe import RECIPE
from scaling.experiments.spectra import synthesize

STEP = 1e-5  # of the grid in ln(wavelength)
WAVELENGTH = np.exp(np.arange(np.log(5100.0), np.log(5300.0), STEP))
# Elements that 5100-5300 A measures to better than 0.02 dex at S/N 100 per pixel in at least three
# of five stars: see benchmarks/label_leverage.py.
ELEMENTS = ("c", "o", "na", "mg", "si", "ca", "sc", "ti", "cr", "mn", "co", "ni", "cu", "y", "nd")
UPPER = {"mg": 0.8}
# Of one depth, so that muP carries every setting from the smallest to the others unchanged.
SIZES = {"s": (64, 4), "m": (128, 4), "l": (256, 4)}
HELD_OUT = 2048  # validation spectra, and as many for the one test
TRAIN_SEED, ERROR_SEED = 1, 3
RESPONSE_STARS = 24
NUM_MODES = 64


def label_space() -> LabelSpace:
    """The box of the shipped emulators."""
    return LabelSpace(
        ("teff", "logg", "vmic", "fe_h", *(f"{e}_fe" for e in ELEMENTS)),
        (4000.0, 1.0, 0.5, -2.5, *(-0.5 for _ in ELEMENTS)),
        (7000.0, 5.0, 3.0, 0.5, *(UPPER.get(e, 0.5) for e in ELEMENTS)),
    )


def make_grid(out: Path, spectra: int, batch: int, dither: bool) -> SpectralGrid:
    """Sobol-sampled spectra of the box, the held-out ones among them."""
    space = label_space()
    synth = LTESynthesizer.build(WAVELENGTH, space)
    began = time.time()
    grid = SpectralGrid.generate(
        synth, space, spectra, out, seed=TRAIN_SEED, batch_size=batch, dither=dither, progress=False
    )
    print(f"{spectra} spectra at {spectra / (time.time() - began):.0f}/s, compilation included")
    return grid


def settings(size: str) -> dict[str, Any]:
    """Everything of a run but its length."""
    width, depth = SIZES[size]
    return RECIPE | {
        "width": width,
        "depth": depth,
        "validate_every": 2000,
        "checkpoint_every": 10000,
        "num_modes": NUM_MODES,
    }


def make_emulator(grid: SpectralGrid, size: str, out: Path, seconds: float, **changes: Any) -> None:
    """Train one size for about the seconds given, and leave it with its record in `out`.

    `changes` replace `settings`; ``steps`` among them is the length itself.
    """
    began = time.time()
    data, validation, test = split_grid(grid, 0, HELD_OUT, HELD_OUT)
    data = data.on_device()
    keep: dict[str, Any] = {
        "label_space": grid.label_space,
        "validation": validation,
        "provenance": {**grid.provenance, "hash": grid.hash},
        "progress": False,
    }
    chosen: dict[str, Any] = settings(size) | changes
    if "steps" not in chosen:
        # A short run tells how many steps the time allows.
        trial = TrainConfig(**{**chosen, "steps": 400})
        row = train(data, config=trial, run_dir=out / f"trial-{size}", **keep).row
        left = seconds - (time.time() - began) - 25.0
        chosen["steps"] = max(int(400 * left / row["seconds"]) // 2000, 1) * 2000
        print(f"{row['tflops']:.0f} TFLOP/s: {chosen['steps']} steps", flush=True)
    result = train(
        data,
        config=TrainConfig(**chosen),
        run_dir=out / f"run-{size}",
        test=test,
        ledger=out / "runs.jsonl",
        **keep,
    )
    name = f"fgk-mgb-{size}"
    exact = result.row["mse_test"]
    synth = LTESynthesizer.build(WAVELENGTH, grid.label_space)
    rounded = result.emulator.rounded()
    emulator = with_errors(rounded, validation, synth, name, {"source": "validation"})
    emulator.save(out / f"{name}.h5")
    report = held_out_report(emulator, test) | {
        "mse_test_before_rounding": exact,
        "validation_curve": np.asarray(result.validation).tolist(),
        "row": result.row,
    }
    write_json(out / f"{name}.json", report)
    print(name, json.dumps(report["regions"]["all"], default=float), f"unrounded {exact:.4g}")


def with_errors(
    emulator: Emulator,
    held_out: TrainingData,
    synth: LTESynthesizer,
    name: str,
    about: dict[str, Any],
) -> Emulator:
    """The emulator under a name, with the error model of some held-out spectra."""
    assert isinstance(emulator.model, TransformerPayne)
    errors = fit_error_model(emulator.model, held_out, NUM_MODES).rounded()
    response = {"stars": RESPONSE_STARS, "seed": ERROR_SEED}
    found = {"spectra": len(held_out.labels), "mse": float(errors.mse), **about}
    measured = Emulator(
        emulator.model,
        emulator.wavelength_range,
        emulator.step,
        errors,
        emulator.record | {"error_model": found | {"response": response}},
        name,
    )
    wrong = measure_response(measured, synth, **response)
    return eqx.tree_at(lambda e: e.error_model.coherent.response, measured, jnp.asarray(wrong))


def held_out_report(emulator: Emulator, test: TrainingData) -> dict[str, Any]:
    """Error on spectra that nothing was chosen on."""
    assert isinstance(emulator.model, TransformerPayne)
    residuals = np.asarray(evaluate(emulator.model, test, residuals=True), np.float64)
    star = np.mean(residuals**2, axis=1)
    labels = np.asarray(test.labels)
    space = emulator.label_space
    teff, logg, fe_h = (labels[:, space.index(name)] for name in ("teff", "logg", "fe_h"))

    def summary(rows: np.ndarray) -> dict[str, float]:
        return {
            "stars": int(rows.sum()),
            "mse": star[rows].mean(),
            "median": np.median(star[rows]),
            "worst": star[rows].max(),
        }

    regions = {"all": summary(np.ones(len(star), bool))}
    for name, values, edges in (
        ("teff", teff, (4000, 4500, 5000, 5500, 6000, 7000)),
        ("logg", logg, (1, 2, 3, 4, 5)),
        ("fe_h", fe_h, (-2.5, -1.5, -0.5, 0.0, 0.5)),
    ):
        for lo, hi in zip(edges[:-1], edges[1:], strict=True):
            regions[f"{name} {lo:g}..{hi:g}"] = summary((values >= lo) & (values < hi))
    pieces = np.array_split(np.arange(residuals.shape[1]), 20)
    return {
        "regions": regions,
        "worst_star": {"mse": star.max(), "labels": labels[star.argmax()].tolist()},
        "mean_absolute_error": float(np.mean(np.abs(residuals))),
        "wavelength_mse": {
            f"{WAVELENGTH[p[0]]:.1f}-{WAVELENGTH[p[-1]]:.1f}": float(np.mean(residuals[:, p] ** 2))
            for p in pieces
        },
    }


def measure_errors(paths: list[Path], spectra: int, out: Path) -> None:
    """Give emulators the error models of the same freshly synthesised spectra."""
    space = label_space()
    synth = LTESynthesizer.build(WAVELENGTH, space)
    fresh = synthesize(synth, spectra, ERROR_SEED, STEP, jax.devices())
    about = {"source": "fresh", "seed": ERROR_SEED, "synthesizer": synth.provenance()}
    for path in paths:
        emulator = Emulator.load(path)
        with_errors(emulator, fresh, synth, path.stem, about).save(out / path.name)
        report = held_out_report(emulator, fresh)
        write_json(out / f"{path.stem}-fresh.json", report)
        print(path.stem, json.dumps(report["regions"]["all"], default=float))


def write_json(path: Path, report: dict[str, Any]) -> None:
    """A report, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1, default=float), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    synthesis = verbs.add_parser("grid")
    synthesis.add_argument("--out", type=Path, required=True)
    synthesis.add_argument("--spectra", type=int, default=200_000)
    synthesis.add_argument("--batch", type=int, default=128, help="stars synthesised at a time")
    synthesis.add_argument("--no-dither", action="store_true")
    run = verbs.add_parser("train")
    run.add_argument("--grid", type=Path, required=True)
    run.add_argument("--size", choices=sorted(SIZES), required=True)
    run.add_argument("--out", type=Path, required=True)
    run.add_argument("--seconds", type=float, default=200.0)
    run.add_argument("--steps", type=int, help="default: what the seconds allow")
    run.add_argument("--rate", type=float)
    errors = verbs.add_parser("errors")
    errors.add_argument("--emulator", type=Path, required=True, nargs="+")
    errors.add_argument("--out", type=Path, required=True)
    errors.add_argument("--spectra", type=int, default=1024, help="128 or more")
    given = parser.parse_args()
    if given.verb == "grid":
        make_grid(given.out, given.spectra, given.batch, not given.no_dither)
    elif given.verb == "errors":
        measure_errors(given.emulator, given.spectra, given.out)
    else:
        changes = {"steps": given.steps, "learning_rate": given.rate}
        changes = {name: value for name, value in changes.items() if value is not None}
        grid = SpectralGrid(given.grid)
        make_emulator(grid, given.size, given.out, given.seconds, **changes)


if __name__ == "__main__":
    main()
