"""The stars of a file whose layout is known: which they are, and each of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emulators.errors import InputError, one_line

from ..arms import Arms
from ..spectrum import Spectrum
from .build import Stated, build
from .survey import Survey

_FITS_NAMES = (".fits", ".fit", ".fts", ".fits.gz", ".fit.gz", ".fits.fz")
# The first bytes of a file of each kind.
_FITS, _HDF5, _PARQUET, _XML = b"SIMPLE  ", b"\x89HDF\r\n\x1a\n", b"PAR1", b"<?xml"


def check_path(source: str | os.PathLike[str]) -> Path:
    """The path of a file that is there and not empty."""
    path = Path(source)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    return path


class Stars:
    """The stars of an open file of a known layout.

    Parameters
    ----------
    survey : Survey
    file
        Open FITS, HDF5 or Parquet file.
    where : str
        File to name in messages.
    """

    def __init__(self, survey: Survey, file: Any, where: str):
        self.survey, self.file, self.where = survey, file, where
        self.names = survey.list_stars(file, where)

    def choose(self, row: int | None) -> int:
        """The row asked for, or the only one."""
        if not self.names:
            raise InputError(f"{self.where}: holds no star ({self.survey.name}), only empty rows")
        rows = list(self.names)
        if row is None and len(rows) == 1:
            return rows[0]
        if row not in self.names:
            given = "" if row is None else f"; row {row} is not one of them"
            raise InputError(
                f"{self.where}: holds {len(rows)} spectra ({self.survey.name}), in rows "
                f"{rows[0]} to {rows[-1]}{given}; give row= (--row), or read all of them with "
                "read_spectra"
            )
        return row

    def build(self, row: int, stated: Stated) -> Spectrum | Arms:
        """The spectrum of a row."""
        where = f"{self.where}[{row}]" if len(self.names) > 1 else self.where
        try:
            raws = self.survey.read(self.file, self.where, row)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 - what is damaged may break anything
            raise InputError(
                f"{where}: cannot be read as {self.survey.name}, it is damaged "
                f"({one_line(error)[:200]})"
            ) from None
        named = [raw._replace(name=where, star=self.names[row]) for raw in raws]
        return build(named, stated, self.survey)


@contextmanager
def open_stars(path: Path, format: str | None = None) -> Iterator[Stars | None]:
    """The stars of a file of a known layout; None where it has none.

    Parameters
    ----------
    path
    format
        Of the survey; recognised where left out.
    """
    from .surveys import find_survey, recognise

    wanted = None if format is None else find_survey(format)
    start = _read_start(path)
    if format is not None and wanted is None:
        yield None  # a loader of specutils
    elif start == _HDF5:
        from .bulk_hdf5 import HDF5, open_bulk

        with open_bulk(path) as file:
            yield Stars(HDF5, file, str(path))
    elif start.startswith(_PARQUET):
        from .bulk_parquet import PARQUET, open_bulk

        with open_bulk(path) as file:
            yield Stars(PARQUET, file, str(path))
    elif start.startswith(_XML):
        from .gaia_rvs import RVS, open_votable

        yield Stars(RVS, open_votable(path), str(path))
    elif wanted is not None or is_fits(path):
        from .fits import open_fits

        with open_fits(path) as file:
            survey = wanted or recognise(file)
            yield None if survey is None else Stars(survey, file, str(path))
    else:
        yield None


def _read_start(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(8)


def is_fits(path: Path) -> bool:
    """Whether a file is FITS, by its first bytes or, where it is packed, by its name."""
    return _read_start(path) == _FITS or path.name.lower().endswith(_FITS_NAMES)
