"""The forward model, its likelihood and the NumPyro model."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from fake_star import TRUTH, fake_star
from numpyro.infer.util import log_density, potential_energy
from scipy.special import logsumexp
from tiny import tiny_emulator
from unpadded import unpad

from stellarfit.fitting import fit
from stellarfit.model import stellar_model


@pytest.fixture(scope="module")
def emulator():
    return tiny_emulator(analytic=True, pixels=400)


@pytest.fixture(scope="module")
def found(emulator):
    return fit(fake_star(), emulator, continuum_degree=2)


def truth_values(found):
    return jnp.asarray([TRUTH[name] for name in found.names])


def test_forward_model_equals_brute_force(found):
    problem = unpad(found.problem, found.setup)
    spectrum = fake_star(noise_free=True)
    normalized = np.asarray(problem.star(truth_values(found)))
    wavelength = spectrum.wavelength[found.spectrum.good]
    x = (wavelength - 5151.8) / (5162.0 - 5151.8) * 2 - 1
    truth = spectrum.flux[found.spectrum.good] / (800 * (1 + 0.08 * x - 0.03 * x**2))
    np.testing.assert_allclose(normalized, truth, atol=4e-4)


def test_log_likelihood_equals_the_dense_normal_density(found):
    """Continuum marginalised, emulator modes included: against one big matrix."""
    problem = unpad(found.problem, found.setup)
    values = truth_values(found)
    columns = np.asarray(problem.star(values))[:, None] * np.asarray(problem.continuum.basis)
    residual = np.asarray(problem.flux) - columns @ np.asarray(problem.continuum.mean)
    each = []
    for node in range(len(problem.noise.log_weight)):
        noise = jax.tree.map(
            lambda leaf, node=node: np.asarray(leaf[node]), problem.noise.components
        )
        dense = np.diag(noise.inverse_variance) - noise.factor @ noise.factor.T
        covariance = np.linalg.inv(dense)
        covariance += (columns * np.asarray(problem.continuum.variance)) @ columns.T
        log_det = np.linalg.slogdet(covariance)[1]
        quadratic = residual @ np.linalg.solve(covariance, residual)
        each.append(-0.5 * (quadratic + log_det + len(residual) * np.log(2 * np.pi)))
    truth = logsumexp(each, b=np.exp(np.asarray(problem.noise.log_weight)))
    assert float(found.problem.log_likelihood(values)) == pytest.approx(truth, rel=1e-7)


def test_gradient_of_the_posterior_against_finite_differences(found):
    density = jax.jit(lambda position: found.problem.log_density(position))
    position = found.laplace.mode + 0.5 * jnp.sqrt(jnp.diagonal(found.laplace.covariance))
    gradient = np.asarray(jax.grad(density)(position))
    for i in range(len(found.names)):
        step = 1e-5 * jnp.zeros_like(position).at[i].set(1.0)
        difference = float(density(position + step) - density(position - step)) / 2e-5
        assert gradient[i] == pytest.approx(difference, rel=2e-3, abs=2e-2)


def test_numpyro_model_has_the_density_of_the_problem(emulator, found):
    model = stellar_model(found.spectrum, emulator, fit=found)
    at, other = found.laplace.mode, found.laplace.mode + 0.3

    def potential(position):
        return float(potential_energy(model, (), {}, dict(zip(found.names, position, strict=True))))

    expected = float(found.problem.log_density(other) - found.problem.log_density(at))
    assert potential(at) - potential(other) == pytest.approx(expected, rel=1e-6)


def test_numpyro_model_has_the_density_of_a_joint_prior(emulator):
    covariance = jnp.asarray([[60.0**2, 0.9 * 60 * 0.2], [0.9 * 60 * 0.2, 0.2**2]])
    joint = {("teff", "logg"): dist.MultivariateNormal(jnp.asarray([5250.0, 2.9]), covariance)}
    tied = fit(fake_star(), emulator, continuum_degree=2, priors=joint)
    model = stellar_model(tied.spectrum, emulator, fit=tied)
    at, other = tied.laplace.mode, tied.laplace.mode + jnp.asarray([0.3, -0.3, 0, 0, 0, 0])

    def potential(position):
        return float(potential_energy(model, (), {}, dict(zip(tied.names, position, strict=True))))

    expected = float(tied.problem.log_density(other) - tied.problem.log_density(at))
    assert potential(at) - potential(other) == pytest.approx(expected, rel=1e-6)


def test_a_user_can_extend_the_model(emulator, found):
    model = stellar_model(found.spectrum, emulator, fit=found)

    def extended():
        values = model()
        scatter = numpyro.sample("scatter", dist.HalfNormal(1.0))
        numpyro.factor("colour", dist.Normal(5100.0, 50.0).log_prob(values["teff"]))
        return scatter

    values = dict(zip(found.names, np.asarray(found.values), strict=True))
    plain, _ = log_density(model, (), {}, values)
    more, trace = log_density(extended, (), {}, values | {"scatter": 0.7})
    prior = dist.HalfNormal(1.0).log_prob(0.7) + dist.Normal(5100.0, 50.0).log_prob(values["teff"])
    assert float(more - plain) == pytest.approx(float(prior), rel=1e-6, abs=1e-4)
    assert {"teff", "v_rad", "spectrum", "colour"} <= set(trace)
