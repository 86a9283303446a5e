"""The low-rank covariance against the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emulators  # noqa: F401  switches JAX to 64-bit types
from stellarfit.noise import Noise

NUM, MODES, COLUMNS = 60, 4, 3


@pytest.fixture
def parts():
    rng = np.random.default_rng(3)
    variance = rng.uniform(0.5, 2.0, NUM) * 1e-4
    modes = 0.02 * rng.normal(size=(NUM, MODES))
    columns = rng.normal(size=(NUM, COLUMNS))
    prior = rng.uniform(0.1, 4.0, COLUMNS)
    residual = 0.05 * rng.normal(size=NUM)
    bad = np.zeros(NUM, bool)
    bad[[3, 17, 18, 59]] = True
    return variance, modes, columns, prior, residual, bad


def dense_log_density(residual, variance, modes, columns, prior, good):
    covariance = np.diag(variance) + modes @ modes.T + (columns * prior) @ columns.T
    covariance = covariance[np.ix_(good, good)]
    sign, log_det = np.linalg.slogdet(covariance)
    assert sign > 0
    quadratic = residual[good] @ np.linalg.solve(covariance, residual[good])
    return -0.5 * (quadratic + log_det + good.sum() * np.log(2 * np.pi))


def test_log_density_and_gradient_equal_the_dense_ones(parts):
    variance, modes, columns, prior, residual, bad = parts
    good = ~bad
    noise = Noise.build(jnp.asarray(np.where(bad, 0, 1 / variance)), jnp.asarray(modes))
    # What lies under the mask must not matter, however wild.
    wild = np.where(bad, 1e6, residual)

    def found(residual, columns):
        return noise.log_density(residual, columns, jnp.asarray(prior))

    value, (by_residual, by_columns) = jax.value_and_grad(found, (0, 1))(
        jnp.asarray(wild), jnp.asarray(columns)
    )
    truth = dense_log_density(residual, variance, modes, columns, prior, good)
    assert float(value) == pytest.approx(truth, rel=1e-9)

    covariance = np.diag(variance) + modes @ modes.T + (columns * prior) @ columns.T
    inverse = np.linalg.inv(covariance[np.ix_(good, good)])
    pull = inverse @ residual[good]
    expected = np.zeros(NUM)
    expected[good] = -pull
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(by_residual), expected, atol=1e-9 * scale)
    matrix = np.zeros((NUM, COLUMNS))
    matrix[good] = (np.outer(pull, pull) - inverse) @ columns[good] * prior
    scale = np.abs(matrix).max()
    np.testing.assert_allclose(np.asarray(by_columns), matrix, atol=1e-9 * scale)


def test_solve_is_the_inverse_not_the_product(parts):
    """Starfish multiplies by the weight where it means its inverse; a dense inverse shows it."""
    variance, modes, columns, _, _, _ = parts
    noise = Noise.build(jnp.asarray(1 / variance), jnp.asarray(modes))
    truth = np.linalg.inv(np.diag(variance) + modes @ modes.T) @ columns
    np.testing.assert_allclose(np.asarray(noise.solve(jnp.asarray(columns))), truth, rtol=1e-8)


def test_modes_of_zero_change_nothing(parts):
    variance, _, columns, prior, residual, _ = parts
    arguments = (jnp.asarray(residual), jnp.asarray(columns), jnp.asarray(prior))
    found = [
        float(Noise.build(jnp.asarray(1 / variance), modes).log_density(*arguments))
        for modes in (jnp.zeros((NUM, MODES)), jnp.zeros((NUM, 0)))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-14)


def test_huge_modes_stay_positive_definite():
    """An error term that dwarfs the data must not break the Cholesky factor."""
    modes = 1e4 * np.random.default_rng(0).normal(size=(NUM, MODES))
    noise = Noise.build(jnp.full(NUM, 1e6), jnp.asarray(modes))
    value = noise.log_density(jnp.ones(NUM), jnp.ones((NUM, 1)), jnp.asarray([1e4]))
    assert np.isfinite(float(value))
