"""An emulator's error, corrected by what fits of synthesised stars showed."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize_scalar
from scipy.special import digamma, polygamma
from scipy.stats import t as student

from emulators.emulator import Emulator
from emulators.errors import InputError

from .calibration import Calibration, identity

# Degrees of freedom that are looked at, in ln: from tails of which a variance is hardly known to
# some that nobody tells from a Gaussian's; and factors on the errors.
_DEGREES = (np.log(2.5), np.log(200.0))
_FACTORS = (np.log(0.3), np.log(30.0))
_FEWEST = 100  # stars, below which a tail cannot be seen


def recalibrate(emulator: Any, found: Calibration) -> Any:
    """The emulator with the error of each label as fits of synthesised stars showed it.

    The error model is measured to first order in the labels. Where a label changes a spectrum by
    no more than the emulator errs (oxygen, by the molecules that it takes carbon from), the error
    at one value of it is not that at another, and fits go further astray than first order says.

    So the truths of `found` are taken for draws from Student's t distributions about the posterior
    means, cut off at the label box: each label has a factor on its sigma, all have the same
    degrees of freedom, and both are those of the maximum likelihood. The factors multiply
    `CoherentError.stretch`, the square of their median the `share_beyond` first order; the tails,
    as a scatter of ln(variance) from star to star, join that of the coherent part's amplitude.
    Test the result on other stars.

    Parameters
    ----------
    emulator : Emulator
    found
        Of this emulator with this error model, by ``noise="law"`` or ``"validation"``, at an S/N
        so high that its own error is all that counts.

    Raises
    ------
    InputError
        A calibration of another emulator, of this one with another error model, of fits that do
        not use it, or of fewer than 100 stars whose chains moved.
    """
    space = emulator.label_space
    if found.emulator != identity(emulator):
        raise InputError(
            f"calibrate: the calibration is of {found.emulator}, not of {identity(emulator)}: "
            "another emulator, or this one with another error model"
        )
    if found.noise not in ("law", "validation"):
        raise InputError(
            f"calibrate: fits with noise {found.noise!r} do not use the emulator's error model; "
            "give those of 'law' or 'validation'"
        )
    moved = ~found.stuck
    if moved.sum() < _FEWEST:
        raise InputError(
            f"calibrate: {moved.sum()} stars tell no tails; give {_FEWEST} or more to recalibrate"
        )
    mean, sigma, truth = (
        array[moved, : len(space)] for array in (found.mean, found.sigma, found.truth)
    )
    box = np.asarray(space.lower), np.asarray(space.upper)
    factor, degrees = fit_student(mean, sigma, truth, box)
    errors = emulator.error_model
    # ln of a t distribution's variance, star by star: its mean and its own variance.
    shift = np.log(degrees / 2) - digamma(degrees / 2)
    wider = float(polygamma(1, degrees / 2))
    # The amplitude's ln is taken to lie half its variance below zero (`mix`), so that its mean is
    # one; the t distribution's is not.
    stretch = errors.coherent.stretch * factor * np.exp(0.5 * (shift + 0.5 * wider))
    scatter = jnp.hypot(errors.coherent.amplitude.scatter, jnp.sqrt(wider))
    # What a typical label errs more than first order says, it errs beyond first order.
    beyond = errors.coherent.share_beyond * np.median(factor) ** 2
    errors = eqx.tree_at(
        lambda model: (
            model.coherent.stretch,
            model.coherent.amplitude.scatter,
            model.coherent.share_beyond,
        ),
        errors,
        (stretch, scatter, beyond),
    )
    record = emulator.record
    record["error_model"] = record.get("error_model", {}) | {
        "recalibrated_by": {
            "stars": int(moved.sum()),
            "snr": sorted(set(found.snr.tolist())),
            "factor": dict(zip(space.names, np.round(factor, 3).tolist(), strict=True)),
            "degrees_of_freedom": round(degrees, 2),
        }
    }
    return Emulator(
        emulator.model, emulator.wavelength_range, emulator.step, errors, record, emulator.name
    )


def fit_student(
    mean: Float64[np.ndarray, "star label"],
    sigma: Float64[np.ndarray, "star label"],
    truth: Float64[np.ndarray, "star label"],
    box: tuple[Float64[np.ndarray, " label"], Float64[np.ndarray, " label"]],
) -> tuple[Float64[np.ndarray, " label"], float]:
    """Factor on each label's sigma, and the degrees of freedom common to all.

    Parameters
    ----------
    mean, sigma
        Of the posteriors.
    truth
        Drawn uniformly from the box.
    box
        Its lower and upper edges.
    """

    def best(log_degrees):
        parts = zip(mean.T, sigma.T, truth.T, *box, strict=True)
        found = [_best_factor(np.exp(log_degrees), *part) for part in parts]
        return sum(cost for _, cost in found), np.array([factor for factor, _ in found])

    result: Any = minimize_scalar(lambda x: best(x)[0], bounds=_DEGREES, method="bounded")
    return best(result.x)[1], float(np.exp(result.x))


def _best_factor(degrees, mean, sigma, truth, low, high):
    """Factor on sigma of the maximum likelihood, and minus its logarithm."""

    def cost(log_factor):
        scale = np.exp(log_factor) * sigma
        ends = (student.cdf((end - mean) / scale, degrees) for end in (low, high))
        below, above = ends
        inside = np.maximum(above - below, np.finfo(float).tiny)
        density = student.logpdf((truth - mean) / scale, degrees) - np.log(scale)
        return -np.sum(density - np.log(inside))

    result: Any = minimize_scalar(cost, bounds=_FACTORS, method="bounded")
    return np.exp(result.x), result.fun
