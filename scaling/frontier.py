"""Limits, compute frontier and IsoFLOP parabolas of a ledger, and the exponents they give.

What the paper does (after Kaplan et al. 2020): no law is assumed but that of each line. A minimum
is chosen on the validation error and quoted on the test error, so that luck is not quoted.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .law import Interval, ScalingLaw
from .law_fit import log_mse
from .runs import Runs, draw_trunks, read_runs
from .sizes import Recipe, flops_at

# Budgets no further apart than this are one.
_SAME_BUDGET = 1.15
# Sizes at one budget through which a parabola is more than an interpolation.
_MIN_PARABOLA = 4
_GRID = np.linspace(np.log(1e3), np.log(1e12), 500)

# What the paper reports (arXiv:2503.18617, figures 1 and 2); its D is that of the third entry.
PAPER = {
    ("L(P)", "limit", "best of all"): -1.21,
    ("L(D)", "limit", "unique"): -1.34,
    ("L(C)", "frontier", "all runs"): -0.76,
    ("L(C)", "frontier", "one epoch"): -0.87,
    ("P_opt(C)", "frontier", "all runs"): 0.61,
    ("D_opt(C)", "frontier", "seen"): 0.38,
}


class Exponent(NamedTuple):
    """The power of one line in a log-log picture.

    Parameters
    ----------
    quantity
        ``L(P)``, ``L(D)``, ``L(C)``, ``P_opt(C)`` or ``D_opt(C)``.
    method
        ``limit``, ``frontier``, ``isoflop`` or ``law``.
    data
        Which D, or which runs: ``seen``, ``unique``, ``all runs``, ``one epoch``, ``best of all``;
        ``term`` of the joint law.
    power
        With the intervals of a bootstrap of trunks; not a number where the ledger does not give it.
    points
        Through which the line goes; 0 for the joint law.
    paper
        The same in the paper, if it is there.
    """

    quantity: str
    method: str
    data: str
    power: Interval
    points: int
    paper: float | None

    def to_dict(self) -> dict[str, Any]:
        """Flat: the power's value and ends beside the rest."""
        values = self._asdict()
        return {**values.pop("power")._asdict(), **values}


class Optima(NamedTuple):
    """Best networks at some budgets: FLOPs, weights, spectra seen and test MSE of each."""

    flops: Float[np.ndarray, "*shape"]
    parameters: Float[np.ndarray, "*shape"]
    seen: Float[np.ndarray, "*shape"]
    mse: Float[np.ndarray, "*shape"]


def size_limit(runs: Runs) -> Int[np.ndarray, " size"]:
    """The best run of every size, whatever its data and training, by rising size."""
    return _best(runs, runs.parameters)


def data_limit(runs: Runs) -> Int[np.ndarray, " data"]:
    """The best run of every set of unique spectra, whatever its size and training.

    Where no run has seen all of its spectra, they are not what limits it, and it is left out. So is
    a number that runs of one size alone have: it is what a stream had made when the run ended.
    """
    found = []
    for run in _best(runs, runs.unique):
        same = runs.unique == runs.unique[run]
        repeated = (runs.seen[same] > runs.unique[run]).any()
        if repeated and len(np.unique(runs.parameters[same])) > 1:
            found.append(run)
    return np.array(found, np.int64)


def frontier(runs: Runs) -> Int[np.ndarray, " run"]:
    """The best run of every budget that is better than those of all smaller ones.

    Budgets within 15% are one: else a run would be on the frontier for costing a step less.
    """
    found, lowest = [], math.inf
    for budget in _budgets(runs):
        best = budget[np.argmin(runs.validation[budget])]
        if runs.validation[best] < lowest:
            found.append(best)
            lowest = runs.validation[best]
    return np.array(found, np.int64)


def isoflop(runs: Runs) -> Optima:
    """Vertices of the parabolas in ln(weights) through ln(test MSE) of the sizes of one budget.

    Budgets within 15% are one. At each, the best run of every size counts; a parabola needs four
    sizes, a curvature upwards and a vertex between the smallest and the largest.
    """
    vertices = [_vertex(runs.select(budget)) for budget in _budgets(runs)]
    found = [vertex for vertex in vertices if vertex is not None]
    return Optima(*np.array(found, float).reshape(-1, 4).T)


def law_frontier(
    theta: Float[np.ndarray, "law 10"], recipe: Recipe, flops: Float[np.ndarray, " budget"]
) -> Optima:
    """What laws say is best at some budgets, if no spectrum comes twice; ``[law, budget]`` each.

    Minimised over the number of weights along constant FLOPs.
    """
    cost = flops_at(np.exp(_GRID), recipe)
    seen = flops[:, None] / cost[None, :]
    laws = theta.T[:, :, None, None]
    log_l = np.asarray(log_mse(laws, np.exp(_GRID)[None, None, :], seen[None], seen[None]))
    best = np.clip(np.argmin(log_l, axis=-1), 1, len(_GRID) - 2)[..., None]
    left, middle, right = (np.take_along_axis(log_l, best + k, -1)[..., 0] for k in (-1, 0, 1))
    bend = np.maximum(left - 2 * middle + right, 1e-300)
    shift = np.clip(0.5 * (left - right) / bend, -1.0, 1.0)
    parameters = np.exp(_GRID[best[..., 0]] + shift * (_GRID[1] - _GRID[0]))
    seen = flops[None, :] / flops_at(parameters, recipe)
    mse = np.exp(np.asarray(log_mse(theta.T[:, :, None], parameters, seen, seen)))
    return Optima(np.broadcast_to(flops, parameters.shape), parameters, seen, mse)


