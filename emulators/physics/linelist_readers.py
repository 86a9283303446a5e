"""Line lists in the formats of VALD, Turbospectrum and MOOG (linemake).

Each reader returns a complete `LineList`. Air wavelengths become vacuum, isotopic lines get the
terrestrial share of their isotope where the format leaves that to the code, and what a list does
not say about damping is filled as `LineList.build` documents. A line that cannot be understood
raises `InputError` with the file's name and the line's number.
"""

import gzip
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from emulators.errors import InputError
from emulators.physics.abundances import ATOMIC_WEIGHTS, SYMBOLS
from emulators.physics.constants import ATOMIC_MASS, BOLTZMANN
from emulators.physics.isotopes import isotopic_fraction
from emulators.physics.linelist import LineList
from emulators.wavelength import air_to_vacuum

_NUMBER = {symbol: z for z, symbol in enumerate(SYMBOLS, start=1)}
_EV_PER_WAVENUMBER = 1.239841984e-4
_Isotopes = tuple[tuple[int, int], ...]  # Z and mass number of each atom; 0 for the natural mix
_Result = TypeVar("_Result")


def _read(path: str | os.PathLike[str]) -> list[str]:
    try:
        if str(path).endswith(".gz"):
            with gzip.open(path, "rt", encoding="ascii", errors="replace") as file:
                return file.read().splitlines()
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"line list {path}: cannot be read ({error.strerror or error})") from None


def _fail(path: str | os.PathLike[str], row: int, problem: str) -> InputError:
    return InputError(f"{path}, line {row + 1}: {problem}")


def _floats(path: str | os.PathLike[str], row: int, words: list[str]) -> list[float]:
    try:
        values = [float(word.replace("D", "E").replace("d", "e")) for word in words]
    except ValueError:
        bad = next(word for word in words if not _is_number(word))
        raise _fail(path, row, f"{bad.strip()!r} is not a number") from None
    if not np.isfinite(values).all():
        raise _fail(path, row, f"{words} holds a value that is not finite")
    return values


def _species(
    path: str | os.PathLike[str], row: int, code: str, parse: Callable[[str], _Result]
) -> _Result:
    """What `parse` makes of a format's notation of a species."""
    try:
        return parse(code)
    except (ValueError, KeyError, IndexError):
        raise _fail(path, row, f"species {code.strip()!r} is not understood") from None


def _is_number(word: str) -> bool:
    try:
        float(word.replace("D", "E").replace("d", "e"))
    except ValueError:
        return False
    return True


class _Rows:
    """Columns of a list that is being read."""

    def __init__(self, path: str | os.PathLike[str], medium: str):
        if medium not in ("air", "vacuum"):
            raise InputError(f"medium is {medium!r}; allowed: 'air', 'vacuum'")
        self.path, self.medium, self.rows = path, medium, []

    def add(
        self,
        wavelength: float,
        species: int,
        isotopes: _Isotopes,
        e_low: float,
        loggf: float,
        gamma_rad: float = 0.0,
        stark: float = 0.0,
        vdw: float = 0.0,
    ) -> None:
        loggf = loggf + np.log10(isotopic_fraction(isotopes))
        self.rows.append((wavelength, species, e_low, loggf, gamma_rad, stark, vdw))

    def lines(self) -> LineList:
        if not self.rows:
            raise InputError(f"line list {self.path}: no lines in it")
        columns = np.array(self.rows).T
        wavelength = air_to_vacuum(columns[0]) if self.medium == "air" else columns[0]
        return LineList.build(
            wavelength,
            columns[1].astype(np.int32),
            columns[2],
            columns[3],
            gamma_rad=columns[4],
            stark=columns[5],
            vdw=columns[6],
        )


# --- VALD -----------------------------------------------------------------------------------


def _atoms(formula: str) -> _Isotopes:
    """The atoms of a formula such as 'Fe', 'C2', '(7)Li' or '(12)C(14)N', lightest first."""
    if re.fullmatch(r"((\(\d+\))?[A-Z][a-z]?\d*)+", formula) is None:
        raise ValueError(formula)
    atoms: list[tuple[int, int]] = []
    for mass, symbol, count in re.findall(r"(?:\((\d+)\))?([A-Z][a-z]?)(\d*)", formula):
        atoms += [(_NUMBER[symbol], int(mass or 0))] * int(count or 1)
    return tuple(sorted(atoms))


def _vald_species(name: str) -> tuple[int, _Isotopes]:
    """Species code and atoms of a name such as 'Fe 2' or 'CH 1'."""
    formula, stage = name.split()
    atoms, charge = _atoms(formula), int(stage) - 1
    if len(atoms) == 1 and charge >= 0:
        return 100 * atoms[0][0] + charge, atoms
    if len(atoms) == 2 and charge == 0:
        return 100 * (100 * atoms[0][0] + atoms[1][0]), atoms
    raise ValueError(name)


