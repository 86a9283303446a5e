"""The rule for badly modelled pixels."""

import numpy as np
import pytest

from stellarfit.mask import find_mismatch


def lines(num: int, every: int = 40, width: float = 3.0) -> np.ndarray:
    """Sensitivity of a spectrum with lines of one kind."""
    offset = (np.arange(num) + every // 2) % every - every // 2
    return -np.exp(-0.5 * (offset / width) ** 2)


def test_good_residuals_are_left_alone():
    residual = np.random.default_rng(0).normal(size=5000) * 0.01
    found = find_mismatch(residual, np.full(5000, 1e-4), lines(5000))
    assert found.scatter == 0
    assert np.all(found.variance == 0)
    assert np.mean(found.weight < 1) < 0.06 and found.weight.min() > 0.2
    assert np.mean(found.weight) > 0.98


def test_scatter_of_line_strengths_is_measured():
    """Each line wrong by its own amount, drawn from the Student t that the rule assumes."""
    rng = np.random.default_rng(1)
    change = 0.1 * rng.standard_t(4, size=1000)
    residual = np.repeat(change, 40) * np.roll(lines(40_000), 20) + 0.003 * rng.normal(size=40_000)
    found = find_mismatch(residual, np.full(40_000, 9e-6), np.roll(lines(40_000), 20))
    assert found.scatter == pytest.approx(0.1, rel=0.1)
    assert found.variance[20] > 100 * found.variance[0]  # lines bear it, the continuum does not


def test_errors_do_not_fall_with_the_pixel_size():
    """Information on a line, summed over its pixels, with pixels of two sizes."""
    information = []
    for fineness in (1, 4):
        sensitivity = lines(4000 * fineness, 40 * fineness, 3.0 * fineness)
        change = np.repeat(0.1 * np.random.default_rng(2).normal(size=100), 40 * fineness)
        change = np.roll(change, -20 * fineness)
        found = find_mismatch(
            change * sensitivity, np.full(len(change), 1e-6 * fineness), sensitivity
        )
        weight = found.inverse_variance(np.full(len(change), 1e-6 * fineness))
        information.append(np.sum(weight * sensitivity**2))
    assert information[1] == pytest.approx(information[0], rel=0.1)


def test_line_widths_are_those_of_each_arm():
    """An arm sampled four times finer: four times the variance a pixel where lines are as deep."""
    coarse, fine = lines(4000), lines(16_000, 160, 12.0)
    sensitivity = np.concatenate([coarse, fine])
    change = 0.1 * np.random.default_rng(4).choice([-1, 1], len(sensitivity))
    parts = slice(0, 4000), slice(4000, None)
    found = find_mismatch(change * sensitivity, np.full(20_000, 1e-6), sensitivity, parts)
    centre = found.variance[parts[0]].max(), found.variance[parts[1]].max()
    assert centre[1] / centre[0] == pytest.approx(4.0, rel=0.05)
    alone = find_mismatch(change[:4000] * coarse, np.full(4000, 1e-6), coarse)
    assert centre[0] / alone.variance.max() == pytest.approx(1.0, rel=0.05)


def test_a_missing_line_loses_its_pull():
    rng = np.random.default_rng(2)
    residual = rng.normal(size=1000) * 0.01
    residual[500:510] -= 0.5
    found = find_mismatch(residual, np.full(1000, 1e-4), np.zeros(1000))
    inflated = np.abs(residual) * np.sqrt(found.inverse_variance(np.full(1000, 1e-4)))
    assert inflated.max() == pytest.approx(2.0)
    assert np.all(found.weight[500:510] < 0.002)
    pull = found.weight * np.abs(residual) / 0.01
    assert pull[500:510].max() < 0.1


def test_weights_enter_the_variance_that_the_fit_uses():
    sensitivity = lines(400)
    residual = 0.2 * sensitivity * np.random.default_rng(3).choice([-1, 1], 400)
    variance = np.full(400, 1e-6)
    found = find_mismatch(residual, variance, sensitivity)
    assert found.scatter > 0
    np.testing.assert_allclose(
        found.inverse_variance(variance), found.weight / (variance + found.variance)
    )
