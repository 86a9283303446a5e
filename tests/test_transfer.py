"""The formal solution and the functions it is made of against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expn, wofz

from emulators.physics.constants import BOLTZMANN, PLANCK, SPEED_OF_LIGHT
from emulators.physics.transfer import emergent_flux, exponential_integral_4, planck
from emulators.physics.voigt import voigt


def test_exponential_integral_matches_scipy():
    tau = np.geomspace(1e-6, 60.0, 400)
    np.testing.assert_allclose(exponential_integral_4(jnp.asarray(tau)), expn(4, tau), atol=2e-7)


def test_planck_function_integrates_to_the_stefan_boltzmann_law():
    wavelength = jnp.geomspace(300.0, 3e6, 20001)
    total = np.pi * jnp.trapezoid(planck(wavelength, jnp.asarray(5777.0)), wavelength)
    sigma = 2 * np.pi**5 * BOLTZMANN**4 / (15 * PLANCK**3 * SPEED_OF_LIGHT**2)
    np.testing.assert_allclose(total, sigma * 5777.0**4, rtol=1e-4)


@pytest.mark.parametrize("strength", [1.0, 30.0, 3000.0])
def test_milne_eddington_atmosphere(strength):
    """Constant opacity and S = a + b tau give F = pi (a + 2 b / 3), and less in a line."""
    mass = jnp.geomspace(1e-6, 300.0, 300)
    a, b, kappa = 2.0, 3.0, 0.5
    opacity = jnp.full((300, 1), kappa * strength)
    source = (a + b * kappa * mass)[:, None]  # linear in the continuum's optical depth
    flux = emergent_flux(opacity, mass, source)
    np.testing.assert_allclose(flux, np.pi * (a + 2 * b / (3 * strength)), rtol=2e-3)


def test_isothermal_atmosphere_shines_as_a_black_body():
    mass = jnp.geomspace(1e-4, 10.0, 56)
    opacity = jnp.stack([0.01 * mass, 50.0 * mass**2, jnp.ones(56)], axis=1)
    flux = emergent_flux(opacity, mass, jnp.full((56, 3), 7.0))
    np.testing.assert_allclose(flux, 7.0 * np.pi, rtol=1e-6)


def test_gradient_of_the_flux_matches_central_differences():
    mass = jnp.geomspace(1e-3, 10.0, 40)
    source = (1.0 + 2.0 * mass)[:, None]

    def flux(x):
        return emergent_flux((x * mass**0.8)[:, None], mass, source)[0]

    difference = (flux(1.0 + 1e-4) - flux(1.0 - 1e-4)) / 2e-4
    np.testing.assert_allclose(jax.grad(flux)(1.0), difference, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "floor"), [(jnp.float64, 0.0), (jnp.float32, 1e-7)])
def test_voigt_matches_the_faddeeva_function(dtype, floor):
    a, u = np.meshgrid(np.geomspace(1e-4, 10.0, 60), np.linspace(0.0, 60.0, 601))
    exact = wofz(u + 1j * a).real
    ours = voigt(jnp.asarray(a, dtype), jnp.asarray(u, dtype))
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, exact, rtol=1.5e-3, atol=floor)
    assert np.median(np.abs(np.asarray(ours, float) / exact - 1)) < 2e-5


def test_voigt_is_symmetric_and_has_the_area_of_its_gaussian():
    u = jnp.linspace(-400.0, 400.0, 400001)
    a = jnp.full_like(u, 0.05)
    profile = voigt(a, u)
    np.testing.assert_allclose(profile, profile[::-1], rtol=1e-12)
    tails = 2 * 0.05 / (np.sqrt(np.pi) * 400.0)
    np.testing.assert_allclose(jnp.trapezoid(profile, u) + tails, np.sqrt(np.pi), rtol=1e-5)
