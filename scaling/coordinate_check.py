"""Is it really muP? How far every layer moves in the first steps, against the width.

Under maximal update parametrization a step moves the activations of every layer by an amount that
does not depend on the width; under the standard one some layers move more the wider they are, until
the network diverges. The check trains networks of several widths for a few steps, by the very
optimizer and step of `emulators.train.train`, and compares activations with those at the start.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.optimizers import make_optimizer
from emulators.train import start_model
from emulators.train_config import TrainConfig
from emulators.training_data import TrainingData
from emulators.training_step import (
    Member,
    State,
    draw_stars,
    everywhere,
    make_steps,
    star_mesh,
)
from emulators.transformer_payne import TransformerPayne

WIDTHS = (64, 128, 256, 512)
# |slope| that muP must stay below in every layer, and the standard scheme exceed in one.
_FLAT, _STEEP = 0.1, 0.3
# At the best rate (2e-3) networks of all widths learn the mean depth in these steps and overshoot;
# slower, all of them are still on their way, and what is compared is how far they got.
CHECK = TrainConfig(
    steps=5, depth=2, learning_rate=5e-4, warmup=0, cooldown=0.0, batch_size=8, steps_per_call=1
)
_PROBE_STARS = 4


class Slope(NamedTuple):
    """How one layer's movement after one step grows with the width.

    Parameters
    ----------
    parametrization
        Name of the class.
    layer
        As in `TransformerPayne.activations`.
    step
        Steps taken.
    slope, error
        d ln(mean absolute change) / d ln(width): mean over seeds, and its standard error. NaN
        where the layer has not moved: the output starts at zero, so the first step moves nothing
        else.
    change
        Mean absolute change at the smallest width.
    """

    parametrization: str
    layer: str
    step: int
    slope: float
    error: float
    change: float


def check_coordinates(
    data: TrainingData,
    label_space: LabelSpace,
    configs: Sequence[TrainConfig],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    """Activations and their change since the start, after every step of short training runs.

    Parameters
    ----------
    data
        Spectra to learn from; the first four are also the ones that activations are taken of.
    label_space
        Of the labels of `data`.
    configs
        One network and scheme each: `CHECK` with other widths and parametrizations.
    seeds
        Of the weights and the order of the stars; every configuration runs with all of them.

    Returns
    -------
    One row a configuration, seed, step and layer: ``parametrization``, ``config_hash``, ``width``,
    ``depth``, ``learning_rate``, ``seed``, ``step``, ``layer``, and the means over stars, pixels
    and units of the absolute ``activation`` and of its absolute ``change`` since the start.
    """
    data.check("the spectra of the coordinate check", len(label_space))
    data = data.on_device()
    probe, wavelength = jnp.asarray(data.labels[:_PROBE_STARS]), jnp.asarray(data.wavelength)
    rows = []
    for config in configs:
        names = {"parametrization": type(config.parametrization).__name__}
        names |= {key: getattr(config, key) for key in ("width", "depth", "learning_rate")}
        start, layers = None, ()
        for seed, step, model in _trajectories(config, data, label_space, seeds):
            if step == 0:
                start, layers = model, _layers(model, probe, wavelength)
                names |= {"seed": seed, "config_hash": dataclasses.replace(config, seed=seed).hash}
                continue
            sizes = np.asarray(_sizes(model, start, probe, wavelength, layers)).tolist()
            rows += [
                {**names, "step": step, "layer": layer, "activation": size, "change": change}
                for layer, (size, change) in zip(layers, sizes, strict=True)
            ]
    return rows


def slopes(rows: Sequence[dict[str, Any]]) -> list[Slope]:
    """Growth of every layer's movement with the width, from the rows of `check_coordinates`."""
    cells: dict[tuple[str, str, int], dict[int, dict[int, float]]] = {}
    for row in rows:
        cell = cells.setdefault((row["parametrization"], row["layer"], row["step"]), {})
        cell.setdefault(row["seed"], {})[row["width"]] = row["change"]
    return [Slope(*key, *_fit(list(cell.values()))) for key, cell in cells.items()]


def steepest(found: Sequence[Slope]) -> dict[str, Slope]:
    """The slope farthest from zero under every parametrization."""
    worst: dict[str, Slope] = {}
    for slope in found:
        known = worst.get(slope.parametrization)
        if math.isfinite(slope.slope) and (known is None or abs(slope.slope) > abs(known.slope)):
            worst[slope.parametrization] = slope
    return worst


def is_flat(found: Sequence[Slope]) -> bool:
    """Whether muP moves every layer alike (|slope| <= 0.1), and the check can tell (>= 0.3)."""
    worst = steepest(found)
    return abs(worst["MaximalUpdate"].slope) <= _FLAT and abs(worst["Standard"].slope) >= _STEEP


def _fit(seeds: list[dict[int, float]]) -> tuple[float, float, float]:
    """Slope, its standard error, and the mean change at the smallest width."""
    widths = sorted(seeds[0])
    if len(widths) < 2 or any(sorted(seed) != widths for seed in seeds):
        raise InputError("coordinate check: give at least two widths, the same ones for every seed")
    change = np.array([[seed[width] for width in widths] for seed in seeds])
    if not np.all(change > 0):
        return math.nan, math.nan, float(change[:, 0].mean())
    found = np.polyfit(np.log(widths), np.log(change).T, 1)[0]
    error = float(np.std(found, ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return float(found.mean()), error, float(change[:, 0].mean())


def _trajectories(
    config: TrainConfig, data: TrainingData, label_space: LabelSpace, seeds: Sequence[int]
) -> Iterator[tuple[int, int, TransformerPayne]]:
    """Of every seed the models after 0, 1, ... steps of `train`: (seed, steps, model)."""

    mesh = star_mesh(config, jax.devices()[:1])
    data = everywhere(mesh, data)
    optimizer = make_optimizer(config, start_model(config, label_space))
    steps = jax.jit(make_steps(config, data.flux.shape[1], optimizer, mesh))
    for seed in seeds:
        model = start_model(dataclasses.replace(config, seed=seed), label_space)
        yield seed, 0, model
        member = Member.of(dataclasses.replace(config, seed=seed))
        state, member = everywhere(mesh, (State.start(config, model, optimizer), member))
        for step in range(config.steps):
            stars = draw_stars(seed, step, 1, config.batch_size, len(data.flux))
            state, _ = steps(state, everywhere(mesh, jnp.asarray(stars)), data, member)
            yield seed, step + 1, state.model


def _layers(model: TransformerPayne, labels: Array, wavelength: Array) -> tuple[str, ...]:
    """Names of the activations in the order of computation, which JAX's trees do not keep."""
    names: list[str] = []
    jax.eval_shape(lambda: names.extend(model.activations(labels[0], model.encode(wavelength))))
    return tuple(names)


@partial(jax.jit, static_argnums=4)
def _sizes(
    model: Any,
    start: Any,
    labels: Float[Array, "star labels"],
    wavelength: Float[Array, " pixel"],
    layers: tuple[str, ...],
) -> Float[Array, "layer 2"]:
    """Mean |a| and mean |a - a_start| of every layer."""
    encoding = model.encode(wavelength)

    def of(network):
        return jax.vmap(lambda star: network.activations(star, encoding))(labels)

    now, before = of(model), of(start)
    pairs = [(now[name], now[name] - before[name]) for name in layers]
    return jnp.stack([jnp.stack([jnp.mean(jnp.abs(a)) for a in pair]) for pair in pairs])
