"""One conformance test over both backends: a sampler that passes it may be added."""

import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_star import TRUTH, fake_star
from jaxtyping import Array
from scipy.stats import norm, truncnorm
from tiny import tiny_emulator

from emulators.errors import InputError
from stellarfit.fitting import fit
from stellarfit.flags import BAD, Flag
from stellarfit.sampling import BACKENDS, sample
from stellarfit.sampling.base import run
from stellarfit.sampling.diagnostics import e_bfmi, ess, judge, r_hat
from stellarfit.sampling.sample import make_sampler
from stellarfit.sampling.start import Start
from stellarfit.sampling.surrogate import resample, smooth
from stellarfit.sampling.target import Whitened, make_target
from stellarfit.sampling.truncated import truncate

NUM = 1000  # draws of each of four chains


class Gaussian(eqx.Module):
    mean: Array
    precision: Array

    def __call__(self, position):
        return -0.5 * (position - self.mean) @ self.precision @ (position - self.mean)


def correlated(num=4, correlation=0.3):
    covariance = correlation + (1 - correlation) * np.eye(num)
    scale = np.linspace(0.8, 1.25, num)
    return covariance * scale * scale[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_samples_a_gaussian(backend):
    covariance = correlated()
    mean = np.array([1.0, -2.0, 0.0, 0.5])
    target = Gaussian(jnp.asarray(mean), jnp.linalg.inv(jnp.asarray(covariance)))
    start = mean + np.random.default_rng(0).normal(size=(4, 4))
    chains = run(
        make_sampler(backend), target, jnp.asarray(start), jax.random.key(1),
        num_warmup=100, num_samples=2000,
    )  # fmt: skip
    samples = np.asarray(chains.draws.position)
    assert samples.shape == (4, 2000, 4)
    flat = samples.reshape(-1, 4)
    error = np.sqrt(np.diag(covariance) / ess(samples))
    assert np.all(np.abs(flat.mean(axis=0) - mean) < 4 * error)
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(
        np.cov(flat.T) / scale / scale[:, None], covariance / scale / scale[:, None], atol=0.1
    )
    assert np.all(r_hat(samples) < 1.01)
    assert not chains.draws.diverging.any()
    assert 0.55 < chains.draws.acceptance.mean() < 0.95
    # The energy is that of the position and a fresh momentum: chi^2 of both halves.
    assert np.mean(chains.draws.energy) == pytest.approx(4.0, abs=0.3)
    log_density = np.array([float(target(p)) for p in jnp.asarray(flat[:5])])
    np.testing.assert_allclose(chains.draws.log_density.reshape(-1)[:5], log_density, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_of_the_truth_are_uniform(backend):
    """Simulation-based calibration: truth from the prior, data from the truth, rank in draws."""
    rng = np.random.default_rng(2)
    sampler = make_sampler(backend)
    ranks = []
    for i in range(40):
        truth = rng.normal(size=2)
        data = truth + rng.normal(size=2) * np.array([0.5, 2.0])
        precision = np.diag(1 + 1 / np.array([0.25, 4.0]))
        mean = data / np.array([0.25, 4.0]) / np.diag(precision)
        target = Gaussian(jnp.asarray(mean), jnp.asarray(precision))
        start = jnp.asarray(mean + rng.normal(size=(2, 2)) / np.sqrt(np.diag(precision)))
        chains = run(sampler, target, start, jax.random.key(i), num_warmup=50, num_samples=150)
        ranks.append(np.mean(chains.draws.position.reshape(-1, 2) < truth, axis=0))
    ranks = np.sort(np.array(ranks).ravel())
    uniform = (np.arange(len(ranks)) + 0.5) / len(ranks)
    assert np.abs(ranks - uniform).max() < 1.63 / np.sqrt(len(ranks))  # Kolmogorov-Smirnov, 1%


@pytest.fixture(scope="module")
def emulator():
    return tiny_emulator(analytic=True, pixels=400)


@pytest.fixture(scope="module")
def found(emulator):
    return fit(fake_star(), emulator, continuum_degree=2)


@pytest.fixture(scope="module")
def posteriors(found, emulator):
    return {
        backend: sample(
            found.spectrum, emulator, backend=backend, fit=found, seed=4, num_samples=NUM
        )
        for backend in BACKENDS
    }


def test_backends_agree_with_each_other_and_with_laplace(posteriors, found):
    first, *others = (posteriors[backend] for backend in BACKENDS)
    for other in others:
        assert np.all(np.abs(first.mean - other.mean) < 0.15 * first.sigma)
        np.testing.assert_allclose(first.sigma, other.sigma, rtol=0.12)
    np.testing.assert_allclose(first.sigma, found.error, rtol=0.25)
    assert np.all(np.abs(first.mean - found.values) < 0.5 * found.error)
    for backend, posterior in posteriors.items():
        assert posterior.flags & BAD == 0
        assert posterior.stats["n_steps"].max() <= (7 if "hmc" in backend else 3)
        expected = np.array([TRUTH[name] for name in posterior.names])
        assert np.all(np.abs(posterior.mean - expected) < 3 * posterior.sigma)


def test_no_draw_leaves_the_box(posteriors, found):
    prior = found.problem.prior
    for posterior in posteriors.values():
        assert np.all(posterior.samples > np.asarray(prior.lower))
        assert np.all(posterior.samples < np.asarray(prior.upper))


def whitened(found, curvature, origin):
    """A target whose density is the expansion alone, in the prior box of a fit."""
    target = make_target(found, jax.random.key(0))
    covariance = np.linalg.inv(curvature)
    scale, order = np.linalg.cholesky(covariance), np.arange(len(origin))
    gram = np.zeros_like(target.gram)
    gram[:, : len(order), : len(order)] = np.eye(len(order))
    flat = np.zeros(gram.shape[:1]), np.zeros(gram.shape[:2])
    straight = np.zeros(len(origin)), np.zeros(target.bend.shape)
    return eqx.tree_at(
        lambda t: (t.origin, t.order, t.scale, t.middle, t.bend, t.offset, t.linear, t.gram),
        target,
        tuple(map(jnp.asarray, (origin, order, scale, *straight, *flat, gram))),
    )


def test_volume_of_the_coordinates_is_their_jacobian(found):
    target = make_target(found, jax.random.key(0))
    z = jnp.asarray(np.random.default_rng(0).normal(size=len(found.names)) * 2)
    values, log_volume, _ = target._build_up(z)
    matrix = jax.jacfwd(target.values)(z)
    assert float(log_volume) == pytest.approx(np.linalg.slogdet(matrix)[1], abs=1e-8)
    density = found.problem.log_likelihood(values) + found.problem.prior.log_density(values)
    assert float(target(z)) == pytest.approx(float(density + log_volume), rel=1e-12)


def test_expansion_is_the_likelihood_near_the_mode(found):
    target = make_target(found, jax.random.key(0))
    probes = jax.random.normal(jax.random.key(5), (40, len(found.names)), jnp.float64)
    miss = eqx.filter_jit(lambda target, z: target.exact(z) - target.expansion(z))
    missed = np.array([miss(target, z) for z in probes])
    assert missed.std() < 0.1 and not target.exact_force


class Expansion(eqx.Module):
    target: Any

    def __call__(self, z):
        return self.target.expansion(z)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_ridge_that_runs_into_an_edge_has_no_wall(found, backend):
    """Two labels tied at 0.999, one on its edge: the case that made chains diverge."""
    prior = found.problem.prior
    lower, width = np.asarray(prior.lower), np.asarray(prior.upper - prior.lower)
    correlation = np.eye(len(width))
    correlation[0, 1] = correlation[1, 0] = 0.999
    sigma = np.where(np.arange(len(width)) < 2, 0.05, 0.01) * width
    origin = lower + np.where(np.arange(len(width)) == 0, 1e-3, 0.5) * width
    target = whitened(found, np.linalg.inv(correlation * sigma * sigma[:, None]), origin)
    start = jax.random.normal(jax.random.key(1), (4, len(width)), jnp.float64)
    chains = run(
        make_sampler(backend), Expansion(target), start, jax.random.key(2),
        num_warmup=40, num_samples=1000,
    )  # fmt: skip
    samples = np.asarray(jax.vmap(jax.vmap(target.values))(jnp.asarray(chains.draws.position)))
    assert not chains.draws.diverging.any()
    assert np.all(r_hat(samples) < 1.01)
    # Half a Gaussian, cut off at the edge; the other label follows it.
    half = np.sqrt(2 / np.pi) * sigma[0]
    assert samples[..., 0].mean() - origin[0] == pytest.approx(half, rel=0.08)
    assert samples[..., 1].mean() - origin[1] == pytest.approx(half * sigma[1] / sigma[0], rel=0.08)


def test_seeds_are_recorded_and_reproduce(posteriors, found, emulator):
    options = {"backend": "numpyro", "fit": found}
    again = sample(found.spectrum, emulator, seed=4, num_samples=NUM, **options)
    np.testing.assert_array_equal(again.samples, posteriors["numpyro"].samples)
    assert again.seed == 4
    with pytest.warns(UserWarning):  # 20 draws tell little
        other = sample(found.spectrum, emulator, seed=5, num_samples=20, **options)
    assert (other.samples != again.samples[:, :20]).any()


def test_arviz_and_summary(posteriors):
    posterior = posteriors["blackjax"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arviz 0.23 announces its next version
        import arviz
    data = posterior.to_arviz()
    assert data.posterior["teff"].shape == posterior.samples.shape[:2]
    assert data.posterior.attrs["seed"] == 4
    assert {"diverging", "energy", "lp", "n_steps"} <= set(data.sample_stats)
    table = posterior.summary()
    # [Mg/H] is the sum in every draw: [Mg/Fe] and [Fe/H] are anything but independent.
    assert list(table["name"]) == [*posterior.names, "mg_h"]
    i, j = posterior.names.index("mg_fe"), posterior.names.index("fe_h")
    total = posterior.samples[..., i] + posterior.samples[..., j]
    np.testing.assert_array_equal(np.asarray(data.posterior["mg_h"]), total)
    row = table[-1]
    assert row["sigma"] == pytest.approx(np.std(total, ddof=1), rel=1e-12)
    assert abs(row["sigma"] / np.hypot(posterior.sigma[i], posterior.sigma[j]) - 1) > 0.05
    assert row["p50"] == pytest.approx(np.median(total))

    ours = dict(zip(table["name"], table["r_hat"], strict=True))
    theirs: Any = arviz.rhat(data)
    for name in posterior.names:
        assert ours[name] == pytest.approx(float(theirs[name]), abs=2e-3)
    effective: Any = arviz.ess(data)
    for name, value in zip(table["name"], table["ess"], strict=True):
        assert value == pytest.approx(float(effective[name]), rel=0.2)


def test_bad_chains_are_flagged():
    rng = np.random.default_rng(0)
    energy = rng.normal(size=(4, 500))
    good = rng.normal(size=(4, 500, 2))
    assert judge(good, energy, 0) == Flag(0)
    assert judge(good, energy, 3) == Flag.DIVERGENCES
    apart = good + 0.5 * np.arange(4)[:, None, None]
    assert judge(apart, energy, 0) & Flag.HIGH_R_HAT
    walk = np.cumsum(0.05 * good, axis=1)
    assert judge(walk, energy, 0) & Flag.LOW_ESS
    assert judge(np.zeros_like(good), energy, 0) & Flag.HIGH_R_HAT  # stuck is not converged
    slow = np.cumsum(energy, axis=1)
    assert e_bfmi(slow).max() < 0.3 and judge(good, slow, 0) & Flag.LOW_E_BFMI


def test_warning_names_what_is_wrong(found, emulator):
    with pytest.warns(UserWarning) as caught:
        short = sample(found.spectrum, emulator, fit=found, num_warmup=10, num_samples=10)
    assert short.flags & Flag.LOW_ESS
    sentences = [str(warning.message) for warning in caught]
    assert any("effective draws" in sentence for sentence in sentences)


def test_bad_options_are_refused(found, emulator):
    with pytest.raises(InputError, match="backend: 'emcee' is not known; give 'numpyro' or"):
        sample(found.spectrum, emulator, backend="emcee", fit=found)
    with pytest.raises(InputError, match="num_samples: 0"):
        sample(found.spectrum, emulator, num_samples=0, fit=found)
    with pytest.raises(InputError, match="start: 'prior' is not known; give 'laplace' or"):
        sample(found.spectrum, emulator, start="prior", fit=found)


@pytest.mark.parametrize(
    ("mean", "sigma", "low", "high"),
    [(0.0, 1.0, -9.0, 9.0), (0.2, 1.0, 0.0, 50.0), (-5.0, 2.0, 0.0, 3.0), (0.0, 9.0, -0.5, 0.5)],
)
def test_box_keeps_the_quantile(mean, sigma, low, high):
    """Against SciPy's truncated normal, in the tail where each of its sides is accurate."""
    ends = (low - mean) / sigma, (high - mean) / sigma
    for z in (-5.0, -1.0, 0.0, 0.3, 4.0):
        value, log_slope = truncate(*map(jnp.asarray, (z, mean, sigma, low, high)))
        if z < 0:
            expected = truncnorm.ppf(norm.cdf(z), *ends, mean, sigma)
        else:
            expected = truncnorm.isf(norm.sf(z), *ends, mean, sigma)
        assert float(value) == pytest.approx(expected, rel=1e-9)
        slope = jax.grad(lambda z: truncate(z, *map(jnp.asarray, (mean, sigma, low, high)))[0])
        assert float(log_slope) == pytest.approx(float(jnp.log(slope(jnp.asarray(z)))), abs=1e-9)


def test_what_the_data_leave_open_is_whitened_too(found):
    """With the Gaussian of the box alone, a level density is a standard normal in z."""
    prior = found.problem.prior
    width = prior.upper - prior.lower
    start = Start(0.5 * (prior.lower + prior.upper), jnp.diag(width**2))
    target = Whitened.about(found.problem, start)
    z = jax.random.normal(jax.random.key(0), (2000, len(width)), jnp.float64)
    volume = jax.vmap(lambda z: target._build_up(z)[1])(z)
    missed = np.asarray(volume + 0.5 * jnp.sum(z**2, axis=1)) / np.sqrt(len(width))
    assert missed.std() < 0.1


def test_pathfinder_starts_the_same_posterior(posteriors, found, emulator):
    found_again = sample(found.spectrum, emulator, fit=found, start="pathfinder", seed=5)
    first = posteriors["numpyro"]
    assert np.all(np.abs(first.mean - found_again.mean) < 0.15 * first.sigma)
    np.testing.assert_allclose(first.sigma, found_again.sigma, rtol=0.12)
    assert found_again.flags & BAD == 0
    assert ess(found_again.samples).min() > 400


def test_surrogate_is_corrected_to_the_posterior(posteriors, found, emulator):
    corrected = sample(found.spectrum, emulator, fit=found, backend="surrogate", seed=6)
    first = posteriors["numpyro"]
    assert np.all(np.abs(first.mean - corrected.mean) < 0.15 * first.sigma)
    np.testing.assert_allclose(first.sigma, corrected.sigma, rtol=0.12)
    assert corrected.k_hat is not None and corrected.k_hat < 0.7
    assert corrected.flags & BAD == 0
    assert corrected.summary().meta["k_hat"] == corrected.k_hat


def test_weights_mend_a_surrogate_that_is_off():
    """A normal for another one: mean and variance by weights, k-hat as ArviZ has it."""
    rng = np.random.default_rng(3)
    draws = rng.normal(0.0, 1.3, size=(4, 2000))
    log_ratios = -0.5 * (draws - 0.5) ** 2 + 0.5 * (draws / 1.3) ** 2
    weights, k_hat = smooth(log_ratios)
    chosen = resample(weights, jax.random.key(0))
    mended = np.take_along_axis(draws, chosen, axis=1)
    assert mended.mean() == pytest.approx(0.5, abs=0.05)
    assert mended.std() == pytest.approx(1.0, abs=0.05)
    assert np.all(np.diff(chosen, axis=1) >= 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arviz 0.23 announces its next version
        import arviz
    assert k_hat == pytest.approx(float(arviz.psislw(log_ratios.ravel())[1]), abs=0.05)
    narrow = rng.normal(0.0, 0.2, size=(4, 2000))  # no weights make these of sigma 1
    assert smooth(0.5 * (narrow / 0.2) ** 2 - 0.5 * narrow**2)[1] > 0.7


def test_useless_weights_are_flagged():
    good = np.random.default_rng(0).normal(size=(4, 500, 2))
    energy = np.random.default_rng(1).normal(size=(4, 500))
    assert judge(good, energy, 0, 0.5) == Flag(0)
    assert judge(good, energy, 0, 0.8) == judge(good, energy, 0, float("nan")) == Flag.K_HAT
