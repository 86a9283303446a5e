"""The coordinate check: what it measures, and that it tells muP from its control."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny import LABELS, tiny_data

from emulators.errors import InputError
from emulators.parametrization import Standard
from emulators.train import start_model, train
from scaling import MaximalUpdate
from scaling.coordinate_check import (
    CHECK,
    WIDTHS,
    _layers,
    _trajectories,
    check_coordinates,
    is_flat,
    slopes,
    steepest,
)
from scaling.figures import draw_coordinates
from scaling.toy import TOY_LABELS, toy_spectra

QUICK = dataclasses.replace(CHECK, steps=2, depth=1, tokens=4, batch_size=4)
DATA = toy_spectra(16)


def configs(check, widths):
    schemes = (MaximalUpdate(widths[0], check.depth), Standard())
    return [
        dataclasses.replace(check, width=width, parametrization=scheme)
        for scheme in schemes
        for width in widths
    ]


@pytest.fixture(scope="module")
def rows():
    return check_coordinates(DATA, TOY_LABELS, configs(QUICK, (64, 256)), [3, 4])


def made_up(power, *, frozen=False, seeds=3):
    """Rows of one layer whose change grows as a power of the width, one more or less a seed."""
    return [
        {
            "parametrization": "Standard",
            "layer": "output",
            "step": 1,
            "seed": seed,
            "width": width,
            "change": 0.0 if frozen else 0.1 * (width / 64) ** (power + 0.1 * (seed - 1)),
        }
        for seed in range(seeds)
        for width in WIDTHS
    ]


def test_slopes_of_powers():
    (found,) = slopes(made_up(0.7))
    np.testing.assert_allclose([found.slope, found.error], [0.7, 0.1 / 3**0.5], rtol=1e-9)
    assert found.change == pytest.approx(0.1)
    (still,) = slopes(made_up(0.7, frozen=True))
    assert math.isnan(still.slope) and steepest([still]) == {}
    with pytest.raises(InputError, match="at least two widths"):
        slopes([row for row in made_up(0.7) if row["width"] == 64])
    with pytest.raises(InputError, match="the same ones for every seed"):
        slopes(made_up(0.7)[:-1])


def test_activations_are_those_of_the_spectrum():
    drawn: Any = start_model(dataclasses.replace(QUICK, width=64), LABELS)
    model = jax.tree.map(lambda leaf: leaf if leaf.any() else jnp.ones_like(leaf), drawn)
    data = tiny_data(3, pixels=40)
    star, encoding = jnp.asarray(data.labels[1]), model.encode(jnp.asarray(data.wavelength))
    # Compiled whole, which JAX answers with the keys sorted.
    stages = jax.jit(lambda model, star: model.activations(star, encoding))(model, star)
    found = {
        layer: stages[layer] for layer in _layers(model, star[None], jnp.asarray(data.wavelength))
    }
    layers = ("logits", "attention", "hidden", "feed_forward", "residual")
    blocks = [f"block0.{layer}" for layer in layers]
    assert list(found) == ["label_hidden", "tokens", *blocks, "head_hidden", "output"]
    np.testing.assert_allclose(
        1 - found["output"], jax.jit(type(model).flux_at)(model, star, encoding), atol=1e-5
    )
    # Block 0 by the published equations, head by head and without folding.
    unit = np.asarray(LABELS.to_unit(star), np.float64)
    weights = {name: np.asarray(getattr(model, name)[0], np.float64) for name in ("query", "key")}
    hidden = np.asarray(jax.nn.gelu(unit @ np.asarray(model.label_in, np.float64)))
    tokens = (hidden @ np.asarray(model.label_out, np.float64)).reshape(4, 64)
    np.testing.assert_allclose(found["tokens"], tokens, atol=1e-5)
    tokens /= np.sqrt(np.mean(tokens**2, axis=1, keepdims=True))
    x = np.asarray(encoding.sin, np.float64)
    x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    query, key = (
        (y @ w).reshape(-1, 2, 32) for y, w in ((x, weights["query"]), (tokens, weights["key"]))
    )
    logits = np.einsum("phk,thk->pht", query, key) / 32
    np.testing.assert_allclose(found["block0.logits"], logits.reshape(40, 8), atol=1e-4)
    before = np.asarray(encoding.sin) + model.branch_scale * (
        found["block0.attention"] + found["block0.feed_forward"]
    )
    np.testing.assert_allclose(found["block0.residual"], before, atol=1e-5)


def test_the_models_are_those_of_the_public_training_call(tmp_path):
    config = dataclasses.replace(QUICK, width=64, seed=7, parametrization=MaximalUpdate(32, 1))
    *_, (seed, step, ours) = _trajectories(config, DATA.on_device(), TOY_LABELS, [7])
    assert (seed, step) == (7, 2)
    result = train(
        DATA, config=config, run_dir=tmp_path / "run", label_space=TOY_LABELS, validation=DATA,
        progress=False,
    )  # fmt: skip
    theirs = result.emulator.model
    for mine, trained in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(mine, trained)


def test_rows_say_what_they_are(rows):
    layers = 2 + 5 + 2
    assert len(rows) == 2 * 2 * 2 * 2 * layers
    assert {row["seed"] for row in rows} == {3, 4} and len({r["config_hash"] for r in rows}) == 8
    first = [row for row in rows if row["step"] == 1]
    # The output starts at zero: the first step moves it and nothing else.
    assert {row["layer"] for row in first if row["change"] > 0} == {"output"}
    assert all(row["change"] > 0 for row in rows if row["step"] == 2)
    output = [row for row in rows if row["layer"] == "output"]
    assert all(row["activation"] == row["change"] for row in output)


def test_tells_mup_from_the_control(rows):
    worst = steepest(slopes(rows))
    # Two seeds at two widths scatter; the full check is below.
    assert abs(worst["MaximalUpdate"].slope) < 0.2 and abs(worst["Standard"].slope) > 0.7
    # The check itself must be able to fail: muP with the control's numbers is not flat.
    swapped = [row | {"parametrization": "MaximalUpdate"} for row in rows if is_control(row)]
    assert not is_flat(slopes(swapped + [row for row in rows if is_control(row)]))


def is_control(row):
    return row["parametrization"] == "Standard"


@pytest.mark.slow
def test_full_check():
    found = slopes(check_coordinates(toy_spectra(64), TOY_LABELS, configs(CHECK, WIDTHS), range(8)))
    assert is_flat(found)


def test_figure_has_a_panel_a_parametrization(rows):
    figure = Figure()
    draw_coordinates(figure, rows)
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == ["MaximalUpdate", "Standard"]
    assert all(len(axes.lines) == 9 for axes in figure.axes)


def test_toy_spectra():
    again = toy_spectra(16)
    np.testing.assert_array_equal(again.flux, DATA.flux)
    assert 0.05 < DATA.flux.min() < 0.6 and DATA.flux.max() <= 1.0
    assert np.std(DATA.flux, axis=0).max() > 0.05  # the labels matter
