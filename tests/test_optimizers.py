"""Muon and SOAP of the optimizer study: the update that each is said to make."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from tiny import LABELS, tiny_data

from emulators.train_config import TrainConfig
from emulators.transformer_payne import TransformerPayne
from scaling import MaximalUpdate
from scaling.experiments.optimizers.factories import make_muon, make_soap
from scaling.experiments.optimizers.run import draw, study, summarize
from scaling.experiments.optimizers.soap import scale_by_soap


def follow(optimizer, gradients) -> tuple[Any, Any]:
    """The last update, and the state after it."""
    updates: Any = None
    state = optimizer.init(gradients[0])
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state)
    return updates, state


CONFIG = TrainConfig(steps=100, warmup=1, cooldown=0.0, parametrization=MaximalUpdate(64))


def payne(width=32):
    architecture = {
        "width": width,
        "depth": 2,
        "tokens": 4,
        "head_dim": 32,
        "periods": (1e-5, 1.0),
        "branch_scale": 0.5,
    }
    return TransformerPayne.from_architecture(LABELS, architecture)


def drawn(model, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 1e-4, jnp.float32), model
    )


def last_update(make, width=32, steps=3):
    """Update and gradients after some steps, through the factory as the trainer uses it."""
    model = payne(width)
    optimizer = make(CONFIG, model)
    gradients = [drawn(model, seed) for seed in range(steps)]
    updates, state = follow(optimizer, gradients)
    return updates, gradients, state


@pytest.fixture(scope="module")
def muon():
    return last_update(make_muon)


@pytest.fixture(scope="module")
def soap():
    return last_update(make_soap)


def test_updates_keep_the_tree_and_its_types(muon, soap):
    for updates, gradients, state in (muon, soap):
        assert isinstance(updates, TransformerPayne)
        for update, gradient in zip(
            jax.tree.leaves(updates), jax.tree.leaves(gradients[0]), strict=True
        ):
            assert update.shape == gradient.shape and update.dtype == jnp.float32
            assert np.all(np.asarray(update) != 0)
        # The state is that of a scan's carry: one more step changes no type.
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", ["query", "up", "down", "head_in", "label_out"])
def test_muon_is_near_orthogonal(muon, name):
    matrices = np.asarray(getattr(muon[0], name))
    fan_in, fan_out = matrices.shape[-2:]
    values = np.linalg.svd(matrices.reshape(-1, fan_in, fan_out), compute_uv=False)
    scale = 0.2 * 8 * max(1.0, fan_out / fan_in) ** 0.5
    assert np.all((values > 0.4 * scale) & (values < 1.4 * scale))


def test_muon_is_the_polar_factor_of_the_momentum(muon):
    """The directions are those of the momentum's singular vectors, each matrix by itself."""
    updates, gradients, _ = muon
    beta, momentum = 0.95, np.zeros((32, 32))
    for gradient in gradients:
        momentum = beta * momentum + (1 - beta) * np.asarray(gradient.key[1], np.float64)
    # Nesterov's step ahead, both terms with optax's corrections of the start.
    momentum = beta * momentum / (1 - beta**4)
    momentum += (1 - beta) * np.asarray(gradients[-1].key[1]) / (1 - beta**3)
    left, _, right = np.linalg.svd(momentum)
    inner = left.T @ -np.asarray(updates.key[1], np.float64) @ right.T
    assert np.max(np.abs(inner - np.diag(np.diag(inner)))) < 2e-2 * np.max(inner)


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_input_and_output_are_adams(name, request):
    updates, gradients, _ = request.getfixturevalue(name)
    names = ("label_in", "head_out")
    dictionaries = [{name: getattr(gradient, name) for name in names} for gradient in gradients]
    expected, _ = follow(optax.adam(1.0, eps=1e-15), dictionaries)
    factor = {"label_in": 1.0, "head_out": 64 / 32}
    for name in names:
        np.testing.assert_allclose(getattr(updates, name), factor[name] * expected[name], rtol=1e-5)


def test_soap_before_its_first_refresh_is_adam(soap):
    updates, gradients, _ = soap
    adam = optax.adam(1.0, b1=0.95, b2=0.95, eps=1e-12)
    expected, _ = follow(adam, [gradient.up for gradient in gradients])
    np.testing.assert_allclose(updates.up, 2.0 * expected, rtol=1e-4)


