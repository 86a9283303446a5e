"""The parts of a survey joined into its catalogue, a part at a time."""

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from astropy.io import fits
from astropy.table import Table

from emulators.errors import InputError
from emulators.storage import atomic_write

from .catalog import (
    ascii_text,
    column_array,
    covariance_names,
    kind_of,
    parquet_metadata,
    unit_of,
    widen_row,
)
from .survey_folder import SurveyFolder

_BLOCK = 2880  # bytes, of FITS
_GROUP = 2_000  # rows of a row group of Parquet, at least


def merge_survey(out: str | os.PathLike[str], *, allow_missing: bool = False) -> Path:
    """Join the parts of a survey into one catalogue.

    `stellarfit.fit_survey` does so by itself once all parts are there. One part at a time is in
    memory.

    Parameters
    ----------
    out : path
        Of the catalogue, ``.fits`` or ``.parquet``; its parts lie in ``<out>.parts``.
    allow_missing : bool
        Leave out the stars of parts that are not there; the header's ``NMISSING`` counts them.

    Returns
    -------
    Path
        Of the catalogue: the columns of `stellarfit.catalog.make_catalog`, ``k_hat``, ``r_hat``
        and ``draws`` where these were asked for, then ``source`` and ``row``, the file and the row
        there (-1: the file's only star), and ``reason``, why a star failed (NaN then, with the flag
        ``failed``).
        The header's ``NFAILED`` counts these.

    Raises
    ------
    InputError
        No such survey, a part that is missing, damaged or of another survey.
    """
    folder = SurveyFolder(Path(out))
    kind = kind_of(folder.out)
    missing = folder.missing()
    parts = sorted(set(range(folder.num_parts)) - set(missing))
    if missing and not allow_missing:
        raise InputError(
            f"{folder.path}: {len(missing)} of {folder.num_parts} parts are missing, the first is "
            f"{folder.part(missing[0]).name}; go on with the survey by resume=True (--resume), or "
            "merge without them by allow_missing=True (--allow-missing)"
        )
    if not parts:
        raise InputError(f"{folder.path}: no part is there to merge; go on with the survey")
    about = [folder.about(part) for part in parts]
    parameters = list(
        dict.fromkeys(
            [*folder.manifest["labels"], *(p for one in about for p in one["parameters"])]
        )
    )
    header = folder.manifest["header"] | {
        "COVNAMES": covariance_names(parameters),
        "NFAILED": sum(one["failed"] for one in about),
    }
    if missing:
        header["NMISSING"] = sum(folder.num_stars(part) for part in missing)
    tables = (
        _widen(folder.read_part(part), one["parameters"], parameters)
        for part, one in zip(parts, about, strict=True)
    )
    try:
        with atomic_write(folder.out) as temporary:
            if kind == "fits":
                _write_fits(temporary, tables, _widths(about), header)
            else:
                _write_parquet(temporary, tables, header)
    except OSError as error:
        raise InputError(
            f"{folder.out}: cannot write it: {error}; its parts are kept: once there is room, go "
            "on by resume=True (--resume)"
        ) from error
    return folder.out


def _widen(table: Any, own: Sequence[str], parameters: Sequence[str]) -> Any:
    """Rows of a part, over the parameters of all."""
    if list(own) == list(parameters):
        return table
    rows = [widen_row(row, own, parameters) for row in table.to_pylist()]
    return pyarrow.Table.from_pylist(rows)


def _widths(about: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Characters of the longest text of each column, over all parts."""
    columns = about[0]["widths"]
    return {name: max(1, *(one["widths"][name] for one in about)) for name in columns}


def _columns(table: Any, widths: dict[str, int]) -> Iterator[tuple[str, np.ndarray]]:
    for name in table.column_names:
        if name in widths:
            texts = [ascii_text(text) for text in table[name].to_pylist()]
            yield name, np.array(texts, f"S{widths[name]}")
        else:
            yield name, column_array(table[name])


def _write_fits(
    path: Path, tables: Iterator[Any], widths: dict[str, int], header: dict[str, Any]
) -> None:
    """One FITS table of all: astropy renders the first, and the rows of the others follow."""
    with path.open("w+b") as file:
        table = next(tables)
        whole = _render(table, widths, header)
        with fits.open(io.BytesIO(whole)) as units:
            unit: Any = units[1]
            where, first, layout = unit.fileinfo(), unit.header.copy(), unit.data.dtype
        rows = len(table)
        file.write(whole[: where["datLoc"] + layout.itemsize * rows])
        for table in tables:
            block: Any = np.zeros(len(table), layout)
            for name, column in _columns(table, widths):
                # Of what is true and false, FITS has the letters.
                letters = column.dtype == bool
                block[name] = np.where(column, ord("T"), ord("F")) if letters else column
            file.write(block)
            rows += len(table)
        file.write(b"\0" * (-file.tell() % _BLOCK))
        # A card has 80 characters whatever its number, so that the header keeps its place.
        first["NAXIS2"] = rows
        file.seek(where["hdrLoc"])
        file.write(first.tostring().encode("ascii"))


def _render(table: Any, widths: dict[str, int], header: dict[str, Any]) -> bytes:
    found: Any = Table(dict(_columns(table, widths)), meta=header)
    for name in found.colnames:
        if (unit := unit_of(name)) is not None:
            found[name].unit = unit
    file = io.BytesIO()
    with warnings.catch_warnings():
        # COVNAMES may be longer than a card; astropy continues it on the next.
        warnings.filterwarnings("ignore", ".*card is too long.*")
        found.write(file, format="fits")
    return file.getvalue()


def _write_parquet(path: Path, tables: Iterator[Any], header: dict[str, Any]) -> None:
    """One Parquet file of all, many parts a row group: a reader opens each column of each group."""
    writer: Any = None
    try:
        for table in _join(tables):
            if writer is None:
                names = table.column_names
                units = {name: unit for name in names if (unit := unit_of(name)) is not None}
                schema = table.schema.with_metadata(parquet_metadata(units, header))
                # Real numbers hardly repeat.
                texts: Any = [field.name for field in schema if field.type == "string"]
                writer = pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=texts)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _join(tables: Iterator[Any]) -> Iterator[Any]:
    """Tables of at least so many rows, but for the last, all with the columns of the first."""
    waiting, schema = [], None
    for table in tables:
        schema = schema or table.schema
        same = table.schema.equals(schema)  # their metadata aside
        waiting.append(table if same else table.select(schema.names).cast(schema))
        if sum(map(len, waiting)) >= _GROUP:
            yield pyarrow.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pyarrow.concat_tables(waiting)
