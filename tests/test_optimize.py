"""The optimiser and the Gaussian at its end."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_star import TRUTH, fake_star
from tiny import tiny_emulator

from stellarfit.arms import list_arms
from stellarfit.laplace import laplace
from stellarfit.optimize import curvature, maximize, moved, objective
from stellarfit.priors import make_prior
from stellarfit.setup import Setup
from stellarfit.velocity import first_guess

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


def test_velocities_that_match_alike_are_zero(setup):
    """A pixel matches at every velocity; rounding must not choose one."""
    spectrum = setup.spectrum
    one = np.arange(len(spectrum)) != len(spectrum) // 2
    arms = list_arms(spectrum.masked(one), None, 2)
    guess = first_guess(arms, setup.emulator, setup.prior, setup.held)
    assert abs(guess.v_rad) < 2


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


def test_a_jump_to_the_edge_is_as_far_as_the_label_moved(setup, optimum):
    """In sigma of the values, however little slope the box leaves at the end."""
    prior, i = setup.prior, setup.prior.names.index("mg_fe")
    covariance = laplace(optimum.position, optimum.curvature.hessian).covariance
    sigma = np.sqrt(np.diag(covariance)) * np.asarray(prior.slope(optimum.position))
    there = optimum._replace(position=optimum.position.at[i].set(8.0))
    slope = prior.slope(there.position) / prior.slope(optimum.position)
    hessian = optimum.curvature.hessian * slope[:, None] * slope
    there = there._replace(curvature=optimum.curvature._replace(hessian=hessian))
    found = np.asarray(moved(setup.photons, optimum.position, there))
    expected = np.zeros(len(sigma))
    expected[i] = (prior.values(there.position) - prior.values(optimum.position))[i] / sigma[i]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
    assert expected[i] > 3


# Further beyond, the posterior is narrower than 0.03% of the box, where positions end.
@pytest.mark.parametrize("beyond", [3.0, 20.0])
def test_a_label_on_the_edge_of_its_box(beyond):
    """The truth lies beyond the box: searches end soon, and the Gaussian is as wide as the cut."""
    emulator = tiny_emulator(analytic=True, pixels=400)
    truth = TRUTH["teff"]
    held = {name: TRUTH[name] for name in ("logg", "fe_h", "v_sini")}
    star = fake_star()
    free = Setup.build(star, emulator, *make_prior(emulator.label_space, held), continuum_degree=2)
    start = free.prior.position(free.starts[0])
    best = maximize(free.photons, start, 0.0, 60)
    i = free.prior.names.index("teff")
    sigma = float(
        np.sqrt(
            free.prior.slope(best.position)[i] ** 2
            * laplace(best.position, best.curvature.hessian).covariance[i, i]
        )
    )
    edge = float(free.prior.values(best.position)[i]) - beyond * sigma
    prior = free.prior.narrowed("teff", 4500.0, edge)
    cut = eqx.tree_at(lambda p: p.prior, free.photons, prior)
    start = prior.position(jnp.clip(free.starts[0], prior.lower, prior.upper))
    best = maximize(cut, start, 0.0, 60)
    assert bool(best.converged) and int(best.steps) <= 16
    assert float(prior.values(best.position)[i]) == pytest.approx(edge, abs=4e-4 * (edge - 4500))
    peak = maximize(cut, best.position, 1.0, 60)
    assert bool(peak.converged) and int(peak.steps) <= 16
    gradient = jax.grad(lambda p: objective(cut, p, ONE))(peak.position)[i]
    assert abs(gradient) < 0.02
    gaussian = laplace(peak.position, peak.curvature.hessian)
    said = float(prior.slope(peak.position)[i] * np.sqrt(gaussian.covariance[i, i]))
    # The posterior of this label by quadrature, v_rad at its best value.
    places = edge - sigma * np.linspace(0, 8 / beyond, 200)

    def density(teff):
        values = prior.values(best.position).at[i].set(teff)
        return cut.log_likelihood(values)

    weight = np.asarray(jax.lax.map(density, jnp.asarray(places)))
    weight = np.exp(weight - weight.max())
    mean = np.average(places, weights=weight)
    assert said == pytest.approx(np.sqrt(np.average((places - mean) ** 2, weights=weight)), rel=0.3)
    assert truth > edge
