"""Fit The Payne and The Cannon to spectra on one fixed grid, and measure their error."""

import math
import time
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from scipy.linalg import cho_factor, cho_solve

from .baselines import (
    FixedGridModel,
    TheCannon,
    ThePayne,
    num_quadratic_features,
    quadratic_features,
)
from .errors import InputError
from .labels import LabelSpace
from .precision import PRECISIONS
from .train_config import TrainConfig
from .training_data import TrainingData

# Matrix units work in tiles; a pixel count that is no multiple of this cost a third of a step.
_TILE = 128


def fit_the_cannon(
    data: TrainingData, label_space: LabelSpace, *, ridge: float = 0.0, chunk: int = 4096
) -> TheCannon:
    """Least squares by float64 normal equations, accumulated over chunks of stars.

    Features of labels in [-1, 1] are well enough conditioned for that.

    Parameters
    ----------
    data
        Spectra without dither.
    label_space
        Labels of `data` and their box.
    ridge
        Penalty on the squares of all coefficients but the constant, in units of the number of
        stars. Fewer stars than coefficients a pixel need one above 0.
    chunk
        Stars taken at a time.
    """
    start, step = _check_grid(data, "training", label_space)
    stars, pixels = data.flux.shape
    size = num_quadratic_features(len(label_space))
    if ridge < 0.0 or (ridge == 0.0 and stars < size):
        raise InputError(
            f"the_cannon: ridge is {ridge:g} with {stars} spectra for {size} coefficients a pixel; "
            "give it above 0, or 0 and as many spectra"
        )
    gram = jnp.zeros((size, size), jnp.float64)
    moment = jnp.zeros((size, pixels), jnp.float64)
    for first in range(0, stars, chunk):
        part = slice(first, first + chunk)
        unit = label_space.to_unit(jnp.asarray(data.labels[part], jnp.float64))
        gram, moment = _accumulate(gram, moment, unit, jnp.asarray(data.flux[part]))
    penalty = np.full(size, ridge * stars)
    penalty[0] = 0.0
    try:
        factor = cho_factor(np.asarray(gram) + np.diag(penalty))
    except np.linalg.LinAlgError:
        raise InputError(
            f"the_cannon: the labels of {stars} spectra leave some of the {size} coefficients "
            "undetermined; give ridge above 0"
        ) from None
    solution = cho_solve(factor, np.asarray(moment))
    coefficients = jnp.asarray(solution, jnp.float32)
    return TheCannon(label_space=label_space, coefficients=coefficients, start=start, step=step)


class PayneResult(NamedTuple):
    """A trained network, what it cost, and its curves.

    ``loss`` is the training MSE of every step, ``validation`` rows of (step, MSE).
    """

    model: ThePayne
    row: dict[str, Any]
    loss: np.ndarray
    validation: np.ndarray


class _State(NamedTuple):
    # A ThePayne; optax knows it as a tree of arrays only.
    model: Any
    moments: Any
    step: Array


# An output weight feels one pixel of thousands: its gradient would sink below the usual 1e-8.
_ADAM = optax.scale_by_adam(eps=1e-15)


def train_the_payne(
    data: TrainingData,
    *,
    label_space: LabelSpace,
    validation: TrainingData,
    hidden: int = 300,
    activation: str = "leaky_relu",
    learning_rate: float = 1e-3,
    steps: int = 10_000,
    batch_size: int = 512,
    warmup: int = 100,
    cooldown: float = 0.2,
    validate_every: int = 500,
    precision: str = "tf32",
    seed: int = 0,
) -> PayneResult:
    """Train `ThePayne` by Adam on the mean squared error, with the schedule of `TrainConfig`.

    As in the authors' code, the weights of the best validation error are those returned.

    Parameters
    ----------
    data, validation
        Spectra without dither, on one grid.
    label_space
        Labels of both and their box.
    hidden, activation
        Of the network.
    learning_rate, warmup, cooldown
        Of the schedule: see `TrainConfig`.
    steps
        A multiple of `validate_every`.
    batch_size
        Stars a step, drawn at random with replacement.
    validate_every
        Steps compiled into one call of the device, after each of which comes a validation.
    precision
        Of the matrix products in training; the weights, and later evaluations, are float32.
    seed
        Of the initial weights and of the draws.
    """
    if steps < 1 or steps % validate_every:
        raise InputError(
            f"the_payne: steps is {steps}; give a multiple of validate_every ({validate_every})"
        )
    if precision not in PRECISIONS:
        allowed = ", ".join(PRECISIONS)
        raise InputError(f"the_payne: precision is {precision!r}; allowed: {allowed}")
    start, step = _check_grid(data, "training", label_space)
    if _check_grid(validation, "validation", label_space) != (start, step):
        raise InputError("the_payne: training and validation spectra are on different grids")
    stars, pixels = data.flux.shape
    # Of the schedule only its shape: the rate itself is an argument, so all rates compile once.
    schedule = TrainConfig(steps=steps, learning_rate=1.0, warmup=warmup, cooldown=cooldown)
    labels, depth = _on_device(data)
    held_labels, held_depth = _on_device(validation)
    model = ThePayne(
        label_space,
        start=start,
        step=step,
        num_pixels=depth.shape[1],
        hidden=hidden,
        activation=activation,
        key=jax.random.key(seed),
    )
    # The mean spectrum to begin with, and zeros for the padding, which then stays exactly zero.
    model = eqx.tree_at(lambda tree: tree.bias_out, model, jnp.mean(depth, axis=0))
    weights: Any = model
    state = _State(weights, _ADAM.init(weights), jnp.zeros((), jnp.int32))

    def advance(state: _State) -> tuple[_State, np.ndarray]:
        rate = jnp.float32(learning_rate)
        call = (state, rate, jax.random.key(seed), labels, depth)
        state, losses = _steps(*call, schedule, batch_size, precision, validate_every, pixels)
        return state, np.asarray(losses)

    advance(state)  # compiles, outside the clock
    seconds, losses, curve, best = 0.0, [], [], (math.inf, weights)
    for done in range(validate_every, steps + 1, validate_every):
        began = time.perf_counter()
        state, loss = advance(state)
        seconds += time.perf_counter() - began
        if not np.isfinite(loss).all():
            raise InputError(
                f"the_payne: the loss is no number after {done} steps; lower learning_rate "
                f"({learning_rate:g})"
            )
        mse = float(jnp.mean(_star_mse(state.model, held_labels, held_depth, pixels)))
        best = min(best, (mse, state.model), key=lambda pair: pair[0])
        losses.append(loss)
        curve.append((done, mse))
    model = eqx.tree_at(
        lambda tree: (tree.weight_out, tree.bias_out),
        best[1],
        (best[1].weight_out[:, :pixels], best[1].bias_out[:pixels]),
    )
    seen = steps * batch_size
    row = {
        "hidden": hidden,
        "activation": activation,
        "learning_rate": learning_rate,
        "precision": precision,
        "seed": seed,
        "parameters": model.num_parameters,
        "unique_spectra": stars,
        "spectra_seen": seen,
        "steps": steps,
        "flops": 3 * seen * model.flops(),
        "seconds": seconds,
        "mse_validation": best[0],
    }
    return PayneResult(model, row, np.concatenate(losses), np.asarray(curve, np.float64))


