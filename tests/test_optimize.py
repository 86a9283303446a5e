"""The optimiser and the Gaussian at its end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_star import TRUTH, fake_star
from tiny import tiny_emulator

from stellarfit.laplace import laplace
from stellarfit.optimize import curvature, maximize, objective
from stellarfit.priors import make_prior
from stellarfit.setup import Setup

ONE, ZERO = jnp.asarray(1.0), jnp.asarray(0.0)


@pytest.fixture(scope="module")
def setup():
    emulator = tiny_emulator(analytic=True, pixels=400)
    prior, held = make_prior(emulator.label_space)
    return Setup.build(fake_star(), emulator, prior, held, continuum_degree=2)


@pytest.fixture(scope="module")
def optimum(setup):
    return maximize(setup.photons, setup.prior.position(setup.starts[0]), 0.0, 60)


def test_first_guess_finds_the_velocity(setup):
    start = dict(zip(setup.prior.names, setup.starts[0], strict=True))
    assert start["v_rad"] == pytest.approx(TRUTH["v_rad"], abs=4)


def test_gradient_is_that_of_the_objective(setup):
    position = setup.prior.position(jnp.asarray([TRUTH[name] for name in setup.prior.names])) + 0.02
    measure = eqx.filter_jit(curvature)
    differentiate = eqx.filter_jit(
        jax.grad(lambda p, bounded: objective(setup.photons, p, bounded))
    )
    for bounded in (ZERO, ONE):
        found = measure(setup.photons, position, bounded)
        truth = differentiate(position, bounded)
        np.testing.assert_allclose(
            np.asarray(found.gradient), np.asarray(truth), rtol=1e-6, atol=1e-6
        )


def test_gauss_newton_is_the_hessian_where_the_model_fits(setup, optimum):
    """Second derivatives of the objective, the continuum eliminated by autodiff."""
    hessian = jax.jit(jax.hessian(lambda p: objective(setup.photons, p, ZERO)))
    truth = hessian(optimum.position)
    scale = np.sqrt(np.diag(np.asarray(truth)))
    found = np.asarray(optimum.curvature.hessian) / scale[:, None] / scale
    # They differ by residuals times second derivatives: small at S/N 200.
    np.testing.assert_allclose(found, np.asarray(truth) / scale[:, None] / scale, atol=0.1)


def test_search_ends_at_a_stationary_point_from_every_start(setup, optimum):
    assert bool(optimum.converged) and int(optimum.steps) < 40
    gaussian = laplace(optimum.position, optimum.curvature.hessian)
    away = np.asarray(optimum.curvature.gradient) @ np.asarray(gaussian.covariance)
    assert np.all(np.abs(away) < 0.02 * np.sqrt(np.diag(np.asarray(gaussian.covariance))))
    for start in setup.starts[1:3]:
        other = maximize(setup.photons, setup.prior.position(start), 0.0, 60)
        if float(other.curvature.cost) < float(optimum.curvature.cost) + 1:
            difference = np.asarray(other.position - optimum.position)
            assert np.all(np.abs(difference) < 0.1 * np.sqrt(np.diag(gaussian.covariance)))


def test_too_few_steps_are_reported(setup):
    start = setup.prior.position(setup.starts[5])
    assert not bool(maximize(setup.photons, start, 0.0, 2).converged)


def test_laplace_inverts_and_draws():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4)) * np.array([1e-3, 1.0, 30.0, 1e4])
    precision = root.T @ root + np.diag([1e-6, 1.0, 1.0, 1e4])
    gaussian = laplace(jnp.zeros(4), jnp.asarray(precision))
    assert not gaussian.bad
    truth = np.linalg.inv(precision)
    scale = np.sqrt(np.diag(truth))
    np.testing.assert_allclose(
        np.asarray(gaussian.covariance) / scale / scale[:, None], truth / scale / scale[:, None],
        atol=1e-8,
    )  # fmt: skip
    draws = np.asarray(gaussian.draws(jax.random.key(0), 20_000)) / scale
    np.testing.assert_allclose(np.cov(draws.T), truth / scale / scale[:, None], atol=0.05)


@pytest.mark.parametrize(
    "hessian", [np.diag([1.0, 0.0]), np.diag([1.0, -2.0]), np.full((2, 2), np.nan)]
)
def test_a_bad_hessian_is_flagged_and_still_gives_a_finite_covariance(hessian):
    gaussian = laplace(jnp.zeros(2), jnp.asarray(hessian))
    assert gaussian.bad
    assert np.isfinite(np.asarray(gaussian.scale())).all()
