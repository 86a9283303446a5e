"""Time of the emulator beside astro-emulators-toolkit 0.1.0, and its share of the matmul rate.

    python benchmarks/emulator_forward.py [--size 128,4] [--pixels 22315] [--rounds 7] [--venv DIR]

The toolkit is installed into a virtual environment of its own, which sees the packages of the
running one, and everything is timed there in one process: both emulators have the same weights
(their spectra must agree) and take turns, so that a busy machine slows both. Prints one JSON
object a case: seconds (medians); ratios of ours over theirs within one round (medians) to its
plain forward, to that in chunks of wavelengths (`ratio` is to the fastest of them) and, of a
gradient, to chunks recomputed in the backward pass; the same in processor time, which other work
on the machine disturbs less; and our rate as a share of that of a large float32 matrix product.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from emulators.labels import LabelSpace
from emulators.transformer_payne import TransformerPayne

PEER = "astro-emulators-toolkit==0.1.0"
CHUNKS = (1024, 2048, 4096)
SIZES = ((128, 4), (256, 8))
PIXELS = (4096, 22315)
TOKENS, HEAD_DIM = 16, 32
ELEMENTS = ("c", "n", "o", "mg", "si", "ca", "ti", "cr", "mn", "ni")
NAMES = ("teff", "logg", "vmic", "fe_h", *(f"{element}_fe" for element in ELEMENTS))
LABELS = LabelSpace(
    NAMES, (4000.0, 3.0, 0.5, -2.5) + (-0.5,) * 10, (7000.0, 5.0, 3.0, 0.5) + (0.5,) * 10
)


def environment(folder: Path) -> Path:
    """The python of a virtual environment that has the toolkit and all that this one has."""
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        same = [f"{name}=={importlib.metadata.version(name)}" for name in ("jax", "jaxlib")]
        subprocess.run([python, "-m", "pip", "install", "--quiet", PEER, *same], check=True)
        # A venv made from a venv sees the packages of neither, unless it is told.
        lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
        (folder / "running.pth").write_text("".join(lines))
        (packages,) = folder.glob("lib/python*/site-packages")
        (folder / "running.pth").rename(packages / "running.pth")
        (folder / "ready").touch()
    return python


def weighted_model(width: int, depth: int) -> TransformerPayne:
    """A model with lines in it: the head, zero at first, is drawn too."""
    model = TransformerPayne(
        LABELS, width=width, depth=depth, tokens=TOKENS, head_dim=HEAD_DIM, key=jax.random.key(0)
    )
    head = jax.random.normal(jax.random.key(1), (width,), jnp.float32) / width**0.5
    return eqx.tree_at(lambda tree: tree.head_out, model, 0.1 * head)


def peer_depth(model: TransformerPayne, pixels: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The toolkit's forward with the same weights: scaled labels and log10(wavelength) to depth."""
    from astro_emulators_toolkit import (  # pyright: ignore[reportMissingImports]
        Emulator,
        presets,
    )

    width, depth, heads = model.width, model.depth, model.width // HEAD_DIM
    config = presets.transformer_payne_flux()
    config.model.params.update(
        dim=width,
        dim_ff_multiplier=4,
        no_tokens=TOKENS,
        no_layers=depth,
        dim_head=HEAD_DIM,
        min_period=model.periods[0],
        max_period=model.periods[1],
    )
    emulator = Emulator.from_config(config)
    example = {"parameters": np.zeros((1, len(LABELS))), "wavelengths": np.zeros((1, pixels))}
    emulator.initialize(inputs=example, outputs={"flux": np.zeros((1, pixels))})
    inputs, outputs = (width, heads, HEAD_DIM), (heads, HEAD_DIM, width)
    # It scales its branches by 1; ours go into the last weight of each.
    out, down = model.branch_scale * model.output, model.branch_scale * model.down
    weights = {
        "param_embedding": {"w0": model.label_in, "w1": model.label_out},
        "attn_layers": {
            block: {
                "wq": model.query[block].reshape(inputs),
                "wk": model.key[block].reshape(inputs),
                "wv": model.value[block].reshape(inputs),
                "wo": out[block].reshape(outputs),
            }
            for block in range(depth)
        },
        "ff_layers": {
            block: {"in_proj": {"w": model.up[block]}, "out_proj": {"w": down[block]}}
            for block in range(depth)
        },
        "head": {"proj0": {"w": model.head_in}, "proj1": {"w": model.head_out[:, None]}},
    }
    emulator.params = {"core_model": jax.tree.map(match, emulator.params["core_model"], weights)}
    apply = emulator.make_frozen_apply()

    def depth_of(unit, log_wavelength):
        given = {"parameters": unit[None], "wavelengths": log_wavelength[None]}
        return apply(given)["flux"][0]

    return depth_of


def match(theirs: jax.Array, ours: jax.Array) -> jax.Array:
    """Our weight, if it is of their shape and type."""
    if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        raise SystemExit(f"not the same network: {theirs.shape} against {ours.shape}")
    return ours


