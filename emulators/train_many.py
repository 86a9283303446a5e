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
from jaxtyping import Float

from .labels import LabelSpace
from .optimizers import MakeOptimizer, make_optimizer
from .train import ledger_row, start_model
from .train_config import TrainConfig
from .training_data import TrainingData, evaluate
from .training_step import (
    Member,
    State,
    draw_stars,
    make_steps,
    star_mesh,
)
from .transformer_payne import TransformerPayne


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
    """Train one configuration at every rate from every seed, all in one stack.

    Each run takes the steps that `train` would take with its rate and seed, up to rounding.

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
    mesh = star_mesh(config, jax.devices()[:1])
    models = [start_model(one, label_space) for one in configs]
    transformation = optimizer(config, models[0])
    states = [State.start(config, model, transformation) for model in models]
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    member = Member(
        jnp.asarray([one.seed for one in configs]),
        jnp.asarray([one.learning_rate / config.learning_rate for one in configs], jnp.float32),
    )
    steps = make_steps(config, data.flux.shape[1], transformation, mesh)
    stacked = jax.jit(jax.vmap(steps, in_axes=(0, 0, None, 0)), donate_argnums=0)
    losses, seconds, compiled = [], 0.0, {}
    for first in range(0, config.steps, config.steps_per_call):
        count = min(config.steps_per_call, config.steps - first)
        drawn = [
            draw_stars(one.seed, first, count, one.batch_size, len(data.flux)) for one in configs
        ]
        stars = jnp.asarray(np.stack(drawn))
        if count not in compiled:
            compiled[count] = stacked.lower(state, stars, data, member).compile()
        start = time.perf_counter()
        state, loss = compiled[count](state, stars, data, member)
        losses.append(np.asarray(loss))
        seconds += time.perf_counter() - start
    loss = np.concatenate(losses, axis=1)
    trained = []
    for i, one in enumerate(configs):
        model = jax.tree.map(lambda leaf, i=i: leaf[i], state.result)
        trained.append(_finish(one, model, data, validation, test, loss[i], seconds / len(configs)))
    return trained


def _finish(config, model, data, validation, test, loss, seconds) -> Trained:
    row = ledger_row(config, "", model, data, seconds)
    finite = bool(np.isfinite(loss).all())
    for name, part in (("mse_validation", validation), ("mse_test", test)):
        row[name] = None
        if finite and part is not None:
            row[name] = float(np.mean(evaluate(model, part)))
    row.pop("run_id")
    return Trained(config, row, model, loss)
