"""One step: portions, averages, several devices, and many runs at once."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LABELS, tiny_data

from emulators.errors import InputError
from emulators.optimizers import make_optimizer
from emulators.train import start_model, train
from emulators.train_config import TrainConfig
from emulators.train_many import train_many
from emulators.training_step import Member, State, draw_stars, make_steps, star_mesh

CONFIG = TrainConfig(
    steps=3, width=32, depth=1, tokens=4, batch_size=8, warmup=1, cooldown=0.0, periods=(1e-5, 1.0)
)
LONGER = dataclasses.replace(
    CONFIG, steps=12, steps_per_call=6, checkpoint_every=6, validate_every=6
)
DATA = tiny_data(8, pixels=128)
STARS = np.tile(np.arange(8, dtype=np.int32), (3, 1))


def take_steps(config, stars=STARS, devices=None):
    model = start_model(config, LABELS)
    mesh = star_mesh(config, jax.devices()[:1] if devices is None else devices)
    optimizer = make_optimizer(config, model)
    steps = jax.jit(make_steps(config, 128, optimizer, mesh))
    member = Member.of(config)
    state = State.start(config, model, optimizer)
    return steps(state, jnp.asarray(stars), DATA.on_device(), member)


def test_portions_change_nothing():
    plain, losses = take_steps(CONFIG)
    other, other_losses = take_steps(dataclasses.replace(CONFIG, accumulate=4))
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other.model.up, plain.model.up, atol=1e-5)


def test_a_young_average_is_the_mean_of_all_steps():
    config = dataclasses.replace(CONFIG, average=0.9)
    after = [np.asarray(take_steps(config, STARS[:n])[0].model.up) for n in (1, 2, 3)]
    state, _ = take_steps(config)
    np.testing.assert_allclose(state.result.up, np.mean(after, axis=0), atol=1e-7)
    assert np.abs(after[2] - np.mean(after, axis=0)).max() > 1e-4


def test_stars_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="batch_size is 8; give a multiple of accumulate"):
        dataclasses.replace(CONFIG, accumulate=3)
    with pytest.raises(InputError, match="multiple of the 3 devices times accumulate"):
        star_mesh(CONFIG, jax.devices()[:1] * 3)


CHILD = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import json
import jax
import numpy as np
from test_training_step import CONFIG, take_steps
state, losses = take_steps(CONFIG, devices=jax.devices())
print(json.dumps([len(jax.devices()), np.asarray(losses).tolist(), float(state.model.up.sum())]))
"""


def test_two_devices_do_what_one_does():
    tests = Path(__file__).parent
    code = CHILD.format(root=str(tests.parent), tests=str(tests))
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    count, losses, total = json.loads(done.stdout.splitlines()[-1])
    state, expected = take_steps(CONFIG)
    assert count == 2
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(total, float(state.model.up.sum()), atol=1e-3)


def test_stars_of_a_step_depend_on_seed_and_step_only():
    drawn = draw_stars(3, 0, 50, 4, 30)
    np.testing.assert_array_equal(draw_stars(3, 17, 9, 4, 30), drawn[17:26])
    epochs = drawn.reshape(-1)[:180].reshape(6, 30)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(30))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 6


def test_many_runs_at_once_are_each_the_run_alone(tmp_path):
    config = dataclasses.replace(LONGER, num_pixels=64)
    held_out = tiny_data(4, pixels=128, seed=1)
    together = train_many(
        DATA,
        config=config,
        learning_rates=(1e-3, 4e-3),
        seeds=(0, 1),
        label_space=LABELS,
        validation=held_out,
    )
    assert [(one.config.learning_rate, one.config.seed) for one in together] == [
        (1e-3, 0),
        (1e-3, 1),
        (4e-3, 0),
        (4e-3, 1),
    ]
    alone = train(
        DATA,
        config=together[3].config,
        run_dir=tmp_path / "alone",
        label_space=LABELS,
        validation=held_out,
        progress=False,
    )
    np.testing.assert_allclose(together[3].loss, alone.loss, rtol=1e-4)
    np.testing.assert_allclose(
        together[3].row["mse_validation"], alone.row["mse_validation"], rtol=1e-3
    )
    assert len({one.loss[-1] for one in together}) == 4


def test_a_run_that_diverges_leaves_the_others_alone():
    tame, wild = train_many(
        DATA,
        config=LONGER,
        learning_rates=(1e-3, 1e30),
        seeds=(0,),
        label_space=LABELS,
        validation=DATA,
    )
    assert tame.row["mse_validation"] > 0 and wild.row["mse_validation"] is None