def chunked(function, chunk: int):
    """The same function of (labels, wavelengths) over stretches of the wavelengths."""

    def mapped(unit, log_wavelength):
        pixels = log_wavelength.shape[0]
        count = -(-pixels // chunk)
        padded = jnp.pad(log_wavelength, (0, count * chunk - pixels), mode="edge")
        parts = jax.lax.map(lambda part: function(unit, part), padded.reshape(count, chunk))
        return parts.reshape(-1)[:pixels]

    return mapped


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every call in every round, [wall clock or processor, round]; they take turns."""
    for call in calls.values():
        jax.block_until_ready(call())
    seconds = {name: np.zeros((2, rounds)) for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            start = np.asarray([time.perf_counter(), time.process_time()])
            jax.block_until_ready(call())
            stop = np.asarray([time.perf_counter(), time.process_time()])
            seconds[name][:, turn] = stop - start
    return seconds


def measure(width: int, depth: int, pixels: int, rounds: int) -> list[dict[str, object]]:
    """The forward and the value and gradient of chi^2 of one size."""
    model = weighted_model(width, depth)
    wavelength = 4000.0 * jnp.exp(1e-5 * jnp.arange(pixels))
    log_wavelength = jnp.log10(wavelength)
    star = LABELS.from_unit(jnp.linspace(0.2, 0.8, len(LABELS)))
    unit = LABELS.to_unit(star)
    encoding = eqx.filter_jit(model.encode)(wavelength)
    flux = eqx.filter_jit(model.flux_at)(LABELS.from_unit(unit * 0.9), encoding)
    arrays, static = eqx.partition(model, eqx.is_array)
    square = jax.random.normal(jax.random.key(2), (2048, 2048), jnp.float32)

    def own_depth(arrays, labels, encoding):
        return 1.0 - eqx.combine(arrays, static).flux_at(labels, encoding)

    def chi_squared(forward):
        def of_labels(labels, *rest):
            return 1e4 * jnp.sum((1.0 - forward(labels, *rest) - flux) ** 2)

        return jax.value_and_grad(of_labels)

    plain = peer_depth(model, pixels)
    peers = {f"chunks of {chunk}": chunked(plain, chunk) for chunk in CHUNKS if chunk < pixels}
    kept = {"plain": plain} | peers
    # What a user of it might think of too: recompute a chunk in the backward pass.
    again = {
        f"recomputed by {chunk}": chunked(jax.checkpoint(plain), chunk)
        for chunk in CHUNKS
        if chunk < pixels
    }

    def own_gradient(arrays, labels, encoding):
        return chi_squared(partial(own_depth, arrays))(labels, encoding)

    cases = {
        "forward": (jax.jit(own_depth), {name: jax.jit(f) for name, f in kept.items()}),
        "chi^2 value and gradient": (
            jax.jit(own_gradient),
            {name: jax.jit(chi_squared(f)) for name, f in (kept | again).items()},
        ),
    }
    rows = []
    for case, (own, others) in cases.items():
        calls = {name: partial(other, unit, log_wavelength) for name, other in others.items()}
        calls["ours"] = partial(own, arrays, star, encoding)
        calls["product"] = partial(jax.jit(jnp.matmul), square, square)
        seconds = interleaved(calls, rounds)
        medians = {name: float(np.median(values[0])) for name, values in seconds.items()}
        ratio = {name: np.median(seconds["ours"] / seconds[name], axis=1) for name in others}
        best = max((name for name in others if "chunks" in name), key=lambda name: ratio[name][0])
        # A gradient in the labels alone: the backward pass multiplies once, not twice.
        flops = model.flops(pixels) * (1 if case == "forward" else 2)
        rate = 2.0 * square.size**1.5 / medians["product"]
        rows.append(
            {
                "case": case,
                "width": width,
                "depth": depth,
                "pixels": pixels,
                "ours_seconds": medians["ours"],
                "peer_seconds": {name: medians[name] for name in others},
                "best_chunked": best,
                "ratio": ratio[best][0],
                "ratios": {name: ratio[name][0] for name in others},
                "processor_ratios": {name: ratio[name][1] for name in others},
                "difference": difference(calls["ours"](), calls["plain"]()),
                "gflops_per_second": flops / medians["ours"] / 1e9,
                "product_gflops_per_second": rate / 1e9,
                "share_of_products": flops / medians["ours"] / rate,
            }
        )
    return rows


def difference(own: object, peer: object) -> float:
    """The largest difference of the results, relative to the largest value; labels as fractions."""
    scale = np.asarray(LABELS.upper) - np.asarray(LABELS.lower)
    if isinstance(own, tuple) and isinstance(peer, tuple):
        a, b = np.asarray(own[1]) * scale, np.asarray(peer[1])
    else:
        a, b = np.asarray(own), np.asarray(peer)
    return float(np.max(np.abs(a - b)) / np.max(np.abs(b)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", action="append", help="width,depth; may be repeated")
    parser.add_argument("--pixels", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--venv", type=Path, default=Path(tempfile.gettempdir()) / "stellarfit-peer-venv"
    )
    arguments = parser.parse_args()
    if importlib.util.find_spec("astro_emulators_toolkit") is None:
        os.execv(python := str(environment(arguments.venv)), [python, *sys.argv])
    sizes = [tuple(map(int, text.split(","))) for text in arguments.size or ()] or SIZES
    for width, depth in sizes:
        for pixels in arguments.pixels or PIXELS:
            for row in measure(width, depth, pixels, arguments.rounds):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
