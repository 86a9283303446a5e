"""One optimizer step of training, and many of them compiled into one call of the device."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from .errors import InputError
from .train_config import TrainConfig
from .training_data import TrainingData
from .transformer_payne import Encoding

# Matrix units work in tiles; a pixel count that is no multiple of this cost a third of a step.
_TILE = 128
_STAR = "star"
# Derivative of the magnified loss by a depth that is wrong by 1/2: far from float16's end at 65504
# on the one side, and 1e-3 of it, where a good emulator ends, far from 6e-8 on the other.
_MAGNIFY = 64.0


class State(NamedTuple):
    """What a step changes: weights, the optimizer's moments, averaged weights, the step's number.

    `average` is None unless the configuration asks for it.
    """

    # TransformerPaynes; optax knows them as trees of arrays only.
    model: Any
    optimizer: Any
    average: Any
    step: Int[Array, ""]

    @classmethod
    def start(
        cls, config: TrainConfig, model: Any, optimizer: optax.GradientTransformation
    ) -> "State":
        """Before the first step."""
        average = jax.tree.map(jnp.copy, model) if config.average else None
        return cls(model, optimizer.init(model), average, jnp.zeros((), jnp.int32))

    @property
    def result(self) -> Any:
        """The weights to use: averaged where that was asked for."""
        return self.model if self.average is None else self.average


class Member(NamedTuple):
    """What tells runs of one configuration apart when many are trained at once.

    Attributes
    ----------
    seed
        Of the pixels drawn.
    rate
        Factor on the configuration's learning rate.
    budget
        Steps that the run is to end with, in place of the configuration's.
    """

    seed: Int[Array, "*member"]
    rate: Float[Array, "*member"]
    budget: Int[Array, "*member"]

    @classmethod
    def of(cls, config: TrainConfig) -> "Member":
        """A run by itself."""
        return cls(jnp.asarray(config.seed), jnp.ones((), jnp.float32), jnp.asarray(config.steps))


def draw_stars(
    seed: int, first_step: int, steps: int, batch: int, total: int
) -> Int[np.ndarray, "step batch"]:
    """Stars of a stretch of steps: epoch after epoch, each shuffled anew.

    The stars of a step depend only on the seed and the step, so a resumed run sees the same.
    """
    position = np.arange(first_step * batch, (first_step + steps) * batch)
    epoch, within = np.divmod(position, total)
    stars = np.empty_like(position)
    for number in np.unique(epoch):
        order = np.random.default_rng((seed, int(number))).permutation(total)
        stars[epoch == number] = order[within[epoch == number]]
    return stars.reshape(steps, batch).astype(np.int32)


def pixels_per_step(config: TrainConfig, total: int) -> tuple[int, int]:
    """Pixels of one star in one step: those that count, and those computed with padding."""
    used = total if config.num_pixels is None else min(config.num_pixels, total)
    return used, -(-used // _TILE) * _TILE


def star_mesh(config: TrainConfig, devices: Sequence[Any]) -> Mesh:
    """Devices that share the stars of every step between them."""
    if config.batch_size % (len(devices) * config.accumulate):
        raise InputError(
            f"train: batch_size is {config.batch_size}; give a multiple of the {len(devices)} "
            f"devices times accumulate ({config.accumulate})"
        )
    return Mesh(np.asarray(devices), (_STAR,))


def everywhere(mesh: Mesh, tree: Any) -> Any:
    """The same arrays on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def make_steps(
    config: TrainConfig, pixels: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Callable[[State, Array, TrainingData, Member], tuple[State, Array]]:
    """The inner loop, to be compiled: one step for each row of stars; the state and the losses.

    Its length is known to the compiler, or a GPU would wait for the host after every step. Each
    device of the mesh takes its share of the stars of a step, and the gradients are averaged.
    """
    used, padded = pixels_per_step(config, pixels)
    whole = used == pixels

    # float16 holds nothing below 6e-8: the derivative by one pixel's depth would vanish in it.
    portion = config.batch_size // (mesh.size * config.accumulate)
    magnify = _MAGNIFY * used * portion if config.precision == "float16" else 1.0

    def loss_of(model, encoding, labels, shift, flux):
        depth = model.batch_depth(labels, encoding, shift, config.precision)
        return magnify * jnp.mean((depth[:, :used] - (1.0 - flux)) ** 2)

    def sample(stars, data, encoding, member, step):
        """Encoding and flux of the stars, of all pixels or of some drawn at random."""
        if whole:
            return encoding, data.flux[stars]
        # One pixel at random from each of `used` equal stretches: even and unbiased.
        key = jax.random.fold_in(jax.random.key(member.seed), step)
        key = jax.random.fold_in(key, jax.lax.axis_index(_STAR))
        place = jax.random.uniform(key, (stars.shape[0], used), jnp.float32)
        place = (jnp.arange(used, dtype=jnp.float32)[None, :] + place) * (pixels / used)
        drawn = jnp.minimum(place.astype(jnp.int32), pixels - 1)
        flux = data.flux[stars[:, None], drawn]
        drawn = jnp.pad(drawn, ((0, 0), (0, padded - used)))
        return Encoding(encoding.sin[drawn], encoding.cos[drawn]), flux

    def gradient_of(model, stars, data, encoding, member, step):
        """Mean loss and gradient over this device's share of the stars, a portion at a time."""
        encoding, flux = sample(stars, data, encoding, member, step)
        differentiate = jax.value_and_grad(loss_of)
        given = (data.labels[stars], data.dither[stars] * data.step, flux.astype(jnp.float32))

        def add(total, part):
            ours, labels, shift, flux = part
            found = differentiate(model, encoding if whole else ours, labels, shift, flux)
            return jax.tree.map(jnp.add, total, found), None

        if config.accumulate == 1:
            total = differentiate(model, encoding, *given)
        else:
            parts = jax.tree.map(
                lambda array: array.reshape(config.accumulate, -1, *array.shape[1:]),
                (None if whole else encoding, *given),
            )
            zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), model))
            total, _ = jax.lax.scan(add, zeros, parts)
        reduce = 1.0 / (magnify * config.accumulate)
        return jax.lax.pmean(jax.tree.map(lambda summed: summed * reduce, total), _STAR)

    everyone, shared = PartitionSpec(), PartitionSpec(_STAR)
    # Varying types are not checked, because a fused kernel does not state them.
    share = jax.shard_map(
        gradient_of,
        mesh=mesh,
        in_specs=(everyone, shared, everyone, everyone, everyone, everyone),
        out_specs=everyone,
        check_vma=False,
    )

    def one_step(state: State, stars, data, encoding, member):
        loss, gradient = share(state.model, stars, data, encoding, member, state.step)
        updates, moments = optimizer.update(gradient, state.optimizer, state.model)
        rate = member.rate * config.rate(state.step, member.budget)
        updates = jax.tree.map(lambda update: rate * update, updates)
        model = optax.apply_updates(state.model, updates)
        average = state.average
        if average is not None:
            # A young average forgets its start as fast as it can: the mean of all steps so far.
            keep = jnp.minimum(config.average, state.step / (state.step + 1.0))
            average = optax.incremental_update(model, average, 1.0 - keep.astype(jnp.float32))
        return State(model, moments, average, state.step + 1), loss

    def steps(state, stars, data, member):
        encoding = state.model.encode(jnp.asarray(data.wavelength))
        if whole:
            rows = ((0, padded - pixels), (0, 0))
            encoding = jax.tree.map(lambda table: jnp.pad(table, rows), encoding)
        return jax.lax.scan(
            lambda now, rows: one_step(now, rows, data, encoding, member), state, stars
        )

    return steps
