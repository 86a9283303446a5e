"""The ledger of training runs: one JSON object a line, appended, never rewritten."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import InputError

COLUMNS = (
    "run_id",
    "config_hash",
    "seed",
    "width",
    "depth",
    "tokens",
    "head_dim",
    "parameters",
    "unique_spectra",
    "spectra_seen",
    "steps",
    "flops",
    "flops_spent",
    "seconds",
    "tflops",
    "mse_validation",
    "mse_test",
    "precision",
    "device",
)


def append_row(
    path: str | os.PathLike[str], row: dict[str, Any], columns: Sequence[str] = COLUMNS
) -> None:
    """Append one run. A run that is already there is left alone, so a resumed end is harmless."""
    if set(row) != set(columns):
        odd = sorted(set(row) ^ set(columns))
        raise InputError(f"ledger: missing or unknown columns: {', '.join(odd)}")
    path = Path(path)
    if path.exists() and any(known["run_id"] == row["run_id"] for known in read_rows(path)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({name: row[name] for name in columns}) + "\n"
    # One write of one line in append mode: runs that share a ledger do not mix their rows.
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def mend(path: str | os.PathLike[str]) -> None:
    """Cut off a last line that has no end: its writer was killed. Nobody else may be writing."""
    path = Path(path)
    if not path.is_file():
        return
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        with path.open("r+b") as file:
            file.truncate(len(whole))
            os.fsync(file.fileno())


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All rows of a ledger, oldest first; a last line that has no end is none."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"ledger: no file {path}")
    text = path.read_text(encoding="utf-8")
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"ledger: {path} line {number} is no JSON object") from error
    return rows