def measure_exponents(
    rows: Sequence[dict[str, Any]],
    law: ScalingLaw | None = None,
    *,
    seed: int = 0,
    draws: int = 500,
) -> list[Exponent]:
    """Every exponent that the ledger gives, beside the paper's.

    Parameters
    ----------
    rows
        Of a ledger.
    law
        Fitted to the same rows, for the exponents of the joint law; its bootstrap is its own.
    seed, draws
        Of the bootstrap of trunks.

    Raises
    ------
    InputError
        If the ledger has no rows, or not the columns.
    """
    runs = read_runs(rows)
    lines = _lines(runs)
    counts = draw_trunks(runs.trunk, draws, seed)
    number = np.arange(len(runs.seen))
    drawn = [_lines(runs.select(np.repeat(number, count))) for count in counts]
    found = []
    for key, (x, y) in lines.items():
        powers = np.array([_power(*draw[key]) for draw in drawn])
        powers = powers[np.isfinite(powers)]
        value = _power(x, y)
        # Where most draws have no such line, what the others say is no interval of it.
        known = math.isfinite(value) and len(powers) > 0.5 * draws
        power = Interval.of(value, powers) if known else Interval(value, *[math.nan] * 4)
        found.append(Exponent(*key, power, len(x), PAPER.get(key)))
    return found if law is None else found + _law_exponents(law)


def _lines(runs: Runs) -> dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]:
    """Abscissa and ordinate of every line."""
    sizes, data = runs.select(size_limit(runs)), runs.select(data_limit(runs))
    ours, iso = runs.select(frontier(runs)), isoflop(runs)
    once = runs.select(runs.one_epoch)
    once = once.select(frontier(once))
    return {
        ("L(P)", "limit", "best of all"): (sizes.parameters, sizes.test),
        ("L(D)", "limit", "unique"): (data.unique, data.test),
        ("L(C)", "frontier", "all runs"): (ours.flops, ours.test),
        ("L(C)", "frontier", "one epoch"): (once.flops, once.test),
        ("L(C)", "isoflop", "all runs"): (iso.flops, iso.mse),
        ("P_opt(C)", "frontier", "all runs"): (ours.flops, ours.parameters),
        ("P_opt(C)", "frontier", "one epoch"): (once.flops, once.parameters),
        ("P_opt(C)", "isoflop", "all runs"): (iso.flops, iso.parameters),
        ("D_opt(C)", "frontier", "seen"): (ours.flops, ours.seen),
        ("D_opt(C)", "frontier", "unique"): (ours.flops, np.minimum(ours.unique, ours.seen)),
        ("D_opt(C)", "frontier", "one epoch"): (once.flops, once.seen),
        ("D_opt(C)", "isoflop", "seen"): (iso.flops, iso.seen),
    }


def _law_exponents(law: ScalingLaw) -> list[Exponent]:
    """Those of the terms, and those of the best networks over the budgets of the ledger."""
    flops = np.geomspace(*law.ranges["flops"], 9)
    optima = law_frontier(np.vstack([law.theta, law.draws]), law.recipe, flops)
    terms = law.exponents
    found = [
        Exponent("L(P)", "law", "term", _minus(terms["parameters"]), 0, -1.21),
        Exponent("L(D)", "law", "seen", _minus(terms["spectra_seen"]), 0, None),
    ]
    if "unique_spectra" in terms:
        found.append(Exponent("L(D)", "law", "unique", _minus(terms["unique_spectra"]), 0, -1.34))
    x = np.log(flops) - np.log(flops).mean()
    lines = (
        ("L(C)", "one epoch", optima.mse, -0.87),
        ("P_opt(C)", "one epoch", optima.parameters, 0.61),
        ("D_opt(C)", "seen", optima.seen, 0.38),
    )
    for quantity, data, values, paper in lines:
        powers = np.log(values) @ x / (x @ x)
        found.append(Exponent(quantity, "law", data, Interval.of(powers[0], powers[1:]), 0, paper))
    return found


def _budgets(runs: Runs) -> list[Int[np.ndarray, " run"]]:
    """The runs of every budget, by rising budget."""
    order = np.argsort(runs.flops, kind="stable")
    groups: list[list[int]] = []
    for run in order:
        if not groups or runs.flops[run] > _SAME_BUDGET * runs.flops[groups[-1][0]]:
            groups.append([])
        groups[-1].append(run)
    return [np.array(group) for group in groups]


def _minus(interval: Interval) -> Interval:
    value, low68, high68, low95, high95 = (-end for end in interval)
    return Interval(value, high68, low68, high95, low95)


def _best(runs: Runs, group: np.ndarray) -> Int[np.ndarray, " group"]:
    """The run of lowest validation error of every group, by rising group."""
    order = np.lexsort((runs.validation, group))
    return order[np.unique(group[order], return_index=True)[1]]


def _power(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of the straight line in the logarithms; not a number for fewer than two points."""
    if len(x) < 2 or x.min() == x.max():
        return math.nan
    x, y = np.log(x), np.log(y)
    return float((x - x.mean()) @ y / np.sum((x - x.mean()) ** 2))


def _vertex(runs: Runs) -> tuple[float, float, float, float] | None:
    runs = runs.select(size_limit(runs))
    if len(runs.seen) < _MIN_PARABOLA:
        return None
    x = np.log(runs.parameters)
    middle = x.mean()
    bend, slope, level = np.polyfit(x - middle, np.log(runs.test), 2)
    if bend <= 0:
        return None
    best = -0.5 * slope / bend
    if not x[0] <= middle + best <= x[-1]:
        return None
    log_seen = np.interp(middle + best, x, np.log(runs.seen))
    mse = math.exp(level + 0.5 * slope * best)
    flops = math.exp(np.log(runs.flops).mean())
    return flops, math.exp(middle + best), math.exp(log_seen), mse
