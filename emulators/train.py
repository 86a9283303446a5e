"""Train an emulator: constant rate, cool-down, checkpoints, one ledger row."""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .bundle import arrays_to_tree, read_bundle, tree_to_arrays, write_bundle
from .emulator import Emulator
from .error_model import fit_error_model
from .errors import InputError
from .fresh_spectra import FreshSpectra
from .labels import LabelSpace
from .ledger import append_row
from .optimizers import MakeOptimizer, make_optimizer
from .parametrization import resolve
from .storage import atomic_write
from .train_config import TrainConfig
from .training_data import TrainingData, evaluate, split_grid
from .training_step import (
    Member,
    State,
    draw_stars,
    everywhere,
    make_steps,
    pixels_per_step,
    star_mesh,
)
from .transformer_payne import TransformerPayne

if TYPE_CHECKING:
    from .grid import SpectralGrid

_KIND = "checkpoint"
# Mean squared error of depths between 0 and 1: above this a model is worse than any constant.
_DIVERGED = 1.0


class TrainResult(NamedTuple):
    """A finished run: the emulator, its ledger row, and its loss curves.

    ``loss`` is the training MSE of every step, ``validation`` rows of (step, MSE).
    """

    emulator: Emulator
    row: dict[str, Any]
    loss: np.ndarray
    validation: np.ndarray


