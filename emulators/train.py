"""Train an emulator: constant rate, cool-down, checkpoints, one ledger row."""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from .bundle import arrays_to_tree, read_bundle, tree_to_arrays, write_bundle
from .emulator import Emulator
from .error_model import fit_error_model
from .errors import InputError
from .labels import LabelSpace
from .ledger import append_row
from .storage import atomic_write
from .train_config import TrainConfig
from .training_data import TrainingData, evaluate, split_grid
from .transformer_payne import Encoding, TransformerPayne

if TYPE_CHECKING:
    from .grid import SpectralGrid

_KIND = "checkpoint"
# Matrix units work in tiles; a pixel count that is no multiple of this cost a third of a step.
_TILE = 128


class TrainResult(NamedTuple):
    """A finished run: the emulator, its ledger row, and its loss curves.

    ``loss`` is the training MSE of every step, ``validation`` rows of (step, MSE).
    """

    emulator: Emulator
    row: dict[str, Any]
    loss: np.ndarray
    validation: np.ndarray


class _State(NamedTuple):
    # A TransformerPayne; optax knows it as a tree of arrays only.
    model: Any
    optimizer: Any
    step: Array


def make_optimizer(config: TrainConfig, model: TransformerPayne) -> optax.GradientTransformation:
    """Adam with one state, a factor a leaf from the parametrization, and the schedule."""
    factors = model.map_leaves(config.parametrization.learning_rate_factor)

    def scale(updates, _params):
        return jax.tree.map(lambda update, factor: update * factor, updates, factors)

    return optax.chain(
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2),
        optax.stateless(scale),
        optax.scale_by_learning_rate(config.rate),
    )


def _draw_stars(seed: int, first_step: int, steps: int, batch: int, total: int) -> np.ndarray:
    """Stars of a stretch of steps, [steps, batch]: epoch after epoch, each shuffled anew.

    The stars of a step depend only on the seed and the step, so a resumed run sees the same.
    """
    position = np.arange(first_step * batch, (first_step + steps) * batch)
    epoch, within = np.divmod(position, total)
    stars = np.empty_like(position)
    for number in np.unique(epoch):
        order = np.random.default_rng((seed, int(number))).permutation(total)
        stars[epoch == number] = order[within[epoch == number]]
    return stars.reshape(steps, batch).astype(np.int32)


