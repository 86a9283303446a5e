"""An emulator's error, corrected by what fits of synthesised stars showed."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float64
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from emulators.emulator import Emulator
from emulators.errors import InputError

from .calibration import Calibration, identity

_FACTORS = (np.log(0.3), np.log(30.0))  # on the errors, that are looked at
# A posterior that comes this near, in its sigma, to an edge of the box is not a Gaussian. One that
# fills the box is right whatever the emulator's error, so it tells no factor.
_ROOM = 2.0
_FEWEST = 20  # posteriors that tell a factor


def recalibrate(emulator: Any, found: Calibration) -> Any:
    """The emulator with the error of each label as fits of synthesised stars showed it.

    The error model is measured to first order in the labels, and by its mean beyond. Where a label
    changes a spectrum by no more than the emulator errs (oxygen, by the molecules that it takes
    carbon from), fits go further astray than that says.

    So the truths of `found` are taken for draws from Gaussians about the posterior means, cut off
    at the label box, with a factor on the sigma of each label: that of the maximum likelihood, of
    the stars whose posterior has room in the box; 1 where there are fewer than 20. The factors
    multiply `CoherentError.widening`, the square of their median `share_beyond`. Test the result
    on other stars.

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
        not use it.
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
    mean, sigma, truth = (
        array[moved, : len(space)] for array in (found.mean, found.sigma, found.truth)
    )
    box = np.asarray(space.lower), np.asarray(space.upper)
    factor = find_factors(mean, sigma, truth, box)
    coherent = emulator.error_model.coherent
    # What a typical label errs more than the model says, it errs beyond first order.
    errors = eqx.tree_at(
        lambda model: (model.coherent.widening, model.coherent.share_beyond),
        emulator.error_model,
        (coherent.widening * factor, coherent.share_beyond * np.median(factor) ** 2),
    )
    record = emulator.record
    record["error_model"] = record.get("error_model", {}) | {
        "recalibrated_by": {
            "stars": int(moved.sum()),
            "snr": sorted(set(found.snr.tolist())),
            "factor": dict(zip(space.names, np.round(factor, 3).tolist(), strict=True)),
        }
    }
    return Emulator(
        emulator.model, emulator.wavelength_range, emulator.step, errors, record, emulator.name
    )


def find_factors(
    mean: Float64[np.ndarray, "star label"],
    sigma: Float64[np.ndarray, "star label"],
    truth: Float64[np.ndarray, "star label"],
    box: tuple[Float64[np.ndarray, " label"], Float64[np.ndarray, " label"]],
) -> Float64[np.ndarray, " label"]:
    """Factor on each label's sigma, by the maximum likelihood of the truths.

    Parameters
    ----------
    mean, sigma
        Of the posteriors.
    truth
        Drawn uniformly from the box.
    box
        Its lower and upper edges.
    """
    parts = zip(mean.T, sigma.T, truth.T, *box, strict=True)
    return np.array([_best_factor(*part) for part in parts])


def _best_factor(mean, sigma, truth, low, high):
    told = np.minimum(mean - low, high - mean) > _ROOM * sigma
    if told.sum() < _FEWEST:
        return 1.0
    mean, sigma, truth = mean[told], sigma[told], truth[told]

    def cost(log_factor):
        scale = np.exp(log_factor) * sigma
        below, above = ((end - mean) / scale for end in (low, high))
        inside = np.maximum(norm.cdf(above) - norm.cdf(below), np.finfo(float).tiny)
        return -np.sum(norm.logpdf((truth - mean) / scale) - np.log(scale * inside))

    result: Any = minimize_scalar(cost, bounds=_FACTORS, method="bounded")
    return np.exp(result.x)
