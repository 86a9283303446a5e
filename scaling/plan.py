"""What to train: from a target error, a budget or GPU hours to a size, spectra and steps."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float

from emulators.errors import InputError

from .law import Interval, ScalingLaw
from .law_fit import log_mse
from .sizes import Ladder, make_ladder

# Sustained TFLOP/s of training in 16 bits by width, by the count of operations that the law uses:
# what runs of the shipped ledgers, steps of 64 stars and 1,024 pixels, had on an H200. Wider
# networks are taken to be no faster than the widest that was measured.
_WIDTHS = (32, 64, 96, 128, 160, 224, 256)
_TFLOPS = (15.0, 52.0, 72.0, 131.0, 131.0, 181.0, 240.0)
# Published dense bfloat16 peaks over the H200's: 989 TFLOP/s for both Hopper cards, 312 for the
# A100.
GPUS = {"h200": 1.0, "h100": 989 / 989, "a100": 312 / 989}

# The paper's answer for an error of 1e-8 (arXiv:2503.18617, section 5); its spectra are those seen.
PAPER_TARGET = 1e-8
PAPER_PLAN = {"flops": 1e21, "parameters": 1.5e9, "spectra": 3.56e6, "gpu_days": 150.0}

# Share of the training spent on seeing spectra again instead of making more of them. Some passes
# are nearly free: with a tenth more training far fewer distinct spectra do.
_REPEATING = 1.1
_MOST_SEEN = 1e18
_BISECTIONS = 60
_FAR = 1.0  # decades


class _Choice(NamedTuple):
    """Best runs by several laws, one element each; infinite where a law allows none."""

    size: np.ndarray
    seen: Float[np.ndarray, " law"]
    unique: Float[np.ndarray, " law"]
    flops: Float[np.ndarray, " law"]


@final
@dataclass(frozen=True)
class Plan:
    """One training run that a law recommends.

    Every interval is that of the same plan made by each law of the bootstrap, except that of the
    predicted error, which is for this very run and holds the scatter from run to run.

    Parameters
    ----------
    width, depth, parameters
        Size of the network; a rung of `scaling.sizes.make_ladder`.
    unique_spectra, spectra_seen
        Distinct spectra to synthesise, and how many are seen: ten percent more than if none came
        twice, which makes do with far fewer distinct ones.
    batch_size, learning_rate
        Those of the law's ledger; muP carries the rate from its base width to this one.
    steps
        Optimizer steps.
    flops, gpu_hours
        Cost of the run alone: trunk and cool-down, no search.
    gpu, tflops
        The GPU, and the rate that it is taken to sustain at this width.
    mse
        Predicted test error of this run.
    unreachable
        Share of the bootstrap in which the target is below what the law can reach.
    warnings
        What not to trust.
    """

    width: Interval
    depth: Interval
    parameters: Interval
    unique_spectra: Interval
    spectra_seen: Interval
    batch_size: int
    learning_rate: float | None
    steps: Interval
    flops: Interval
    gpu_hours: Interval
    gpu: str
    tflops: float
    mse: Interval
    unreachable: float
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: an interval is a dictionary of its value and ends."""
        return {
            name: value._asdict() if isinstance(value, Interval) else value
            for name, value in vars(self).items()
        }


def plan(
    law: ScalingLaw,
    *,
    target_mse: float | None = None,
    flops: float | None = None,
    gpu_hours: float | None = None,
    gpu: str = "h200",
    tflops: float | None = None,
) -> Plan:
    """The cheapest run that reaches an error, or the best run that a budget pays for.

    Parameters
    ----------
    law
        Of the label space, the wavelengths and the recipe that will be trained.
    target_mse, flops, gpu_hours
        One of them: test MSE to reach, operations by the paper's count, or hours on one GPU.
    gpu
        Name of the GPU: one of `GPUS`.
    tflops
        Sustained TFLOP/s of training, where you measured them; by default those that an H200 had
        at each width, times the GPU's share of its peak.

    Raises
    ------
    InputError
        If not one of the three is given, a number is not positive, the GPU is unknown, or the
        target is below what any size and training reaches.
    """
    ladder = make_ladder(law.recipe)
    rate = _find_rates(gpu, tflops, ladder)
    wanted = {"target_mse": target_mse, "flops": flops, "gpu_hours": gpu_hours}
    given = {name: value for name, value in wanted.items() if value is not None}
    if len(given) != 1:
        raise InputError(f"plan: {len(given)} goals; give one of target_mse, flops and gpu_hours")
    for name, value in given.items():
        if not (value > 0 and math.isfinite(value)):
            raise InputError(f"plan: {name} is {value:g}; give a positive number")
    laws = np.vstack([law.theta, law.draws])
    if target_mse is not None:
        seen = _to_reach(laws, ladder, math.log(target_mse))
        score = seen * ladder.flops
    else:
        budget = flops if gpu_hours is None else gpu_hours * 3600 * rate * 1e12
        assert budget is not None
        seen = np.broadcast_to(budget / _repeating(law) / ladder.flops, (len(laws), len(ladder[0])))
        score = np.asarray(log_mse(laws.T[:, :, None], ladder.parameters, seen, seen))
    choice = _choose(law, laws, ladder, seen, score)
    if not math.isfinite(choice.flops[0]):
        reach = np.exp(log_mse(law.theta, ladder.parameters[-1], _MOST_SEEN, _MOST_SEEN))
        raise InputError(
            f"plan: target_mse {target_mse:g} is below {float(reach):.2g}, where the law levels "
            "off for any size and training; give a larger one"
        )
    return _describe(law, ladder, choice, gpu, rate, target_mse)


