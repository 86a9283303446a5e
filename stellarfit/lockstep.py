"""One star of many: the steps that `stellarfit.engine` takes with a whole chunk at once.

Every function takes the engine, which holds what stars share, then arrays with a leading axis of
stars. Positions are those of `stellarfit.priors.Prior`, in the frame of each star.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float64

from .compiled import Anchor
from .emulator_error import mix, push
from .goodness import chi2_and_dof
from .instrument import log_shift
from .laplace import invert
from .model import Problem
from .noise import Noise, NoiseMixture
from .optimize import curvature, maximize, moved
from .priors import between
from .velocity import WINDOW

STARTS = 3  # templates to start from, where one does not do
# Steps before the stars that need more are gathered anew. A search that goes on from where it was
# begins with little damping, so it takes a few to find how much a bent valley needs.
_STEPS = 6


class Measured(NamedTuple):
    """What is known of stars at their maximum.

    Attributes
    ----------
    peak, at_peak
        Where a sampler would see the mode, and whether this is it or on the way there.

    The others are those of `stellarfit.engine.Found`, values in the frame of each star.
    """

    peak: Float64[Array, "star parameter"]
    at_peak: Bool[Array, " star"]
    values: Float64[Array, "star parameter"]
    covariance: Float64[Array, "star parameter parameter"]
    photons: Float64[Array, "star parameter parameter"]
    bad: Bool[Array, " star"]
    chi2: Float64[Array, " star"]
    dof: Float64[Array, " star"]


def _each(one, *columns):
    """A function of one star for each of a chunk.

    A processor does them one after another: batches of small factorisations wait for each other
    there for ever where threads are few (XLA of jax 0.10), and gain nothing.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda star: one(*star), columns)
    return jax.vmap(one)(*columns)


@eqx.filter_jit
def begin(engine: Any, flux: Array, ivar: Array) -> tuple[Array, ...]:
    """Starting positions, the velocity of each star's frame, its level, its good pixels."""
    prior = engine.problem.prior

    def one(flux, ivar):
        flux, ivar = _clean(flux, ivar)
        level = jnp.nanpercentile(jnp.where(ivar > 0, flux, jnp.nan), 90.0)
        level = jnp.where(level > 0, level, 1.0)
        values, velocity = engine.templates.match(flux / level, ivar * level**2, STARTS)
        noise = of_star(engine, flux, ivar, velocity, level).noise.central
        return jax.vmap(prior.position)(values), velocity, level, noise.num_good

    return _each(one, flux, ivar)


def _clean(flux, ivar):
    """Pixels without a number, or without weight, have the inverse variance 0."""
    usable = jnp.isfinite(flux) & jnp.isfinite(ivar) & (ivar > 0)
    flux, ivar = flux.astype(jnp.float64), ivar.astype(jnp.float64)
    return jnp.where(usable, flux, 0.0), jnp.where(usable, ivar, 0.0)


def of_star(engine: Any, flux: Array, ivar: Array, v_frame: Array, level: Array) -> Problem:
    """The problem of one star with photon noise alone, in its own frame."""
    flux, ivar = _clean(flux, ivar)
    emulator, problem = engine.emulator, engine.problem
    encoding = problem.star.arms[0].encoding + log_shift(v_frame) / emulator.step
    # What the window may move beyond the spline is not fitted.
    reach = log_shift(-WINDOW) / emulator.step + 3.0
    last = emulator.network.mean.shape[0] - 1 - reach
    ivar = jnp.where((encoding > reach) & (encoding < last), ivar, 0.0)
    nothing = jnp.zeros((len(flux), 0))
    return eqx.tree_at(
        lambda p: (
            p.flux,
            p.noise,
            p.continuum.basis,
            p.star.arms[0].encoding,
            p.star.arms[0].instrument.wavelength,
        ),
        problem,
        (
            flux,
            NoiseMixture.single(Noise.build(ivar, nothing)),
            level * problem.continuum.basis,
            jnp.clip(encoding, reach, last),
            problem.star.arms[0].instrument.wavelength * jnp.exp(log_shift(v_frame)),
        ),
    )


@eqx.filter_jit
def search(
    engine: Any, flux: Array, ivar: Array, position: Array, v_frame: Array, level: Array
) -> tuple[Array, ...]:
    """A few steps with photon noise: positions, costs, and whether that was all."""

    def one(flux, ivar, position, v_frame, level):
        best = maximize(of_star(engine, flux, ivar, v_frame, level), position, 0.0, _STEPS)
        return best.position, best.curvature.cost, best.converged

    return _each(one, flux, ivar, position, v_frame, level)


