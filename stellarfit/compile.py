"""Making a `CompiledEmulator`: draws of the parent, a basis, and a small network between."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jaxtyping import Array, Float, Float32, Float64

from emulators.bundle import tree_to_arrays
from emulators.compiled_spectra import CompiledSpectra, evaluate_spline
from emulators.errors import InputError
from emulators.fine_step import fine_step
from emulators.storage import array_hash
from emulators.units import FWHM

from .arms import Arms
from .compiled import CompiledEmulator, describe, learned_box, load_emulator, uncompiled
from .continuum import Continuum
from .instrument import inside
from .priors import make_prior
from .spectrograph import STILL, Spectrograph

# A cubic spline through samples of a Gaussian line, so many a sigma, errs by 1e-4 of its depth.
_SAMPLES = 2.5
_BASIS_DRAWS = 4096  # at least; and four a feature
_STEPS_A_CALL = 250
_DRAWS_A_CALL = 1024
_WARMUP = 200
_VERSION = 2  # of all this; a change makes the cache forget
CACHE = Path("~/.cache/stellarfit/compiled")


class Recipe(NamedTuple):
    """How much is spent on a network.

    Attributes
    ----------
    hidden
        Width of each hidden layer.
    features
        Vectors of the basis.
    spectra, unseen
        Draws of the parent to learn from, and to tell the error by.
    batch, steps, learning_rate
        Of Muon, with a cosine to zero.
    at_once
        Spectra of the parent that are evaluated together.
    """

    hidden: tuple[int, ...]
    features: int
    spectra: int
    unseen: int
    batch: int
    steps: int
    learning_rate: float
    at_once: int


RECIPES = {
    # Steps of Muon take as long with ten times the batch: its orthogonalisation is most of them.
    "cpu": Recipe((384, 384, 384), 384, 24_576, 1024, 2048, 8_000, 0.02, 4),
    "gpu": Recipe((1024,) * 4, 1024, 200_000, 1024, 4096, 25_000, 0.01, 128),
}


def compile_emulator(
    spectrum: Any,
    emulator: Any = None,
    *,
    fixed: Mapping[str, float | int] | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    cache: Any = CACHE,
    progress: bool = True,
) -> CompiledEmulator:
    """Make an emulator that is fast for the spectra of one spectrograph.

    Fits end where it is exact all the same, or next to there: see `stellarfit.compiled`.

    Parameters
    ----------
    spectrum : Spectrum
        Any spectrum of the spectrograph: its pixels and resolving power are folded in.
    emulator : Emulator, its name or the path of its file, optional
        The shipped default otherwise.
    fixed : mapping, optional
        Labels that the fits will hold, such as ``{"y_fe": 0.0}``: fewer labels are learned better
        from as many draws. Fits hold them without being asked, and cannot do otherwise.
    recipe
        By default what takes minutes on a GPU, or under half an hour on two cores.
    seed
        Of the labels that are drawn, the initial weights and the batches.
    cache : path or None
        Folder of what was compiled before, by a hash of everything that decides it.
    progress
        Show a progress bar.

    Returns
    -------
    CompiledEmulator

    Raises
    ------
    InputError
        Several arms, no resolving power, orders whose pixels overlap and differ, no pixel that the
        emulator can model; `fixed` that is no label, or beyond its box.
    """
    emulator = uncompiled(load_emulator(emulator))
    if recipe is None:
        recipe = RECIPES.get(jax.default_backend(), RECIPES["gpu"])
    held = {name: float(value) for name, value in (fixed or {}).items()}
    make_prior(emulator.label_space, held)  # refuses values beyond the box
    for name in held:
        emulator.label_space.index(name)
    if len(held) == len(emulator.label_space):
        raise InputError("fixed: every label is fixed; leave at least one free")
    spectrograph = _spectrograph(spectrum)
    path = None
    if cache is not None:
        about = repr((_VERSION, describe(emulator), sorted(held.items()), recipe, seed)).encode()
        key = array_hash(tree_to_arrays(spectrograph) | {"about": np.frombuffer(about, np.uint8)})
        path = Path(cache).expanduser() / f"{key[:24]}.h5"
        if path.is_file():
            return CompiledEmulator.load(path, emulator)
    places = _places(spectrograph, emulator)
    space = learned_box(emulator.label_space, held)
    blank = CompiledSpectra.draw(
        space,
        recipe.hidden,
        jnp.zeros((recipe.features, len(places)), jnp.float32),
        jnp.zeros(len(places), jnp.float32),
        start=float(places[0]),
        step=float(np.log(places[1] / places[0])),
        key=jax.random.key(seed),
    )
    nothing = np.zeros(0), np.zeros((0, 0))
    draft = CompiledEmulator.build(emulator, blank, spectrograph, held, *nothing)
    labels = space.sobol(recipe.spectra + recipe.unseen, seed=seed)
    learned, unseen = jnp.asarray(labels[: recipe.spectra]), jnp.asarray(labels[recipe.spectra :])
    with _progress(progress, recipe) as tell:
        held_out = _draw(draft, unseen, recipe, tell)
        first = _draw(draft, learned[: max(_BASIS_DRAWS, 4 * recipe.features)], recipe, tell)
        network = _with_basis(blank, first)
        features = [_along_basis(network, first)]
        for start in range(len(first), recipe.spectra, _DRAWS_A_CALL):
            spectra = _draw(draft, learned[start : start + _DRAWS_A_CALL], recipe, tell)
            features.append(_along_basis(network, spectra))
        network = _train(network, learned, jnp.concatenate(features), recipe, seed, tell)
    error = eqx.filter_jit(network.coefficients)(unseen) - held_out
    rms = np.sqrt(np.mean(np.asarray(error, np.float64) ** 2, axis=1))
    free = np.array([i for i, name in enumerate(space.names) if name not in held])
    shift = np.asarray(_shifts(network, unseen, error, _pixels(spectrum, draft), free))
    compiled = CompiledEmulator.build(emulator, network, spectrograph, held, rms, shift)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        compiled.save(path)
    return compiled


def _spectrograph(spectrum: Any) -> Spectrograph:
    if isinstance(spectrum, Arms):
        raise InputError(
            f"spectrum: {len(spectrum.spectra)} arms; an emulator is compiled for one of them"
        )
    if spectrum.resolution is None:
        raise InputError("resolution: the spectrum does not say; give resolution= when reading it")
    resolution = np.broadcast_to(spectrum.resolution, spectrum.wavelength.shape)
    seen = Spectrograph(
        jnp.asarray(spectrum.wavelength),
        jnp.asarray(spectrum.width),
        jnp.asarray(resolution, jnp.float64),
    )
    # Of orders that overlap, neighbours may differ: then there is no one answer.
    places = np.linspace(spectrum.wavelength[0], spectrum.wavelength[-1], len(spectrum) // 4)
    seen = seen.at(places)
    seen.check(spectrum.wavelength, spectrum.width, resolution)
    return seen


def _places(seen: Spectrograph, emulator: Any) -> Float64[np.ndarray, " coefficient"]:
    """Wavelengths of the coefficients: as far as the emulator reaches."""
    low, high = np.log(emulator.wavelength_range)
    narrowest = 1 / (FWHM * float(np.max(seen.resolution)))
    step = narrowest / _SAMPLES
    places = np.exp(np.arange(low, high, step))
    there = seen.at(places)
    usable = inside(
        places,
        np.asarray(there.width),
        np.asarray(there.resolution),
        step=fine_step(emulator.step, np.asarray(there.resolution)),
        velocities=STILL,
        limits=emulator.wavelength_range,
    )
    return places[usable]


def _draw(
    draft: CompiledEmulator,
    labels: Float[Array, "star label"],
    recipe: Recipe,
    tell: Callable[[str, int], None],
) -> Float32[Array, "star coefficient"]:
    """What the parent gives."""
    parts = []
    for start in range(0, len(labels), _DRAWS_A_CALL):
        part = labels[start : start + _DRAWS_A_CALL]
        parts.append(_exact(draft, part, recipe.at_once).block_until_ready())
        tell("draw", len(part))
    return jnp.concatenate(parts)


@eqx.filter_jit
def _exact(draft, labels, at_once):
    return jax.lax.map(draft.exact, labels, batch_size=at_once)


def _with_basis(
    network: CompiledSpectra, spectra: Float32[Array, "star coefficient"]
) -> CompiledSpectra:
    """The mean of spectra and their strongest principal components.

    Components have the size that makes the features' mean square 1 over all of them.
    """
    mean = jnp.mean(spectra, axis=0)
    left = np.asarray(spectra - mean, np.float64)
    # Fewer spectra than coefficients: by their products with each other.
    squares, vectors = np.linalg.eigh(left @ left.T)
    vectors = vectors[:, ::-1][:, : len(network.basis)]
    squares = np.maximum(squares[::-1][: len(network.basis)], 1e-12 * squares[-1])
    basis = (vectors.T @ left) / np.sqrt(squares)[:, None]
    scale = np.sqrt(np.sum(squares) / len(left) / len(basis))
    return eqx.tree_at(
        lambda n: (n.mean, n.basis), network, (mean, jnp.asarray(scale * basis, jnp.float32))
    )


@eqx.filter_jit
def _along_basis(network, spectra):
    return network.along_basis(spectra - network.mean)


def _train(
    network: CompiledSpectra,
    labels: Float[Array, "star label"],
    features: Float32[Array, "star feature"],
    recipe: Recipe,
    seed: int,
    tell: Callable[[str, int], None],
) -> CompiledSpectra:
    """Least squares in the features, which is least squares in the flux."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, _WARMUP, recipe.steps)
    optimizer = optax.contrib.muon(schedule)
    weights = (network.weights, network.biases)
    state = optimizer.init(weights)
    key = jax.random.key(seed)

    @jax.jit
    def advance(weights, state, start, labels, features):
        def loss(weights, stars):
            trial = eqx.tree_at(lambda n: (n.weights, n.biases), network, weights)
            return jnp.mean((trial.features(labels[stars]) - features[stars]) ** 2)

        def one(carry, i):
            weights, state = carry
            drawn = jax.random.fold_in(key, start + i)
            stars = jax.random.randint(drawn, (recipe.batch,), 0, len(labels))
            value, gradient = jax.value_and_grad(loss)(weights, stars)
            updates, state = optimizer.update(gradient, state, weights)
            return (optax.apply_updates(weights, updates), state), value

        (weights, state), values = jax.lax.scan(one, (weights, state), jnp.arange(_STEPS_A_CALL))
        return weights, state, jnp.mean(values)

    for done in range(0, recipe.steps, _STEPS_A_CALL):
        weights, state, value = advance(weights, state, done, labels, features)
        if not np.isfinite(float(value)):
            raise InputError(
                f"compile: the loss is no number after {done + _STEPS_A_CALL} steps; lower "
                f"learning_rate ({recipe.learning_rate:g}) of the recipe"
            )
        tell("train", _STEPS_A_CALL)
    return eqx.tree_at(lambda n: (n.weights, n.biases), network, weights)


