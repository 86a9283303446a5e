"""The Payne and The Cannon: what they fit, how they interpolate, what they refuse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny import LABELS, STEP, analytic_depth, tiny_data, tiny_grid

from emulators.baselines import FixedGridModel, TheCannon, ThePayne, num_quadratic_features
from emulators.errors import InputError
from emulators.grid import SpectralGrid
from emulators.train_baselines import evaluate_on_grid, fit_the_cannon, train_the_payne
from emulators.train_config import TrainConfig
from emulators.training_data import TrainingData
from scaling.experiments.baselines.run import Candidate, Spectra, choose, compare, draw, load

PIXELS = 200
GRID = tiny_grid(pixels=PIXELS)
# Compiled: op by op, most of the time would go into compiling every op.
depth_of = jax.jit(lambda model, labels: model.pixel_depth(labels))
flux_of = jax.jit(lambda model, labels, place, shift: model.flux_at(labels, place, shift))


@jax.jit
@jax.vmap
def closed_form(labels):
    return analytic_depth(LABELS.to_unit(labels), jnp.asarray(GRID))


def plain(num: int, seed: int = 0) -> TrainingData:
    """Spectra of the closed form without dither."""
    labels = LABELS.sobol(num, seed=seed)
    flux = np.asarray(1.0 - closed_form(jnp.asarray(labels)), np.float32)
    return TrainingData(labels, np.zeros(num), flux, GRID, STEP)


DATA, HELD_OUT = plain(256), plain(32, seed=1)


def quadratic_flux(labels):
    """Something that is exactly quadratic in the labels."""
    x = np.asarray(LABELS.to_unit(labels))
    forms = np.random.default_rng(3).normal(size=(PIXELS, 4, 4))
    return 1 - 0.3 - 0.02 * np.einsum("sa,pab,sb->sp", x, forms, x) - 0.01 * x[:, :1]


def test_the_cannon_recovers_a_quadratic():
    labels = LABELS.sobol(64, seed=5)
    data = TrainingData(labels, np.zeros(64), quadratic_flux(labels), GRID, STEP)
    model = fit_the_cannon(data, LABELS, chunk=24)
    assert model.coefficients.shape == (num_quadratic_features(4), PIXELS) == (15, PIXELS)
    fresh = LABELS.sobol(40, seed=6)
    found = 1 - np.asarray(depth_of(model, jnp.asarray(fresh)))
    np.testing.assert_allclose(found, quadratic_flux(fresh), atol=2e-7)


def test_the_cannon_with_fewer_spectra_than_coefficients():
    few = DATA.select(np.arange(12))
    with pytest.raises(InputError, match="ridge is 0 with 12 spectra for 15"):
        fit_the_cannon(few, LABELS)
    model = fit_the_cannon(few, LABELS, ridge=1e-6)
    assert evaluate_on_grid(model, few).mean() < 1e-6
    repeated = DATA.select(np.zeros(20, int))
    with pytest.raises(InputError, match="undetermined; give ridge"):
        fit_the_cannon(repeated, LABELS)


def test_ridge_is_a_penalty_a_star():
    twice = DATA.select(np.tile(np.arange(40), 2))
    once = fit_the_cannon(DATA.select(np.arange(40)), LABELS, ridge=1e-2)
    np.testing.assert_allclose(
        fit_the_cannon(twice, LABELS, ridge=1e-2).coefficients, once.coefficients, atol=1e-6
    )
    free = fit_the_cannon(DATA.select(np.arange(40)), LABELS)
    assert np.sum(once.coefficients[1:] ** 2) < np.sum(free.coefficients[1:] ** 2)


@pytest.fixture(scope="module")
def trained():
    return train_the_payne(
        DATA,
        label_space=LABELS,
        validation=HELD_OUT,
        hidden=32,
        learning_rate=3e-3,
        steps=600,
        batch_size=64,
        warmup=10,
        validate_every=100,
    )


def test_the_payne_learns(trained):
    assert trained.loss.shape == (600,) and trained.loss[-1] < 0.1 * trained.loss[0]
    assert trained.validation[:, 0].tolist() == [100, 200, 300, 400, 500, 600]
    test = plain(32, seed=2)
    mean = np.mean((np.mean(DATA.flux, axis=0) - test.flux) ** 2)
    assert evaluate_on_grid(trained.model, test).mean() < 0.1 * mean
    found = evaluate_on_grid(trained.model, HELD_OUT, chunk=7)
    np.testing.assert_allclose(found.mean(), trained.row["mse_validation"], rtol=1e-5)
    assert trained.row["mse_validation"] == trained.validation[:, 1].min()
    # By the formula: three times two operations a weight and spectrum seen.
    weights = 4 * 32 + 32 * 32 + 32 * PIXELS
    assert trained.row["flops"] == 6 * weights * 600 * 64
    assert trained.row["parameters"] == weights + 2 * 32 + PIXELS


def test_the_first_step_of_training_is_adam_with_the_schedule():
    """One step moves every weight that has a gradient by the warmed-up rate."""
    settings = {"validation": HELD_OUT, "hidden": 8, "steps": 1, "validate_every": 1}
    schedule = TrainConfig(steps=1, learning_rate=1e-2, warmup=4, cooldown=0.0)
    result = train_the_payne(
        DATA, label_space=LABELS, learning_rate=1e-2, warmup=4, cooldown=0.0, **settings
    )
    # The output starts at zero, so nothing else has a gradient yet.
    moved = np.abs(np.asarray(result.model.weight_out))
    np.testing.assert_allclose(np.median(moved), float(schedule.rate(0)), rtol=1e-3)


@pytest.mark.parametrize("activation", ["leaky_relu", "sigmoid", "gelu"])
def test_the_payne_is_a_plain_network(activation):
    model = random_payne(activation)
    unit = np.asarray(LABELS.to_unit(HELD_OUT.labels), np.float64)
    functions = {
        "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
        "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
        "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    }
    activate = functions[activation]
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model)
    x = activate((unit - 0.5) @ exact.weight_in + exact.bias_in)
    x = activate(x @ exact.weight_hidden + exact.bias_hidden)
    expected = x @ exact.weight_out + exact.bias_out
    found = depth_of(model, jnp.asarray(HELD_OUT.labels))
    np.testing.assert_allclose(found, expected, atol=3e-6)
    one = depth_of(model, jnp.asarray(HELD_OUT.labels[3]))
    np.testing.assert_allclose(one, expected[3], atol=3e-6)
    rough = model.pixel_depth(jnp.asarray(HELD_OUT.labels), "bfloat16")
    assert rough.dtype == jnp.float32 and 1e-4 < np.max(np.abs(rough - expected)) < 0.1


def random_payne(activation="gelu") -> ThePayne:
    grid = {"start": float(GRID[0]), "step": STEP, "num_pixels": PIXELS}
    model = ThePayne(LABELS, **grid, hidden=16, activation=activation, key=jax.random.key(1))
    rng = np.random.default_rng(0)

    def draw(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32)

    return jax.tree.map(draw, model)


def smooth_cannon(slope: float = 3e3) -> TheCannon:
    """A model whose flux is a known smooth function of ln(wavelength), for any labels."""
    depth = np.sin(slope * np.log(GRID / GRID[0]))
    coefficients = np.zeros((num_quadratic_features(4), PIXELS))
    coefficients[0] = depth
    return TheCannon(
        label_space=LABELS,
        coefficients=jnp.asarray(coefficients, jnp.float32),
        start=float(GRID[0]),
        step=STEP,
    )


@pytest.mark.parametrize("shift", [0.0, 0.37 * STEP, -2.5 * STEP, 17 * STEP])
def test_a_shift_moves_the_spectrum(shift):
    model, slope = smooth_cannon(), 3e3
    labels = jnp.asarray(LABELS.sobol(1, seed=0)[0])
    inner = jnp.asarray(GRID[30:-30])
    found = flux_of(model, labels, model.encode(inner), shift)
    expected = 1 - np.sin(slope * (np.log(inner / GRID[0]) + shift))
    # A turn is 209 pixels long; the error of a cubic is of the third order in 1/209.
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(model(labels, inner[::-1]), model(labels, inner)[::-1])


def test_pixels_of_the_grid_come_back_exactly():
    model = random_payne()
    labels = jnp.asarray(HELD_OUT.labels[0])
    pixels = 1 - depth_of(model, labels)
    np.testing.assert_allclose(model(labels, jnp.asarray(GRID)), pixels, atol=1e-6)
    moved = flux_of(model, labels, model.encode(jnp.asarray(GRID[1:-1])), STEP)
    np.testing.assert_allclose(moved, pixels[2:], atol=1e-6)


@pytest.mark.parametrize("model", [random_payne(), smooth_cannon(1e4)])
def test_gradients_in_labels_and_shift(model: FixedGridModel):
    labels = jnp.asarray(LABELS.from_unit(jnp.full(4, 0.3)))
    encoding = model.encode(jnp.asarray(GRID[10:-10]))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=PIXELS - 20))

    @jax.jit
    def value(unit, shift):
        return weights @ model.flux_at(LABELS.from_unit(unit), encoding, shift * STEP)

    unit, shift = LABELS.to_unit(labels), jnp.asarray(0.3)
    by_unit, by_shift = jax.jit(jax.grad(value, (0, 1)))(unit, shift)
    assert np.isfinite(by_unit).all() and np.isfinite(by_shift)
    if isinstance(model, ThePayne):
        assert np.all(np.abs(by_unit) > 0)
    difference = (value(unit, shift + 0.05) - value(unit, shift - 0.05)) / 0.1
    assert float(by_shift) == pytest.approx(float(difference), rel=2e-2, abs=2e-4)


def test_outside_the_grid_there_is_no_number():
    model = smooth_cannon()
    labels = jnp.asarray(LABELS.sobol(1, seed=0)[0])
    with pytest.raises(InputError, match="TheCannon: wavelength 5200.000 is outside its grid"):
        model(labels, jnp.asarray([5151.0, 5200.0]))
    with pytest.raises(InputError, match="outside its grid"):
        model.encode(jnp.asarray([np.nan]))
    compiled = jax.jit(lambda wavelength: model(labels, wavelength))
    ends = jnp.asarray([GRID[0] * np.exp(-0.9 * STEP), GRID[-1] * np.exp(1.1 * STEP)])
    assert np.isnan(np.asarray(compiled(ends))).tolist() == [False, True]
    far = flux_of(model, labels, model.encode(jnp.asarray(GRID)), 5 * STEP)
    assert np.isnan(np.asarray(far)).sum() == 4


def test_bad_input_is_refused():
    settings = {"label_space": LABELS, "validation": HELD_OUT, "hidden": 8}
    with pytest.raises(InputError, match="64 training spectra have a dither"):
        train_the_payne(tiny_data(64, pixels=PIXELS), **settings)
    with pytest.raises(InputError, match="have a dither; .* dither=False"):
        fit_the_cannon(tiny_data(64, pixels=PIXELS), LABELS)
    with pytest.raises(InputError, match="not ln-uniform"):
        fit_the_cannon(DATA._replace(wavelength=np.linspace(5150, 5160, PIXELS)), LABELS)
    with pytest.raises(InputError, match="multiple of validate_every"):
        train_the_payne(DATA, **settings, steps=750)
    with pytest.raises(InputError, match="precision is 'float8'"):
        train_the_payne(DATA, **settings, precision="float8")
    with pytest.raises(InputError, match="activation is 'relu'"):
        train_the_payne(DATA, **settings, activation="relu")
    moved = HELD_OUT._replace(wavelength=GRID * math.exp(STEP / 2))
    with pytest.raises(InputError, match="different grids"):
        train_the_payne(DATA, label_space=LABELS, validation=moved)
    with pytest.raises(InputError, match="not on the grid of the model"):
        evaluate_on_grid(smooth_cannon(), moved)
    with pytest.raises(InputError, match="no number after"):
        train_the_payne(DATA, **settings, learning_rate=1e30, steps=20, validate_every=20, warmup=1)


SWEEP = (
    Candidate("the_cannon", {"ridge": 1e-6}, 0.1),
    Candidate("the_payne", {"hidden": 8, "steps": 20, "validate_every": 10}, 0.1),
    Candidate("the_payne", {"hidden": 16, "steps": 20, "validate_every": 10}, 0.1),
)


def test_the_comparison_resumes_and_chooses_on_validation(tmp_path, capsys):
    spectra = Spectra(DATA, HELD_OUT, plain(32, seed=2), LABELS)
    assert compare(spectra, tmp_path, 0.0, numbers=(50,), sweep=lambda _: SWEEP) == []
    rows = compare(spectra, tmp_path, 60.0, numbers=(50, 1000), sweep=lambda _: SWEEP[:2])
    assert [row["model"] for row in rows] == ["the_cannon", "the_payne"]
    assert "left out, 256 training spectra: 1000" in capsys.readouterr().out
    again = compare(spectra, tmp_path, 60.0, numbers=(50,), sweep=lambda _: SWEEP)
    assert again[:2] == rows and len(again) == 3
    cannon = again[0]
    model = fit_the_cannon(DATA.select(np.arange(50)), LABELS, ridge=1e-6)
    star = evaluate_on_grid(model, spectra.test)
    assert cannon["mse_test"] == pytest.approx(float(star.mean()), rel=1e-5)
    assert cannon["flops"] == 2 * 50 * 15 * (15 + PIXELS)
    assert min(row["seconds_one_star"] for row in again) > 0
    chosen = choose(again)
    assert [row["model"] for row in chosen] == ["the_cannon", "the_payne"]
    assert chosen[1]["mse_validation"] == min(row["mse_validation"] for row in again[1:])
    panel = Figure().subplots()
    draw(panel, again)
    assert len(panel.lines) == 4


@pytest.mark.slow
def test_the_comparison_from_a_grid_with_a_transformer(tmp_path, monkeypatch):
    monkeypatch.setattr("scaling.experiments.baselines.run.HELD_OUT", 16)
    path = tmp_path / "grid.h5"
    labels, flux = np.asarray(DATA.labels), np.asarray(DATA.flux)
    SpectralGrid.from_arrays(GRID, labels, flux, label_space=LABELS, path=path)
    settings = {"width": 32, "depth": 1, "tokens": 4, "steps": 20, "learning_rate": 1e-3}
    settings |= {"batch_size": 4, "num_pixels": None, "precision": "float32", "warmup": 1}
    sweep = (Candidate("transformer_payne", settings, 1.0),)
    (row,) = compare(load(path), tmp_path, 60.0, numbers=(128,), sweep=lambda _: sweep)
    assert 0 < row["mse_test_median"] <= row["mse_test"] < 1 and row["unique_spectra"] == 128
