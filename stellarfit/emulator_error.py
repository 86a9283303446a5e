"""The emulator's error in the pixels of a star: where it is, and how large it may be.

Its shape is the emulator's `emulators.error_model.ErrorModel`, as the star's velocities and the
spectrograph change it. Its amplitude has a prior, with the scatter from star to star that held-out
stars show, about what the same stars show (``noise="validation"``) or about what a scaling law
predicts for an emulator of this size and training (``noise="law"``), with the uncertainty of the
law. It is integrated over: at high S/N the residuals themselves tell it well.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from emulators.errors import InputError
from emulators.units import SPEED_OF_LIGHT
from scaling.law import SHIPPED, ScalingLaw

from .compiled import CompiledEmulator, uncompiled
from .instrument import Pixels
from .noise import Noise, NoiseMixture

NOISES = ("law", "validation", "none")
# A law that is off the held-out stars by more than this factor is flagged.
LARGEST_DISAGREEMENT = 2.0
# Amplitudes at which the evidence is taken to find the most likely one, and how far they reach in
# sigma of the prior. The nodes of the mixture lie about it.
_GRID, _REACH = 25, 4.0
_NODES = 3
# Rotation and macroturbulence broaden about as a Gaussian of this full width, in units of theirs.
_BROADENING = 1.1
_FOURTH = 3**0.5  # root of the fourth moment of a standard normal: that of t^2
_WIDER = 4.0  # km/s of macroturbulence more: the direction of a broadening


class AmplitudePrior(NamedTuple):
    """What is known of the emulator's mean squared error before a star is seen.

    Attributes
    ----------
    log_factor
        ln of the factor on what the held-out stars showed.
    sigma
        Of that logarithm, from star to star and from the law.
    coherent
        Of ln of the amplitude of the coherent part beside it, from star to star.
    """

    log_factor: float
    sigma: float
    coherent: float

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """What `mix` takes: arrays, so that stars of other priors share its compilation."""
        log_factor, sigma, coherent = map(jnp.asarray, self)
        return log_factor, sigma, coherent

    @property
    def disagrees(self) -> bool:
        """Whether law and held-out stars differ by more than a factor 2."""
        return bool(abs(self.log_factor) > np.log(LARGEST_DISAGREEMENT))


def default_noise(emulator: Any) -> str:
    """``"law"`` where a shipped law is of emulators like this one, ``"validation"`` otherwise."""
    emulator = uncompiled(emulator)
    if emulator.record.get("training") is None or find_law(emulator) is None:
        return "validation"
    return "law"


def find_law(emulator: Any) -> ScalingLaw | None:
    """The shipped law of emulators of this label box and these wavelengths, if there is one."""
    laws = (ScalingLaw.load(name) for name in SHIPPED)
    return next((law for law in laws if _is_of(law, emulator)), None)


def _is_of(law, emulator):
    """Whether a law says that it is of the emulator's box and wavelengths."""
    notes = law.record["notes"]
    if "label_space" not in notes or "wavelength" not in notes:
        return False
    return notes["label_space"] == emulator.label_space.to_dict() and bool(
        np.allclose(notes["wavelength"], emulator.wavelength_range, rtol=1e-4, atol=0.0)
    )


