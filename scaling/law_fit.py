"""The joint law of size, unique spectra and spectra seen, and how it is fitted."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from emulators.errors import InputError

# Irreducible error, size, unique spectra, training, the error of no network at all, and how
# sharply errors leave that.
NAMES = ("ln_E", "ln_A", "a", "ln_B", "b", "ln_G", "g", "h", "ln_L0", "ln_k")
# Where A, B and G are given: weights, unique spectra and spectra seen amid those of a ledger.
REFERENCE = (1e6, 1e4, 1e6)
# Beyond these a term is absent, and nothing depends on the number any more.
ABSENT = -60.0
_LOWER = np.array([ABSENT, ABSENT, 0.0, ABSENT, 0.0, ABSENT, 0.0, -1.0, -12.0, -2.0])
_UPPER = np.array([10.0, 10.0, 6.0, 10.0, 6.0, 10.0, 6.0, 6.0, 10.0, 2.0])
# Residuals of ln(MSE) beyond this count linearly. Two seeds of one run differ by 0.05 to 0.1; at
# 1.35 standard deviations Huber's loss loses 5% of the information of Gaussian noise, and a run
# that went wrong weighs no more than a scatter of a tenth. (The 1e-3 of the literature is for
# losses that repeat to 1e-3: here it would count absolute values, and lose a third.)
_HUBER = 0.1
# A fit has converged when another step would gain less than this share of the variance of one
# residual: the parameters are within 3% of their standard error of the optimum.
_TOLERANCE = 1e-3
_STEPS = 300
# A draw of few trunks may need more steps than others: they go on in rounds.
_REFITS, _ROUNDS = 60, 8
# Starts of the irreducible error: ln of the smallest error over it. From the last it stays absent.
_FLOORS = (0.7, 3.0, np.inf)
# Starts that must end at the best loss.
_AGREEING = 3


@jax.jit
def log_mse(
    theta: Float[ArrayLike, "10 *#shape"],
    parameters: Float[ArrayLike, "*#shape"],
    unique: Float[ArrayLike, "*#shape"],
    seen: Float[ArrayLike, "*#shape"],
) -> Float[Array, "..."]:
    """ln of the law's mean squared error.

    ``1/L^k = 1/L0^k + 1/(E + A / P^a + B / U^b + G / (S^g P^h))^k``: what a network of P weights
    cannot express, what U spectra do not tell, and what S spectra seen have not taught yet; and no
    network is worse than L0, about the variance of the spectra, which errors leave the more
    gradually the smaller k is: a power law with a break (Caballero et al. 2023). The additive law
    (Hoffmann et al. 2022) has h = 0; on both of our ledgers larger networks learn more from the
    same spectra, as Kaplan et al. (2020) found. U counts only as far as it is seen: a run of less
    than one pass does not depend on the spectra that it has not reached. Repeated spectra teach as
    fresh ones do, until what they do not tell is all that is left: see `ScalingLaw.useful_passes`.

    Parameters
    ----------
    theta
        ``NAMES``, on the first axis; A, B and G are at `REFERENCE`.
    parameters, unique, seen
        Weights P, unique spectra U, spectra seen S.
    """
    ln_e, ln_a, a, ln_b, b, ln_g, g, h, ln_l0, ln_k = jnp.asarray(theta)
    p, u, s = (
        jnp.log(jnp.asarray(number) / reference)
        for number, reference in zip(
            (parameters, jnp.minimum(unique, seen), seen), REFERENCE, strict=True
        )
    )
    terms = (ln_e, ln_a - a * p, ln_b - b * u, ln_g - g * s - h * p)
    k = jnp.exp(ln_k)
    return -jnp.logaddexp(-k * functools.reduce(jnp.logaddexp, terms), -k * ln_l0) / k


class Sample(NamedTuple):
    """What is fitted: weights, unique spectra, spectra seen and ln(MSE) of every run."""

    parameters: Float[Array, " run"]
    unique: Float[Array, " run"]
    seen: Float[Array, " run"]
    log_mse: Float[Array, " run"]


class Found(NamedTuple):
    """Where descents ended: the parameters, the loss, and what another step would gain."""

    theta: Float[Array, "fit 10"]
    loss: Float[Array, " fit"]
    gain: Float[Array, " fit"]


def fit_best(
    sample: Sample, weights: Float[ArrayLike, " run"]
) -> tuple[Float[np.ndarray, "10"], float]:
    """The best fit from a grid of starts, and the scatter of ln(MSE) about it.

    The sum (not the mean) of Huber's loss of ln(MSE) is minimised in float64. The irreducible
    error is kept where it lowers twice the loss by more than four variances of a run (two standard
    deviations), and is absent otherwise: errors of a thousandth of those measured would else depend
    on a number that nothing measured.

    Parameters
    ----------
    sample
        All runs.
    weights
        How often each counts; 0 leaves it out, and the shapes as they are.

    Raises
    ------
    InputError
        If the best descent has not converged, or fewer than three starts reach its loss.
    """
    weights = jnp.asarray(weights, float)
    starts = _starts(sample, np.asarray(weights) > 0)
    found = _descend(sample, jnp.broadcast_to(weights, (len(starts), len(weights))), starts, _STEPS)
    loss, floored = np.asarray(found.loss), np.asarray(starts[:, 0] > ABSENT)
    noise = scatter(sample, weights, found.theta[int(np.argmin(loss))])
    # Exact rows have no scatter: rounding is then what is left.
    variance = noise**2 + 1e-9
    needed = 2 * (loss[~floored].min() - loss[floored].min()) > 4 * variance
    group = np.flatnonzero(floored if needed else ~floored)
    best = group[np.argmin(loss[group])]
    agreeing = int(np.sum(loss[group] < loss[best] + _TOLERANCE * variance))
    if not found.gain[best] < _TOLERANCE * variance or agreeing < _AGREEING:
        raise InputError(
            f"law: the fit did not converge ({agreeing} of {len(group)} starts agree, another step "
            f"would gain {float(found.gain[best]) / variance:.2g} of a residual's variance); give "
            "runs of more sizes, unique spectra and budgets"
        )
    return np.asarray(found.theta[best]), noise


def fit_draws(
    sample: Sample,
    counts: Float[ArrayLike, "draw run"],
    theta: Float[ArrayLike, "10"],
    noise: float,
) -> Float[np.ndarray, "kept 10"]:
    """The fit of every draw of a bootstrap, from the fit of all runs on.

    Raises
    ------
    InputError
        If more than a tenth of the draws have not converged; fewer are left out.
    """
    counts = jnp.asarray(counts, float)
    # With an irreducible error, also where the fit has none: how large it may be is not known, and
    # beyond the ledger that widens the intervals. From none a descent would find none.
    start = np.array(theta, float)
    start[0] = max(start[0], float(sample.log_mse.min()) - _FLOORS[1])
    thetas = jnp.broadcast_to(jnp.asarray(start), (len(counts), len(NAMES)))
    converged = np.zeros(len(counts), bool)
    for _ in range(_ROUNDS):
        found = _descend(sample, counts, thetas, _REFITS)
        thetas, converged = found.theta, np.asarray(found.gain < _TOLERANCE * (noise**2 + 1e-9))
        if converged.all():
            break
    if converged.mean() < 0.9:
        raise InputError(
            f"law: {int((~converged).sum())} of {len(converged)} bootstrap fits did not converge; "
            "give runs of more sizes, unique spectra and budgets"
        )
    return np.asarray(thetas)[converged]


def held_out_scatter(
    sample: Sample,
    weights: Float[ArrayLike, " run"],
    theta: Float[ArrayLike, "10"],
    draws: Float[ArrayLike, "draw 10"],
    noise: float,
) -> float:
    """Scatter of ln(MSE) that makes intervals hold 68% of the runs of sizes left out of the fit.

    No law of few terms is exact: about the fit itself a run scatters less than where the law has
    to be trusted beyond what it was fitted to. What the draws say is not counted again. Runs of
    one size that see as many spectra deviate together, whatever their spectra and seeds: all of
    them count as one.

    Parameters
    ----------
    theta, draws, noise
        The fit to all runs, from which the others start; those of a bootstrap; and the scatter
        about the fit, which is the least.
    """
    kept = np.asarray(weights, float) > 0
    size = np.asarray(sample.parameters)
    out = size == np.unique(size)[:, None]
    thetas = jnp.broadcast_to(jnp.asarray(theta), (len(out), len(NAMES)))
    found = _descend(sample, jnp.asarray(weights) * ~out, thetas, _REFITS)
    predicted = np.asarray(log_mse(found.theta.T[:, :, None], *sample[:3]))
    residual = (predicted - np.asarray(sample.log_mse)).T[out.T & kept[:, None]]
    laws = np.asarray(log_mse(jnp.asarray(draws).T[:, :, None], *sample[:3]))
    spread = np.std(laws, axis=0)[kept]
    alike = np.stack([size, np.asarray(sample.seen)])[:, kept]
    _, cell, members = np.unique(alike, axis=1, return_inverse=True, return_counts=True)
    share = 1 / members[np.ravel(cell)]

    def lacking(scatter: float) -> float:
        inside = np.abs(residual) < np.hypot(spread, scatter)
        return 0.6827 - float(np.average(inside, weights=share))

    low, high = noise, float(np.abs(residual).max()) + noise
    if lacking(low) <= 0:
        return noise
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if lacking(middle) > 0 else (low, middle)
    return high


def scatter(sample: Sample, weights: ArrayLike, theta: ArrayLike) -> float:
    """Deviation of ln(MSE) of one run about the law: 68% of the residuals are within it."""
    kept = np.asarray(weights) > 0
    residual = np.asarray(log_mse(jnp.asarray(theta), *sample[:3]) - sample.log_mse)[kept]
    free = max(len(residual) - len(NAMES), 1)
    return float(np.percentile(np.abs(residual), 68.27) * np.sqrt(len(residual) / free))


def _starts(sample: Sample, kept: np.ndarray) -> Float[Array, "start 10"]:
    """All terms a third of the typical error, over slow and fast falls."""
    y = np.asarray(sample.log_mse)[kept]
    middle = [np.median(np.log(np.asarray(x)[kept])) for x in sample[:3]]
    size, unique, seen = (m - np.log(r) for m, r in zip(middle, REFERENCE, strict=True))
    third = np.median(y) - np.log(3)
    # Where nothing is repeated, unique spectra and spectra seen are the same.
    repeats = np.any((np.asarray(sample.unique) < np.asarray(sample.seen))[kept])
    known = min(unique, seen + np.log(REFERENCE[2] / REFERENCE[1]))
    starts = [
        (
            max(y.min() - floor, ABSENT),
            third + a * size,
            a,
            third + b * known if repeats else ABSENT,
            b,
            third + g * seen + 0.4 * size,
            g,
            0.4,
            y.max() + 1.0,
            0.0,
        )
        for floor in _FLOORS
        for a in (0.7, 1.5)
        for b in (0.7, 1.5)
        for g in (0.7, 1.5)
    ]
    return jnp.asarray(starts)


def _loss(theta: Array, sample: Sample, weights: Array) -> Array:
    size = jnp.abs(log_mse(theta, *sample[:3]) - sample.log_mse)
    inside = jnp.minimum(size, _HUBER)
    return jnp.sum(weights * inside * (size - 0.5 * inside))


def _normal_equations(theta: Array, sample: Sample, weights: Array) -> tuple[Array, Array]:
    """Gradient of the loss and its curvature without the law's own (Gauss-Newton)."""

    def residual(theta):
        return log_mse(theta, *sample[:3]) - sample.log_mse

    value, jacobian = residual(theta), jax.jacfwd(residual)(theta)
    weighted = weights * jnp.minimum(1.0, _HUBER / jnp.maximum(jnp.abs(value), 1e-300))
    gradient, curvature = jacobian.T @ (weighted * value), (jacobian.T * weighted) @ jacobian
    # A parameter at an end of its range, and pushed beyond, is held there; so is an absent term.
    held = ((theta <= _LOWER) & (gradient > 0)) | ((theta >= _UPPER) & (gradient < 0))
    held = held | (theta <= ABSENT)
    curvature = jnp.where(held[:, None] | held[None, :], 0.0, curvature)
    return jnp.where(held, 0.0, gradient), curvature


