"""The forward model of an observed spectrum, its posterior density, and the NumPyro model."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from .arms import ZERO_POINT
from .continuum import Continuum
from .instrument import Instrument, Pixels, log_shift
from .noise import NoiseMixture
from .priors import VELOCITIES, Prior


class ArmModel(eqx.Module):
    """How one arm sees a star: its instrument, the emulator on its grid, its zero point."""

    instrument: Instrument | Pixels
    encoding: Any
    zero_point: int | None = eqx.field(static=True)  # its place in `StarModel.held`

    def log_shift(self, every: Float[Array, " every"], v_rad: Float[Array, ""]) -> Array:
        """Shift in ln(wavelength) from the arm's frame to the star's.

        A zero point is an error of the wavelength scale, so it multiplies wavelengths.
        """
        shift = log_shift(v_rad)
        return shift if self.zero_point is None else shift + log_shift(every[self.zero_point])


class StarModel(eqx.Module):
    """Normalised flux in the pixels of all arms, one after another, from the free parameters.

    The emulator is evaluated on the grid of each arm's instrument; its wavelength encoding is made
    once.
    """

    emulator: Any
    arms: tuple[ArmModel, ...]
    held: Float64[Array, " every"]  # labels, velocities, zero points, with fixed values in place
    free: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        emulator: Any,
        instruments: Sequence[tuple[Instrument | Pixels, str | None]],
        names: tuple[str, ...],
        fixed: dict[str, float],
    ) -> "StarModel":
        """The model of some parameters.

        Parameters
        ----------
        emulator : Emulator
        instruments
            Of each arm, with the name of its zero point; None for the first arm.
        names
            Free parameters.
        fixed
            Values of the others; 0 for those that are not among them.
        """
        every = [*emulator.label_space.names, *VELOCITIES]
        # An arm that cannot be used may have a zero point too.
        every += [name for name in (*names, *fixed) if name.startswith(ZERO_POINT)]
        return cls(
            emulator=emulator,
            arms=tuple(
                ArmModel(
                    instrument,
                    _encode(emulator, instrument.wavelength),
                    None if zero_point is None else every.index(zero_point),
                )
                for instrument, zero_point in instruments
            ),
            held=jnp.asarray([fixed.get(name, 0.0) for name in every], jnp.float64),
            free=tuple(every.index(name) for name in names),
        )

    def split(self, values: Float[Array, " parameter"]) -> tuple[Array, Array, Array, Array]:
        """Labels, v_rad, v_sini and v_mac [km/s] from the free values."""
        every = self.every(values)
        number = len(self.emulator.label_space.names)
        return every[:number], every[number], every[number + 1], every[number + 2]

    @property
    def whole(self) -> "StarModel":
        """The same model of every parameter, the fixed ones among them."""
        return dataclasses.replace(self, free=tuple(range(len(self.held))))

    def every(self, values: Float[Array, " parameter"]) -> Float64[Array, " every"]:
        """All labels, velocities and zero points from the free values."""
        return self.held.at[np.array(self.free)].set(values)

    def rest_grids(self, values: Float[Array, " parameter"]) -> list[Float64[Array, " fine"]]:
        """ln(wavelength) in the star's frame of every arm's fine grid."""
        every, v_rad = self.every(values), self.split(values)[1]
        return [
            jnp.log(arm.instrument.wavelength) + arm.log_shift(every, v_rad) for arm in self.arms
        ]

    def observe(
        self,
        depths: Sequence[Float[Array, " _"]],
        v_sini: Float[Array, ""],
        v_mac: Float[Array, ""],
    ) -> Float64[Array, " pixel"]:
        """What the arms make of depths on their fine grids, one arm's pixels after another's."""
        return jnp.concatenate(
            [
                arm.instrument(depth, v_sini, v_mac)
                for arm, depth in zip(self.arms, depths, strict=True)
            ]
        )

    def __call__(self, values: Float[Array, " parameter"]) -> Float64[Array, " pixel"]:
        labels, v_rad, v_sini, v_mac = self.split(values)
        every = self.every(values)
        depths = [
            1.0 - self.emulator.flux_at(labels, arm.encoding, arm.log_shift(every, v_rad))
            for arm in self.arms
        ]
        return 1.0 - self.observe(depths, v_sini, v_mac)


@eqx.filter_jit
def _encode(emulator, wavelength):
    return emulator.encode(wavelength)


class Problem(eqx.Module):
    """A star's pixels to be explained: data, model, noise and prior. Every array is a leaf.

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
    spectrum: Any, emulator: Any = None, *, fit: Any = None, **options: Any
) -> Callable[[], dict[str, Any]]:
    """A NumPyro model of one star, to be sampled as it is or extended.

    Parameters
    ----------
    spectrum : Spectrum, or several arms
        As `stellarfit.fit` takes them.
    emulator : Emulator, its name or the path of its file, optional
        The shipped default otherwise.
    fit : Fit, optional
        A fit of this star, whose noise is used; made here with `options` otherwise, since the
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
