"""Rows of a ledger as arrays, checked: what the laws are fitted to."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from emulators.errors import InputError

from .sizes import Recipe, find_pixels

_COLUMNS = (
    "run_id", "width", "depth", "tokens", "parameters", "unique_spectra", "spectra_seen", "steps",
    "flops", "flops_spent", "mse_validation", "mse_test",
)  # fmt: skip
_ERRORS = ("mse_validation", "mse_test")


class Runs(NamedTuple):
    """Finished runs, one element each, in the order of the ledger.

    Parameters
    ----------
    parameters
        Weights P.
    unique
        Distinct spectra U in the training set; for spectra made as training goes, those that were
        in the store at some time.
    seen
        Spectra seen S: steps times batch.
    flops
        Operations of the training that led to it by the paper's count, shared trunk included.
    validation, test
        Mean squared errors: a choice among runs is made on the first, and quoted on the second.
    trunk
        Number of the constant-rate run that it branches off: runs of one trunk have most of their
        training in common.
    """

    parameters: Float[np.ndarray, " run"]
    unique: Float[np.ndarray, " run"]
    seen: Float[np.ndarray, " run"]
    flops: Float[np.ndarray, " run"]
    validation: Float[np.ndarray, " run"]
    test: Float[np.ndarray, " run"]
    trunk: Int[np.ndarray, " run"]

    @property
    def one_epoch(self) -> Bool[np.ndarray, " run"]:
        """Which runs saw no spectrum twice."""
        return self.seen <= self.unique

    def select(self, which: np.ndarray) -> "Runs":
        """Some of the runs, by a mask or by their numbers; a number may come twice."""
        return Runs(*(column[which] for column in self))


def read_runs(rows: Sequence[dict[str, Any]]) -> Runs:
    """Arrays of all rows that have both errors; a diverged run has none and is left out.

    Parameters
    ----------
    rows
        Of a ledger; ``trunk``, where a row has it, names the run that it branches off.

    Raises
    ------
    InputError
        If there is no row, a column is missing, or a number is not positive.
    """
    if not rows:
        raise InputError("ledger: it has no rows; give one of finished runs")
    for row in rows:
        missing = [name for name in _COLUMNS if name not in row]
        if missing:
            raise InputError(f"ledger: a row has no {missing[0]}; needed are {', '.join(_COLUMNS)}")
    kept = finished(rows)
    names = {row.get("trunk") or row["run_id"]: None for row in kept}
    number = {name: index for index, name in enumerate(names)}
    columns = ("parameters", "unique_spectra", "spectra_seen", "flops", *_ERRORS)
    try:
        values = [[float(row[name]) for row in kept] for name in columns]
    except (TypeError, ValueError):
        raise InputError(f"ledger: {', '.join(columns)} must be numbers in every row") from None
    values = np.array(values)
    for name, column in zip(columns, values, strict=True):
        if not (np.isfinite(column) & (column > 0)).all():
            raise InputError(f"ledger: a row has {name} {column.min():g}; give positive numbers")
    trunk = np.array([number[row.get("trunk") or row["run_id"]] for row in kept], np.int64)
    return Runs(*values, trunk=trunk)


def decade(flops: Float[np.ndarray, " run"]) -> Float[np.ndarray, " run"]:
    """Power of ten of budgets; 15% below one still counts as it, as whole calls come near it."""
    return np.floor(np.log10(1.15 * flops))


def finished(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of runs that did not diverge."""
    return [row for row in rows if all(_is_finite(row[name]) for name in _ERRORS)]


def read_recipe(rows: Sequence[dict[str, Any]]) -> Recipe:
    """What the runs have in common: the median of the rows, where they differ.

    The number of labels follows from that of the weights, and the pixels a spectrum from the
    operations of the run, so that a ledger need not name them.
    """
    labels = [
        row["parameters"] / row["width"]
        - (row["tokens"] + 12 * row["depth"] + 1) * row["width"]
        - 1
        for row in rows
    ]
    tokens, inputs = round(np.median([row["tokens"] for row in rows])), round(np.median(labels))
    pixels = [
        find_pixels(row["flops"] / row["spectra_seen"], row["width"], row["depth"], tokens, inputs)
        for row in rows
    ]
    batch = np.median([row["spectra_seen"] / row["steps"] for row in rows])
    rates = [row["learning_rate"] for row in rows if "learning_rate" in row]
    rate = float(np.median(rates)) if rates else None
    return Recipe(tokens, max(inputs, 1), max(round(np.median(pixels)), 1), round(batch), rate)


def hash_rows(rows: Sequence[dict[str, Any]]) -> str:
    """SHA-256 of rows as a ledger writes them: that of its file, where nothing else is in it."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def draw_trunks(
    trunk: Int[np.ndarray, " run"], draws: int, seed: int, share: float = 1.0
) -> Int[np.ndarray, "draw run"]:
    """How often every run is drawn when trunks are drawn with replacement, runs of one together.

    Parameters
    ----------
    trunk
        Of every run, numbered from 0.
    draws, seed
        How many draws, and their seed.
    share
        Trunks of a draw, as a share of all; fewer scatter more, by the root of this.
    """
    number = int(trunk.max()) + 1
    size = (draws, max(round(share * number), 1))
    picked = np.random.default_rng(seed).integers(number, size=size)
    counts = np.stack([np.bincount(row, minlength=number) for row in picked])
    return counts[:, trunk]


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
