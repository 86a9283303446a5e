"""Many small runs at once on one device: the same model from several seeds, at several rates.

A small network leaves most of a GPU idle; a dozen of them, stacked, do not.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32

from .labels import LabelSpace
from .optimizers import MakeOptimizer, make_optimizer
from .train import has_diverged, ledger_row, start_model
from .train_config import TrainConfig
from .training_data import TrainingData, evaluate
from .training_step import (
    Member,
    State,
    draw_stars,
    everywhere,
    make_steps,
    star_mesh,
)
from .transformer_payne import TransformerPayne

# Steps at the end of a run that tell whether it diverged.
_LAST = 100


class Stack:
    """Runs of one model, which take every step together.

    Each takes the steps that `train` would take, up to rounding. What changes is a `State` whose
    arrays have an axis of runs in front; it is the caller's.

    Parameters
    ----------
    configs
        Of the runs: alike but for `learning_rate`, `seed` and `steps`.
    label_space
        Of the spectra.
    unique
        Spectra that each run learns from, the first ones of those that `advance` is given.
    optimizer
        Makes the optax transformation; by default the one that the configurations name.
    devices
        Share the stars of every step between them; by default the first one that JAX sees.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        label_space: LabelSpace,
        unique: Sequence[int],
        *,
        optimizer: MakeOptimizer = make_optimizer,
        devices: Sequence[Any] | None = None,
    ):
        self.configs, self.label_space, self.unique = tuple(configs), label_space, tuple(unique)
        self._config = self.configs[0]
        self._mesh = star_mesh(self._config, jax.devices()[:1] if devices is None else devices)
        model = start_model(self._config, label_space)
        self._optimizer = optimizer(self._config, model)
        self._compiled: dict[tuple[int, int], Any] = {}

    def start(self) -> State:
        """Before the first step."""
        models = [start_model(config, self.label_space) for config in self.configs]
        states = [State.start(self._config, model, self._optimizer) for model in models]
        return self.place(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))

    def place(self, tree: Any) -> Any:
        """The same arrays on every device of the stack."""
        return everywhere(self._mesh, tree)

    def advance(
        self,
        state: State,
        data: TrainingData,
        first: int,
        count: int,
        budgets: Sequence[int] | None = None,
    ) -> tuple[State, Float32[np.ndarray, "run step"], float]:
        """Take some steps; the old state's arrays are given up.

        Parameters
        ----------
        state
            After `first` steps.
        data
            Spectra; see `place`.
        first, count
            The first of the steps to take, and how many.
        budgets
            Steps that every run is to end with, which is what its rate follows; by default those
            of its configuration.

        Returns
        -------
        The new state, the training MSE of every run and step, and the seconds that it took.
        """
        chosen = [config.steps for config in self.configs] if budgets is None else budgets
        rates = [config.learning_rate / self._config.learning_rate for config in self.configs]
        member = Member(
            jnp.asarray([config.seed for config in self.configs]),
            jnp.asarray(rates, jnp.float32),
            jnp.asarray(chosen),
        )
        drawn = [
            draw_stars(config.seed, first, count, config.batch_size, number)
            for config, number in zip(self.configs, self.unique, strict=True)
        ]
        given = (state, *self.place((jnp.asarray(np.stack(drawn)), data, member)))
        shape = (count, data.flux.shape[0])
        if shape not in self._compiled:
            pixels = data.flux.shape[1]
            steps = make_steps(self._config, pixels, self._optimizer, self._mesh)
            stacked = jax.jit(jax.vmap(steps, in_axes=(0, 0, None, 0)), donate_argnums=0)
            # Outside the clock, so that seconds are training seconds.
            self._compiled[shape] = stacked.lower(*given).compile()
        start = time.perf_counter()
        state, loss = self._compiled[shape](*given)
        loss = np.asarray(loss)
        return state, loss, time.perf_counter() - start

    def model(self, state: State, run: int) -> TransformerPayne:
        """One run's weights."""
        return jax.tree.map(lambda leaf: leaf[run], state.result)


class Trained(NamedTuple):
    """One of many runs.

    Attributes
    ----------
    config
        As if it had been trained alone.
    row
        Of the ledger, without a ``run_id``; ``seconds`` are this run's share. A run that diverged
        has errors of None.
    model
        With its final weights.
    loss
        Training MSE of every step.
    """

    config: TrainConfig
    row: dict[str, Any]
    model: TransformerPayne
    loss: Float[np.ndarray, " step"]


def train_many(
    data: TrainingData,
    *,
    config: TrainConfig,
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    label_space: LabelSpace,
    validation: TrainingData,
    test: TrainingData | None = None,
    optimizer: MakeOptimizer = make_optimizer,
) -> list[Trained]:
    """Train one configuration at every rate from every seed, all in one `Stack`.

    Parameters
    ----------
    config
        Its `learning_rate` and `seed` are replaced.
    learning_rates, seeds
        All pairs are run, seeds fastest.
    """
    configs = [
        dataclasses.replace(config, learning_rate=rate, seed=seed)
        for rate in learning_rates
        for seed in seeds
    ]
    data = data.on_device()
    unique = [len(data.flux)] * len(configs)
    stack = Stack(configs, label_space, unique, optimizer=optimizer)
    state, losses, seconds = stack.start(), [], 0.0
    for first in range(0, config.steps, config.steps_per_call):
        count = min(config.steps_per_call, config.steps - first)
        state, loss, took = stack.advance(state, data, first, count)
        losses.append(loss)
        seconds += took
    loss = np.concatenate(losses, axis=1)
    trained = []
    for run, one in enumerate(configs):
        model = stack.model(state, run)
        row = ledger_row(one, "", model, data, seconds / len(configs))
        row |= errors_of(model, loss[run], validation, test)
        row.pop("run_id")
        trained.append(Trained(one, row, model, loss[run]))
    return trained


def errors_of(
    model: TransformerPayne,
    loss: Float[np.ndarray, " step"],
    validation: TrainingData,
    test: TrainingData | None,
) -> dict[str, float | None]:
    """Held-out errors of a finished run; None where there are no spectra, or where it diverged."""
    lost = has_diverged(loss[-_LAST:])
    parts = {"mse_validation": validation, "mse_test": test}
    return {
        name: None if part is None or lost else float(np.mean(evaluate(model, part)))
        for name, part in parts.items()
    }
