"""How the shipped emulators are made: synthesise, train, test, all in one GPU job.

    python -m emulators.pretrained.build --out OUT [--seconds 540] [--spectra 60000]
    python -m emulators.pretrained.build --out OUT --errors OUT/green/emulator.h5 --spectra 1024

Everything is made from seeds on the device, so nothing large travels. The first command leaves the
emulator in OUT/green, its ledger row in `runs.jsonl` and `report.json` (held-out error by star,
label region and wavelength). The second, which a laptop can do, measures an emulator anew on fresh
held-out spectra: it writes OUT/green.h5 with the error model of these, and `errors.json`.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from emulators.emulator import Emulator
from emulators.error_model import fit_error_model
from emulators.labels import LabelSpace
from emulators.physics.synthesizer import LTESynthesizer
from emulators.storage import atomic_write
from emulators.train import train
from emulators.train_config import TrainConfig
from emulators.training_data import TrainingData, evaluate
from emulators.transformer_payne import TransformerPayne

STEP = 1e-5  # of the grid in ln(wavelength)
WAVELENGTH = np.exp(np.arange(np.log(5100.0), np.log(5300.0), STEP))
# Elements that 5100-5300 A measures to better than 0.02 dex at S/N 100 per pixel in at least three
# of five stars: see benchmarks/label_leverage.py.
ELEMENTS = ("c", "o", "na", "mg", "si", "ca", "sc", "ti", "cr", "mn", "co", "ni", "cu", "y", "nd")
UPPER = {"mg": 0.8}
HELD_OUT = 2048  # validation spectra, and as many for the one test
TRAIN_SEED, HELD_OUT_SEED, ERROR_SEED = 1, 2, 3


def label_space() -> LabelSpace:
    """The box of the shipped emulators."""
    return LabelSpace(
        ("teff", "logg", "vmic", "fe_h", *(f"{e}_fe" for e in ELEMENTS)),
        (4000.0, 1.0, 0.5, -2.5, *(-0.5 for _ in ELEMENTS)),
        (7000.0, 5.0, 3.0, 0.5, *(UPPER.get(e, 0.5) for e in ELEMENTS)),
    )


def synthesize(synth: LTESynthesizer, num: int, seed: int, batch: int) -> TrainingData:
    """Sobol-sampled spectra on the device, each with its own sub-pixel dither."""
    num = -(-num // batch) * batch
    labels = synth.label_space.sobol(num, seed=seed)
    dither = np.random.default_rng(seed).uniform(-0.5, 0.5, num)
    parts = []
    for first in range(0, num, batch):
        rows = slice(first, first + batch)
        spectra = synth.batch(jnp.asarray(labels[rows]), jnp.asarray(dither[rows] * STEP))
        parts.append(spectra.normalized.astype(jnp.float32))
    flux = jnp.concatenate(parts)
    return TrainingData(labels, dither, jax.block_until_ready(flux), WAVELENGTH, STEP)


def held_out_report(
    model: TransformerPayne, test: TrainingData, space: LabelSpace
) -> dict[str, Any]:
    """Error of the emulator on spectra that nothing was chosen on."""
    residuals = np.asarray(evaluate(model, test, residuals=True), np.float64)
    star = np.mean(residuals**2, axis=1)
    labels = np.asarray(test.labels)
    teff, logg, fe_h = (labels[:, space.index(name)] for name in ("teff", "logg", "fe_h"))

    def summary(rows: np.ndarray) -> dict[str, float]:
        return {"stars": int(rows.sum()), "mse": star[rows].mean(), "median": np.median(star[rows])}

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


def measure_errors(path: Path, num: int, batch: int, out: Path) -> None:
    """Give an emulator the error model of freshly synthesised spectra."""
    emulator = Emulator.load(path)
    assert isinstance(emulator.model, TransformerPayne)
    synth = LTESynthesizer.build(WAVELENGTH, emulator.label_space)
    fresh = synthesize(synth, num, ERROR_SEED, batch)
    residuals = np.asarray(evaluate(emulator.model, fresh, residuals=True), np.float64)
    report = held_out_report(emulator.model, fresh, emulator.label_space)
    record = emulator.record | {
        "error_model": {
            "spectra": len(residuals),
            "seed": ERROR_SEED,
            "mse": float(np.mean(residuals**2)),
            "synthesizer": synth.provenance(),
        }
    }
    Emulator(
        emulator.model,
        emulator.wavelength_range,
        emulator.step,
        fit_error_model(residuals, WAVELENGTH),
        record,
        "green",
    ).save(out / "green.h5")
    with atomic_write(out / "errors.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1, default=float), encoding="utf-8")
    print(json.dumps(report["regions"]["all"], default=float))


def main() -> None:
    start = time.time()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540.0, help="for the whole job")
    parser.add_argument("--spectra", type=int, default=60000)
    parser.add_argument("--batch", type=int, default=128, help="stars synthesised at a time")
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, help="default: what the seconds allow")
    parser.add_argument("--errors", type=Path, help="an emulator whose errors to measure anew")
    arguments = parser.parse_args()
    if arguments.errors is not None:
        measure_errors(arguments.errors, arguments.spectra, 16, arguments.out)
        return

    def say(text: str) -> None:
        print(f"{time.time() - start:6.1f} s  {text}", flush=True)

    synth = LTESynthesizer.build(WAVELENGTH, label_space())
    say(f"{synth.formation.lines.table.ln_wavelength.shape[0]} lines")
    held_out = synthesize(synth, 2 * HELD_OUT, HELD_OUT_SEED, arguments.batch)
    say(f"{2 * HELD_OUT} held-out spectra")
    began = time.time()
    data = synthesize(synth, arguments.spectra, TRAIN_SEED, arguments.batch)
    say(f"{len(data.labels)} spectra at {len(data.labels) / (time.time() - began):.0f}/s")
    half = np.arange(HELD_OUT)
    validation, test = held_out.select(half), held_out.select(half + HELD_OUT)

    common = {
        "width": arguments.width,
        "depth": arguments.depth,
        "learning_rate": arguments.rate,
        "batch_size": 32,
        "precision": "bfloat16",
        "cooldown": 0.35,
        "validate_every": 2000,
        "checkpoint_every": 10000,
    }
    provenance = {
        **synth.provenance(),
        "seed": TRAIN_SEED,
        "held_out_seed": HELD_OUT_SEED,
        "spectra": len(data.labels),
        "made_by": "python -m emulators.pretrained.build",
    }
    keep = {
        "label_space": synth.label_space,
        "validation": validation,
        "provenance": provenance,
        "progress": False,
    }
    steps = arguments.steps
    if steps is None:
        # a short run tells how many steps the remaining time allows
        trial = train(
            data, config=TrainConfig(steps=400, **common), run_dir=arguments.out / "trial", **keep
        )
        each = trial.row["seconds"] / 400
        left = arguments.seconds - (time.time() - start) - 25.0
        steps = max(int(left / each) // 2000 * 2000, 2000)
        say(f"{each * 1e3:.2f} ms a step, {trial.row['tflops']:.0f} TFLOP/s: {steps} steps")
    result = train(
        data,
        config=TrainConfig(steps=steps, **common),
        run_dir=arguments.out / "green",
        test=test,
        ledger=arguments.out / "runs.jsonl",
        **keep,
    )
    assert isinstance(result.emulator.model, TransformerPayne)
    report = held_out_report(result.emulator.model, test, synth.label_space)
    report["validation_curve"] = np.asarray(result.validation).tolist()
    report["row"] = result.row
    with atomic_write(arguments.out / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1, default=float), encoding="utf-8")
    say(json.dumps(report["regions"]["all"], default=float))
    say(f"validation {result.row['mse_validation']:.3g}, test {result.row['mse_test']:.3g}")


if __name__ == "__main__":
    main()
