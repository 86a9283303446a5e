"""Rows of an experiment: one JSON object a line, made once, in the time that is left."""

import json
import os
import time
from pathlib import Path
from typing import Any

from emulators.ledger import read_rows


class Ledger:
    """A file of rows, each known by some of its columns, and a clock.

    Parameters
    ----------
    path
        File that rows are appended to; what it holds already is kept.
    key
        Columns that name a row.
    seconds
        After these no work is begun that would not end in time.
    """

    def __init__(self, path: Path, key: tuple[str, ...], seconds: float):
        self.path, self.key = path, key
        self.rows: list[dict[str, Any]] = read_rows(path) if path.exists() else []
        self._end = time.monotonic() + seconds

    def has(self, wanted: dict[str, Any]) -> bool:
        """Whether there is such a row."""
        return any(all(row[name] == wanted[name] for name in self.key) for row in self.rows)

    def wants(self, wanted: dict[str, Any], expected: float) -> bool:
        """Whether there is no such row yet, and time for the `expected` seconds of it."""
        if self.has(wanted):
            return False
        left = self._end - time.monotonic()
        if expected > left:
            print(f"left out, {expected:.0f} s of {max(left, 0):.0f} s: {wanted}", flush=True)
            return False
        return True

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it is on the disk when this returns."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
