"""muP: the table by hand, and the learning rate that every weight really got."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest
from tiny import LABELS, tiny_data

from emulators import transformer_payne
from emulators.emulator import Emulator
from emulators.errors import InputError
from emulators.parametrization import Leaf, Standard, resolve
from emulators.train import start_model, train
from emulators.train_config import TrainConfig
from emulators.transformer_payne import TransformerPayne
from scaling import MaximalUpdate
from scaling.coordinate_check import check_coordinates

BASE = 64
# Adam without memory moves every entry by the rate and nothing else, in the first step and in all
# others; the first one moves the output only, because everything else learns through it.
TWO_STEPS = TrainConfig(
    steps=2,
    depth=1,
    tokens=4,
    periods=(1e-4, 1.0),
    learning_rate=4e-3,
    warmup=0,
    cooldown=0.0,
    beta1=0.0,
    beta2=0.0,
    batch_size=4,
    steps_per_call=2,
)
DATA = tiny_data(8, pixels=128)


@functools.cache
def model_of(width, scheme=None) -> Any:
    config = dataclasses.replace(TWO_STEPS, width=width, parametrization=scheme or Standard())
    return start_model(config, LABELS)


def expected_factor(name, width):
    """The table, from the shapes alone: which sides of the weight grow with the width?"""
    small, large = (getattr(model_of(size), name).shape for size in (64, 128))
    if name == "head_out":
        assert small == (64,) and large == (128,)
        return BASE / width
    grows = [after == 2 * before for before, after in zip(small[-2:], large[-2:], strict=True)]
    return {(False, True): 1.0, (True, True): BASE / width}[tuple(grows)]


NAMES = sorted(transformer_payne._ROLES)


@pytest.mark.parametrize("width", [64, 128, 512])
def test_table(width):
    scheme = MaximalUpdate(BASE, 1)
    model = model_of(width, scheme)
    found = resolve(model, scheme)
    assert sorted(found["leaves"]) == NAMES
    for name, leaf in found["leaves"].items():
        assert leaf["learning_rate_factor"] == expected_factor(name, width), name
        weights = np.asarray(getattr(model, name), np.float64)
        if name == "head_out":
            assert leaf["init_std"] == 0.0 and not weights.any()
            continue
        fan_in = weights.shape[-2]
        assert leaf["fan_in"] == fan_in
        np.testing.assert_allclose(leaf["init_std"], fan_in**-0.5, rtol=1e-12)
        np.testing.assert_allclose(weights.std(), fan_in**-0.5, rtol=4 / weights.size**0.5)


def test_at_the_base_it_is_the_standard_parametrization():
    for width in (64, 128):
        scheme = MaximalUpdate(width, 1)
        ours, standard = model_of(width, scheme), model_of(width)
        assert eqx.tree_equal(ours, standard)  # the scale of the branches is part of the tree
        numbers = resolve(ours, scheme)
        assert numbers | {"class": "Standard"} == resolve(standard, Standard())
    for depth in range(1, 40):
        assert MaximalUpdate(64, depth).branch_scale(depth) == Standard().branch_scale(depth)
    assert MaximalUpdate() == MaximalUpdate(TrainConfig(steps=1).width, TrainConfig(steps=1).depth)


@pytest.mark.slow
def test_depth_moves_the_residual_stream_alike():
    # CompleteP: four times as many branches, each a quarter as strong. Standard: half as strong.
    def moved(depth, scheme):
        config = dataclasses.replace(TWO_STEPS, depth=depth, parametrization=scheme)
        config = dataclasses.replace(config, learning_rate=5e-4)
        rows = check_coordinates(DATA, LABELS, [config], [0])
        last = (f"block{depth - 1}.residual", 2)
        return next(row["change"] for row in rows if (row["layer"], row["step"]) == last)

    base = moved(1, Standard())
    assert abs(np.log2(moved(4, MaximalUpdate(BASE, 1)) / base)) < 0.35
    assert np.log2(moved(4, Standard()) / base) > 0.7


def rate_of(before, after, steps):
    """What one step moved an entry by, from all entries that took every step the same way."""
    moved = np.abs(np.asarray(after, np.float64) - np.asarray(before, np.float64)) / steps
    # A weight whose gradient changed sign comes back to where it was; only the output can.
    moved = moved[moved > 0.5 * moved.max()]
    typical = moved[np.abs(moved / np.median(moved) - 1) < 1e-3]
    assert typical.size > 0.95 * moved.size
    return typical.mean()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (64, MaximalUpdate(BASE, 1)),
        pytest.param(128, MaximalUpdate(BASE, 1), marks=pytest.mark.slow),
        pytest.param(256, MaximalUpdate(BASE, 1), marks=pytest.mark.slow),
        (512, MaximalUpdate(BASE, 1)),
        (512, Standard()),
    ],
    ids=["64", "128", "256", "512", "512-control"],
)
def test_every_leaf_gets_its_learning_rate_through_the_public_path(tmp_path, width, scheme):
    config = dataclasses.replace(TWO_STEPS, width=width, parametrization=scheme)
    train(
        DATA, config=config, run_dir=tmp_path / "run", label_space=LABELS, validation=DATA,
        progress=False,
    )  # fmt: skip
    before, emulator = start_model(config, LABELS), Emulator.load(tmp_path / "run/emulator.h5")
    for name in NAMES:
        steps = 2 if name == "head_out" else 1
        found = rate_of(getattr(before, name), getattr(emulator.model, name), steps)
        expected = expected_factor(name, width) if isinstance(scheme, MaximalUpdate) else 1.0
        np.testing.assert_allclose(found / config.learning_rate, expected, rtol=1e-6, err_msg=name)
    # The file says the same, and the numbers say what was done.
    assert emulator.record["parametrization"] == resolve(before, scheme)
    stored = {f.name: getattr(scheme, f.name) for f in dataclasses.fields(scheme)}
    assert emulator.record["config"]["parametrization"] == {
        "class": type(scheme).__name__,
        **stored,
    }


def test_what_is_not_classified_is_an_error(monkeypatch):
    odd = Leaf("gain", "gain", 1, 64)  # pyright: ignore[reportArgumentType]
    for method in (MaximalUpdate().init_std, MaximalUpdate().learning_rate_factor):
        with pytest.raises(InputError, match="'gain' has role 'gain'; allowed: input"):
            method(odd)
    model = model_of(64)
    monkeypatch.delitem(transformer_payne._ROLES, "up")
    with pytest.raises(InputError, match="'up' has no role"):
        TransformerPayne(LABELS, key=jax.random.key(0), parametrization=MaximalUpdate())
    with pytest.raises(InputError, match="'up' has no role"):
        resolve(model, MaximalUpdate())


@pytest.mark.parametrize("settings", [{"base_width": 0}, {"base_depth": -1}])
def test_bad_bases(settings):
    with pytest.raises(InputError, match=f"mup: {next(iter(settings))} is"):
        MaximalUpdate(**settings)