def evaluate_on_grid(
    model: FixedGridModel, data: TrainingData, *, chunk: int = 1024
) -> Float[np.ndarray, " star"]:
    """Mean squared error of each star, in float32, at the pixels of the model's own grid."""
    start, step = _check_grid(data, "test", model.label_space)
    same = math.isclose(start, model.start) and math.isclose(step, model.step, rel_tol=1e-6)
    if not same or data.flux.shape[1] != model.num_pixels:
        raise InputError(f"{type(model).__name__}: the spectra are not on the grid of the model")
    parts = []
    for first in range(0, len(data.labels), chunk):
        labels = jnp.asarray(data.labels[first : first + chunk])
        depth = 1.0 - jnp.asarray(data.flux[first : first + chunk]).astype(jnp.float32)
        parts.append(np.asarray(_star_mse(model, labels, depth, model.num_pixels)))
    return np.concatenate(parts)


@partial(jax.jit, static_argnums=(5, 6, 7, 8, 9))
def _steps(state, rate, key, labels, depth, schedule, batch_size, precision, count, pixels):
    """Compiled inner loop: `count` steps of Adam."""

    def loss_of(model, stars):
        error = model.pixel_depth(labels[stars], precision) - depth[stars]
        return jnp.sum(error**2) / (batch_size * pixels)

    def one(state: _State, _):
        draw = jax.random.fold_in(key, state.step)
        stars = jax.random.randint(draw, (batch_size,), 0, len(labels), jnp.int32)
        loss, gradient = jax.value_and_grad(loss_of)(state.model, stars)
        updates, moments = _ADAM.update(gradient, state.moments)
        now = rate * schedule.rate(state.step)
        model = jax.tree.map(lambda weight, update: weight - now * update, state.model, updates)
        return _State(model, moments, state.step + 1), loss

    return jax.lax.scan(one, state, length=count)


@partial(jax.jit, static_argnums=3)
def _star_mse(model, labels, depth, pixels):
    return jnp.sum((model.pixel_depth(labels) - depth) ** 2, axis=1) / pixels


@jax.jit
def _accumulate(gram, moment, unit, flux):
    features = quadratic_features(unit)
    depth = 1.0 - flux.astype(jnp.float64)
    return gram + features.T @ features, moment + features.T @ depth


def _on_device(data: TrainingData) -> tuple[Array, Array]:
    """Labels, and depths padded with zeros to whole tiles of pixels."""
    depth = 1.0 - jnp.asarray(data.flux).astype(jnp.float32)
    return jnp.asarray(data.labels), jnp.pad(depth, ((0, 0), (0, -depth.shape[1] % _TILE)))


def _check_grid(data: TrainingData, name: str, label_space: LabelSpace) -> tuple[float, float]:
    """First wavelength and step of spectra that all lie on one ln-uniform grid."""
    data.check(name, len(label_space))
    dithered = np.asarray(data.dither) != 0.0
    if dithered.any():
        raise InputError(
            f"baselines: {int(dithered.sum())} {name} spectra have a dither; a model of fixed "
            "pixels needs a grid made with dither=False"
        )
    wavelength, step = np.asarray(data.wavelength, np.float64), float(data.step)
    if not np.allclose(np.diff(np.log(wavelength)), step, rtol=1e-4, atol=0.0):
        raise InputError(f"baselines: the wavelengths of the {name} spectra are not ln-uniform")
    return float(wavelength[0]), step