def amplitude_prior(
    emulator: Any, noise: str, law: ScalingLaw | None = None
) -> AmplitudePrior | None:
    """The prior of the amplitude; None where the emulator's error is not to be used, or not known.

    Parameters
    ----------
    emulator : Emulator
    noise : {"law", "validation", "none"}
    law
        Of emulators like this one, for ``"law"``; by default the shipped one of its label box and
        wavelengths.

    Raises
    ------
    InputError
        An unknown `noise`; ``"law"`` where there is no law of these labels, the law given is of
        others, or the emulator does not say how it was trained.
    """
    if noise not in NOISES:
        raise InputError(f"noise: {noise!r} is not known; give {', '.join(map(repr, NOISES))}")
    if law is not None and noise != "law":
        raise InputError(f"law: noise is {noise!r}, which needs none; give noise='law' or no law")
    emulator = uncompiled(emulator)
    errors = emulator.error_model
    if noise == "none" or errors is None:
        return None
    scatter = float(errors.amplitude.scatter)
    coherent = float(errors.coherent.amplitude.scatter)
    if noise == "validation":
        return AmplitudePrior(0.0, scatter, coherent)
    if law is None:
        law = find_law(emulator)
    elif "label_space" in law.record["notes"] and not _is_of(law, emulator):
        raise InputError(f"law: it is of other labels or wavelengths than {emulator.name}")
    if law is None:
        raise InputError(
            f"noise: there is no scaling law for the labels of {emulator.name}; give law=, or "
            "noise='validation'"
        )
    row = emulator.record.get("training")
    if row is None:
        raise InputError(
            f"noise: {emulator.name} does not say how it was trained, which a law needs; give "
            "noise='validation'"
        )
    mse = law.predict(row["parameters"], row["unique_spectra"], row["spectra_seen"])
    spread = 0.5 * float(np.log(mse.high68 / mse.low68))
    factor = float(np.log(mse.value / errors.mse))
    return AmplitudePrior(factor, float(np.hypot(scatter, spread)), coherent)


class EmulatorError(NamedTuple):
    """The emulator's covariance at some values, per unit of its amplitude, and derivatives.

    Attributes
    ----------
    variance
        Of each pixel, without the coherent part, in the unit of the flux^2.
    floor
        Factor on it along whatever the labels can do to the spectrum.
    modes
        Columns: a change of the labels sees ``diag(floor variance) + modes modes^T``.
    directions
        Columns in which labels, shift and broadening move the spectrum to first order, of the size
        that ``diag(variance)`` has along them.
    by_free
        Derivatives of the model by the free parameters, in the unit of the flux.
    """

    variance: Float64[Array, " pixel"]
    floor: Float64[Array, ""]
    modes: Float64[Array, "pixel mode"]
    directions: Float64[Array, "pixel direction"]
    by_free: Float64[Array, "pixel parameter"]

    @property
    def seen(self) -> Float64[Array, "pixel column"]:
        """Columns: residuals have the covariance ``diag(variance) + seen seen^T``.

        Along the directions of the labels that is what a change of the labels meets, floor
        included; across them no pixel has the floor. So draws of a posterior, whose width has the
        floor, scatter about the data as this says.
        """
        floor = jnp.sqrt(self.floor - 1) * self.directions
        return jnp.concatenate([self.modes, floor], axis=1)


@eqx.filter_jit
def push(
    problem: Any,
    error_model: Any,
    values: Float[Array, " parameter"],
    sizes: tuple[Float[Array, " pixel"], Float[Array, " pixel"]],
) -> EmulatorError:
    """The emulator's error as the star's velocities and the spectrograph change it.

    Its modes run through the pixels of all arms: it errs in the same labels in each of them.

    Parameters
    ----------
    problem : Problem
    error_model : ErrorModel
    values
        Of the free parameters.
    sizes
        Width of each pixel, and FWHM of its line spread, in ln(wavelength).
    """
    star = problem.star
    labels, _, v_sini, v_mac = star.split(values)
    normalized = star(values)
    continuum = problem.continuum.basis @ problem.coefficients(normalized)
    grids = star.rest_grids(values)
    native = jnp.log(error_model.wavelength)

    if _still(star):
        # Pixels have seen the patterns already.
        seen = jnp.mean(error_model.patterns**2, axis=0)
        shape = jnp.concatenate([jnp.interp(grid, native, seen) for grid in grids])
    else:

        def see(pattern):
            return star.observe(
                [jnp.interp(grid, native, pattern) for grid in grids], v_sini, v_mac
            )

        shape = error_model.variance(jax.lax.map(see, error_model.patterns))
    amplitude = error_model.amplitude(labels)
    used = problem.noise.central.inverse_variance > 0
    variance = jnp.where(used, amplitude * shape * continuum**2, 0.0)
    every = star.whole
    by_every = jax.jacfwd(every)(star.every(values)) * continuum[:, None]
    number = len(labels)
    wider = _broadening_of(star, values, normalized) * continuum
    by_velocity = jnp.stack([by_every[:, number], wider], axis=1)
    broad = _BROADENING * jnp.hypot(v_sini, v_mac) / SPEED_OF_LIGHT
    pixel, line_spread = sizes
    resolved = jnp.sum(jnp.where(used, pixel / jnp.hypot(line_spread, broad), 0.0))
    coherent = error_model.coherent
    off = coherent.displacements(
        labels,
        variance,
        by_every[:, :number],
        by_velocity,
        normalized[:, None] * problem.continuum.basis,
        resolved,
    )

    def of_labels(labels):
        return every(star.every(values).at[:number].set(labels)) * continuum

    # What an emulator was compiled to hold, its network knows nearby alone.
    compiled = isinstance(star.emulator, CompiledEmulator)
    space = star.emulator.network.label_space if compiled else star.emulator.label_space
    box = jnp.asarray(space.lower), jnp.asarray(space.upper)

    def bend(axis):
        return _along(of_labels, labels, axis, box)

    # A compiled emulator takes all at once; of others each spectrum is a work of its own.
    bent = jax.vmap(bend)(off.labels.T) if compiled else jax.lax.map(bend, off.labels.T)
    # What this fit leaves free takes up its part of them.
    shift = number in star.free
    broadening = shift and not {number + 1, number + 2}.isdisjoint(star.free)
    bent = off.project(bent.reshape(-1, len(normalized)).T, shift + broadening)
    modes = jnp.concatenate([bent, off.velocity], axis=1)
    floor = coherent.floor(jnp.sum(used), resolved)
    by_free = by_every[:, np.array(star.free)]
    return EmulatorError(variance, floor, modes, off.directions, by_free)


