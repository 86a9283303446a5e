"""Make the runs of a `Sweep`: on every device at once, from where a killed one stopped."""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from emulators.bundle import arrays_to_tree, read_bundle, tree_to_arrays, write_bundle
from emulators.errors import InputError
from emulators.fresh_spectra import FreshSpectra
from emulators.labels import LabelSpace
from emulators.ledger import COLUMNS, append_row, mend, read_rows
from emulators.train import ledger_row
from emulators.train_config import TrainConfig
from emulators.train_many import Stack, errors_of
from emulators.training_data import TrainingData
from emulators.training_step import State

from .sweep import FRESH, Branch, Sweep, Trunks

SWEEP_COLUMNS = (*COLUMNS, "learning_rate", "trunk", "steps_trunk", "steps_cooldown", "loss")
"""Of a sweep's ledger: those of every run, and

- ``trunk``: name of the constant-rate run that this one branched off;
- ``steps_trunk``, ``steps_cooldown``: where ``steps`` were spent. ``flops`` are those of the run as
  if it had been made alone; ``flops_spent`` those really spent on it, with padding: its cool-down,
  and its trunk since the branch before;
- ``loss``: at most 100 pairs of a step and the mean training MSE since the pair before.
"""
_KIND = "trunks"
_POINTS = 100

# Told the steps taken, those of the budget, the training MSE.
Tell = Callable[[int, int, float], None]


class Spectra(NamedTuple):
    """What all runs of a sweep learn from, and are judged by.

    Attributes
    ----------
    label_space
        Of the labels.
    training
        A run of ``n`` unique spectra learns from the first ``n``.
    validation, test
        Held out. Anything that is chosen is chosen on the first, and quoted on the second.
    fresh
        The stream, where the sweep asks for one.
    """

    label_space: LabelSpace
    training: TrainingData
    validation: TrainingData
    test: TrainingData
    fresh: FreshSpectra | None = None


