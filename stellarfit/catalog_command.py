"""``stellarfit convert`` and ``stellarfit flags``: a catalogue renamed, and its bits explained."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .fit_command import Json


def convert(
    catalog: Annotated[Path, typer.Argument(help="A catalogue: .fits or .parquet.")],
    out: Annotated[Path, typer.Argument(help="The file to write: .fits or .parquet.")],
    names: Annotated[str, typer.Option(help="Whose: apogee, galah or desi.")],
    json: Json = False,
) -> None:
    """Write a catalogue again under the column names of a survey."""
    from emulators.errors import InputError

    from . import report
    from .catalog import read_catalog, write_catalog
    from .catalog_names import rename_columns

    if out.exists():
        raise InputError(f"{out}: the file exists; give another name, or remove it")
    table = rename_columns(read_catalog(catalog), names)
    path = write_catalog(table, out)
    report.print_object(
        {"catalog": str(path), "names": table.meta["COLNAMES"], "columns": table.colnames}, json
    )


def flags(
    bits: Annotated[
        str | None,
        typer.Argument(help="A value of result_flags, such as 8449; every flag otherwise."),
    ] = None,
    json: Json = False,
) -> None:
    """Explain the bits of result_flags."""
    from . import report
    from .flags import explain

    found: Any = explain(_parse_bits(bits)) if bits is not None else explain(~0)
    if json:
        report.print_json({"flags": found})
        return
    for one in found:
        print(f"{one['bit']:>2}  {one['value']:>8}  {one['name']:<15} {one['meaning']:<8} "
              f"{one['sentence']}")  # fmt: skip
    if not found:
        print("no flag: nothing to report")


def _parse_bits(text: str) -> int:
    from emulators.errors import InputError

    from .flags import Flag

    most = sum(Flag)
    try:
        found = int(text, 0)
    except ValueError:
        found = -1
    if not 0 <= found <= most:
        raise InputError(
            f"bits: {text!r}; give a value of the column result_flags, a whole number from 0 to "
            f"{most}"
        )
    return found
