"""Some columns of a catalogue on disk, however many rows it has: the others are never in memory."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emulators.errors import InputError

from .catalog import column_array, kind_of

_BLOCK = 20_000  # rows read at a time
_STRUCTURE = re.compile(r"XTENSION|BITPIX|NAXIS\d*|[PG]COUNT|TFIELDS|T[A-Z]+\d+|EXTNAME|CHECKSUM|"
                        r"DATASUM|COMMENT|HISTORY|")  # fmt: skip


class CatalogFile:
    """A catalogue as `stellarfit.merge_survey` or `stellarfit.write_catalog` wrote it.

    Parameters
    ----------
    path
        ``.fits`` or ``.parquet``.

    Attributes
    ----------
    names : list of str
        Of its columns.
    meta : dict
        Its header.
    num : int
        Of its rows.

    Raises
    ------
    InputError
        No such file, or not a catalogue.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._kind = kind_of(self.path)
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file")
        self.names, self.num, self.meta = self._describe()
        if not str(self.meta.get("CREATOR", "")).startswith("stellarfit"):
            raise InputError(
                f"{self.path}: not a catalogue: its header's CREATOR is "
                f"{self.meta.get('CREATOR', 'not there')!r}, not stellarfit; give a file that "
                "fit_survey, merge_survey or write_catalog wrote"
            )

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns of all rows, of those names that there are."""
        names = [name for name in names if name in self.names]
        if self._kind == "parquet":
            return self._read_parquet(names, None)
        with self._fits() as unit:
            # A block of rows at a time: columns are interleaved on disk, which is read once.
            blocks = [
                _columns(unit.data[start : start + _BLOCK], names)
                for start in range(0, self.num, _BLOCK)
            ]
        return {name: _join([block[name] for block in blocks]) for name in names}

    def read_rows(self, names: Sequence[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        """Columns of a few rows [row], of those names that there are."""
        names = [name for name in names if name in self.names]
        if self._kind == "parquet":
            return self._read_parquet(names, rows)
        with self._fits() as unit:
            return _columns(unit.data[np.asarray(rows, int)], names)

    def _describe(self) -> tuple[list[str], int, dict[str, Any]]:
        """Names of columns, number of rows, header."""
        if self._kind == "parquet":
            import pyarrow
            import pyarrow.parquet

            try:
                found = pyarrow.parquet.read_metadata(self.path)
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{self.path}: not a Parquet file: {error}") from None
            about = json.loads((found.metadata or {}).get(b"stellarfit", b"{}"))
            return found.schema.to_arrow_schema().names, found.num_rows, about.get("meta", {})
        with self._fits() as unit:
            header = unit.header
            meta = {key: header[key] for key in header if not _STRUCTURE.fullmatch(key)}
            return list(unit.columns.names), int(header["NAXIS2"]), meta

    @contextmanager
    def _fits(self) -> Iterator[Any]:
        from astropy.io import fits

        try:
            units: Any = fits.open(self.path, memmap=True)
        except OSError as error:
            raise InputError(f"{self.path}: not a FITS file: {error}") from None
        with units:
            if len(units) < 2 or not isinstance(units[1], fits.BinTableHDU):
                raise InputError(f"{self.path}: not a catalogue: its first extension is no table")
            yield units[1]

    def _read_parquet(self, names: list[str], rows: np.ndarray | None) -> dict[str, np.ndarray]:
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(self.path, columns=names)
        if rows is not None:
            table = table.take(np.asarray(rows, int))
        return {name: column_array(table[name]) for name in names}


def _columns(block: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Fields of FITS rows, as arrays of this machine that no longer refer to the file."""
    found = {name: np.asarray(block.field(name)) for name in names}
    return {name: x.astype(x.dtype.newbyteorder("=")) for name, x in found.items()}


def _join(blocks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(blocks) if blocks else np.empty(0)
