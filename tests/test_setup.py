"""Pixels that only round up their number count for nothing."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from fake_star import TRUTH, fake_star, two_arms
from tiny import LABELS, tiny_emulator
from unpadded import unpadded

from stellarfit.arms import Arms
from stellarfit.emulator_error import AmplitudePrior
from stellarfit.priors import make_prior
from stellarfit.setup import Setup


@pytest.mark.parametrize("make", [fake_star, two_arms])
def test_padded_and_unpadded_problems_are_the_same(make):
    spectrum = make()
    points = spectrum.zero_points if isinstance(spectrum, Arms) else ()
    prior, held = make_prior(LABELS, None, dict.fromkeys(points, dist.Normal(0.0, 5.0)), points)
    amplitude = AmplitudePrior(0.4, 0.3, 0.3)
    emulator = tiny_emulator(analytic=True, pixels=400)
    padded = Setup.build(spectrum, emulator, prior, held, continuum_degree=2, amplitude=amplitude)
    bare = unpadded(padded)
    assert len(padded.used) > len(bare.used) == len(padded.keep) == padded.used.sum()
    values = np.array([TRUTH.get(name, 0.5) for name in prior.names])
    errors = padded.emulator_error(values), bare.emulator_error(values)
    assert errors[0] is not None and errors[1] is not None
    variance = np.asarray(errors[0].variance)
    assert not variance[~padded.used].any()
    np.testing.assert_allclose(variance[padded.used], errors[1].variance, rtol=1e-10)
    assert float(errors[0].floor) == pytest.approx(float(errors[1].floor), rel=1e-12)
    mismatches = [s.find_mismatch(values, e) for s, e in zip((padded, bare), errors, strict=True)]
    for name in ("scatter", "variance", "weight"):
        one, other = (getattr(mismatch, name) for mismatch in mismatches)
        np.testing.assert_allclose(one, other, rtol=1e-9)
    frozen = [
        setup.freeze(values, error, mismatch)
        for setup, error, mismatch in zip((padded, bare), errors, mismatches, strict=True)
    ]
    likelihoods = [float(problem.log_likelihood(jnp.asarray(values))) for problem in frozen]
    assert likelihoods[0] == pytest.approx(likelihoods[1], rel=1e-10)
    amplitudes = [float(problem.noise.log_amplitude) for problem in frozen]
    assert amplitudes[0] == pytest.approx(amplitudes[1], abs=1e-10)
    seen = [s.predict(p, values) for s, p in zip((padded, bare), frozen, strict=True)]
    for one, other in zip(*seen, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)
        assert np.array_equal(np.isfinite(one), spectrum.good & padded.spectrum.good)
