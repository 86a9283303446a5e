"""Spectra in ECSV and in plain text."""

import warnings
from pathlib import Path
from typing import Any

from emulators.errors import InputError

from .columns import Columns, find_columns, holds_spectrum
from .header import clean_header
from .raw import RawSpectrum


def read_text(path: Path, columns: Columns, wavelength_unit: str | None) -> RawSpectrum:
    """Read a table of columns: ECSV, or text with or without a line of names."""
    table = _read_table(path)
    names = list(table.colnames)
    given = any(name is not None for name in columns)
    if not given and not holds_spectrum(names, columns) and names[0] == "col1":
        # No line of names: by convention wavelength, flux and the 1-sigma error.
        if len(names) not in (2, 3):
            raise InputError(
                f"{path}: {len(names)} columns without names; two (wavelength, flux) or three "
                "(and the 1-sigma error) are understood, otherwise name them, for example "
                "wavelength='col1'"
            )
        columns = Columns("col1", "col2", error="col3" if len(names) == 3 else None)
    found = find_columns(
        names,
        lambda name: table[name],
        lambda name: str(table[name].unit) if table[name].unit is not None else None,
        columns,
        wavelength_unit,
        str(path),
    )
    return RawSpectrum(*found, header=_metadata(table), name=str(path))


def _read_table(path: Path) -> Any:
    from astropy.io import ascii
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    try:
        with path.open() as file:
            start = file.read(4096)
    except UnicodeDecodeError:
        raise InputError(
            f"{path}: neither FITS nor text; give format= for a specutils loader"
        ) from None
    try:
        with warnings.catch_warnings():
            # A number too large for a float is infinite, and masked as such.
            warnings.filterwarnings("ignore", category=AstropyWarning)
            if start.startswith("# %ECSV"):
                return Table.read(path, format="ascii.ecsv")
            # The fast guess first: blanks between columns, names in the first line or none.
            table: Any = ascii.read(path)
            if _is_remark(start, table.colnames):
                return ascii.read(path, format="no_header")
            return table
    except Exception as error:  # noqa: BLE001 - the parsers raise whatever they meet
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: not a table of columns ({reason})") from None


def _is_remark(start: str, names: list[str]) -> bool:
    """Whether the names are the words of a remark such as ``# medium = air``, which has as many."""
    first = start.partition("\n")[0]
    return first.startswith("#") and "=" in names and first[1:].split() == names


def _metadata(table: Any) -> dict[str, Any]:
    """ECSV metadata, and ``key = value`` or ``key: value`` in the comment lines of plain text."""
    cards = [(key, value) for key, value in table.meta.items() if key != "comments"]
    for line in table.meta.get("comments", []):
        for separator in ("=", ":"):
            key, found, value = line.partition(separator)
            if found and key.strip().isidentifier():
                cards.append((key, _number(value.strip())))
                break
    return clean_header(cards)


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")