def _step(gradient: Array, curvature: Array, damping: Array | float) -> Array:
    # The constant keeps a direction without any curvature, such as that of an absent term, still.
    ridge = damping * jnp.diagonal(curvature) + 1e-9
    return -jnp.linalg.solve(curvature + jnp.diag(ridge), gradient)


@functools.partial(jax.jit, static_argnames="steps")
def _descend(sample: Sample, weights: Array, starts: Array, steps: int) -> Found:
    """Levenberg-Marquardt from every start, each with its own weights of the runs."""

    def gain(theta, weights):
        gradient, curvature = _normal_equations(theta, sample, weights)
        return -0.5 * gradient @ _step(gradient, curvature, 0.0)

    def advance(theta, loss, damping, weights):
        gradient, curvature = _normal_equations(theta, sample, weights)
        # No further than a factor e^2 in one step: far from the optimum the parabola misleads.
        step = jnp.clip(_step(gradient, curvature, damping), -2.0, 2.0)
        trial = jnp.clip(theta + step, _LOWER, _UPPER)
        trial_loss = _loss(trial, sample, weights)
        better = trial_loss < loss
        return (
            jnp.where(better, trial, theta),
            jnp.where(better, trial_loss, loss),
            jnp.clip(jnp.where(better, 0.2 * damping, 5.0 * damping), 1e-9, 1e9),
        )

    def body(_, state):
        theta, loss, damping = state
        return jax.vmap(advance)(theta, loss, damping, weights)

    losses = jax.vmap(_loss, (0, None, 0))(starts, sample, weights)
    state = (starts, losses, jnp.full(len(starts), 1e-2))
    theta, loss, _ = jax.lax.fori_loop(0, steps, body, state)
    return Found(theta, loss, jax.vmap(gain)(theta, weights))
