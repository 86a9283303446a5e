"""The forward model of an observed spectrum, its posterior density, and the NumPyro model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from emulators.emulator import Emulator

from .continuum import Continuum
from .instrument import Instrument, log_shift
from .noise import NoiseMixture
from .priors import VELOCITIES, Prior


class StarModel(eqx.Module):
    """Normalised flux in the pixels from the free parameters.

    The emulator is evaluated on the instrument's grid; its wavelength encoding is made once.
    """

    emulator: Any
    encoding: Any
    instrument: Instrument
    held: Float64[Array, " every"]  # labels and velocities, with the fixed values in place
    free: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def build(
        cls, emulator: Any, instrument: Instrument, names: tuple[str, ...], fixed: dict[str, float]
    ) -> "StarModel":
        every = (*emulator.label_space.names, *VELOCITIES)
        return cls(
            emulator=emulator,
            encoding=_encode(emulator, instrument.wavelength),
            instrument=instrument,
            held=jnp.asarray([fixed.get(name, 0.0) for name in every], jnp.float64),
            free=tuple(every.index(name) for name in names),
        )

    def split(self, values: Float[Array, " parameter"]) -> tuple[Array, Array, Array, Array]:
        """Labels, v_rad, v_sini and v_mac [km/s] from the free values."""
        every = self.every(values)
        return every[:-3], every[-3], every[-2], every[-1]

    @property
    def whole(self) -> "StarModel":
        """The same model of every label and velocity, the fixed ones among them."""
        return dataclasses.replace(self, free=tuple(range(len(self.held))))

    def every(self, values: Float[Array, " parameter"]) -> Float64[Array, " every"]:
        """All labels and velocities from the free values."""
        return self.held.at[np.array(self.free)].set(values)

    def __call__(self, values: Float[Array, " parameter"]) -> Float64[Array, " pixel"]:
        labels, v_rad, v_sini, v_mac = self.split(values)
        flux = self.emulator.flux_at(labels, self.encoding, log_shift(v_rad))
        return 1.0 - self.instrument(1.0 - flux, v_sini, v_mac)


@eqx.filter_jit
def _encode(emulator, wavelength):
    return emulator.encode(wavelength)


class Problem(eqx.Module):
    """One spectrum to be explained: data, model, noise and prior. Every array is a leaf.

    Fits of equal shapes share their compiled functions, because nothing here is a constant.
    """

    star: StarModel
    prior: Prior
    continuum: Continuum
    noise: NoiseMixture
    flux: Float64[Array, " pixel"]

    def log_likelihood(self, values: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """Log density of the data with the continuum integrated out."""
        columns = self.star(values)[:, None] * self.continuum.basis
        residual = self.flux - columns @ self.continuum.mean
        return self.noise.log_density(residual, columns, self.continuum.variance)

    def log_density(self, position: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """Log posterior density in the unbounded position, up to a constant."""
        values = self.prior.values(position)
        return (
            self.log_likelihood(values)
            + self.prior.log_density(values)
            + self.prior.log_jacobian(position)
        )

    def coefficients(self, normalized: Float[Array, " pixel"]) -> Float64[Array, " coefficient"]:
        """The most probable continuum coefficients for a given normalised flux."""
        columns = normalized[:, None] * self.continuum.basis
        residual = self.flux - columns @ self.continuum.mean
        solved = self.noise.central.solve(jnp.concatenate([residual[:, None], columns], axis=1))
        projected = columns.T @ solved
        precision = projected[:, 1:] + jnp.diag(1 / self.continuum.variance)
        return self.continuum.mean + jnp.linalg.solve(precision, projected[:, 0])


def stellar_model(
    spectrum: Any, emulator: Emulator | None = None, *, fit: Any = None, **options: Any
) -> Callable[[], dict[str, Any]]:
    """A NumPyro model of one spectrum, to be sampled as it is or extended.

    Parameters
    ----------
    spectrum : Spectrum
    emulator : Emulator, optional
        The shipped default otherwise.
    fit : Fit, optional
        A fit of this spectrum, whose noise is used; made here with `options` otherwise, since the
        emulator's covariance and the down-weighting are frozen at a first maximum.
    **options
        Of `stellarfit.fit`: ``fixed``, ``priors``, ``noise``, ...

    Returns
    -------
    callable
        Samples one site a free parameter and returns their values by name.

    Examples
    --------
    An abundance pattern tied together by a prior of one's own::

        model = sf.stellar_model(spectrum, emulator)

        def tied():
            labels = model()
            difference = labels["ca_fe"] - labels["mg_fe"]
            numpyro.factor("alpha", dist.Normal(0, 0.05).log_prob(difference))

        numpyro.infer.MCMC(numpyro.infer.NUTS(tied, dense_mass=True), ...)
    """
    import numpyro

    if fit is None:
        from .fitting import fit as run_fit

        fit = run_fit(spectrum, emulator, **options)
    problem: Problem = fit.problem

    def model() -> dict[str, Any]:
        names = problem.prior.names
        values = {name: numpyro.sample(name, problem.prior.distribution(name)) for name in names}
        stacked = jnp.stack([jnp.asarray(values[name], jnp.float64) for name in names])
        if problem.prior.tied.any():
            numpyro.factor("prior", problem.prior.log_joint(stacked))
        numpyro.factor("spectrum", problem.log_likelihood(stacked))
        return values

    return model