def _pixels(spectrum: Any, draft: CompiledEmulator) -> tuple[Array, Array]:
    """Places of a spectrum's pixels among the coefficients, and the continuum there."""
    low, high = draft.wavelength_range
    wavelength = spectrum.wavelength[(spectrum.wavelength > low) & (spectrum.wavelength < high)]
    return draft.encode(jnp.asarray(wavelength)), Continuum.build(wavelength, 1.0, None).basis


@eqx.filter_jit
def _shifts(network, labels, errors, pixels, free):
    """By which errors of coefficients displace each free label of a star, in sigma at S/N 100.

    To first order, with velocity and continuum free as well, and a label's box as its prior.
    """
    places, basis = pixels
    space = network.label_space
    width = jnp.asarray(space.upper)[free] - jnp.asarray(space.lower)[free]
    prior = jnp.concatenate([12 / width**2, jnp.zeros(1 + basis.shape[1])])

    def one(star):
        labels, error = star

        def flux(values):
            whole = labels.at[free].set(values[:-1])
            return 1.0 - evaluate_spline(network.coefficients(whole), places + values[-1])

        values = jnp.append(labels[free], 0.0)
        columns = jax.jacfwd(flux)(values)
        columns = jnp.concatenate([columns, flux(values)[:, None] * basis], axis=1)
        columns = 100.0 * columns.astype(jnp.float64)
        off = 100.0 * evaluate_spline(error, places).astype(jnp.float64)
        precision = columns.T @ columns + jnp.diag(prior)
        unit = 1 / jnp.sqrt(jnp.diagonal(precision))
        covariance = jnp.linalg.inv(precision * unit[:, None] * unit)
        moved = covariance @ (unit * (columns.T @ off))
        return (moved / jnp.sqrt(jnp.diagonal(covariance)))[: len(free)]

    return jax.lax.map(one, (labels, errors))


@contextmanager
def _progress(show: bool, recipe: Recipe) -> Iterator[Callable[[str, int], None]]:
    """Two bars: draws of the parent, and steps of the training."""
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

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn()) as bar:
        tasks = {
            "draw": bar.add_task("draw", total=recipe.spectra + recipe.unseen),
            "train": bar.add_task("train", total=recipe.steps),
        }
        yield lambda name, number: bar.advance(tasks[name], number)