def train(
    data: "TrainingData | SpectralGrid | FreshSpectra",
    *,
    config: TrainConfig,
    run_dir: str | os.PathLike[str],
    label_space: LabelSpace | None = None,
    validation: TrainingData | int | None = None,
    test: TrainingData | int | None = None,
    provenance: dict[str, Any] | None = None,
    ledger: str | os.PathLike[str] | None = None,
    optimizer: MakeOptimizer = make_optimizer,
    devices: Sequence[Any] | None = None,
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
        and test spectra by the configuration's seed, or a stream of fresh spectra.
    config
        Model, optimizer and budget.
    run_dir
        Folder of this run alone; a used one is refused unless `resume`.
    label_space
        Of arrays; a grid and a stream bring their own.
    validation, test
        Held-out spectra: arrays with arrays and with a stream; with a grid their numbers
        (default: a tenth, at most 1024 each). Training never looks at either. The error model is
        fitted on the validation spectra; the test spectra are evaluated once, at the end.
    provenance
        Of arrays; a grid and a stream bring their own.
    ledger
        File that gets the row; by default ``runs.jsonl`` in `run_dir`.
    optimizer
        Makes the optax transformation for rate 1; by default the one that `config` names.
        Another one is not in the configuration's hash.
    devices
        Share the stars of every step between them; by default all that JAX sees.
    resume
        Go on from the last checkpoint; with another configuration or other data it is an error.
    progress
        Show a progress bar.

    Raises
    ------
    InputError
        Bad settings or data, a used folder, and a run that diverged: it names the step.
    """
    if isinstance(data, FreshSpectra):
        label_space, provenance = data.label_space, data.provenance()
    elif not isinstance(data, TrainingData):
        grid = data
        label_space = grid.label_space
        provenance = {**grid.provenance, "hash": grid.hash}
        data, validation, test = split_grid(grid, config.seed, validation, test)
    if label_space is None or not isinstance(validation, TrainingData):
        raise InputError("train: arrays need label_space= and validation= beside them")
    if isinstance(test, int):
        raise InputError("train: with arrays, give the test spectra themselves, not their number")
    parts = {"training": data, "validation": validation, "test": test}
    for name, part in parts.items():
        if isinstance(part, TrainingData):
            part.check(name, len(label_space))
    mesh = star_mesh(config, jax.devices() if devices is None else devices)
    model = start_model(config, label_space)
    run_dir = Path(run_dir)
    ledger = run_dir / "runs.jsonl" if ledger is None else Path(ledger)
    identity = {"config": config.to_dict(), "data": data.hash()}
    run_id = _claim(run_dir, identity, resume)
    parametrization = resolve(model, config.parametrization)
    transformation = optimizer(config, model)
    state = State.start(config, model, transformation)
    del model  # its arrays are given to the first step
    state, curve = _run(config, data, validation, transformation, mesh, state, run_dir, progress)

    mse_test = None if test is None else float(np.mean(evaluate(state.result, test)))
    row = ledger_row(config, run_id, state.result, data, curve.seconds)
    errors = fit_error_model(state.result, validation, config.num_modes)
    row |= {"mse_validation": float(errors.mse), "mse_test": mse_test}
    wavelength = np.asarray(data.wavelength, np.float64)
    emulator = Emulator(
        state.result,
        (float(wavelength[0]), float(wavelength[-1])),
        float(data.step),
        errors,
        {
            "training": row,
            "config": config.to_dict(),
            "parametrization": parametrization,
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


def start_model(config: TrainConfig, label_space: LabelSpace) -> TransformerPayne:
    """The untrained model of a configuration."""
    return TransformerPayne(
        label_space,
        width=config.width,
        depth=config.depth,
        tokens=config.tokens,
        head_dim=config.head_dim,
        periods=config.periods,
        parametrization=config.parametrization,
        key=jax.random.key(config.seed),
    )


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


def _run(
    config: TrainConfig, data: Any, validation, optimizer, mesh, state, run_dir, progress
) -> tuple[State, _Curve]:
    """Take all steps that are left, with checkpoints and validation on the way."""
    checkpoint = run_dir / "checkpoint.h5"
    curve = _Curve([], [], 0.0)
    if checkpoint.exists():
        arrays, record = read_bundle(checkpoint, _KIND)
        state = arrays_to_tree(state, arrays)
        curve = _Curve(
            [arrays["loss"]], [(s, m) for s, m in arrays["validation"]], record["seconds"]
        )
    step = int(state.step)
    if step >= config.steps:
        return state, curve
    validation = validation.on_device()
    fresh = data if isinstance(data, FreshSpectra) else None
    call = step // config.steps_per_call
    store = data.before(call) if isinstance(data, FreshSpectra) else data.on_device()
    store = everywhere(mesh, store)
    state, member = everywhere(mesh, (state, Member.of(config)))
    steps = jax.jit(make_steps(config, store.flux.shape[1], optimizer, mesh), donate_argnums=0)
    compiled = {}
    with _progress_bar(progress, config.steps, step) as advance:
        while step < config.steps:
            count = min(config.steps_per_call, config.steps - step)
            drawn = draw_stars(config.seed, step, count, config.batch_size, len(store.flux))
            stars = everywhere(mesh, jnp.asarray(drawn))
            if count not in compiled:
                # Outside the clock, so that seconds are training seconds.
                compiled[count] = steps.lower(state, stars, store, member).compile()
            start = time.perf_counter()
            state, losses = compiled[count](state, stars, store, member)
            if fresh is not None and step + count < config.steps:
                # Queued behind the steps, before the host waits for them.
                store = everywhere(mesh, fresh.renew(store, call))
            losses = np.asarray(losses)
            curve = curve._replace(seconds=curve.seconds + time.perf_counter() - start)
            check_losses(losses, step, config.learning_rate)
            step += count
            call += 1
            curve.loss.append(losses)
            if step % config.validate_every == 0 or step == config.steps:
                mse = float(np.mean(evaluate(state.result, validation)))
                curve.validation.append((float(step), mse))
            if step % config.checkpoint_every == 0 or step == config.steps:
                _save(checkpoint, state, curve)
            advance(step, float(losses.mean()), curve.validation)
    return state, curve


def has_diverged(losses: np.ndarray) -> bool:
    """Whether a stretch of steps is worse than no spectrum at all, or no number."""
    return not (np.isfinite(losses).all() and losses.mean() < _DIVERGED)


def check_losses(losses: np.ndarray, first: int, learning_rate: float) -> None:
    """Refuse to go on from a stretch of steps, the first of them `first`, that went wrong."""
    if not has_diverged(losses):
        return
    finite = np.isfinite(losses)
    bad = int(np.argmin(finite)) if not finite.all() else int(np.argmax(losses))
    raise InputError(
        f"train: the loss is {losses[bad]:.3g} at step {first + bad}; lower learning_rate "
        f"({learning_rate:g}) and start again in another folder"
    )


def _save(path: Path, state: State, curve: _Curve) -> None:
    arrays = tree_to_arrays(state)
    arrays["loss"] = np.concatenate(curve.loss)
    arrays["validation"] = np.asarray(curve.validation, np.float64).reshape(-1, 2)
    write_bundle(path, _KIND, arrays, {"seconds": curve.seconds})


def ledger_row(
    config: TrainConfig,
    run_id: str,
    model: TransformerPayne,
    data: TrainingData | FreshSpectra,
    seconds: float,
) -> dict[str, Any]:
    """The ledger's columns that are known without held-out spectra."""
    total = len(data.wavelength)
    used, padded = pixels_per_step(config, total)
    calls = -(-config.steps // config.steps_per_call)
    unique = data.unique(calls) if isinstance(data, FreshSpectra) else len(data.flux)
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
        "unique_spectra": unique,
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
