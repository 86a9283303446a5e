"""What the sections of the page are about: the columns they need, and which stars they may use."""

from functools import cached_property
from typing import Any

import numpy as np

from ..catalog import unit_of
from ..catalog_file import CatalogFile
from ..flags import BAD, WARN, Flag
from ..plots import label_text

MAIN = ("teff", "logg", "fe_h", "mg_fe", "v_micro", "v_rad")
"""Columns that are drawn, where a catalogue has them; tables have all."""
_SHORT = {"v_micro": "vmic", "v_macro": "v_mac"}  # names as the model knows them


class Stars:
    """Columns of a catalogue, and its stars by what may be done with them.

    Parameters
    ----------
    file : CatalogFile

    Attributes
    ----------
    parameters : list of str
        Columns of everything that was fitted or held fixed, from the header.
    """

    def __init__(self, file: CatalogFile):
        self.file = file
        listed = str(file.meta.get("COVNAMES", ""))
        self.parameters = [name for name in listed.split(",") if name in file.names]
        wanted = ["name", "result_flags", "snr", "chi2", "dof_effective", "p_value"]
        wanted += [column for name in self.parameters for column in (name, f"e_{name}_stat")]
        self._columns = file.read([*wanted, *(f"e_{name}_sys" for name in MAIN)])

    def __len__(self) -> int:
        return self.file.num

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def has(self, name: str) -> bool:
        """Whether the catalogue has a column."""
        return name in self._columns

    def lacks(self, *names: str) -> list[str]:
        """A sentence, as a list, about columns that a section needs and the catalogue lacks."""
        lacking = [name for name in names if name not in self._columns]
        if not lacking:
            return []
        return [f"Not shown: the catalogue has no column {', '.join(lacking)}."]

    @cached_property
    def flags(self) -> np.ndarray:
        """Bits of every star [star]; 0 where the catalogue has none."""
        if not self.has("result_flags"):
            return np.zeros(len(self), np.int64)
        return self["result_flags"].astype(np.int64)

    @property
    def failed(self) -> np.ndarray:
        """Stars without a result [star]."""
        return (self.flags & int(Flag.FAILED)) != 0

    @property
    def bad(self) -> np.ndarray:
        """Stars with a result that a flag forbids to use unseen [star]."""
        return ((self.flags & int(BAD)) != 0) & ~self.failed

    @property
    def warned(self) -> np.ndarray:
        """Stars with a flag that warns, and none that forbids [star]."""
        return ((self.flags & int(WARN)) != 0) & ((self.flags & int(BAD)) == 0)

    @cached_property
    def usable(self) -> np.ndarray:
        """Stars that no flag forbids to use [star]."""
        return (self.flags & int(BAD)) == 0

    def main(self, *endings: str) -> list[str]:
        """Of `MAIN`, what has the columns ``e_<name><ending>``, finite for some usable star."""
        return [
            name
            for name in MAIN
            if all(
                self.has(f"e_{name}{ending}")
                and np.isfinite(self[f"e_{name}{ending}"][self.usable]).any()
                for ending in endings
            )
        ]


def column_text(column: str) -> str:
    """A column as astronomers write it, for pictures."""
    return label_text(_SHORT.get(column, column))


def with_unit(column: str) -> str:
    """A column and its unit, for tables."""
    return f"{column} [{unit_of(column) or 'dex'}]"


def count_text(number: Any) -> str:
    """A count, with its thousands apart."""
    return f"{int(number):,}"


def stars_text(number: Any) -> str:
    """A number of stars."""
    return "1 star" if number == 1 else f"{count_text(number)} stars"