def rotation(size, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def diagonals(steps, size=4):
    """Gradients of a diagonal quadratic, its curvatures far apart."""
    noise = np.random.default_rng(0).normal(size=(steps, size))
    return np.array([8.0, 4.0, 2.0, 1.0])[:size] * (3 + 0.3 * noise)


def test_soap_is_adam_in_the_eigenbasis():
    left, right = rotation(4, 1), rotation(6, 2)[:, :4]
    values = diagonals(400)
    gradients = jnp.asarray(np.einsum("ia,sa,ja->sij", left, values, right))
    found, state = follow(scale_by_soap(eps=1e-8, refresh_every=5), gradients)
    expected, _ = follow(optax.scale_by_adam(b1=0.95, b2=0.95), jnp.asarray(values))
    # The gradients share their singular vectors, so the bases are these, up to sign.
    (matrix,) = state.matrices
    assert matrix.left is not None and matrix.right is not None
    np.testing.assert_allclose(np.abs(left.T @ matrix.left.basis), np.eye(4), atol=1e-6)
    np.testing.assert_allclose(np.abs(right.T @ matrix.right.basis)[:, :4], np.eye(4), atol=1e-6)
    inner = left.T @ np.asarray(found) @ right
    np.testing.assert_allclose(np.diag(inner), expected, rtol=1e-6)
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-3)


def test_soap_bases_stay_orthogonal_and_ordered_while_the_gradients_turn():
    scale = np.geomspace(1, 1e-2, 8)[:, None]
    gradients = rotation(8, 1) @ (scale * np.random.default_rng(4).normal(size=(60, 2, 8, 5)))
    found, state = follow(scale_by_soap(refresh_every=3), jnp.asarray(gradients, jnp.float32))
    (matrix,) = state.matrices
    assert matrix.left is not None
    basis, covariance = np.asarray(matrix.left.basis), np.asarray(matrix.left.covariance)
    np.testing.assert_allclose(
        np.swapaxes(basis, 1, 2) @ basis, np.broadcast_to(np.eye(8), (2, 8, 8)), atol=2e-6
    )
    inner = np.einsum("bni,bnm,bmi->bi", basis, covariance, basis)
    assert np.all(inner[:, :-1] > 0.5 * inner[:, 1:])
    assert np.all(np.isfinite(found)) and np.max(np.abs(found)) < 5


def test_a_stack_is_treated_matrix_by_matrix():
    gradients = jnp.asarray(np.random.default_rng(5).normal(size=(12, 3, 6, 4)))
    soap = scale_by_soap(refresh_every=4)
    together, alone = follow(soap, gradients)[0], follow(soap, gradients[:, 1])[0]
    np.testing.assert_allclose(together[1], alone, atol=1e-9)


def test_a_long_side_keeps_its_axes():
    """With no basis on either side SOAP is Adam for ever; with one it turns that side alone."""
    gradients = jnp.asarray(np.random.default_rng(6).normal(size=(10, 6, 4)))
    found, _ = follow(scale_by_soap(longest=3, refresh_every=2), gradients)
    expected, _ = follow(optax.scale_by_adam(0.95, 0.95), gradients)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    state: Any = scale_by_soap(longest=4).init(gradients[0])
    (matrix,) = state.matrices
    assert matrix.left is None and matrix.right is not None


def test_soap_in_a_stack_of_runs_is_soap_alone_and_renews_bases_only_when_due():
    gradients = jnp.asarray(np.random.default_rng(7).normal(size=(12, 3, 6, 4)))
    soap = scale_by_soap(refresh_every=4)
    update, state = jax.vmap(soap.update), jax.vmap(soap.init)(gradients[0])
    # A choice by run would be a select, which computes every branch.
    assert " cond[" in str(jax.make_jaxpr(update)(gradients[0], state))
    found: Any = None
    for gradient in gradients:
        found, state = update(gradient, state)
    for run in range(3):
        alone, _ = follow(soap, gradients[:, run])
        np.testing.assert_allclose(found[run], alone, atol=1e-9)


@pytest.mark.slow
def test_the_study_runs_and_resumes(tmp_path):
    settings = {"batch_size": 4, "num_pixels": None, "precision": "float32", "tokens": 4}
    settings |= {"steps_per_call": 10, "validate_every": 20, "checkpoint_every": 20, "warmup": 1}
    data, held_out, test = (tiny_data(num, pixels=100, seed=num) for num in (32, 8, 9))
    kept = {"sizes": (((32, 1), 20, 1.0),), "seeds": (0,)}
    rates = {"adam": (1e-3, 1e9), "muon": (1e-3,), "soap": (1e-3,)}

    def run(seconds):
        return study(
            data, held_out, test, LABELS, tmp_path, seconds, **kept, rates=rates, **settings
        )

    assert run(0.0) == []
    rows = run(600.0)
    assert [row["optimizer"] for row in rows] == ["adam", "adam", "muon", "soap"]
    assert rows[1]["mse_test"] is None  # diverged
    assert rows[0]["optimizer_flops"] == 0 < rows[2]["optimizer_flops"]
    assert len({row["flops"] for row in rows}) == 1
    assert run(600.0) == rows
    summary = summarize(rows)
    assert [row["optimizer"] for row in summary] == ["adam", "muon", "soap"]
    assert summary[0]["against_adam"] == 1.0 and summary[0]["learning_rate"] == 1e-3
    assert not summary[0]["bracketed"]
    figure = Figure()
    draw(figure, rows)
    assert len(figure.axes) == 1 and len(figure.axes[0].lines) == 3
