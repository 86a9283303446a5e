"""Spectra per second of the synthesiser, with FLOPs, bytes and the share of the roofline.

    python benchmarks/throughput.py [--device-rates] [--batch 64] [--window mgb|paper]

Prints one JSON object a window and batch size. FLOPs and bytes are XLA's own count for the
compiled program; the machine's ceilings (float32 multiply-adds outside the matrix units, and
memory copies) are measured in the same run.
"""

import argparse
import functools
import json
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import emulators  # noqa: F401  (float64)
from emulators.labels import LabelSpace
from emulators.physics import data_path
from emulators.physics.linelist import LineList
from emulators.physics.synthesizer import LTESynthesizer

ELEMENTS = ("c", "n", "o", "mg", "si", "ca", "ti", "v", "cr", "mn", "co", "ni", "y")
WINDOWS = {
    # 5100-5300 A, the box of the shipped emulators; the paper's window and its dwarfs
    "mgb": ((5100.0, 5300.0), (4000.0, 1.0, 0.5, -2.5), (7000.0, 5.0, 3.0, 0.5)),
    "paper": ((4000.0, 5000.0), (4000.0, 4.0, 0.5, -2.0), (6000.0, 5.0, 2.0, 0.5)),
}


def synthesizer(window: str, molecules: tuple[int, ...] | None = None) -> LTESynthesizer:
    """The window's synthesiser; `molecules` limits the molecular species."""
    (first, last), lower, upper = WINDOWS[window]
    names = ("teff", "logg", "vmic", "fe_h", *(f"{e}_fe" for e in ELEMENTS))
    half = (0.5,) * len(ELEMENTS)
    space = LabelSpace(names, lower + tuple(-h for h in half), upper + half)
    wavelength = np.exp(np.arange(np.log(first), np.log(last), 1e-5))
    lines = LineList.load(data_path("lines.h5"))
    if molecules is not None:
        lines = lines.take((lines.species < 10000) | np.isin(lines.species, molecules))
    return LTESynthesizer.build(wavelength, space, lines=lines)


def median_seconds(function, *arguments, repeats: int = 5) -> float:
    """Median wall-clock time of a compiled function, its result waited for."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def ceilings() -> dict[str, float]:
    """This machine's float32 rate (chained multiply-adds) and memory rate (copy)."""
    size, depth = 2**24, 256
    x = jnp.linspace(0.0, 1.0, size, dtype=jnp.float32)

    @jax.jit
    def chain(x):
        for _ in range(depth):
            x = x * 0.999 + 0.001
        return x

    y = jnp.ones(2**28, jnp.float32)
    flops = 2.0 * size * depth / median_seconds(chain, x)
    bandwidth = 2.0 * y.nbytes / median_seconds(jax.jit(lambda a: a + 1.0), y)
    return {"float32_tflops": flops / 1e12, "memory_tb_s": bandwidth / 1e12}


def measure(window: str, batch: int, molecules: tuple[int, ...] | None) -> dict[str, object]:
    synth = synthesizer(window, molecules)
    labels = jnp.asarray(synth.label_space.sobol(batch, seed=0))
    shift = jnp.zeros(batch)
    # The tables are arguments, as in `LTESynthesizer.batch`: as constants XLA would fold them.
    arrays, rest = eqx.partition(synth, eqx.is_array)
    run = jax.jit(lambda arrays, *stars: jax.vmap(eqx.combine(arrays, rest))(*stars))
    start = time.perf_counter()
    compiled = functools.partial(run.lower(arrays, labels, shift).compile(), arrays)
    compile_seconds = time.perf_counter() - start
    seconds = median_seconds(compiled, labels, shift)
    cost = compiled.func.cost_analysis() or {}
    finite = bool(jnp.isfinite(compiled(labels, shift).flux).all())
    return {
        "window": window,
        "wavelengths": int(synth.wavelength.shape[0]),
        "lines": int(synth.formation.lines.table.ln_wavelength.shape[0]),
        "batch": batch,
        "spectra_per_second": batch / seconds,
        "compile_seconds": compile_seconds,
        "tflops_per_second": cost.get("flops", 0.0) / seconds / 1e12,
        "gflop_per_spectrum": cost.get("flops", 0.0) / batch / 1e9,
        "tb_per_second": cost.get("bytes accessed", 0.0) / seconds / 1e12,
        "finite": finite,
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--window", choices=sorted(WINDOWS), action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--molecules", type=int, nargs="*", help="species codes; default: all")
    arguments = parser.parse_args()
    molecules = None if arguments.molecules is None else tuple(arguments.molecules)
    print(json.dumps(ceilings()), flush=True)
    for window in arguments.window or sorted(WINDOWS):
        for batch in arguments.batch or [8]:
            print(json.dumps(measure(window, batch, molecules)), flush=True)


if __name__ == "__main__":
    main()
