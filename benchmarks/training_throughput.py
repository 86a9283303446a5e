"""Training throughput by the paper's count of operations, plain and with fused kernels.

    python benchmarks/training_throughput.py [--size 128,8] [--stars 32] [--pixels 8192]
                                             [--precision bfloat16] [--devices 1]
                                             [--emulator FILE]

Times the training step of the package, Adam included, on random spectra, and prints one JSON
object a size: TFLOP/s (three times `TransformerPayne.flops` over the median of 3) of the plain
path and of the kernels of `emulators.fused_block`, and the rate of a large matrix product in the
same run. With several devices, which share the stars of every step, it prints their rate over that
of one: for the same step, and for one of as many stars for each. With an emulator it also prints
the floor that the training precision sets: the mean square of its depths minus those of float64
weights and arithmetic, as a share of its test MSE.
"""

import argparse
import json
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from emulators import fused_block
from emulators.emulator import Emulator
from emulators.labels import LabelSpace
from emulators.optimizers import make_optimizer
from emulators.train_config import TrainConfig
from emulators.training_data import TrainingData
from emulators.training_step import Member, State, everywhere, make_steps, star_mesh
from emulators.transformer_payne import TransformerPayne

SIZES = ((128, 8), (256, 8), (512, 8))
# Stars and pixels of a step: many pixels a star share its tokens, and fill the device.
BATCHES = {128: ((32, 8192), (16, 16384)), 256: ((32, 4096), (32, 8192)), 512: ((32, 4096),)}
STEPS, REPEATS = 8, 3
NAMES = ("teff", "logg", "vmic", "fe_h", *(f"x{i}_fe" for i in range(15)))
LABELS = LabelSpace(
    NAMES, (4000.0, 1.0, 0.5, -2.5) + (-0.5,) * 15, (7000.0, 5.0, 3.0, 0.5) + (0.5,) * 15
)


def timed(function, *arguments) -> list[float]:
    """Seconds of each of some calls, results waited for, after one that is not counted."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return seconds


def product_rate(dtype: Any, size: int = 8192) -> float:
    """TFLOP/s of a large product of random matrices."""
    a, b = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in (0, 1))
    chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, 8, lambda _, c: (a @ c) * 0.01, b))
    return 8 * 2 * size**3 / float(np.median(timed(chain, a, b))) / 1e12


def step_rate(
    size: tuple[int, int], batch: tuple[int, int], precision: str, fused: bool, devices: int
) -> dict[str, Any]:
    """TFLOP/s of the training step of one size, and what it was compiled in."""
    (width, depth), (stars, pixels) = size, batch
    config = TrainConfig(
        width=width, depth=depth, steps=1000, batch_size=stars, precision=precision
    )
    model = TransformerPayne(LABELS, width=width, depth=depth, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    data = TrainingData(
        jnp.asarray(LABELS.sobol(2 * stars, seed=0)),
        jnp.zeros(2 * stars),
        jnp.asarray(rng.uniform(0.5, 1.0, (2 * stars, pixels)).astype(np.float32)),
        jnp.asarray(5000.0 * np.exp(1e-5 * np.arange(pixels))),
        1e-5,
    )
    rows = jnp.asarray(rng.integers(0, 2 * stars, (STEPS, stars)).astype(np.int32))
    optimizer = make_optimizer(config, model)
    state = State.start(config, model, optimizer)
    mesh = star_mesh(config, jax.devices()[:devices])
    data, rows = everywhere(mesh, (data, rows))
    state, member = everywhere(mesh, (state, Member.of(config)))
    steps = make_steps(config, pixels, optimizer, mesh)

    def no_plan(*_):
        return None

    plan_for = fused_block.plan_for if fused else no_plan
    start = time.perf_counter()
    with mock.patch.object(fused_block, "plan_for", plan_for):
        compiled = jax.jit(steps).lower(state, rows, data, member).compile()
    compile_seconds = time.perf_counter() - start
    seconds = [each / STEPS for each in timed(compiled, state, rows, data, member)]
    operations = 3 * stars * model.flops(pixels)
    return {
        "tflops": operations / float(np.median(seconds)) / 1e12,
        "milliseconds": [1e3 * each for each in seconds],
        "compile_seconds": compile_seconds,
        "loss": float(compiled(state, rows, data, member)[1][-1]),
    }


def precision_floor(path: str, precision: Any, stars: int = 16) -> dict[str, Any]:
    """How far the training precision is from float64, beside the emulator's own error."""
    emulator = Emulator.load(path)
    model: Any = emulator.model
    low, high = emulator.wavelength_range
    count = int(np.log(high / low) / emulator.step) // 128 * 128
    wavelength = jnp.asarray(low * np.exp(emulator.step * np.arange(count)))
    labels = jnp.asarray(model.label_space.sobol(stars, seed=1))
    encoding, shift = model.encode(wavelength), jnp.zeros(stars)
    depth = jax.jit(lambda m, p: m.batch_depth(labels, encoding, shift, p), static_argnums=1)
    exact = np.stack([_float64_depth(model, star, wavelength) for star in labels])
    floor = {p: float(np.mean((depth(model, p) - exact) ** 2)) for p in ("float32", precision)}
    mse = emulator.record["training"]["mse_test"]
    return {"emulator": path, "mse_test": mse, "floor": floor, "share": floor[precision] / mse}


