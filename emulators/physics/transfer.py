"""Formal solution: the flux that leaves a plane-parallel atmosphere in LTE."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from emulators.physics.constants import HC_OVER_K, PLANCK, SPEED_OF_LIGHT

# Exponential integral E1: Abramowitz & Stegun (1964), 5.1.53 and 5.1.56; errors below 2e-7, 5e-8.
_E1_SMALL = (0.00107857, -0.00976004, 0.05519968, -0.24991055, 0.99999193, -0.57721566)
_E1_TOP = (1.0, 8.5733287401, 18.0590169730, 8.6347608925, 0.2677737343)
_E1_BOTTOM = (1.0, 9.5733223454, 25.6329561486, 21.0996530827, 3.9584969228)


def planck(wavelength: Array, temperature: Array) -> Array:
    """Planck function B_lambda [erg s^-1 cm^-2 A^-1 sr^-1] at wavelengths in Angstrom."""
    two_hc2 = 2.0 * PLANCK * SPEED_OF_LIGHT**2 * 1e32  # in Angstrom^4 / s units of wavelength^-5
    return two_hc2 / wavelength**5 / jnp.expm1(HC_OVER_K / (wavelength * temperature))


def exponential_integral_4(tau: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """E4(tau), the weight with which a gradient of the source function leaves as flux."""
    small = jnp.minimum(jnp.maximum(tau, 1e-30), 1.0)
    large = jnp.maximum(tau, 1.0)
    decay = jnp.exp(-tau)
    e1_small = jnp.polyval(jnp.asarray(_E1_SMALL), small) - jnp.log(small)
    top, bottom = (jnp.polyval(jnp.asarray(c), large) for c in (_E1_TOP, _E1_BOTTOM))
    e1 = jnp.where(tau < 1.0, e1_small, decay * top / (large * bottom))
    e2 = decay - tau * e1
    e3 = 0.5 * (decay - tau * e2)
    return (decay - tau * e3) / 3.0


def emergent_flux(
    opacity: Float[Array, "layer wavelength"],
    column_mass: Float[Array, " layer"],
    source: Float[Array, "layer wavelength"],
) -> Float[Array, " wavelength"]:
    """Flux at the surface, F = 2 pi int S(tau) E2(tau) dtau, per unit wavelength.

    The optical depth is the integral of a cubic between layers (see `_optical_depth_steps`); the
    source function is linear in tau between layers, and goes on linearly below the last one, so
    that the integral is exact in E4 (Hubeny & Mihalas 2014, chapter 11). Work in float64:
    neighbouring E4 differ by little.

    Parameters
    ----------
    opacity
        Absorption per gram [cm^2/g].
    column_mass
        Mass above each layer [g/cm^2], increasing.
    source
        Source function; the flux has its units times steradian.
    """
    rate = opacity * column_mass[:, None]  # dtau / dln(column mass)
    step = _optical_depth_steps(rate, jnp.log(column_mass))
    # Above the first layer the opacity per gram is taken as constant.
    tau = jnp.concatenate([rate[:1], rate[:1] + jnp.cumsum(step, axis=0)])
    e4 = exponential_integral_4(tau)
    # -dE4/dtau is E3; where layers are so thin that the difference drowns in rounding, expand it.
    thin = step < 1e-6
    mean_e3 = jnp.where(
        thin,
        0.5 - 0.5 * (tau[1:] + tau[:-1]),
        (e4[:-1] - e4[1:]) / jnp.where(thin, 1.0, step),
    )
    change = source[1:] - source[:-1]
    deep_gradient = change[-1] / step[-1]
    total = 0.5 * source[0] + jnp.sum(change * mean_e3, axis=0) + deep_gradient * e4[-1]
    # Between the surface and the first layer the source function is that of the first layer.
    return 2.0 * jnp.pi * total


def _optical_depth_steps(
    rate: Float[Array, "layer wavelength"], ln_mass: Float[Array, " layer"]
) -> Float[Array, "step wavelength"]:
    """Optical depth between layers: the integral of the cubic with three-point slopes.

    The trapezoid alone makes every step of the sixty-odd layers of a model atmosphere too long by
    a percent, because opacity grows steeply inwards: 1% of the continuum flux, 0.003 in the cores
    of lines. The cubic leaves a tenth of that.
    """
    width = jnp.diff(ln_mass)[:, None]
    secant = jnp.diff(rate, axis=0) / width
    share = width[:-1] / (width[:-1] + width[1:])
    inner = share * secant[1:] + (1.0 - share) * secant[:-1]
    # the parabola through three points, at its ends
    slope = jnp.concatenate([2.0 * secant[:1] - inner[:1], inner, 2.0 * secant[-1:] - inner[-1:]])
    trapezoid = 0.5 * width * (rate[1:] + rate[:-1])
    cubic = trapezoid - width**2 / 12.0 * (slope[1:] - slope[:-1])
    # where opacity jumps by orders of magnitude in one layer the cubic could undershoot zero
    return jnp.maximum(cubic, 0.25 * trapezoid)
