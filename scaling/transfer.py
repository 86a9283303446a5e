"""Does the best learning rate stay where it is when the network grows?

Pure functions of the rows of learning-rate sweeps: dictionaries with ``parametrization`` (the name
of its class), ``width``, ``learning_rate``, ``seed`` and ``mse_validation``.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from emulators.errors import InputError

_DRAWS = 1000
# Percentiles of the central 68%: the interval that a Gaussian's standard error would give.
_INTERVAL = (15.865, 84.135)


class Optimum(NamedTuple):
    """The best learning rate of one width under one parametrization.

    Parameters
    ----------
    parametrization, width
        Of the networks.
    learning_rate, lower, upper
        The optimum, and the central 68% of the optima of seeds drawn with replacement.
    mse
        Geometric mean over seeds of the validation error at the best rate that was run.
    seeds
        How many.
    bracketed
        False where the lowest error lies at the end of the sweep: the optimum may be beyond it.
    """

    parametrization: str
    width: int
    learning_rate: float
    lower: float
    upper: float
    mse: float
    seeds: int
    bracketed: bool


class Shift(NamedTuple):
    """How far the optimum moves from the smallest to the largest width, in factors of two.

    Positive where the wide network wants the higher rate; `lower` and `upper` as in `Optimum`.
    """

    parametrization: str
    widths: tuple[int, int]
    octaves: float
    lower: float
    upper: float


class Sweep(NamedTuple):
    """ln(validation MSE) of one width and parametrization, [rate, seed]; inf where it diverged."""

    rates: Float[np.ndarray, " rate"]
    log_mse: Float[np.ndarray, "rate seed"]


def sweeps(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], Sweep]:
    """Rows sorted by parametrization and width; every rate must have run with every seed."""
    cells: dict[tuple[str, int], dict[tuple[float, int], float]] = {}
    for row in rows:
        cell = cells.setdefault((row["parametrization"], row["width"]), {})
        # A ledger writes null where a run diverged.
        mse = math.inf if row["mse_validation"] is None else float(row["mse_validation"])
        cell[row["learning_rate"], row["seed"]] = math.log(mse) if math.isfinite(mse) else math.inf
    return {key: _sweep(key, cell) for key, cell in sorted(cells.items())}


def find_optima(rows: Sequence[dict[str, Any]]) -> list[Optimum]:
    """The best learning rate of every width and parametrization.

    It is the vertex of the parabola in ln(rate) through the lowest mean of ln(MSE) and its two
    neighbours; the interval repeats this with seeds drawn with replacement (1,000 times; the same
    seeds at every rate, because networks of one seed share their weights and their stars).
    """
    found = []
    for (name, width), sweep in sweeps(rows).items():
        mean = sweep.log_mse.mean(axis=1)
        best = int(np.argmin(mean))
        low, high = np.percentile(_bootstrap(sweep), _INTERVAL)
        found.append(
            Optimum(
                name,
                width,
                math.exp(_vertex(np.log(sweep.rates), mean)),
                math.exp(low),
                math.exp(high),
                math.exp(mean[best]),
                sweep.log_mse.shape[1],
                0 < best < len(mean) - 1,
            )
        )
    return found


def find_shifts(rows: Sequence[dict[str, Any]]) -> list[Shift]:
    """How far the optimum moves from the smallest to the largest width of each parametrization."""
    every = sweeps(rows)
    found = []
    for name in sorted({name for name, _ in every}):
        widths = sorted(width for other, width in every if other == name)
        if len(widths) < 2:
            raise InputError(f"transfer: {name} ran at width {widths[0]} only; give two or more")
        small, large = every[name, widths[0]], every[name, widths[-1]]
        ends = [_vertex(np.log(s.rates), s.log_mse.mean(axis=1)) for s in (small, large)]
        # Each width draws its own seeds: their networks have nothing in common.
        draws = _bootstrap(large, stream=1) - _bootstrap(small)
        low, high = np.percentile(draws, _INTERVAL) / math.log(2)
        octaves = (ends[1] - ends[0]) / math.log(2)
        found.append(Shift(name, (widths[0], widths[-1]), octaves, float(low), float(high)))
    return found


def _sweep(key: tuple[str, int], cell: dict[tuple[float, int], float]) -> Sweep:
    rates, seeds = (sorted(set(values)) for values in zip(*cell, strict=True))
    name, width = key
    if len(rates) < 3:
        raise InputError(
            f"transfer: {name} at width {width} ran at {len(rates)} rates; give three or more"
        )
    missing = [(rate, seed) for rate in rates for seed in seeds if (rate, seed) not in cell]
    if missing:
        rate, seed = missing[0]
        raise InputError(
            f"transfer: {name} at width {width} has no run at rate {rate:g} with seed {seed}; "
            "every rate needs the same seeds"
        )
    values = np.array([[cell[rate, seed] for seed in seeds] for rate in rates])
    if not np.isfinite(values).all(axis=1).any():
        raise InputError(f"transfer: {name} at width {width} diverged at every rate")
    return Sweep(np.array(rates), values)


def _bootstrap(sweep: Sweep, stream: int = 0) -> Float[np.ndarray, " draw"]:
    """ln of the best rate for seeds drawn with replacement, always the same draws."""
    number = sweep.log_mse.shape[1]
    drawn = np.random.default_rng((0, stream)).integers(number, size=(_DRAWS, number))
    log_rates = np.log(sweep.rates)
    return np.array([_vertex(log_rates, sweep.log_mse[:, seeds].mean(axis=1)) for seeds in drawn])


def _vertex(x: Float[np.ndarray, " rate"], y: Float[np.ndarray, " rate"]) -> float:
    """Minimum of the parabola through the lowest point and its neighbours, between these.

    The lowest point itself where it is at an end, or beside a rate that diverged.
    """
    best = int(np.argmin(y))
    around = slice(best - 1, best + 2)
    if not 0 < best < len(y) - 1 or not np.isfinite(y[around]).all():
        return float(x[best])
    left, right = x[best - 1] - x[best], x[best + 1] - x[best]
    rise_left, rise_right = y[best - 1] - y[best], y[best + 1] - y[best]
    bend = right * rise_left - left * rise_right
    if bend <= 0:  # three equal values
        return float(x[best])
    return float(x[best] + 0.5 * (right**2 * rise_left - left**2 * rise_right) / bend)