def _vald_isotopes(label: str, atoms: _Isotopes) -> _Isotopes:
    """Isotopes in the label of a transition: 'Fe+', '(137)Ba+', '(48)TiO'."""
    isotopes = _atoms(label.partition("+")[0])
    if [z for z, _ in isotopes] != [z for z, _ in atoms]:
        raise ValueError(label)
    return isotopes


def read_vald(path: str | os.PathLike[str]) -> LineList:
    """An "extract stellar", "extract all" or "extract element" answer of VALD3, long format.

    Each transition takes four lines. The first has species, wavelength, log gf, E_low, J, E_up, J,
    three Lande factors, log damping (radiative, Stark, van der Waals) and, in "extract stellar",
    central depth; two describe the levels, in quotes or not; the last cites references and ends
    with the species, its isotopes among it. The header says whether wavelengths are air or vacuum
    and energies eV or 1/cm. A footnote says whether VALD has scaled log gf by the isotopic
    fractions; where it has not, that is done here.
    """
    text = _read(path)
    header = next((row for row, line in enumerate(text) if "WL_" in line), None)
    if header is None:
        raise InputError(
            f"{path}, line 1: no VALD header with 'WL_air' or 'WL_vac' found; ask VALD for "
            "'extract stellar' in the long format"
        )
    title = text[header]
    if "E_up" not in title:
        raise _fail(path, header, "VALD short format; ask for the long format (with E_up)")
    if "(A)" not in title:
        raise _fail(path, header, "wavelengths must be in Angstrom, as 'WL_air(A)' or 'WL_vac(A)'")
    rows = _Rows(path, "vacuum" if "WL_vac" in title else "air")
    energy_unit = 1.0 if "E_low(eV)" in title else _EV_PER_WAVENUMBER
    scaled = any("were scaled by the solar isotopic ratios" in line for line in text)
    unscaled = any("NOT scaled by the solar isotopic ratios" in line for line in text)
    for row in range(header + 1, len(text)):
        line = text[row]
        match = re.match(r"\s*'([^']+)'\s*,(.*)", line)
        if match is None or len(match.group(2).split(",")) < 12:
            continue  # levels, references, footnotes, the model's abundances
        values = _floats(path, row, match.group(2).split(",")[:12])
        species, atoms = _species(path, row, match.group(1), _vald_species)
        if row + 3 >= len(text):
            raise _fail(path, row, "file ends within the four lines of a transition")
        isotopes = ()
        if not scaled:
            label = re.split(r"[\s']", text[row + 3].rstrip(" '"))[-1]
            isotopes = _species(path, row + 3, label, partial(_vald_isotopes, atoms=atoms))
            if any(mass for _, mass in isotopes) and not unscaled:
                raise _fail(
                    path, row + 3, "an isotope, but no footnote says whether log gf is scaled by it"
                )
        wavelength, loggf, e_low, _, _, _, _, _, _, rad, stark, vdw = values
        rows.add(
            wavelength,
            species,
            isotopes,
            e_low * energy_unit,
            loggf,
            10**rad if rad else 0.0,
            stark,
            vdw,
        )
    return rows.lines()


# --- Turbospectrum --------------------------------------------------------------------------


def _turbospectrum_species(code: str, stage: int) -> tuple[int, _Isotopes]:
    """Species code and isotopes of a code such as '26.000', '3.007' or '607.012014'."""
    whole, _, decimals = code.strip().partition(".")
    number, decimals = int(whole), decimals.ljust(3, "0")
    masses = [int(decimals[i : i + 3]) for i in range(0, len(decimals) - len(decimals) % 3, 3)]
    if number < 100:
        return 100 * number + stage - 1, ((number, masses[0]),)
    first, second = divmod(number, 100)
    if first >= 100 or len(masses) < 2 and masses[0]:
        raise ValueError(code)
    masses = [*masses, 0][:2]
    return 100 * number, ((first, masses[0]), (second, masses[1]))


