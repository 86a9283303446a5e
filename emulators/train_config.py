"""Everything that decides what a training run computes."""

import dataclasses
import hashlib
import json
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float32

from .errors import InputError
from .parametrization import Parametrization, Standard
from .precision import PRECISIONS

OPTIMIZERS = ("adam", "muon")
_COUNTS = (
    "steps",
    "batch_size",
    "accumulate",
    "checkpoint_every",
    "validate_every",
    "steps_per_call",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run computes.

    Parameters
    ----------
    steps
        Optimizer steps: the budget.
    width, depth, tokens, head_dim, periods, parametrization
        Of the model; see `TransformerPayne`.
    optimizer
        ``adam``, or ``muon``: Adam for the first and the last layer, Muon for all others.
    learning_rate
        Constant between the warm-up and the cool-down. Muon's is scaled to compare with Adam's,
        and bears more.
    warmup
        Steps over which the rate rises linearly.
    cooldown
        Last fraction of the steps, over which the rate falls as 1 - sqrt.
    beta1, beta2
        Memory of Adam's two moments.
    batch_size
        Stars a step.
    accumulate
        Portions that the stars of a step are taken in, one after another: memory for time.
    num_pixels
        Pixels a star and step, one drawn from each of as many equal stretches of the grid;
        None takes whole spectra.
    precision
        Of the matrix products: one of `precision.PRECISIONS`. Weights are float32 always.
    average
        Memory of an exponential average of the weights, such as 0.999, which is then what is
        evaluated and saved; 0 keeps none.
    seed
        Of the weights, the order of the stars and the pixels drawn.
    checkpoint_every, validate_every
        Steps between checkpoints, and between evaluations on the validation spectra; multiples
        of `steps_per_call`.
    steps_per_call
        Steps compiled into one call of the device.
    num_modes
        Residuals that the error model keeps, as patterns.
    """

    steps: int
    width: int = 64
    depth: int = 4
    tokens: int = 16
    head_dim: int = 32
    periods: tuple[float, float] = (1e-6, 10.0)
    parametrization: Parametrization = dataclasses.field(default_factory=Standard)
    optimizer: str = "adam"
    learning_rate: float = 2e-3
    warmup: int = 100
    cooldown: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.999
    batch_size: int = 16
    accumulate: int = 1
    num_pixels: int | None = None
    precision: str = "float32"
    average: float = 0.0
    seed: int = 0
    checkpoint_every: int = 2000
    validate_every: int = 2000
    steps_per_call: int = 200
    num_modes: int = 160

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise InputError(
                f"train: precision is {self.precision!r}; allowed: {', '.join(PRECISIONS)}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise InputError(
                f"train: optimizer is {self.optimizer!r}; allowed: {', '.join(OPTIMIZERS)}"
            )
        if not 0.0 <= self.average < 1.0:
            raise InputError(f"train: average is {self.average:g}; give 0, or a memory below 1")
        if not 0.0 <= self.cooldown <= 1.0:
            raise InputError(f"train: cooldown is {self.cooldown:g}; give a fraction, 0 .. 1")
        if not self.learning_rate > 0.0:
            raise InputError(f"train: learning_rate is {self.learning_rate:g}; give it above 0")
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise InputError(f"train: {name} is {getattr(self, name)}; give at least 1")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"train: batch_size is {self.batch_size}; give a multiple of accumulate "
                f"({self.accumulate})"
            )
        if self.num_pixels is not None and self.num_pixels < 1:
            raise InputError(f"train: num_pixels is {self.num_pixels}; give at least 1 or None")
        # Calls then end at the same steps whether or not a run was interrupted: the same bits.
        for name in ("checkpoint_every", "validate_every"):
            if getattr(self, name) % self.steps_per_call:
                raise InputError(
                    f"train: {name} is {getattr(self, name)}; give a multiple of steps_per_call "
                    f"({self.steps_per_call})"
                )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy; the parametrization by its class and its settings."""
        settings = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        scheme = self.parametrization
        values = {f.name: getattr(scheme, f.name) for f in dataclasses.fields(scheme)}
        settings["parametrization"] = {"class": type(scheme).__name__, **values}
        settings["periods"] = list(self.periods)
        return settings

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that change with every setting."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def rate(self, step: ArrayLike, budget: ArrayLike | None = None) -> Float32[Array, ""]:
        """Learning rate of step 0, 1, ...: warm-up, constant, 1 - sqrt cool-down.

        Until the cool-down it does not depend on the `budget`, by default `steps`: runs of all
        budgets share their beginnings.
        """
        step = jnp.asarray(step, jnp.float32)
        total = jnp.asarray(self.steps if budget is None else budget, jnp.float32)
        start = total * (1.0 - self.cooldown)
        length = jnp.maximum(total - start, 1.0)
        warm = jnp.minimum(1.0, (step + 1.0) / max(self.warmup, 1))
        cool = 1.0 - jnp.sqrt(jnp.clip((step - start) / length, 0.0, 1.0))
        return self.learning_rate * warm * cool
