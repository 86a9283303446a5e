"""The error model against dense covariance matrices."""

import numpy as np
import pytest

from emulators.error_model import fit_error_model
from emulators.errors import InputError


def draw(stars, pixels, seed=0):
    """Residuals with two strong patterns, a bias and white noise."""
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(2, pixels))
    weights = rng.normal(size=(stars, 2)) * [3.0, 1.0]
    return 1e-3 * (weights @ patterns + 0.3 * rng.normal(size=(stars, pixels)) + 0.2)


@pytest.mark.parametrize(("stars", "pixels"), [(40, 90), (90, 40)])
def test_keeps_every_pixels_mean_square_and_the_leading_modes(stars, pixels):
    residuals = draw(stars, pixels)
    wavelength = np.linspace(5100.0, 5101.0, pixels)
    model = fit_error_model(residuals, wavelength, num_modes=4)
    dense = residuals.T @ residuals / stars
    covariance = np.asarray(model.covariance())
    np.testing.assert_allclose(np.diag(covariance), np.diag(dense), rtol=1e-10)
    np.testing.assert_allclose(model.mse, np.mean(residuals**2), rtol=1e-10)
    values, vectors = np.linalg.eigh(dense)
    leading = (vectors[:, -4:] * values[-4:]) @ vectors[:, -4:].T
    np.testing.assert_allclose(
        np.asarray(model.modes @ model.modes.T), leading, atol=1e-10 * values[-1]
    )
    assert (np.asarray(model.variance) >= 0).all()


def test_all_modes_give_the_dense_matrix():
    residuals = draw(240, 30)
    model = fit_error_model(residuals, np.linspace(5100, 5101, 30))
    assert model.modes.shape == (30, 30)
    dense = residuals.T @ residuals / 240
    np.testing.assert_allclose(model.covariance(), dense, atol=1e-12 * np.abs(dense).max() + 1e-18)


def test_few_stars_leave_every_pixel_its_variance():
    residuals = draw(64, 90)
    model = fit_error_model(residuals, np.linspace(5100, 5101, 90))
    assert model.modes.shape == (90, 8)
    # As many modes as stars would say that nothing is left: other stars tell how much is.
    left = np.asarray(model.variance).mean()
    assert left > 0.5 * (0.3 * 1e-3) ** 2


def test_rounding_keeps_every_pixels_mean_square():
    residuals = draw(240, 90)
    model = fit_error_model(residuals, np.linspace(5100, 5101, 90), num_modes=8)
    rounded = model.rounded()
    modes = np.asarray(rounded.modes)
    assert np.array_equal(modes, modes.astype(np.float16).astype(float))
    np.testing.assert_allclose(modes, model.modes, rtol=1e-3, atol=1e-7)
    diagonals = (np.diag(np.asarray(m.covariance())) for m in (model, rounded))
    np.testing.assert_allclose(*diagonals, rtol=1e-12)


def test_refuses_nan_and_wrong_shapes():
    with pytest.raises(InputError, match="NaN"):
        fit_error_model(np.full((3, 4), np.nan), np.arange(4.0))
    with pytest.raises(InputError, match="shape"):
        fit_error_model(np.zeros((0, 4)), np.arange(4.0))
