"""The rule for badly modelled pixels."""

import numpy as np
import pytest

from stellarfit.mask import find_mismatch


def test_good_residuals_are_left_alone():
    residual = np.random.default_rng(0).normal(size=5000) * 0.01
    found = find_mismatch(residual, np.full(5000, 1e-4))
    assert found.variance == 0
    assert np.mean(found.weight < 1) < 0.02 and found.weight.min() > 0.3
    assert np.mean(found.weight) > 0.995


def test_excess_scatter_is_measured_and_added():
    rng = np.random.default_rng(1)
    residual = rng.normal(size=20_000) * np.hypot(0.01, 0.03)
    found = find_mismatch(residual, np.full(20_000, 1e-4))
    assert np.sqrt(found.variance) == pytest.approx(0.03, rel=0.03)


def test_a_missing_line_loses_its_pull():
    rng = np.random.default_rng(2)
    residual = rng.normal(size=1000) * 0.01
    residual[500:510] -= 0.5
    found = find_mismatch(residual, np.full(1000, 1e-4))
    inflated = np.abs(residual) * np.sqrt(found.inverse_variance(np.full(1000, 1e-4)))
    assert inflated.max() == pytest.approx(2.5)
    assert np.all(found.weight[500:510] < 0.003)
    pull = found.weight * np.abs(residual) / 0.01
    assert pull[500:510].max() < 0.15


def test_weights_enter_the_variance_that_the_fit_uses():
    residual = np.r_[np.full(50, 0.01), np.full(50, -0.01), 1.0]
    variance = np.full(101, 1e-4)
    found = find_mismatch(residual, variance)
    np.testing.assert_allclose(
        found.inverse_variance(variance), found.weight / (1e-4 + found.variance)
    )
    np.testing.assert_allclose(
        found.inverse_variance(variance, 3.0), found.weight / (1e-4 + 3 * found.variance)
    )