def _find_rates(gpu: str, tflops: float | None, ladder: Ladder) -> Float[np.ndarray, " size"]:
    if gpu not in GPUS:
        raise InputError(f"plan: unknown GPU {gpu}; give one of {', '.join(GPUS)}")
    if tflops is None:
        return GPUS[gpu] * np.interp(np.log(ladder.width), np.log(_WIDTHS), _TFLOPS)
    if not (tflops > 0 and math.isfinite(tflops)):
        raise InputError(f"plan: tflops is {tflops:g}; give a positive number")
    return np.full(len(ladder.width), tflops)


def _repeating(law: ScalingLaw) -> float:
    """How much more is seen than without repeating; 1 where the ledger knows nothing of it."""
    return _REPEATING if law.record["repeating"] else 1.0


def _to_reach(
    laws: Float[np.ndarray, "law 10"], ladder: Ladder, target: float
) -> Float[np.ndarray, "law size"]:
    """Spectra that each size must see, none twice; infinite where no number is enough."""
    theta = laws.T[:, :, None]
    high = np.full((len(laws), len(ladder.parameters)), math.log(_MOST_SEEN))

    def error(log_seen):
        seen = np.exp(log_seen)
        return np.asarray(log_mse(theta, ladder.parameters, seen, seen))

    reached = error(high) <= target
    found = _bisect(lambda x: error(x) <= target, np.zeros_like(high), high)
    return np.where(reached, np.exp(found), np.inf)


def _choose(
    law: ScalingLaw,
    laws: Float[np.ndarray, "law 10"],
    ladder: Ladder,
    seen: Float[np.ndarray, "law size"],
    score: Float[np.ndarray, "law size"],
) -> _Choice:
    """The size of lowest score by every law, and how few distinct spectra it needs."""
    size = np.argmin(score, axis=1)
    fresh = np.take_along_axis(seen, size[:, None], axis=1)[:, 0]
    possible = np.isfinite(fresh)
    fresh = np.where(possible, fresh, 1.0)
    total, weights = fresh * _repeating(law), ladder.parameters[size]
    theta = laws.T
    goal = np.asarray(log_mse(theta, weights, fresh, fresh))

    def enough(log_unique):
        return np.asarray(log_mse(theta, weights, np.exp(log_unique), total)) <= goal

    unique = np.exp(_bisect(enough, np.zeros_like(total), np.log(total)))
    columns = (total, unique, total * ladder.flops[size])
    return _Choice(size, *(np.where(possible, column, np.inf) for column in columns))


def _bisect(enough: Any, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The smallest values that are enough, if `high` is, everywhere at once."""
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        good = enough(middle)
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    return high


def _describe(
    law: ScalingLaw,
    ladder: Ladder,
    choice: _Choice,
    gpu: str,
    rates: Float[np.ndarray, " size"],
    target: float | None,
) -> Plan:
    def interval(values: np.ndarray) -> Interval:
        return Interval.of(values[0], values[1:])

    def of_size(column: np.ndarray) -> Interval:
        return interval(np.where(np.isfinite(choice.flops), column[choice.size], np.inf))

    batch = law.recipe.batch_size
    seen, unique = np.ceil(choice.seen / batch) * batch, np.ceil(choice.unique)
    if not law.record["repeating"]:
        unique = seen
    weights, flops = of_size(ladder.parameters), interval(choice.flops)
    run = (weights.value, unique[0], seen[0])
    unreachable = float(np.mean(~np.isfinite(choice.flops[1:])))
    warnings = [
        f"{name.replace('_', ' ')} {float(decades):.1f} decades beyond the ledger of the law"
        for name, decades in law.decades_beyond(*run, flops.value).items()
        if decades > _FAR
    ]
    if target is not None and unreachable > 0.025:
        warnings.append(
            f"the target is below what the law can reach in {unreachable:.0%} of its bootstrap"
        )
    if choice.size[0] == len(ladder.width) - 1:
        warnings.append("the largest size of the ladder; a larger one may be better")
    if not law.record["repeating"]:
        warnings.append("no run of the ledger repeats spectra, so all are taken to be distinct")
    mse = Interval(*map(float, law.predict(*run)))
    return Plan(
        of_size(ladder.width), of_size(ladder.depth), weights, interval(unique), interval(seen),
        batch, law.recipe.learning_rate, interval(seen / batch), flops,
        interval(choice.flops / (rates[choice.size] * 3.6e15)), gpu,
        float(rates[choice.size[0]]), mse, unreachable, tuple(warnings),
    )  # fmt: skip
