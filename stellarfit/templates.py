"""Velocities of many stars at once: cross-correlation with templates, the continuum solved for.

Of each template T at each shift, chi^2 of ``1 - T + polynomial`` against the data is quadratic in
the polynomial, so that it needs nothing but sums of weights, data and T: correlations, which are
products of Fourier transforms.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Float64, Int
from scipy.fft import next_fast_len

from emulators.compiled_spectra import evaluate_spline
from emulators.units import SPEED_OF_LIGHT

from .compiled import CompiledEmulator
from .priors import Prior
from .velocity import spread_templates, towards_zero

_COEFFICIENTS = 3  # of the emulator's spline a bin: about a sigma of the line spread


class Templates(eqx.Module):
    """Depths of template stars in bins of ln(wavelength), as their Fourier transforms.

    Attributes
    ----------
    values
        Free parameters of each; of v_rad only its place matters.
    depth, squared
        Transforms of the depths and of their squares.
    bins
        In which each pixel lies.
    basis
        Polynomials in each bin.
    step, length, first_lag, num_lags, velocity
        ln(wavelength) of a bin; bins of a transform; shifts in bins; the place of v_rad.
    """

    values: Float64[Array, "template parameter"]
    depth: Complex[Array, "template frequency"]
    squared: Complex[Array, "template frequency"]
    bins: Int[Array, " pixel"]
    basis: Float64[Array, "bin coefficient"]
    step: float = eqx.field(static=True)
    length: int = eqx.field(static=True)
    first_lag: int = eqx.field(static=True)
    num_lags: int = eqx.field(static=True)
    velocity: int = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        emulator: CompiledEmulator,
        prior: Prior,
        held: dict[str, float],
        wavelength: Float64[np.ndarray, " pixel"],
        limits: tuple[float, float],
        num_coefficients: int,
    ) -> "Templates":
        """Transform templates spread over a prior.

        Parameters
        ----------
        emulator, prior, held
            Free parameters and fixed ones.
        wavelength
            Of the pixels [vacuum Angstrom].
        limits
            Of the velocity [km/s].
        num_coefficients
            Of the continuum.
        """
        values, labels = spread_templates(emulator, prior, held, 0)
        step = _COEFFICIENTS * emulator.step
        low, high = np.log(emulator.wavelength_range)
        lags = np.round(np.log1p(np.array(limits) / SPEED_OF_LIGHT) / step).astype(int)
        centers = low + step * np.arange(int((high - low) / step))
        position = (centers - np.log(emulator.network.start)) / emulator.step
        depth = _depths(emulator, jnp.asarray(labels), jnp.asarray(position))
        bins = np.round((np.log(wavelength) - low) / step).astype(int)
        # Bins before the templates' first come around from the end of the transform.
        reach = max(int(bins.max()) + 1, len(centers)) - min(int(bins.min()), 0)
        length: Any = next_fast_len(reach + int(np.abs(lags).max()), real=True)
        x = np.linspace(-1, 1, int(bins.max() - bins.min()) + 1)
        basis = np.zeros((length, num_coefficients))
        spanned = np.arange(bins.min(), bins.max() + 1) % length
        basis[spanned] = np.polynomial.chebyshev.chebvander(x, num_coefficients - 1)
        return cls(
            values=jnp.asarray(values),
            depth=jnp.fft.rfft(depth, length),
            squared=jnp.fft.rfft(depth**2, length),
            bins=jnp.asarray(bins % length),
            basis=jnp.asarray(basis),
            step=float(step),
            length=int(length),
            first_lag=int(lags[0]),
            num_lags=int(lags[1] - lags[0] + 1),
            velocity=prior.names.index("v_rad"),
        )

    def match(
        self, flux: Float[Array, " pixel"], ivar: Float[Array, " pixel"], num: int
    ) -> tuple[Float64[Array, "{num} parameter"], Float64[Array, ""]]:
        """The templates that describe a star best, and the velocity of the best [km/s].

        Parameters
        ----------
        flux, ivar
            In units of the continuum, about; pixels of ivar 0 are left out.
        num
            How many; their v_rad is relative to the velocity.
        """
        weight = jnp.zeros(self.length).at[self.bins].add(ivar)
        # Data and polynomial as what they are above the bare continuum.
        data = jnp.zeros(self.length).at[self.bins].add(ivar * (flux - 1.0))
        columns = weight[:, None] * self.basis
        normal = self.basis.T @ columns
        normal = normal + 1e-9 * jnp.trace(normal) * jnp.eye(len(normal))
        plain = self.basis.T @ data
        lower = jnp.linalg.cholesky(normal)
        known = jnp.concatenate([data[:, None], columns], axis=1).T
        known, weights = jnp.fft.rfft(known, self.length), jnp.fft.rfft(weight, self.length)
        lags = self.first_lag + np.arange(self.num_lags)
        places = lags % self.length

        def chi2(template):
            depth, squared = template
            products = jnp.concatenate(
                [known * jnp.conj(depth), (weights * jnp.conj(squared))[None]]
            )
            sums = jnp.fft.irfft(products, self.length)
            with_data, with_columns, alone = sums[0], sums[1:-1], sums[-1]
            right = plain[:, None] + with_columns[:, places]
            half = jax.scipy.linalg.solve_triangular(lower, right, lower=True)
            return 2 * with_data[places] + alone[places] - jnp.sum(half**2, axis=0)

        found = jax.lax.map(chi2, (self.depth, self.squared))
        lag = jnp.argmin(found + towards_zero(lags), axis=1)
        order = jnp.argsort(jnp.min(found, axis=1))[:num]
        velocity = SPEED_OF_LIGHT * jnp.expm1((lag[order] + self.first_lag) * self.step)
        # Both velocities multiply wavelengths.
        relative = SPEED_OF_LIGHT * ((velocity - velocity[0]) / (SPEED_OF_LIGHT + velocity[0]))
        values = self.values[order].at[:, self.velocity].set(relative)
        return values, velocity[0]


@eqx.filter_jit
def _depths(emulator, labels, position):
    def one(labels):
        depth = evaluate_spline(emulator.network.coefficients(labels), position)
        return jnp.nan_to_num(depth).astype(jnp.float64)

    return jax.lax.map(one, labels)
