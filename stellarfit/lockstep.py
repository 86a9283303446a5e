"""One star of many: the steps that `stellarfit.engine` takes with a whole chunk at once.

Every function takes the engine, which holds what stars share, then arrays with a leading axis of
stars. Positions are those of `stellarfit.priors.Prior`, in the frame of each star.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float64

from .compiled import ANCHORED
from .emulator_error import mix, push
from .goodness import chi2_and_dof
from .instrument import log_shift
from .laplace import invert
from .model import Problem
from .noise import Noise, NoiseMixture
from .optimize import LARGEST_POSITION, SETTLED, curvature, maximize
from .velocity import WINDOW

STARTS = 3  # templates to start from, where one does not do
_STEPS = 6  # of a search, before the stars are gathered anew
_PEAK_STEPS = 20  # to where a sampler sees the mode, which lies inside of a box's edge


class Settled(NamedTuple):
    """Where stars are after a round, and whether that was their last.

    The others are those of `stellarfit.engine.Found`, values in the frame of each star; they are
    blank before the last round.
    """

    position: Float64[Array, "star parameter"]
    settled: Bool[Array, " star"]
    values: Float64[Array, "star parameter"]
    covariance: Float64[Array, "star parameter parameter"]
    photons: Float64[Array, "star parameter parameter"]
    converged: Bool[Array, " star"]
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
    """Starting positions, the velocity of each star's frame, its level, good pixels and S/N."""
    prior = engine.problem.prior

    def one(flux, ivar):
        flux, ivar = _clean(flux, ivar)
        level = jnp.nanpercentile(jnp.where(ivar > 0, flux, jnp.nan), 90.0)
        level = jnp.where(level > 0, level, 1.0)
        values, velocity = engine.templates.match(flux / level, ivar * level**2, STARTS)
        noise = of_star(engine, flux, ivar, velocity, level).noise.central
        pixels = noise.num_good
        snr = level * jnp.sqrt(jnp.sum(noise.inverse_variance) / jnp.maximum(pixels, 1.0))
        return jax.vmap(prior.position)(values), velocity, level, pixels, snr

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


def _frozen(engine, flux, ivar, position, v_frame, level, anchor):
    """The problem with the emulator's error as it is at a position; without; and that error."""
    problem = of_star(engine, flux, ivar, v_frame, level)
    values = problem.prior.values(position)
    if anchor:
        labels, *_ = problem.star.split(values)
        exact = problem.star.emulator.anchored(labels)
        problem = eqx.tree_at(lambda p: p.star.emulator, problem, exact)
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
    *,
    anchor: bool,
    last: bool | Array,
) -> Settled:
    """Freeze the noise where a star is, and go to the maximum from there.

    Parameters
    ----------
    anchor
        Have the parent's flux there.
    last
        Whether there will be no further round.
    """

    def one(flux, ivar, position, v_frame, level):
        problem, bare, error = _frozen(engine, flux, ivar, position, v_frame, level, anchor)
        best = maximize(problem, position, 0.0, _STEPS)
        if anchor or error is not None:
            sigma = jnp.sqrt(jnp.diagonal(invert(best.curvature.hessian)[0]))
            moves = jnp.clip(best.position, -6, 6) - jnp.clip(position, -6, 6)
            still = jnp.max(jnp.abs(moves) / sigma) <= (ANCHORED if anchor else SETTLED)
        else:
            still = True  # nothing was frozen
        settled = best.converged & still

        def finish():
            return _measure(engine, problem, bare, error, best)

        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(finish))
        found, at_peak = jax.lax.cond(settled | last, finish, lambda: blank)
        values, covariance, photons, bad, chi2, dof = found
        return Settled(
            best.position, settled, values, covariance, photons, settled & at_peak, bad, chi2, dof
        )

    return _each(one, flux, ivar, position, v_frame, level)


def _measure(engine, problem, bare, error, best):
    """Values, covariance and goodness at a maximum; and whether a sampler would find one."""
    peak = maximize(problem, best.position, 1.0, _PEAK_STEPS)
    slope = problem.prior.slope(peak.position)
    outer = slope[:, None] * slope
    whole, bad = invert(peak.curvature.hessian)
    alone, worse = invert(curvature(bare, peak.position, jnp.ones(())).hessian)
    values = problem.prior.values(best.position)
    goodness = _goodness(engine, bare, error, values)
    found = values, whole * outer, alone * outer, bad | worse, *goodness
    return found, peak.converged


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
def draw_weighted(
    engine: Any,
    flux: Array,
    ivar: Array,
    position: Array,
    v_frame: Array,
    level: Array,
    key: Array,
    *,
    num: int,
    anchor: bool,
) -> tuple[Array, ...]:
    """Draws of the Gaussian at the mode, their weights, and k-hat."""
    from blackjax.diagnostics import psis_weights

    def one(flux, ivar, position, v_frame, level, key):
        problem, _, _ = _frozen(engine, flux, ivar, position, v_frame, level, anchor)
        peak = maximize(problem, position, 1.0, _PEAK_STEPS)
        covariance, _ = invert(peak.curvature.hessian)
        scale = jnp.linalg.cholesky(covariance)
        first, second = jax.random.split(jax.random.wrap_key_data(key))
        normal = jax.random.normal(first, (num, len(position)), jnp.float64)
        draws = jnp.clip(peak.position + normal @ scale.T, -LARGEST_POSITION, LARGEST_POSITION)
        ratio = jax.vmap(problem.log_density)(draws) + 0.5 * jnp.sum(normal**2, axis=1)
        ratio = jnp.where(jnp.isfinite(ratio), ratio, -jnp.inf)
        log_weight, k_hat = psis_weights(ratio)
        weight = jax.nn.softmax(log_weight)
        values = jax.vmap(problem.prior.values)(draws)
        mean = weight @ values
        sigma = jnp.sqrt(weight @ (values - mean) ** 2)
        chosen = jax.random.choice(second, num, (num,), p=weight)
        usable = jnp.isfinite(k_hat) & jnp.isfinite(mean).all()
        return values[chosen], mean, sigma, jnp.where(usable, k_hat, jnp.inf)

    return _each(one, flux, ivar, position, v_frame, level, key)
