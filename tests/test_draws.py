"""Draws of many stars: by what is enough for each."""

import jax.numpy as jnp
import numpy as np
import pytest

from stellarfit.draws import draw_with
from stellarfit.importance import Weighted

# By weights, by many weights, by chains, by nothing: neither has a search without an end chains.
K_HAT = {64: [0.1, 0.9, 0.9, 0.9], 512: [0.1, 0.2, 0.8, 0.8]}
SETTLED = np.array([True, True, True, False])


def draw(num: int):
    """Draws whose only parameter says where they are from: 1000 + chain, or how many weights."""
    asked = []

    def weigh(some, weighed):
        asked.append((some.tolist(), weighed))
        k_hat = jnp.asarray(K_HAT[64 if weighed == num else 512])[some]
        ones = jnp.ones((len(some), 1))
        return Weighted(jnp.full((len(some), num, 1), float(weighed)), ones, ones, k_hat)

    def chains(some):
        asked.append((some.tolist(), 0))
        scatter = np.random.default_rng(0).normal(0, 0.01, (len(some), 4, 192, 1))
        return 1000.0 + np.arange(4)[:, None, None] + scatter

    return draw_with(weigh, chains, SETTLED, num), asked


def test_each_star_gets_what_it_needs():
    found, asked = draw(64)
    assert asked == [([0, 1, 2, 3], 64), ([1, 2, 3], 512), ([2], 0)]
    assert found.samples[[0, 1, 3], 0, 0].tolist() == [64.0, 512.0, 512.0]
    np.testing.assert_array_equal(found.k_hat, [0.1, 0.2, 0.8, 0.8])
    # Chains that disagree say so.
    assert np.isfinite(found.r_hat).tolist() == [False, False, True, False]
    assert found.r_hat[2] > 1.05
    assert found.mean[2, 0] == pytest.approx(1001.5, abs=0.01)
    assert found.sigma[2, 0] == pytest.approx(np.sqrt(1.25), rel=0.01)


@pytest.mark.parametrize("num", [33, 64, 65, 100, 192, 193])
def test_all_chains_are_drawn_from_alike(num):
    found, _ = draw(num)
    counts = np.bincount(np.round(found.samples[2, :, 0] - 1000).astype(int), minlength=4)
    assert counts.sum() == num and np.ptp(counts) <= 2