def _float64_depth(model: Any, labels, wavelength) -> np.ndarray:
    """`line_depth` of one star in float64 NumPy, without folding: an independent reference."""

    def unit(x):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def heads(x):
        return x.reshape(len(x), -1, model.head_dim).transpose(1, 0, 2)

    names = ("label_in", "label_out", "query", "key", "value", "output", "up", "down")
    w = {n: np.asarray(getattr(model, n), np.float64) for n in (*names, "head_in", "head_out")}
    hidden = gelu(np.asarray(model.label_space.to_unit(labels)) @ w["label_in"])
    tokens = unit((hidden @ w["label_out"]).reshape(model.tokens, model.width))
    turns = np.log10(np.asarray(wavelength))[:, None] * np.asarray(model._turns_per_dex())
    x = np.sin(2 * np.pi * (turns - np.round(turns)))
    for n in range(model.depth):
        query = heads(unit(x) @ w["query"][n])
        keys, values = heads(tokens @ w["key"][n]), heads(tokens @ w["value"][n])
        logits = query @ keys.transpose(0, 2, 1) / model.head_dim
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = (weights @ values).transpose(1, 0, 2).reshape(len(x), -1)
        x = x + model.branch_scale * mixed @ w["output"][n]
        x = x + model.branch_scale * gelu(unit(x) @ w["up"][n]) @ w["down"][n]
    return gelu(unit(x) @ w["head_in"]) @ w["head_out"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", action="append", help="width,depth")
    parser.add_argument("--stars", type=int)
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--precision", choices=("float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--devices", type=int, default=1, help="beside one")
    parser.add_argument("--emulator", help="a trained emulator: also the precision's floor")
    arguments = parser.parse_args()
    ceiling = product_rate(jnp.dtype(arguments.precision))
    for text in arguments.size or [f"{w},{d}" for w, d in SIZES]:
        width, depth = (int(number) for number in text.split(","))
        batches = BATCHES.get(width, ((32, 4096),))
        if arguments.stars and arguments.pixels:
            batches = ((arguments.stars, arguments.pixels),)

        def rate(name, stars, pixels, devices=1, size=(width, depth)):
            return step_rate(size, (stars, pixels), arguments.precision, name == "fused", devices)

        found = {
            name: {f"{stars}x{pixels}": rate(name, stars, pixels) for stars, pixels in batches}
            for name in ("plain", "fused")
        }
        best = {
            name: max(each["tflops"] for each in cases.values()) for name, cases in found.items()
        }
        row = {"size": [width, depth], "precision": arguments.precision, **best}
        row |= {"product_tflops": ceiling, "device": jax.devices()[0].device_kind}
        count = arguments.devices
        if count > 1:
            stars, pixels = batches[0]
            one = found["fused"][f"{stars}x{pixels}"]["tflops"]
            shared = {"same_step": stars, "as_many_stars_each": count * stars}
            row["devices"] = count
            row["times_one"] = {
                name: rate("fused", all_stars, pixels, count)["tflops"] / one
                for name, all_stars in shared.items()
            }
        print(json.dumps({**row, "batches": found}), flush=True)
    if arguments.emulator:
        print(json.dumps(precision_floor(arguments.emulator, arguments.precision)), flush=True)


if __name__ == "__main__":
    main()
