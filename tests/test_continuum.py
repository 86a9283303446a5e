"""The marginalised polynomial continuum."""

import numpy as np
import pytest

from emulators.errors import InputError
from stellarfit.continuum import Continuum


def test_basis_spans_polynomials_of_its_degree():
    wavelength = np.linspace(5100, 5300, 301)
    continuum = Continuum.build(wavelength, level=50.0, degree=3)
    truth = 50 * (1 + 0.002 * (wavelength - 5200) - 1e-7 * (wavelength - 5150) ** 3)
    basis = np.asarray(continuum.basis)
    coefficients = np.linalg.lstsq(basis, truth, rcond=None)[0]
    np.testing.assert_allclose(basis @ coefficients, truth, rtol=1e-12)
    assert np.ptp(basis @ np.asarray(continuum.mean)) == 0  # the prior mean is flat at the level
    assert (basis @ np.asarray(continuum.mean))[0] == 50


@pytest.mark.parametrize(("span", "degree"), [(30, 2), (200, 3), (5000, 10)])
def test_default_degree_follows_the_span(span, degree):
    found = Continuum.build(np.linspace(5000, 5000 + span, 50), 1.0)
    assert found.basis.shape == (50, degree + 1)


def test_negative_degree_is_refused():
    with pytest.raises(InputError, match="continuum_degree"):
        Continuum.build(np.linspace(5000, 5100, 50), 1.0, -1)


def test_arms_have_a_polynomial_each():
    blue = Continuum.build(np.linspace(5100, 5200, 40), level=50.0, degree=1)
    red = Continuum.build(np.linspace(5150, 5300, 30), level=2e-3, degree=3)
    both = Continuum.join([blue, red])
    coefficients = np.array([1.1, 0.2, 0.9, -0.1, 0.05, 0.02])
    expected = [blue.basis @ coefficients[:2], red.basis @ coefficients[2:]]
    np.testing.assert_allclose(both.basis @ coefficients, np.concatenate(expected))
    assert both.mean.tolist() == [1, 0, 1, 0, 0, 0]
    assert both.variance.shape == (6,)