def _pixels_per_step(config: TrainConfig, total: int) -> tuple[int, int]:
    """Pixels of one star in one step: those that count, and those computed with padding."""
    used = total if config.num_pixels is None else min(config.num_pixels, total)
    return used, -(-used // _TILE) * _TILE


def _make_steps(
    config: TrainConfig, data: TrainingData, optimizer: optax.GradientTransformation
) -> Callable:
    """The compiled inner loop: one step for each row of stars.

    Its length is known to the compiler, or a GPU would wait for the host after every step.
    """
    total = data.flux.shape[1]
    used, padded = _pixels_per_step(config, total)
    whole = used == total

    def loss_of(model, encoding, labels, shift, flux):
        depth = model.batch_depth(labels, encoding, shift, config.precision)
        error = depth[:, :used] - (1.0 - flux)
        return jnp.mean(error**2)

    def one_step(state: _State, stars: Array, data: TrainingData, encoding: Encoding):
        if whole:
            flux = data.flux[stars]
        else:
            # One pixel at random from each of `used` equal stretches: even and unbiased.
            key = jax.random.fold_in(jax.random.key(config.seed), state.step)
            place = jax.random.uniform(key, (stars.shape[0], used), jnp.float32)
            place = (jnp.arange(used, dtype=jnp.float32)[None, :] + place) * (total / used)
            pixels = jnp.minimum(place.astype(jnp.int32), total - 1)
            flux = data.flux[stars[:, None], pixels]
            pixels = jnp.pad(pixels, ((0, 0), (0, padded - used)))
            encoding = Encoding(encoding.sin[pixels], encoding.cos[pixels])
        loss, gradient = jax.value_and_grad(loss_of)(
            state.model,
            encoding,
            data.labels[stars],
            data.dither[stars] * data.step,
            flux.astype(jnp.float32),
        )
        updates, moments = optimizer.update(gradient, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        return _State(model, moments, state.step + 1), loss

    def steps(state: _State, stars: Array, data: TrainingData):
        encoding = state.model.encode(jnp.asarray(data.wavelength))
        if whole:
            rows = ((0, padded - total), (0, 0))
            encoding = jax.tree.map(lambda table: jnp.pad(table, rows), encoding)

        return jax.lax.scan(lambda now, rows: one_step(now, rows, data, encoding), state, stars)

    return jax.jit(steps)


def train(
    data: "TrainingData | SpectralGrid",
    *,
    config: TrainConfig,
    run_dir: str | os.PathLike[str],
    label_space: LabelSpace | None = None,
    validation: TrainingData | int | None = None,
    test: TrainingData | int | None = None,
    provenance: dict[str, Any] | None = None,
    ledger: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train one emulator, and leave it, its checkpoints and its ledger row in `run_dir`.

    A killed run goes on from its last checkpoint with ``resume=True`` and ends with the same
    bits as one that was not killed (on one machine).

    Parameters
    ----------
    data
        Spectra to learn from: arrays, or a grid, which is then split into training, validation
        and test spectra by the configuration's seed.
    config
        Model, optimizer and budget.
    run_dir
        Folder of this run alone; a used one is refused unless `resume`.
    label_space
        Of arrays; a grid brings its own.
    validation, test
        Held-out spectra: arrays with arrays; with a grid their numbers (default: a tenth, at most
        1024 each). Training never looks at either. The error model is fitted on the validation
        spectra; the test spectra are evaluated once, at the end.
    provenance
        Of arrays; a grid brings its own.
    ledger
        File that gets the row; by default ``runs.jsonl`` in `run_dir`.
    resume
        Go on from the last checkpoint; with another configuration or other data it is an error.
    progress
        Show a progress bar.
    """
    if not isinstance(data, TrainingData):
        grid = data
        label_space = grid.label_space
        provenance = {**grid.provenance, "hash": grid.hash}
        data, validation, test = split_grid(grid, config.seed, validation, test)
    if label_space is None or not isinstance(validation, TrainingData):
        raise InputError("train: arrays need label_space= and validation= beside them")
    if isinstance(test, int):
        raise InputError("train: with arrays, give the test spectra themselves, not their number")
    held_out = {"validation": validation} | ({} if test is None else {"test": test})
    for name, part in {"training": data, **held_out}.items():
        part.check(name, len(label_space))
    model = TransformerPayne(
        label_space,
        width=config.width,
        depth=config.depth,
        tokens=config.tokens,
        head_dim=config.head_dim,
        periods=config.periods,
        parametrization=config.parametrization,
        key=jax.random.key(config.seed),
    )
    run_dir = Path(run_dir)
    ledger = run_dir / "runs.jsonl" if ledger is None else Path(ledger)
    identity = {"config": config.to_dict(), "data": data.hash()}
    run_id = _claim(run_dir, identity, resume)
    data = data.on_device()
    optimizer = make_optimizer(config, model)
    weights: Any = model
    state = _State(weights, optimizer.init(weights), jnp.zeros((), jnp.int32))
    state, curve = _run(config, data, validation, optimizer, state, run_dir, progress)

    residuals = evaluate(state.model, validation, residuals=True).astype(np.float64)
    mse_test = None if test is None else float(np.mean(evaluate(state.model, test)))
    row = _row(config, run_id, state.model, data, curve.seconds)
    row |= {"mse_validation": float(np.mean(residuals**2)), "mse_test": mse_test}
    emulator = Emulator(
        state.model,
        (float(data.wavelength[0]), float(data.wavelength[-1])),
        float(data.step),
        fit_error_model(residuals, np.asarray(data.wavelength), config.num_modes),
        {
            "training": row,
            "config": config.to_dict(),
            "grid": provenance or {},
            "data": identity["data"],
            "versions": {m.__name__: m.__version__ for m in (jax, eqx, optax, np)},
            "medium": "vacuum",
            "solar_scale": label_space.solar_scale,
        },
        run_dir.name,
    )
    emulator.save(run_dir / "emulator.h5")
    append_row(ledger, row)
    return TrainResult(emulator, row, np.concatenate(curve.loss), np.asarray(curve.validation))


def _claim(run_dir: Path, identity: dict[str, Any], resume: bool) -> str:
    """Take a fresh folder, or check that a used one belongs to this very run."""
    path = run_dir / "run.json"
    if run_dir.is_file():
        raise InputError(f"train: {run_dir} is a file; give a folder")
    if run_dir.exists() and any(run_dir.iterdir()):
        if not resume:
            raise InputError(f"train: {run_dir} is in use; resume it or give another folder")
        if not path.exists():
            raise InputError(f"train: {run_dir} holds no run to resume (no run.json)")
        stored = json.loads(path.read_text(encoding="utf-8"))
        before, now = stored["config"], identity["config"]
        for name in now:
            if before.get(name) != now[name]:
                raise InputError(
                    f"train: {name} is {now[name]} but {run_dir} was started with "
                    f"{before.get(name)}; keep it, or start another folder"
                )
        if stored["data"] != identity["data"]:
            raise InputError(f"train: {run_dir} was started on other spectra")
        return stored["run_id"]
    run_id = uuid.uuid4().hex[:12]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"run_id": run_id, **identity}, indent=1))
    return run_id


class _Curve(NamedTuple):
    loss: list[np.ndarray]
    validation: list[tuple[float, float]]
    seconds: float


def _run(config, data, validation, optimizer, state, run_dir, progress) -> tuple[_State, _Curve]:
    """Take all steps that are left, with checkpoints and validation on the way."""
    checkpoint = run_dir / "checkpoint.h5"
    curve = _Curve([], [], 0.0)
    if checkpoint.exists():
        arrays, record = read_bundle(checkpoint, _KIND)
        state = arrays_to_tree(state, arrays)
        curve = _Curve(
            [arrays["loss"]], [(s, m) for s, m in arrays["validation"]], record["seconds"]
        )
    validation = validation.on_device()
    step = int(state.step)
    if step >= config.steps:
        return state, curve
    steps = _make_steps(config, data, optimizer)
    compiled = {}
    with _progress_bar(progress, config.steps, step) as advance:
        while step < config.steps:
            count = min(config.steps_per_call, config.steps - step)
            drawn = _draw_stars(config.seed, step, count, config.batch_size, len(data.flux))
            stars = jnp.asarray(drawn)
            if count not in compiled:
                # Outside the clock, so that seconds are training seconds.
                compiled[count] = steps.lower(state, stars, data).compile()
            start = time.perf_counter()
            state, losses = compiled[count](state, stars, data)
            losses = np.asarray(losses)
            curve = curve._replace(seconds=curve.seconds + time.perf_counter() - start)
            if not np.isfinite(losses).all():
                bad = step + int(np.argmin(np.isfinite(losses)))
                raise InputError(
                    f"train: the loss is {losses[bad - step]} at step {bad}; lower learning_rate "
                    f"({config.learning_rate:g}) and start again in another folder"
                )
            step += count
            curve.loss.append(losses)
            if step % config.validate_every == 0 or step == config.steps:
                mse = float(np.mean(evaluate(state.model, validation)))
                curve.validation.append((float(step), mse))
            if step % config.checkpoint_every == 0 or step == config.steps:
                _save(checkpoint, state, curve)
            advance(step, float(losses.mean()), curve.validation)
    return state, curve


def _save(path: Path, state: _State, curve: _Curve) -> None:
    arrays = tree_to_arrays(state)
    arrays["loss"] = np.concatenate(curve.loss)
    arrays["validation"] = np.asarray(curve.validation, np.float64).reshape(-1, 2)
    write_bundle(path, _KIND, arrays, {"seconds": curve.seconds})


def _row(
    config: TrainConfig, run_id: str, model: TransformerPayne, data: TrainingData, seconds: float
) -> dict[str, Any]:
    """The ledger's columns that are known without held-out spectra."""
    stars, total = data.flux.shape
    used, padded = _pixels_per_step(config, total)
    seen = config.steps * config.batch_size
    spent = 3 * seen * model.flops(padded)
    return {
        "run_id": run_id,
        "config_hash": config.hash,
        "seed": config.seed,
        "width": config.width,
        "depth": config.depth,
        "tokens": config.tokens,
        "head_dim": config.head_dim,
        "parameters": model.num_parameters,
        "unique_spectra": stars,
        "spectra_seen": seen,
        "steps": config.steps,
        "flops": 3 * seen * model.flops(used),
        "flops_spent": spent,
        "seconds": seconds,
        "tflops": spent / max(seconds, 1e-9) / 1e12,
        "precision": config.precision,
        "device": jax.devices()[0].device_kind,
    }


@contextmanager
def _progress_bar(show: bool, steps: int, done: int) -> Iterator[Callable]:
    """A bar that is told the step, the mean loss of the last call and the validation rows."""
    if not show:
        yield lambda *_: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[errors]}"),
    )
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=steps, completed=done, errors="")

        def advance(step, loss, validation):
            text = f"MSE {loss:.2e}"
            if validation:
                text += f", validation {validation[-1][1]:.2e}"
            bar.update(task, completed=step, errors=text)

        yield advance