def _still(star):
    """Whether the emulator gives pixels, of stars that nothing broadens."""
    return any(isinstance(arm.instrument, Pixels) for arm in star.arms)


def _broadening_of(star, values, normalized):
    """What a broadening of all lines does to the normalised flux, in any unit."""
    whole, every = star.whole, star.every(values)
    number = len(star.emulator.label_space)
    if _still(star):
        # These cannot broaden; two spectra shifted apart are as broad to second order.
        ahead, behind = (whole(every.at[number].add(sign * 0.5 * _WIDER)) for sign in (1, -1))
        return ahead - 2 * normalized + behind
    return whole(every.at[number + 2].set(jnp.hypot(every[number + 2], _WIDER))) - normalized


def _along(flux, labels, axis, box):
    """Columns of the covariance of spectra whose labels scatter along an axis, [2, pixel].

    Where a label does no more to a spectrum than the emulator errs, the emulator's derivative by
    it is one at random, and says nothing of the spectrum a little further on. So the flux is
    expanded in the distance t, in sigma, to second order, and not about the labels but over
    -1 .. 1, as far as that is in the box.
    """
    lower, upper = box
    # The label that goes the furthest says how far; others are held at an edge that they come to.
    main = jnp.argmax(jnp.abs(axis) / (upper - lower))
    step, low, high = axis[main], lower[main] - labels[main], upper[main] - labels[main]
    ahead, behind = (
        jnp.where(step == 0, 1.0, jnp.maximum(low / step, high / step)),
        jnp.where(step == 0, 1.0, jnp.maximum(-low / step, -high / step)),
    )
    first, last = -jnp.clip(behind, 0.0, 1.0), jnp.clip(ahead, 0.0, 1.0)
    start, middle, end = (
        flux(jnp.clip(labels + t * axis, lower, upper)) for t in (first, 0.5 * (first + last), last)
    )
    length = last - first
    # No label is off by more than its box.
    slope = (end - start) / jnp.maximum(length, 1.0)
    bend = 0.5 * (end + start) - middle  # what t^2 does over the length
    return jnp.stack([slope, _FOURTH * bend])