def train_sweep(
    sweep: Sweep,
    spectra: Spectra,
    out: str | os.PathLike[str],
    *,
    devices: Sequence[Any] | None = None,
    client: Any = None,
    seconds: float = float("inf"),
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Make the runs that the ledger in `out` lacks; rows of all, in the order of their making.

    A killed sweep is called again: no run is made twice, and on one machine the rest come out
    with the same bits. Trunks go on from their last branch, also towards budgets that are new; a
    stack that gets a new member begins again.

    Parameters
    ----------
    sweep
        Which runs.
    spectra
        To learn from and to be judged by.
    out
        Folder of the ledger ``runs.jsonl`` and of the trunks' checkpoints.
    devices
        That train at the same time; by default all that JAX sees. A sequence of sequences of
        devices makes teams, which share the stars of every step: for few large runs.
    client
        A ``dask.distributed.Client``: trunks are then trained by its workers, each on the first
        device that it sees, which must all see `out`.
    seconds
        After them no branch is begun, nor one that would not end in them by the pace of the last.
    progress
        Show a table of what is under way.

    Raises
    ------
    InputError
        Spectra that do not fit the sweep.
    """
    out = Path(out)
    ledger = out / "runs.jsonl"
    mend(ledger)
    _check(sweep, spectra)
    task = _Task(sweep, spectra, out, *_hashes(spectra))
    # Of the world's clock, which the workers of a cluster share.
    end = time.time() + seconds
    asked = sweep.trunks(spectra.label_space, spectra.training.flux.shape[1])
    todo = [trunks for trunks in asked if task.missing(trunks)]
    if client is not None:
        shared = client.scatter(task, broadcast=True)
        futures = [client.submit(_train_trunks, shared, trunks, end, pure=False) for trunks in todo]
        client.gather(futures)
        return task.rows(asked)
    idle: SimpleQueue[Any] = SimpleQueue()
    for team in jax.devices() if devices is None else devices:
        idle.put(_Team(list(team) if isinstance(team, Sequence) else [team]))
    with (
        _table(todo, sweep.steps_per_call, progress) as tell,
        ThreadPoolExecutor(idle.qsize()) as pool,
    ):

        def work(place: int) -> None:
            team = idle.get()
            try:
                _train_trunks(task, todo[place], end, team, lambda *now: tell(place, *now))
            finally:
                idle.put(team)

        # The list consumes the results, and with them any error.
        list(pool.map(work, range(len(todo))))
    return task.rows(asked)


def _check(sweep: Sweep, spectra: Spectra) -> None:
    for name in ("training", "validation", "test"):
        getattr(spectra, name).check(name, len(spectra.label_space))
    held = len(spectra.training.flux)
    asked = {unique for block in sweep.blocks for unique in block["unique_spectra"]}
    if FRESH in asked and spectra.fresh is None:
        raise InputError("sweep: unique_spectra asks for fresh ones; give a FreshSpectra")
    most = max((unique for unique in asked if unique != FRESH), default=0)
    if most > held:
        raise InputError(f"sweep: unique_spectra holds {most}, but there are {held} to train on")


def _stream(spectra: Spectra) -> FreshSpectra:
    assert spectra.fresh is not None  # `_check` has seen to it
    return spectra.fresh


def _hashes(spectra: Spectra) -> tuple[str, str]:
    return spectra.training.hash(), "" if spectra.fresh is None else spectra.fresh.hash()


@dataclasses.dataclass
class _Task:
    """What all trunks of a sweep have in common."""

    sweep: Sweep
    spectra: Spectra
    out: Path
    hash_training: str
    hash_fresh: str

    @property
    def ledger(self) -> Path:
        return self.out / "runs.jsonl"

    def checkpoint(self, trunks: Trunks) -> Path:
        """Of these members with these settings and spectra, whatever their budgets."""
        ids = [self.run(trunks, member, 0)[2] for member in trunks.members]
        name = hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:12]
        return self.out / f"{trunks.width}x{trunks.depth}-{name}" / "trunks.h5"

    def run(
        self, trunks: Trunks, member: tuple[int | None, int], steps: int
    ) -> tuple[TrainConfig, str, str]:
        """Configuration, run id and trunk id of one run."""
        config = self.sweep.config(trunks.width, trunks.depth, member[1], max(steps, 1))
        settings = config.to_dict()
        of_trunk = {name: value for name, value in settings.items() if name != "steps"}
        data = self.hash_fresh if trunks.fresh else self.hash_training

        def digest(what: Any) -> str:
            text = json.dumps([what, member[0], data], sort_keys=True)
            return hashlib.sha256(text.encode()).hexdigest()[:12]

        return config, digest(settings), digest(of_trunk)

    def rows(self, asked: Sequence[Trunks]) -> list[dict[str, Any]]:
        """Those of the ledger that these trunks ask for."""
        rows = read_rows(self.ledger) if self.ledger.exists() else []
        ids = {
            i for trunks in asked for branch in trunks.branches for i in self.ids(trunks, branch)
        }
        return [row for row in rows if row["run_id"] in ids]

    def ids(self, trunks: Trunks, branch: Branch) -> list[str]:
        """Of the runs that end with a branch."""
        return [self.run(trunks, member, branch.steps)[1] for member in trunks.members]

    def missing(self, trunks: Trunks) -> list[Branch]:
        """Branches of which the ledger lacks a run."""
        known = {row["run_id"] for row in self.rows([trunks])}
        return [b for b in trunks.branches if not known.issuperset(self.ids(trunks, b))]


@dataclasses.dataclass
class _Team:
    """Devices that share the stars of a step, and the training spectra that lie on them."""

    devices: list[Any]
    store: TrainingData | None = None


def _train_trunks(
    task: _Task,
    trunks: Trunks,
    end: float,
    team: _Team | None = None,
    tell: Tell = lambda *_: None,
) -> None:
    """All missing branches of some trunks, in order; a row a run as soon as it is done."""
    team = _Team(jax.devices()[:1]) if team is None else team
    # Spectra that are made on the way are made on the first device.
    with jax.default_device(team.devices[0]):
        todo = task.missing(trunks)
        work, pace = None, 0.0
        for branch in todo:
            steps = branch.steps - (work.step if work else 0)
            if time.time() + pace * steps > end:
                size = f"{trunks.width}, {trunks.depth}"
                print(f"left out, no time: {size} to {branch.steps} steps", file=sys.stderr)
                return
            since = time.time()
            work = work or _Work.resume(task, trunks, team, todo)
            work.advance(branch.turn, trunks.branches[-1].steps, tell)
            work.save()
            cooled = work.branch_off()
            cooled.advance(branch.steps, branch.steps, tell)
            cooled.record(branch)
            # Compilation is in the first, so the guess is on the safe side.
            pace = (time.time() - since) / max(steps, 1)


@dataclasses.dataclass
class _Work:
    """Some trunks, or a branch of each, on their way."""

    task: _Task
    trunks: Trunks
    stack: Stack
    state: State
    store: TrainingData
    step: int
    loss: list[np.ndarray]
    # Of the trunk, since the step that rows have been charged for.
    seconds: float = 0.0
    charged: int = 0

    @classmethod
    def resume(cls, task: _Task, trunks: Trunks, team: _Team, todo: Sequence[Branch]) -> "_Work":
        """From the checkpoint, unless there is none or it lies beyond the first missing branch."""
        spectra, last = task.spectra, trunks.branches[-1].steps
        configs = [
            task.sweep.config(trunks.width, trunks.depth, seed, last) for _, seed in trunks.members
        ]
        unique = [number or _stream(spectra).size for number, _ in trunks.members]
        stack = Stack(configs, spectra.label_space, unique, devices=team.devices)
        state, step, charged, seconds = stack.start(), 0, 0, 0.0
        loss = [np.zeros((len(configs), 0), np.float32)]
        path = task.checkpoint(trunks)
        if path.exists():
            arrays, record = read_bundle(path, _KIND)
            if record["step"] <= todo[0].turn:
                loss, step = [arrays.pop("loss")], record["step"]
                charged, seconds = record["charged"], record["seconds"]
                if step in {b.turn for b in trunks.branches} - {b.turn for b in todo}:
                    # Its branch was made after it was saved.
                    charged, seconds = step, 0.0
                state = stack.place(arrays_to_tree(state, arrays))
        if trunks.fresh:
            store = stack.place(_stream(spectra).before(step // task.sweep.steps_per_call))
        else:
            held = team.store
            store = stack.place(spectra.training.on_device()) if held is None else held
            team.store = store
        return cls(task, trunks, stack, state, store, step, loss, seconds, charged)

    def advance(self, until: int, budget: int, tell: Tell) -> None:
        """Train up to a step, at the rates of a budget."""
        budgets = [budget] * len(self.trunks.members)
        count = self.task.sweep.steps_per_call
        while self.step < until:
            self.state, loss, took = self.stack.advance(
                self.state, self.store, self.step, count, budgets
            )
            if self.trunks.fresh:
                renewed = _stream(self.task.spectra).renew(self.store, self.step // count)
                self.store = self.stack.place(renewed)
            self.step += count
            self.seconds += took
            self.loss.append(loss)
            tell(self.step, budget, float(np.median(loss)))

    def branch_off(self) -> "_Work":
        """What a branch starts from: arrays of its own, and the seconds of the trunk so far."""
        state = jax.tree.map(jnp.copy, self.state)
        store = jax.tree.map(jnp.copy, self.store) if self.trunks.fresh else self.store
        branch = dataclasses.replace(self, state=state, store=store, loss=list(self.loss))
        self.seconds, self.charged = 0.0, self.step
        return branch

    def save(self) -> None:
        """Leave a checkpoint, from which a later call goes on."""
        arrays = tree_to_arrays(self.state) | {"loss": np.concatenate(self.loss, axis=1)}
        path = self.task.checkpoint(self.trunks)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"step": self.step, "charged": self.charged, "seconds": self.seconds}
        write_bundle(path, _KIND, arrays, record)

    def record(self, branch: Branch) -> None:
        """A row for each run that ends here."""
        spectra = self.task.spectra
        source = _stream(spectra) if self.trunks.fresh else spectra.training
        curves = np.concatenate(self.loss, axis=1)
        for place, member in enumerate(self.trunks.members):
            config, run_id, trunk = self.task.run(self.trunks, member, branch.steps)
            model = self.stack.model(self.state, place)
            row = ledger_row(config, run_id, model, source, self.seconds / len(curves))
            if member[0] is not None:
                row["unique_spectra"] = member[0]
            row["flops_spent"] = row["flops_spent"] * (branch.steps - self.charged) // branch.steps
            row["tflops"] = row["flops_spent"] / max(row["seconds"], 1e-9) / 1e12
            row |= errors_of(model, curves[place], spectra.validation, spectra.test)
            row |= {"learning_rate": config.learning_rate}
            row |= {"trunk": trunk, "steps_trunk": branch.turn}
            row |= {"steps_cooldown": branch.steps - branch.turn, "loss": _thin(curves[place])}
            append_row(self.task.ledger, row, SWEEP_COLUMNS)


def _thin(loss: np.ndarray) -> list[tuple[int, float]]:
    """Means over at most `_POINTS` stretches of steps, with the step that each ends at."""
    parts = np.array_split(loss, min(_POINTS, len(loss)))
    ends = np.cumsum([len(part) for part in parts])
    return [(int(end), float(f"{part.mean():.4g}")) for end, part in zip(ends, parts, strict=True)]


@contextmanager
def _table(
    todo: Sequence[Trunks], call: int, show: bool
) -> Iterator[Callable[[int, int, int, float], None]]:
    """A live table of trunks; what it gives is told the place in the list, and as a `Tell`."""
    if not show or not todo:
        yield lambda *_: None
        return
    from rich.live import Live
    from rich.table import Table

    began, now = time.monotonic(), {}
    # Steps cost as the size and the number of members do.
    cost = [t.width**2 * t.depth * len(t.members) for t in todo]
    total = sum(c * t.work for c, t in zip(cost, todo, strict=True))

    def render() -> Table:
        table = Table(title=f"{len(todo)} trunks")
        for column in ("width, depth", "runs", "step", "of", "training MSE"):
            table.add_column(column, justify="right")
        for place, trunks in enumerate(todo):
            if place in now:
                step, budget, loss, _ = now[place]
                size = f"{trunks.width}, {trunks.depth}"
                table.add_row(size, str(trunks.num_runs), str(step), str(budget), f"{loss:.2e}")
        done = sum(cost[place] * taken for place, (*_, taken) in now.items())
        if done:
            left = (time.monotonic() - began) * (total / done - 1.0)
            table.caption = f"{100 * done / total:.0f}%, about {left / 60:.0f} min left"
        return table

    with Live(render(), refresh_per_second=1) as live:
        lock = Lock()

        def tell(place: int, step: int, budget: int, loss: float) -> None:
            with lock:
                taken = now[place][3] if place in now else 0
                now[place] = (step, budget, loss, taken + call)
                live.update(render())

        yield tell
