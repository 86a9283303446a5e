"""What the readers of surveys have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from emulators.errors import InputError

from .columns import column
from .raw import RawSpectrum


class Survey(NamedTuple):
    """The layout of one survey's files.

    Attributes
    ----------
    name : str
        What ``format=`` takes.
    recognise : function
        Whether an open FITS file has this layout, by its extensions and headers.
    list_stars : function
        Names of the stars of an open file, by row.
    read : function
        The arms of the star in a row of an open file, those that are there.
    arms : tuple of str
        Arms of the spectrograph; empty where a file holds one spectrum of a star.
    """

    name: str
    recognise: Callable[[Any], bool]
    list_stars: Callable[[Any, str], dict[int, str]]
    read: Callable[[Any, str, int], list[RawSpectrum]]
    arms: tuple[str, ...] = ()


def get_extension(file: Any, key: str | int, where: str) -> Any:
    """An extension of an open FITS file that has data."""
    try:
        unit = file[key]
    except (KeyError, IndexError):
        names = ", ".join(f"{i} {unit.name or 'unnamed'}" for i, unit in enumerate(file))
        raise InputError(f"{where}: no extension {key}; it has {names}") from None
    if not (unit.shape and min(unit.shape) if unit.is_image else unit.header["NAXIS2"]):
        raise InputError(f"{where}: extension {key} is empty")
    return unit


def has_columns(file: Any, key: str | int, *names: str) -> bool:
    """Whether an extension is a table with these columns, in upper or lower case."""
    try:
        columns = getattr(file[key], "columns", None)
    except (KeyError, IndexError):
        return False
    return columns is not None and {*names} <= {name.lower() for name in columns.names}


def get_column(unit: Any, name: str, where: str, row: int | None = None) -> np.ndarray:
    """A column of a table, or what it holds in one row, as a vector in float64."""
    found = {one.lower(): one for one in unit.columns.names}
    if name not in found:
        raise InputError(
            f"{where}: no column {name} in extension {unit.name}; it has "
            f"{', '.join(unit.columns.names)}"
        )
    if unit.header["NAXIS2"] == 0:
        raise InputError(f"{where}: the table {unit.name} is empty")
    values = unit.data[found[name]]
    return column(values if row is None else values[row], name, where)


def get_row(unit: Any, row: int, num_pixels: int, where: str) -> np.ndarray:
    """One row of an image of [star, pixel], read alone."""
    shape = unit.shape
    if len(shape) < 2 or shape[-1] != num_pixels:
        raise InputError(
            f"{where}: extension {unit.name} has shape {shape}, which is not [star, pixel] with "
            f"{num_pixels} pixels; are its axes swapped?"
        )
    if row >= shape[0]:
        raise InputError(f"{where}: extension {unit.name} has {shape[0]} rows; there is no {row}")
    return np.asarray(unit.section[row])


def fill_resolution(resolution: np.ndarray) -> np.ndarray | None:
    """Resolving power of every pixel: those without one take it from their neighbours.

    None where no pixel has one.
    """
    known = np.isfinite(resolution) & (resolution > 0)
    if not known.any():
        return None
    pixel = np.arange(len(resolution))
    return np.interp(pixel, pixel[known], resolution[known])