@eqx.filter_jit
def mix(
    problem: Any,
    error: EmulatorError,
    values: Float[Array, " parameter"],
    photons: Float[Array, " pixel"],
    weight: Float[Array, " pixel"],
    prior: tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]],
) -> NoiseMixture:
    """Noise with the emulator's error at a few amplitudes, weighted by their prior.

    There are two: of the whole error, which the residuals tell, and of its coherent part beside,
    which they hardly do. Nodes of the first lie about its most likely value (adaptive
    Gauss-Hermite quadrature), with the labels integrated out to first order.

    Parameters
    ----------
    photons
        Variance by anything but the emulator.
    weight
        Factor on the weight of each pixel; 0 masks it.
    prior
        `AmplitudePrior.arrays`.
    """
    center, sigma, coherent = prior
    # So that the mean of the amplitudes, not their logarithm, is what is known.
    center = center - 0.5 * sigma**2
    normalized = problem.star(values)
    coefficients = problem.coefficients(normalized)
    nuisance = normalized[:, None] * problem.continuum.basis
    residual = problem.flux - nuisance @ coefficients
    # Labels in steps of unit variance under their prior, about where it and the values meet.
    known = problem.prior
    unit = 1 / jnp.sqrt(jnp.diagonal(known.wide))
    inverse = jnp.linalg.inv(known.wide * unit[:, None] * unit) * unit[:, None] * unit
    residual -= error.by_free @ (inverse @ known.precision @ (known.mean - values))
    steps = error.by_free @ jnp.linalg.cholesky(0.5 * (inverse + inverse.T))
    columns = jnp.concatenate([error.modes, steps, nuisance], axis=1)
    spread = jnp.concatenate([jnp.ones(len(values)), problem.continuum.variance])

    def inverse_variance(log_amplitude, log_coherent, floor):
        floor = jnp.maximum(floor * jnp.exp(log_coherent), 1.0)
        return weight / (photons + jnp.exp(log_amplitude) * floor * error.variance)

    def noise(log_amplitude, log_coherent, floor):
        return Noise.build(
            inverse_variance(log_amplitude, log_coherent, floor),
            jnp.exp(0.5 * (log_amplitude + log_coherent)) * error.modes,
        )

    def evidence(log_amplitude, log_coherent, floor):
        """Log of the density with the labels integrated out, to first order."""
        # The modes' amplitudes are integrated out with them, which needs one product of columns.
        alone = Noise.build(
            inverse_variance(log_amplitude, log_coherent, floor), jnp.zeros((len(residual), 0))
        )
        coherent = jnp.full(error.modes.shape[1], jnp.exp(log_amplitude + log_coherent))
        return alone.log_density(residual, columns, jnp.concatenate([coherent, spread]))

    def log_posterior(log_amplitude, log_coherent):
        # How large the residuals are is told by all pixels, each for itself: no floor.
        told = evidence(log_amplitude, log_coherent, jnp.ones(()))
        return told - 0.5 * ((log_amplitude - center) / sigma) ** 2

    grid = center + sigma * jnp.linspace(-_REACH, _REACH, _GRID)
    chance = jax.nn.softmax(jax.lax.map(lambda x: log_posterior(x, jnp.zeros(())), grid))
    likely = chance @ grid
    # The grid is as fine as a third of the prior; a posterior is not known to be narrower.
    width = jnp.maximum(jnp.sqrt(chance @ (grid - likely) ** 2), 0.5 * (grid[1] - grid[0]))
    points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    first, second = (axis.ravel() for axis in np.meshgrid(points, points, indexing="ij"))
    share = np.outer(weights, weights).ravel() / (2 * np.pi)
    log_amplitude = likely + width * first
    log_coherent = coherent * second - 0.5 * coherent**2

    def node(place):
        log_amplitude, log_coherent = place
        log_odds = log_posterior(log_amplitude, log_coherent)
        log_odds -= evidence(log_amplitude, log_coherent, error.floor)
        return noise(log_amplitude, log_coherent, error.floor), log_odds

    components, log_odds = jax.lax.map(node, (log_amplitude, log_coherent))
    # Each node's posterior of the labels counts by how probable the node is, not by what the
    # floor does to its density.
    log_weight = jnp.log(share) + 0.5 * first**2 + log_odds
    central = noise(likely, jnp.zeros(()), error.floor)
    return NoiseMixture(components, log_weight - jax.nn.logsumexp(log_weight), central, likely)