@eqx.filter_jit
def anchor(engine: Any, flux: Array, ivar: Array, position: Array) -> Anchor:
    """What makes the network exact at stars' labels."""
    del flux, ivar  # which every work on stars is given
    star, prior = engine.problem.star, engine.problem.prior

    def one(position):
        labels, *_ = star.split(prior.values(position))
        return star.emulator.anchor_at(labels)

    return _each(one, position)


@eqx.filter_jit
def halfway(prior: Any, one: Array, other: Array) -> Float64[Array, "star parameter"]:
    """`stellarfit.priors.between` for each of stars."""
    return jax.vmap(between, in_axes=(None, 0, 0))(prior, one, other)


def _frozen(engine, flux, ivar, position, v_frame, level, anchor):
    """The problem with the emulator's error as it is at a position; without; and that error."""
    problem = of_star(engine, flux, ivar, v_frame, level)
    if anchor is not None:
        exact = problem.star.emulator.anchored(anchor)
        problem = eqx.tree_at(lambda p: p.star.emulator, problem, exact)
    values = problem.prior.values(position)
    if engine.amplitude is None:
        return problem, problem, None
    sees = engine.spectrograph
    sizes = sees.width / sees.wavelength, 1 / sees.resolution
    error = push(problem, problem.star.emulator.error_model, values, sizes)
    weight = problem.noise.central.inverse_variance
    used = jnp.where(weight > 0, 1.0, 0.0)
    photons = 1 / jnp.where(weight > 0, weight, 1.0)
    noise = mix(problem, error, values, photons, used, engine.amplitude)
    return eqx.tree_at(lambda p: p.noise, problem, noise), problem, error


@eqx.filter_jit
def settle(
    engine: Any,
    flux: Array,
    ivar: Array,
    position: Array,
    v_frame: Array,
    level: Array,
    anchor: Anchor | None,
) -> tuple[Array, Array, Array]:
    """Freeze the noise where a star is and go on: where to, whether a maximum, how far [sigma].

    Parameters
    ----------
    anchor
        Near this place; None where the network is to do alone.
    """

    def one(flux, ivar, position, v_frame, level, anchor):
        problem, _, _ = _frozen(engine, flux, ivar, position, v_frame, level, anchor)
        best = maximize(problem, position, 0.0, _STEPS)
        return best.position, best.converged, jnp.max(moved(problem, position, best))

    return _each(one, flux, ivar, position, v_frame, level, anchor)


@eqx.filter_jit
def measure(
    engine: Any,
    flux: Array,
    ivar: Array,
    position: Array,
    peak: Array,
    v_frame: Array,
    level: Array,
    anchor: Anchor | None,
) -> Measured:
    """Values, errors and goodness at maxima, `peak` being where to go on from to a sampler's."""

    def one(flux, ivar, position, peak, v_frame, level, anchor):
        problem, bare, error = _frozen(engine, flux, ivar, position, v_frame, level, anchor)
        best = maximize(problem, peak, 1.0, _STEPS)
        slope = problem.prior.slope(best.position)
        outer = slope[:, None] * slope
        whole, bad = invert(best.curvature.hessian)
        alone, worse = invert(curvature(bare, best.position, jnp.ones(())).hessian)
        values = problem.prior.values(position)
        return Measured(
            best.position,
            best.converged,
            values,
            whole * outer,
            alone * outer,
            bad | worse,
            *_goodness(engine, bare, error, values),
        )

    return _each(one, flux, ivar, position, peak, v_frame, level, anchor)


def _goodness(engine, bare, error, values):
    """chi^2 against what residuals should be, and the degrees of freedom left."""
    if error is None:
        return chi2_and_dof(bare, values, None)
    center, weight = engine.amplitude[0], bare.noise.central.inverse_variance
    good = weight > 0
    variance = 1 / jnp.where(good, weight, 1.0) + jnp.exp(center) * error.variance
    noise = Noise.build(jnp.where(good, 1 / variance, 0.0), jnp.exp(0.5 * center) * error.seen)
    expected = eqx.tree_at(lambda p: p.noise, bare, NoiseMixture.single(noise))
    return chi2_and_dof(expected, values, error.by_free)


@eqx.filter_jit
def draw(
    engine: Any,
    flux: Array,
    ivar: Array,
    position: Array,
    v_frame: Array,
    level: Array,
    anchor: Anchor | None,
    key: Array,
    *,
    by: Callable[[Problem, Array, Array], Any],
) -> Any:
    """Posteriors, by what gives that of a problem from its mode and a key."""

    def one(flux, ivar, position, v_frame, level, anchor, key):
        problem, _, _ = _frozen(engine, flux, ivar, position, v_frame, level, anchor)
        return by(problem, problem.prior.values(position), jax.random.wrap_key_data(key))

    return _each(one, flux, ivar, position, v_frame, level, anchor, key)
