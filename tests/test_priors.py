"""Boxes, densities and which parameters are free."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from fake_star import TRUTH, fake_star
from tiny import LABELS, tiny_emulator

from emulators.errors import InputError
from emulators.labels import LabelSpace
from stellarfit.arms import list_arms
from stellarfit.fitting import fit
from stellarfit.optimize import maximize, objective
from stellarfit.population import population_prior
from stellarfit.priors import make_prior
from stellarfit.velocity import first_guess


def test_defaults_free_the_labels_velocity_and_rotation():
    prior, held = make_prior(LABELS)
    assert prior.names == (*LABELS.names, "v_rad", "v_sini")
    assert held == {"v_mac": 0.0}
    assert float(prior.lower[4]) == -300 and float(prior.upper[4]) == 300
    np.testing.assert_array_equal(np.asarray(prior.upper[:4]), LABELS.upper)


def test_a_prior_on_macroturbulence_frees_it():
    prior, held = make_prior(LABELS, {"fe_h": -1.0}, {"v_mac": dist.Uniform(0.0, 8.0)})
    assert prior.names[-1] == "v_mac" and float(prior.upper[-1]) == 8
    assert held == {"fe_h": -1.0}


def test_no_position_leaves_the_box_and_values_come_back():
    prior, _ = make_prior(LABELS)
    for position in (-50.0, 50.0, 0.0):
        values = prior.values(jnp.full(6, position))
        assert bool(jnp.all((values >= prior.lower) & (values <= prior.upper)))
    values = prior.lower + jnp.asarray([0.1, 0.5, 0.9, 0.3, 0.51, 0.02]) * (
        prior.upper - prior.lower
    )
    back = prior.values(prior.position(values))
    np.testing.assert_allclose(np.asarray(back), np.asarray(values), rtol=1e-10)


def test_jacobian_and_slope_are_the_derivatives_of_the_values():
    prior, _ = make_prior(LABELS)
    position = jnp.asarray([-2.0, 0.3, 1.0, 4.0, -0.5, 0.0])
    matrix = np.asarray(jax.jacfwd(prior.values)(position))
    np.testing.assert_allclose(np.diag(matrix), np.asarray(prior.slope(position)), rtol=1e-12)
    log_det = np.linalg.slogdet(matrix)[1]
    assert float(prior.log_jacobian(position)) == pytest.approx(log_det, rel=1e-12)


def test_densities_are_those_of_the_numpyro_distributions():
    prior, _ = make_prior(LABELS, None, {"teff": dist.Normal(5000.0, 120.0)})
    values = [5150.0, 2.0, -1.0, 0.1, 12.0, 5.0]
    other = [4890.0, 4.0, -2.0, -0.1, -12.0, 50.0]

    def total(values):
        pairs = zip(prior.names, values, strict=True)
        return sum(
            float(jnp.asarray(prior.distribution(name).log_prob(value))) for name, value in pairs
        )

    found = float(prior.log_density(jnp.asarray(values)) - prior.log_density(jnp.asarray(other)))
    assert found == pytest.approx(total(values) - total(other), rel=1e-10)


COVARIANCE = np.array([[80.0**2, 0.8 * 80 * 0.1], [0.8 * 80 * 0.1, 0.1**2]])
JOINT: dict[Any, Any] = {
    ("logg", "teff"): dist.MultivariateNormal(
        np.array([3.1, 5300.0]), np.ascontiguousarray(COVARIANCE[::-1, ::-1])
    )
}


def test_joint_density_is_that_of_the_numpyro_distribution():
    prior, _ = make_prior(
        LABELS,
        {"mg_fe": 0.0},
        {
            **JOINT,
            "fe_h": dist.TruncatedNormal(-0.9, 0.3, low=-1.2),
            "v_rad": dist.Normal(3.0, 2.0),
        },
    )
    assert prior.names == ("teff", "logg", "fe_h", "v_rad", "v_sini")
    assert list(prior.tied) == [True, True, False, False, False]
    rng = np.random.default_rng(0)
    joint = JOINT["logg", "teff"]
    values = rng.uniform(np.asarray(prior.lower), np.asarray(prior.upper), (20, 5))

    def truth(v):
        return (
            joint.log_prob(jnp.asarray([v[1], v[0]]))
            + dist.TruncatedNormal(-0.9, 0.3, low=-1.2).log_prob(v[2])
            + dist.Normal(3.0, 2.0).log_prob(v[3])
        )

    expected = np.array([float(truth(v)) for v in values])
    found = np.array([float(prior.log_density(jnp.asarray(v))) for v in values])
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=1e-9)
    # What `stellar_model` samples: a site a parameter, and the joint density beside.
    single = [
        sum(
            float(jnp.asarray(prior.distribution(name).log_prob(value)))
            for name, value in zip(prior.names, v, strict=True)
        )
        + float(prior.log_joint(jnp.asarray(v)))
        for v in values
    ]
    np.testing.assert_allclose(np.array(single) - single[0], expected - expected[0], rtol=1e-9)


def test_truncation_is_a_narrower_box():
    prior, _ = make_prior(
        LABELS,
        None,
        {
            "teff": dist.TruncatedNormal(5000.0, 100.0, low=4900.0, high=5300.0),
            "logg": dist.TruncatedNormal(5.2, 0.1, high=4.9),
            "v_mac": dist.TruncatedNormal(0.0, 4.0, low=0.0, high=20.0),
        },
    )
    assert [float(prior.lower[i]) for i in (0, 1, -1)] == [4900, 1, 0]
    assert [float(prior.upper[i]) for i in (0, 1, -1)] == [5300, 4.9, 20]
    np.testing.assert_allclose(np.diag(prior.precision)[[0, 1]], [1e-4, 1e2])


@pytest.mark.parametrize(
    ("given", "box"),
    [
        (dist.Uniform(-3.0, 5.0), (-3.0, 5.0)),
        (dist.Normal(1.0, 2.0), (-15.0, 17.0)),
        (dist.Normal(90.0, 2.0), (74.0, 100.0)),
        (dist.TruncatedNormal(1.0, 2.0, low=0.0), (0.0, 17.0)),
    ],
)
def test_zero_points_take_every_kind_of_prior(given, box):
    """Boxes of Gaussians end at 8 sigma: they set the margins of the wavelength grid."""
    points = "zero_point_red", "zero_point_nir"
    prior, held = make_prior(LABELS, None, {"zero_point_red": given}, points)
    assert prior.names == (*LABELS.names, "v_rad", "v_sini", "zero_point_red")
    assert held == {"v_mac": 0.0, "zero_point_nir": 0.0}
    assert (float(prior.lower[-1]), float(prior.upper[-1])) == box


def test_a_zero_point_may_be_tied_to_the_velocity():
    covariance = np.array([[4.0, -1.5], [-1.5, 1.0]])
    joint = {
        ("zero_point_red", "v_rad"): dist.MultivariateNormal(np.array([0.5, 20.0]), covariance)
    }
    prior, held = make_prior(LABELS, None, joint, ("zero_point_red",))
    places = np.array([prior.names.index(name) for name in ("zero_point_red", "v_rad")])
    np.testing.assert_allclose(prior.lower[places], [0.5 - 16, 20.0 - 8])
    np.testing.assert_allclose(prior.upper[places], [0.5 + 16, 20.0 + 8])
    found = np.linalg.inv(np.asarray(prior.precision)[np.ix_(places, places)])
    np.testing.assert_allclose(found, covariance)
    assert held == {"v_mac": 0.0}


def test_a_star_follows_a_tight_joint_prior():
    """Two labels tied to a line that misses the truth: the fit and its errors stay on it."""
    emulator = eqx.tree_at(lambda e: e.error_model, tiny_emulator(analytic=True, pixels=400), None)
    sigma, correlation = np.array([300.0, 0.6]), 0.9999
    covariance = np.outer(sigma, sigma) * (correlation + (1 - correlation) * np.eye(2))
    mean = np.array([TRUTH["teff"], TRUTH["logg"] - 0.3])
    joint = {("teff", "logg"): dist.MultivariateNormal(mean, covariance)}
    free = fit(fake_star(), emulator, continuum_degree=2)
    tied = fit(fake_star(), emulator, continuum_degree=2, priors=joint)
    away = (tied.values[:2] - mean) / sigma
    loose = (free.values[:2] - mean) / sigma
    width = np.sqrt(2 * (1 - correlation))  # of the difference of the two in their sigma
    assert abs(loose[0] - loose[1]) > 20 * width
    assert abs(away[0] - away[1]) < 8 * width
    found = tied.covariance[0, 1] / tied.error[0] / tied.error[1]
    assert found > 0.8
    # The Gaussian of the data times that of the prior, by dense matrices.
    problem, box = tied.problem, tied.problem.prior
    one = eqx.tree_at(lambda p: p.prior.precision, problem, jnp.zeros((6, 6)))
    position = jnp.asarray(tied.laplace.mode)
    flat = maximize(one, position, 1.0, 1).curvature.hessian
    both = maximize(problem, position, 1.0, 1).curvature.hessian
    slope = np.asarray(box.slope(position))[:2]
    expected = np.linalg.inv(covariance) * slope[:, None] * slope
    np.testing.assert_allclose(np.asarray(both - flat)[:2, :2], expected, rtol=1e-6)
    gradient = jax.grad(lambda u: objective(problem, u, jnp.asarray(1.0)))(position + 0.01)
    measured = maximize(problem, position + 0.01, 1.0, 1).curvature.gradient
    np.testing.assert_allclose(np.asarray(measured), np.asarray(gradient), rtol=1e-5, atol=1e-5)


def test_first_guesses_stay_where_a_joint_prior_has_weight():
    prior, held = make_prior(LABELS, None, JOINT)
    arms = list_arms(fake_star(), None, None)
    starts = first_guess(arms, tiny_emulator(analytic=True), prior, held).values
    away = starts[:, [1, 0]] - np.asarray(JOINT["logg", "teff"].loc)
    distance = np.einsum("si,ij,sj->s", away, np.linalg.inv(COVARIANCE[::-1, ::-1]), away)
    assert distance.max() < 4**2 and np.ptp(starts[:, 0]) > 100


def test_population_prior_follows_the_trends():
    space = LabelSpace(
        ("teff", "fe_h", "mg_fe", "mn_fe", "nd_h"),
        (4000.0, -2.5, -0.5, -0.5, -3.0),
        (7000.0, 0.5, 0.8, 0.5, 1.0),
    )
    given = population_prior(space)
    assert list(given) == [("fe_h", "mg_fe", "mn_fe", "nd_h")]
    (joint,) = given.values()
    covariance = np.asarray(joint.covariance_matrix)
    weak = np.sqrt(np.diag(covariance))
    assert weak[0] == pytest.approx(0.7) and np.all(weak >= 0.2)
    # Given [Fe/H] = -2: rich in magnesium, poor in manganese, [Nd/H] as low as iron.
    mean = np.asarray(joint.loc) + covariance[:, 0] / covariance[0, 0] * (-2 - joint.loc[0])
    np.testing.assert_allclose(mean, [-2.0, 0.35, -0.3, -2.0], atol=1e-6)
    conditional = covariance - np.outer(covariance[0], covariance[0]) / covariance[0, 0]
    np.testing.assert_allclose(np.sqrt(np.diag(conditional))[1:], [0.2, 0.25, 0.3])
    prior, _ = make_prior(space, None, given | {"teff": dist.Normal(5700.0, 80.0)})
    assert list(prior.tied) == [False, True, True, True, True, False, False]
    assert population_prior(LabelSpace(("teff", "logg"), (4e3, 1.0), (7e3, 5.0))) == {}
    without_iron = LabelSpace(("mg_fe",), (-0.5,), (0.8,))
    (alone,) = population_prior(without_iron).values()
    assert float(alone.loc[0]) == pytest.approx(0.095)
    assert float(alone.covariance_matrix[0, 0]) == pytest.approx(0.2**2 + (0.15 * 0.7) ** 2)


@pytest.mark.parametrize(
    ("fixed", "priors", "message"),
    [
        ({"tef": 5000.0}, {}, "fixed: unknown label 'tef'; known: teff, logg"),
        ({"teff": 9000.0}, {}, "fixed: teff = 9000 is outside 4000 .. 7000"),
        ({"teff": float("nan")}, {}, "fixed: teff = nan is outside"),
        ({"v_sini": -1.0}, {}, "v_sini = -1 is outside 0 .. 500"),
        ({}, {"x_fe": dist.Uniform(0, 1)}, "priors: unknown label 'x_fe'"),
        ({}, {"teff": dist.Uniform(8000.0, 9000.0)}, "leaves nothing of 4000 .. 7000"),
        ({}, {"teff": dist.Normal(9000.0, 100.0)}, "has mean 9000, outside"),
        ({}, {"teff": dist.Cauchy(5000.0, 100.0)}, "a Cauchy; give numpyro.distributions.Uniform"),
        ({"teff": 5000.0}, {"teff": dist.Normal(5000.0, 1.0)}, "teff also has a prior"),
        ({"teff": 5000.0}, JOINT, "teff also has a prior"),
        ({}, JOINT | {"teff": dist.Normal(5000.0, 1.0)}, "teff has more than one; give one"),
        ({}, {("teff", "x"): dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))}, "label 'x'"),
        ({}, {("teff", "logg"): dist.Normal(0.0, 1.0)}, "(teff, logg) has a Normal; a tuple"),
        ({}, {"teff": dist.MultivariateNormal(jnp.zeros(1), jnp.eye(1))}, "a MultivariateNormal"),
        (
            {},
            {("teff", "logg"): dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3))},
            "(teff, logg) has a mean of shape (3,)",
        ),
        (
            {},
            {("teff", "logg"): dist.MultivariateNormal(jnp.asarray([2e4, 3.0]), jnp.eye(2))},
            "teff has mean 20000, outside 4000 .. 7000 by more than 5 sigma",
        ),
        (
            {},
            {
                ("teff", "logg"): dist.MultivariateNormal(
                    jnp.asarray([5e3, 3.0]), -jnp.eye(2), validate_args=False
                )
            },
            "the covariance of (teff, logg) is not positive definite",
        ),
        (
            {},
            {"teff": dist.Normal(5000.0, -1.0, validate_args=False)},
            "teff has sigma -1; give a positive number",
        ),
        ({}, {"teff": dist.Normal(jnp.zeros(2), 1.0)}, "teff has parameters of shape (2,)"),
        ({}, {"logg": dist.TruncatedNormal(3.0, 1.0, low=6.0)}, "leaves nothing of 1 .. 5"),
        (
            {},
            {"logg": dist.Uniform(float("nan"), 4.0, validate_args=False)},
            "logg lies in nan .. 4",
        ),
    ],
)
def test_bad_requests_are_named(fixed, priors, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_prior(LABELS, fixed, priors)


def test_everything_fixed_is_refused():
    fixed = dict(zip(LABELS.names, (5000.0, 3.0, -1.0, 0.0), strict=True))
    with pytest.raises(InputError, match="every parameter is fixed"):
        make_prior(LABELS, fixed | {"v_rad": 0.0, "v_sini": 1.0})
