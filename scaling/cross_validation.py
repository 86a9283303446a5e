"""How well a law predicts the runs that it was not fitted to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from .law import Interval, check_enough, draw_runs, fit_runs
from .law_fit import log_mse
from .runs import Runs, decade, read_runs


class CrossValidation(NamedTuple):
    """Every run predicted by a law that was fitted without its size, or its decade of FLOPs.

    Parameters
    ----------
    held
        What was left out of the fit: ``parameters`` or ``flops``.
    group
        The number of weights, or the power of ten of the FLOPs, of every run.
    measured, predicted
        Test MSE.
    inside68
        Whether the measured one is in the predicted central 68%.
    """

    held: str
    group: Float[np.ndarray, " run"]
    measured: Float[np.ndarray, " run"]
    predicted: Float[np.ndarray, " run"]
    inside68: Bool[np.ndarray, " run"]

    @property
    def median_factor(self) -> float:
        """Half of the runs are predicted within this factor, up or down."""
        return float(np.exp(np.median(np.abs(np.log(self.predicted / self.measured)))))

    @property
    def coverage68(self) -> float:
        """Share of the runs inside of the 68% interval."""
        return float(self.inside68.mean())

    def to_dict(self) -> dict[str, float]:
        """The two, for JSON."""
        return {"median_factor": self.median_factor, "coverage68": self.coverage68}


def cross_validate(
    rows: Sequence[dict[str, Any]], *, seed: int = 0, draws: int = 200
) -> dict[str, CrossValidation]:
    """Leave out one size at a time, and one decade of FLOPs at a time.

    Parameters
    ----------
    rows
        Of a ledger.
    seed, draws
        Of the bootstrap of every fit.

    Returns
    -------
    ``size`` and ``decade``.

    Raises
    ------
    InputError
        As `ScalingLaw.fit`, for the whole ledger and for what is left of it.
    """
    runs = read_runs(rows)
    check_enough(runs)
    groups = {
        "size": ("parameters", runs.parameters),
        "decade": ("flops", decade(runs.flops)),
    }
    return {
        name: _hold_out(runs, held, group, seed, draws) for name, (held, group) in groups.items()
    }


def _hold_out(
    runs: Runs, held: str, group: Float[np.ndarray, " run"], seed: int, draws: int
) -> CrossValidation:
    predicted, inside = np.empty(len(group)), np.empty(len(group), bool)
    asked = (runs.parameters, runs.unique, runs.seen)
    for value in np.unique(group):
        out = group == value
        check_enough(runs.select(~out))
        theta, refits, noise = fit_runs(runs, (~out).astype(float), seed, draws)
        # Predicted for all runs, held out or not: shapes stay, and nothing is compiled again.
        spread = Interval.of(np.exp(log_mse(theta, *asked)), draw_runs(refits, noise, *asked))
        predicted[out] = spread.value[out]
        inside[out] = ((spread.low68 <= runs.test) & (runs.test <= spread.high68))[out]
    return CrossValidation(held, group, runs.test, predicted, inside)
