"""Effective degrees of freedom and the p-value of chi^2."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from fake_star import TRUTH, fake_star, two_arms
from scipy.stats import kstest
from tiny import LABELS, tiny_emulator
from unpadded import unpad, unpadded

from stellarfit.arms import Arms
from stellarfit.emulator_error import AmplitudePrior
from stellarfit.fitting import fit
from stellarfit.goodness import effective_parameters, measure_goodness
from stellarfit.noise import Noise
from stellarfit.priors import make_prior
from stellarfit.setup import Setup
from stellarfit.spectrum import Spectrum

NUM = 60


@pytest.fixture
def toy():
    """A linear model with low-rank noise, and priors from far too weak to matter to decisive."""
    rng = np.random.default_rng(0)
    variance, modes = rng.uniform(0.5, 2.0, NUM), rng.normal(size=(NUM, 3))
    columns = rng.normal(size=(NUM, 5)) * np.array([1e-3, 1.0, 0.3, 30.0, 1.0])
    root = rng.normal(size=(5, 5))
    scale = np.array([1e4, 1e3, 0.5, 0.003, 0.1])
    correlation = np.linalg.inv(np.eye(5) + 0.2 * root @ root.T)
    unit = np.sqrt(np.diag(correlation))
    prior = correlation / unit / unit[:, None] * scale * scale[:, None]
    return variance, modes, columns, prior


def test_expected_chi2_is_the_effective_degrees_of_freedom(toy):
    """Parameters from their prior, data from the parameters: mean chi^2 at the MAP."""
    variance, modes, columns, prior = toy
    noise = Noise.build(jnp.asarray(1 / variance), jnp.asarray(modes))
    used = float(
        effective_parameters(noise, jnp.asarray(columns), jnp.asarray(np.linalg.inv(prior)))
    )
    assert 1.5 < used < 4.0  # neither five parameters nor none
    covariance = np.diag(variance) + modes @ modes.T
    weight = np.linalg.inv(covariance)
    information = columns.T @ weight @ columns
    hat = np.linalg.solve(information + np.linalg.inv(prior), columns.T @ weight)
    assert used == pytest.approx(np.trace(columns @ hat), rel=1e-8)
    rng = np.random.default_rng(1)
    truth = rng.multivariate_normal(np.zeros(5), prior, 40_000)
    data = truth @ columns.T + rng.multivariate_normal(np.zeros(NUM), covariance, 40_000)
    residual = data - data @ (columns @ hat).T
    chi2 = np.sum((residual @ weight) * residual, axis=1)
    assert chi2.mean() == pytest.approx(NUM - used, abs=4 * chi2.std() / 200)


def test_limits_of_weak_and_tight_priors(toy):
    variance, modes, columns, _ = toy
    noise = Noise.build(jnp.asarray(1 / variance), jnp.asarray(modes))
    weak, tight = (
        float(effective_parameters(noise, jnp.asarray(columns), jnp.eye(5) * precision))
        for precision in (1e-12, 1e12)
    )
    assert weak == pytest.approx(5, abs=1e-4) and tight == pytest.approx(0, abs=1e-4)


@pytest.fixture(scope="module")
def exact():
    return eqx.tree_at(lambda e: e.error_model, tiny_emulator(analytic=True, pixels=400), None)


@pytest.fixture(scope="module")
def found(exact):
    return [fit(fake_star(seed=seed), exact, continuum_degree=2) for seed in range(30, 50)]


def test_p_values_of_good_fits_are_uniform(found):
    assert kstest([one.p_value for one in found], "uniform").pvalue > 0.01
    ratio = np.mean([one.chi2 / one.dof_effective for one in found])
    number = len(found) * found[0].dof
    assert ratio == pytest.approx(1.0, abs=3 * np.sqrt(2 / number))


def test_every_well_measured_parameter_uses_up_one(found):
    for one in found:
        assert one.dof <= one.dof_effective < one.dof + 0.5
        assert one.to_dict()["dof_effective"] == one.dof_effective


def test_a_tight_prior_and_an_edge_use_up_nothing(exact, found):
    free = found[0]
    place = free.names.index("teff")
    tied = fit(
        fake_star(seed=30), exact, continuum_degree=2,
        priors={"teff": dist.Normal(float(free.values[place]), 0.01)},
    )  # fmt: skip
    assert tied.dof == free.dof
    assert tied.dof_effective - free.dof_effective == pytest.approx(1.0, abs=0.01)
    still = fit(fake_star({"v_sini": 0.0}, seed=3), exact, continuum_degree=2, robust=False)
    pressed = still.values[still.names.index("v_sini")] < 0.1
    assert pressed and still.dof_effective - still.dof == pytest.approx(1.0, abs=0.05)


def test_a_model_that_misses_the_data_has_no_chance(exact):
    star = fake_star()
    spoiled = star.flux * (1 - 0.1 * np.exp(-0.5 * ((star.wavelength - 5155.9) / 0.08) ** 2))
    star = Spectrum(star.wavelength, spoiled, star.ivar, resolution=47_000.0)
    assert fit(star, exact, continuum_degree=2).p_value < 1e-6


@pytest.mark.parametrize("star", [fake_star, two_arms])
def test_chi2_and_dof_are_those_of_dense_matrices(star):
    """Away from the optimum, with an emulator's error whose floor is along the labels alone."""
    emulator = tiny_emulator(analytic=True, pixels=400)
    spectrum = star()
    points = spectrum.zero_points if isinstance(spectrum, Arms) else ()
    prior, held = make_prior(LABELS, None, dict.fromkeys(points, dist.Normal(0.0, 5.0)), points)
    amplitude = AmplitudePrior(0.4, 0.3, 0.3)
    setup = Setup.build(spectrum, emulator, prior, held, continuum_degree=2, amplitude=amplitude)
    values = np.array([TRUTH.get(name, 0.5) for name in prior.names])
    error = setup.emulator_error(values)
    assert error is not None and float(error.floor) > 3
    one = measure_goodness(setup.expected(error), values, error)
    setup, error = unpadded(setup), unpad(error, setup)
    modes = np.hstack([error.modes, np.sqrt(float(error.floor) - 1) * error.directions])
    covariance = np.exp(0.4) * (np.diag(np.asarray(error.variance)) + modes @ modes.T)
    covariance += np.diag(1 / setup.spectrum.ivar[setup.keep])
    star = eqx.filter_jit(setup.photons.star)
    normalized = np.asarray(star(jnp.asarray(values)))
    columns = normalized[:, None] * np.asarray(setup.photons.continuum.basis)
    # Coefficients at their best, by least squares with their prior.
    weight = np.linalg.inv(covariance)
    wide = np.asarray(setup.photons.continuum.variance)
    mean = np.asarray(setup.photons.continuum.mean)
    residual = np.asarray(setup.photons.flux) - columns @ mean
    solve = np.linalg.solve(columns.T @ weight @ columns + np.diag(1 / wide), columns.T @ weight)
    best = solve @ residual
    residual = residual - columns @ best
    assert one.chi2 == pytest.approx(residual @ weight @ residual, rel=1e-6)
    continuum = np.asarray(setup.photons.continuum.basis) @ (mean + best)
    reach = np.diff([np.asarray(prior.lower), np.asarray(prior.upper)], axis=0)[0]
    steps = 1e-5 * np.diag(reach)
    jacobian = np.stack(
        [
            np.asarray(star(jnp.asarray(values + step)))
            - np.asarray(star(jnp.asarray(values - step)))
            for step in steps
        ],
        axis=1,
    ) / (2e-5 * reach)
    columns = np.hstack([jacobian * continuum[:, None], columns])
    width = np.asarray(setup.prior.upper - setup.prior.lower)
    gaussian = [1 / 25 if name in points else 0.0 for name in prior.names]
    precision = np.diag(np.concatenate([12 / width**2 + gaussian, 1 / wide]))
    information = columns.T @ weight @ columns
    used = np.trace(np.linalg.inv(information + precision) @ information)
    assert one.dof == pytest.approx(len(residual) - used, abs=1e-3)
    alone = measure_goodness(setup.expected(error), values, None)
    assert alone.dof == pytest.approx(one.dof, abs=1e-5)
