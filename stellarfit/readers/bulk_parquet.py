"""Many spectra in one Parquet file; the layout is described in `bulk`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from emulators.errors import InputError, one_line

from .bulk import FORMAT, VERSION, Row, check_words, to_raw
from .raw import RawSpectrum
from .survey import Survey

# Stars that are read and written together.
_GROUP = 64


class _Groups:
    """An open file, of which one row group is held."""

    def __init__(self, file: Any):
        self.file = file
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(int)
        self._held: tuple[int, list[dict[str, Any]]] = (-1, [])

    def get(self, row: int) -> dict[str, Any]:
        """A row, with the wavelengths of the one before where it has none."""
        group = int(np.searchsorted(self.starts, row, side="right")) - 1
        if self._held[0] != group:
            self._held = (group, _unpack(self.file.read_row_group(group)))
        return self._held[1][row - self.starts[group]]


def _unpack(table: Any) -> list[dict[str, Any]]:
    columns = {}
    for name in table.column_names:
        column = table[name]
        columns[name] = [None if one.values is None else one.values.to_numpy(False)
                         for one in column] if _is_list(column) else column.to_pylist()  # fmt: skip
    rows, wavelength = [], None
    for i in range(table.num_rows):
        row = {name: values[i] for name, values in columns.items()}
        wavelength = row["wavelength"] if row["wavelength"] is not None else wavelength
        rows.append(row | {"wavelength": wavelength})
    return rows


def _is_list(column: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(column.type) or pa.types.is_large_list(column.type)


@contextmanager
def open_bulk(path: Path) -> Iterator[_Groups]:
    """Open the file for reading; whatever is wrong with it is one `InputError`."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield _Groups(file)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - so does pyarrow, for every kind of damage another
        raise InputError(
            f"{path}: cannot be read as Parquet spectra, it is damaged or cut short "
            f"({one_line(error)[:200]})"
        ) from None


def _words(groups: _Groups, where: str) -> tuple[str, str]:
    stored = groups.file.schema_arrow.metadata or {}
    return check_words({key.decode(): value.decode() for key, value in stored.items()}, where)


def _list_stars(groups: _Groups, where: str) -> dict[int, str]:
    _words(groups, where)
    names = groups.file.schema_arrow.names
    for name in ("id", "wavelength", "flux", "ivar"):
        if name not in names:
            raise InputError(f"{where}: no column {name}; it has {', '.join(names)}")
    ids = groups.file.read(columns=["id"])["id"].to_pylist()
    return dict(enumerate(map(str, ids)))


def _read(groups: _Groups, where: str, row: int) -> list[RawSpectrum]:
    medium, frame = _words(groups, where)
    stored = groups.get(row)
    if stored["wavelength"] is None or stored["flux"] is None or stored["ivar"] is None:
        raise InputError(f"{where}: row {row} has no wavelength, flux or ivar")
    num = len(stored["flux"])

    def get(name: str, default: Any) -> np.ndarray:
        values = stored.get(name)
        values = default if values is None else values
        return np.broadcast_to(values, (num,)) if np.ndim(values) == 0 else np.asarray(values)

    found = Row(
        str(stored["id"]),
        get("wavelength", np.nan).astype(np.float64),
        get("flux", np.nan).astype(np.float64),
        get("ivar", 0.0).astype(np.float64),
        get("mask", 0),
        get("resolution", np.nan).astype(np.float64),
    )
    return [to_raw(found, medium, frame, where)]


def write(path: Path, rows: Any) -> None:
    """Write rows as they come, a group at a time."""
    import pyarrow.parquet as pq

    writer, batch = None, []
    try:
        for row in rows:
            batch.append(row)
            if writer is None:
                writer = pq.ParquetWriter(path, _schema(rows.frame), compression="zstd")
            if len(batch) == _GROUP:
                writer.write_table(_pack(batch, writer.schema))
                batch = []
        if writer is not None and batch:
            writer.write_table(_pack(batch, writer.schema))
    finally:
        if writer is not None:
            writer.close()


def _schema(frame: str) -> Any:
    import pyarrow as pa

    vector = pa.list_(pa.float64())
    words = {"format": FORMAT, "version": str(VERSION), "medium": "vacuum", "frame": frame}
    return pa.schema(
        {
            "id": pa.string(),
            "wavelength": vector,
            "flux": vector,
            "ivar": vector,
            "mask": pa.list_(pa.int32()),
            "resolution": vector,
        },
        metadata=words,
    )


def _pack(batch: list[Row], schema: Any) -> Any:
    import pyarrow as pa

    wavelengths, last = [], None
    for row in batch:
        same = last is not None and np.array_equal(last, row.wavelength)
        wavelengths.append(None if same else row.wavelength)
        last = row.wavelength
    columns = {name: [getattr(row, name) for row in batch] for name in Row._fields}
    return pa.table(columns | {"wavelength": wavelengths}, schema=schema)


PARQUET = Survey("stellarfit Parquet", lambda groups: True, _list_stars, _read)
