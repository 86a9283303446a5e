"""Train a ladder of emulators: sizes, unique spectra and budgets, all from one short file.

Runs that differ in their budget alone share a trunk at constant rate; each budget is a branch of
it that cools down (Haegele et al. 2024, arXiv:2405.18392), and ends with the numbers of a run that
was trained for that budget alone. Small networks of one size are trained in one stack.
"""

import dataclasses
import math
import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.train_config import TrainConfig
from emulators.training_step import pixels_per_step

from .mup import MaximalUpdate
from .sizes import training_flops

FRESH = "fresh"
# Networks this wide or wider fill a GPU alone; narrower ones are stacked until they are as much
# work together.
_FULL_WIDTH = 256
_SETTINGS = {field.name for field in dataclasses.fields(TrainConfig)} - {
    *("steps", "width", "depth", "seed", "parametrization", "average"),
    *("checkpoint_every", "validate_every", "num_modes"),
}
_BLOCK = {"sizes", "unique_spectra", "flops", "seeds"}


class Branch(NamedTuple):
    """One budget of a trunk.

    Attributes
    ----------
    steps
        Of the whole run.
    turn
        Step at which the branch leaves the trunk: the last end of a call before its cool-down.
    """

    steps: int
    turn: int


class Trunks(NamedTuple):
    """Runs of one size that take every step together, and branch off at the same budgets.

    Attributes
    ----------
    width, depth
        Size of the networks.
    members
        (unique spectra, seed) of each run; spectra are None where they are fresh.
    branches
        From the smallest budget to the largest.
    """

    width: int
    depth: int
    members: tuple[tuple[int | None, int], ...]
    branches: tuple[Branch, ...]

    @property
    def fresh(self) -> bool:
        """Whether the one member learns from spectra that are synthesised as it goes."""
        return self.members[0][0] is None

    @property
    def num_runs(self) -> int:
        """Rows of the ledger that they make."""
        return len(self.members) * len(self.branches)

    @property
    def work(self) -> int:
        """Steps of the trunk and of all its branches."""
        cooled = sum(branch.steps - branch.turn for branch in self.branches)
        return self.branches[-1].turn + cooled


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Which runs to make: every size with every number of unique spectra, budget and seed.

    Parameters
    ----------
    settings
        Of `TrainConfig`, for all runs; muP carries them from size to size.
    blocks
        Dictionaries with lists ``sizes`` of (width, depth), ``unique_spectra`` (numbers, or
        ``"fresh"`` for spectra that are synthesised as training goes), ``flops`` by the formula,
        trunk and cool-down together, and ``seeds``. A run that several blocks name is made once.

    Examples
    --------
    >>> block = {"sizes": [(32, 1)], "unique_spectra": [100], "flops": [1e11, 1e12], "seeds": [0]}
    >>> len(Sweep({"batch_size": 16, "num_pixels": 256}, (block,)).blocks)
    1
    """

    settings: dict[str, Any]
    blocks: tuple[dict[str, list[Any]], ...]

    def __post_init__(self):
        unknown = sorted(set(self.settings) - _SETTINGS)
        if unknown:
            raise InputError(
                f"sweep: unknown training setting {unknown[0]!r}; allowed: "
                f"{', '.join(sorted(_SETTINGS))}"
            )
        for name, value in self.settings.items():
            _check_setting(name, value)
        if not self.blocks:
            raise InputError("sweep: no [[runs]]; give at least one block of them")
        for block in self.blocks:
            _check_block(block, self.settings.get("head_dim", TrainConfig.head_dim))
        self.config(1, 1, 0, 1)  # which checks the settings together

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Sweep":
        """Read a TOML file: a table ``[train]`` of settings, and blocks ``[[runs]]``.

        Raises
        ------
        InputError
            What cannot be read or has no meaning, by its key.
        """
        try:
            read = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"sweep: cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"sweep: {path} is no TOML: {error}") from error
        unknown = sorted(set(read) - {"train", "runs"})
        if unknown:
            raise InputError(f"sweep: {path} has {unknown[0]!r}; allowed: [train] and [[runs]]")
        settings, blocks = read.get("train", {}), read.get("runs", [])
        if not isinstance(settings, dict) or not isinstance(blocks, list):
            raise InputError(f"sweep: {path} must hold a table [train] and blocks [[runs]]")
        return cls(settings, tuple(blocks))

    @property
    def steps_per_call(self) -> int:
        """Steps compiled into one call of the device; turns and ends of runs lie between calls."""
        return self.settings.get("steps_per_call", TrainConfig.steps_per_call)

    def config(self, width: int, depth: int, seed: int, steps: int) -> TrainConfig:
        """Of one run."""
        settings: dict[str, Any] = dict(self.settings)
        settings["periods"] = tuple(settings.get("periods", TrainConfig.periods))
        return TrainConfig(
            **settings,
            width=width,
            depth=depth,
            seed=seed,
            steps=steps,
            parametrization=MaximalUpdate(),
            checkpoint_every=self.steps_per_call,
            validate_every=self.steps_per_call,
        )

    def trunks(self, label_space: LabelSpace, pixels: int) -> list[Trunks]:
        """All runs, those that are trained together side by side; the dearest first.

        Parameters
        ----------
        label_space, pixels
            Of the spectra, on which the operations of a step depend.
        """
        budgets: dict[tuple[int, int, int | None, int], set[Branch]] = {}
        for block in self.blocks:
            for width, depth in block["sizes"]:
                config = self.config(width, depth, 0, 1)
                used, _ = pixels_per_step(config, pixels)
                a_spectrum = training_flops(width, depth, config.tokens, len(label_space), used)
                a_step = config.batch_size * a_spectrum
                branches = {self._branch(flops / a_step) for flops in block["flops"]}
                for unique in block["unique_spectra"]:
                    for seed in block["seeds"]:
                        key = (width, depth, None if unique == FRESH else unique, seed)
                        budgets.setdefault(key, set()).update(branches)
        alike: dict[tuple[int, int, bool, tuple[Branch, ...]], list[tuple[int | None, int]]] = {}
        for (width, depth, unique, seed), branches in budgets.items():
            key = (width, depth, unique is None, tuple(sorted(branches)))
            alike.setdefault(key, []).append((unique, seed))
        found = []
        for (width, depth, fresh, branches), members in alike.items():
            # A stream of fresh spectra serves one run.
            together = 1 if fresh else max(1, (_FULL_WIDTH // width) ** 2)
            members.sort(key=lambda member: (member[0] or math.inf, member[1]))
            for first in range(0, len(members), together):
                part = tuple(members[first : first + together])
                found.append(Trunks(width, depth, part, branches))
        return sorted(found, key=_cost, reverse=True)

    def _branch(self, steps: float) -> Branch:
        """A budget in whole calls of the device."""
        call = self.steps_per_call
        cooldown = self.settings.get("cooldown", TrainConfig.cooldown)
        total = max(round(steps / call), 1) * call
        return Branch(total, math.floor(total * (1.0 - cooldown) / call + 1e-9) * call)


def _cost(trunks: Trunks) -> int:
    return trunks.width**2 * trunks.depth * len(trunks.members) * trunks.branches[-1].steps


def _check_setting(name: str, value: Any) -> None:
    """Refuse a setting of another type than its default, or a count below 1."""
    default = getattr(TrainConfig, name)
    if name == "periods":
        good, wanted = _is_pair(value) and all(map(_is_number, value)), "two numbers"
    elif name == "num_pixels":
        good, wanted = _is_count(value), "a whole number from 1"
    elif isinstance(default, str):
        good, wanted = isinstance(value, str), "a text"
    elif isinstance(default, int):
        lowest = 0 if name == "warmup" else 1
        good, wanted = _is_count(value, lowest), f"a whole number from {lowest}"
    else:
        good, wanted = _is_number(value), "a number"
    if not good:
        raise InputError(f"sweep: {name} is {value!r}; give {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any, lowest: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _check_block(block: Any, head_dim: int) -> None:
    """Refuse a block of runs that says something else than it should."""
    if not isinstance(block, dict) or set(block) != _BLOCK:
        given = sorted(block) if isinstance(block, dict) else block
        raise InputError(
            f"sweep: a block of runs has {given}; it needs {', '.join(sorted(_BLOCK))}, no more"
        )
    for name in _BLOCK:
        if not isinstance(block[name], list) or not block[name]:
            raise InputError(f"sweep: {name} is {block[name]!r}; give a list of at least one")

    def check(name: str, accepts: Callable[[Any], bool], wanted: str) -> None:
        for value in block[name]:
            if not accepts(value):
                raise InputError(f"sweep: {name} holds {value!r}; {wanted}")

    def is_size(value: Any) -> bool:
        return _is_pair(value) and all(map(_is_count, value)) and value[0] % head_dim == 0

    check("sizes", is_size, f"give [width, depth], the width a multiple of head_dim ({head_dim})")
    check("unique_spectra", lambda v: v == FRESH or _is_count(v), 'give numbers from 1, or "fresh"')
    check(
        "flops",
        lambda v: _is_number(v) and v > 0,
        "give operations above 0",
    )
    check("seeds", lambda v: _is_count(v, 0), "give whole numbers from 0")
