"""Boxes, densities and which parameters are free."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from tiny import LABELS

from emulators.errors import InputError
from stellarfit.priors import make_prior


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
    ],
)
def test_bad_requests_are_named(fixed, priors, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        make_prior(LABELS, fixed, priors)


def test_everything_fixed_is_refused():
    fixed = dict(zip(LABELS.names, (5000.0, 3.0, -1.0, 0.0), strict=True))
    with pytest.raises(InputError, match="every parameter is fixed"):
        make_prior(LABELS, fixed | {"v_rad": 0.0, "v_sini": 1.0})