def read_turbospectrum(path: str | os.PathLike[str], *, medium: str = "air") -> LineList:
    """A Turbospectrum list: blocks of one species, two header lines each.

    The first header line holds the species code in quotes (with the isotopes' mass numbers as
    decimals, 000 for the natural mix), the ionisation stage and the number of lines; the second
    the name. Then, free format: wavelength, E_low [eV], log gf, fdamp (see `LineList.build`:
    `vdw`), upper statistical weight, radiative width [1/s] and, in lists that carry it, the
    Stark width before the quoted level names.

    Parameters
    ----------
    medium
        Turbospectrum's lists are in air.
    """
    text = _read(path)
    rows = _Rows(path, medium)
    row = 0
    while row < len(text):
        if not text[row].strip():
            row += 1
            continue
        match = re.match(r"\s*'\s*([\d.]+)\s*'\s+(\d+)\s+(\d+)", text[row])
        if match is None:
            raise _fail(path, row, "a block header was expected: 'code', stage, number of lines")
        stage, count = int(match.group(2)), int(match.group(3))
        understand = partial(_turbospectrum_species, stage=stage)
        species, isotopes = _species(path, row, match.group(1), understand)
        for index in range(row + 2, row + 2 + count):
            if index >= len(text):
                raise _fail(path, len(text) - 1, f"file ends before the {count} lines announced")
            words = text[index].split("'")[0].split()
            if len(words) < 5:
                raise _fail(path, index, "fewer than five numbers")
            values = _floats(path, index, words[:7])
            wavelength, e_low, loggf, fdamp = values[:4]
            rad = values[5] if len(values) > 5 else 0.0
            stark = values[6] if len(values) > 6 else 0.0
            # positive Stark columns are widths, negative ones their logarithm
            stark = np.log10(stark) if stark > 0 else stark
            vdw = fdamp if species < 10000 else 0.0
            rows.add(wavelength, species, isotopes, e_low, loggf, rad, stark, vdw)
        row += 2 + count
    return rows.lines()


# --- MOOG -----------------------------------------------------------------------------------


def _moog_species(code: str) -> tuple[int, _Isotopes]:
    """Species code and isotopes of a code such as '26.1', '56.1137' or '106.00112'."""
    whole, _, decimals = code.strip().partition(".")
    number, charge = int(whole), int((decimals or "0")[0])
    isotope = decimals[1:].rstrip() if len(decimals) > 1 else ""
    if number < 100:
        return 100 * number + charge, ((number, int(isotope or 0)),)
    first, second = divmod(number, 100)
    if first >= 100 or charge:
        raise ValueError(code)
    isotope = isotope.ljust(4, "0") if isotope.strip("0") else "0000"
    return 100 * number, ((first, int(isotope[:2])), (second, int(isotope[2:4])))


def _moog_vdw(value: float) -> float:
    """MOOG's damping column in the notation of `LineList.build`.

    MOOG takes a negative number as a logarithm, below 1e-15 as C6, up to 1e-4 as the width at
    10^4 K, and above as a factor on Unsold's C6 (whose width goes with the power 0.4).
    """
    if value == 0.0:
        return 0.0
    value = 10.0**value if value < 0 else value
    if value < 1e-15:
        speed = np.sqrt(8 * BOLTZMANN * 1e4 / (np.pi * ATOMIC_WEIGHTS[0] * ATOMIC_MASS))
        return float(np.log10(17.0 * value**0.4 * speed**0.6))
    if value < 1e-4:
        return float(np.log10(value))
    return float(value**0.4)


def read_moog(path: str | os.PathLike[str], *, medium: str = "air") -> LineList:
    """A MOOG line list, as linemake writes it: columns of ten characters, or free format.

    Wavelength, species (26.1, 106.00112), E_low [eV], log gf, van der Waals damping (may be
    blank) and dissociation energy (not used). A first line that is not numbers is a title; lines
    that start with '#' are comments. Isotopic species carry unscaled log gf in MOOG, where the
    abundance of the isotope is an input of the run: here they get the terrestrial fraction.

    Parameters
    ----------
    medium
        MOOG's lists are in air.
    """
    text = _read(path)
    rows = _Rows(path, medium)
    for row, line in enumerate(text):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = [line[start : start + 10] for start in range(0, 40, 10)]
        if all(_is_number(word) for word in words):
            extra = line[40:50] if _is_number(line[40:50]) else "0"
        else:
            words = line.split()[:4]
            extra = "".join(line.split()[4:5])
            if row == 0 and not (words and _is_number(words[0])):
                continue  # the title
            if len(words) < 4:
                raise _fail(path, row, "fewer than four columns")
            extra = extra if _is_number(extra) else "0"
        wavelength, _, e_low, loggf, damping = _floats(path, row, [*words, extra])
        species, isotopes = _species(path, row, words[1], _moog_species)
        vdw = _moog_vdw(damping) if species < 10000 else 0.0
        rows.add(wavelength, species, isotopes, e_low, loggf, vdw=vdw)
    return rows.lines()


READERS = {"vald": read_vald, "turbospectrum": read_turbospectrum, "moog": read_moog}


def read_lines(path: str | os.PathLike[str], file_format: str) -> LineList:
    """A line list in a named format: 'vald', 'turbospectrum', 'moog', or 'stellarfit' (.h5)."""
    if file_format == "stellarfit":
        return LineList.load(path)
    if file_format not in READERS:
        raise InputError(
            f"line list format {file_format!r} is not known; allowed: "
            f"{', '.join([*READERS, 'stellarfit'])}"
        )
    return READERS[file_format](path)
