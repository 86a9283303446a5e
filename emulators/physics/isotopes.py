"""Which share of an element, or of a molecule, an isotopic line belongs to."""

from functools import cache

import h5py

from emulators.errors import InputError
from emulators.physics import data_path


@cache
def isotopic_fractions() -> dict[tuple[int, int], float]:
    """Number fraction of each isotope by (atomic number, mass number): terrestrial, IUPAC 1997."""
    with h5py.File(data_path("chemistry.h5")) as h5:
        numbers, masses = h5["isotope_number"][()], h5["isotope_mass"][()]
        fractions = h5["isotope_fraction"][()]
    return {(int(z), int(a)): float(f) for z, a, f in zip(numbers, masses, fractions, strict=True)}


def isotopic_fraction(isotopes: tuple[tuple[int, int], ...]) -> float:
    """Share of the atoms or molecules made of the given isotopes.

    Parameters
    ----------
    isotopes
        (atomic number, mass number) of each atom; mass number 0 stands for the natural mix.

    Returns
    -------
    The product of the fractions. For a molecule of one element (12C13C) it is not doubled: the
    two ways to place the isotopes are in the twice as many levels of its own partition function,
    while lines are used with the partition function of the main, symmetric molecule.
    """
    product = 1.0
    for number, mass in isotopes:
        if mass == 0:
            continue
        try:
            product *= isotopic_fractions()[number, mass]
        except KeyError:
            known = sorted(a for z, a in isotopic_fractions() if z == number)
            raise InputError(
                f"no isotope of mass number {mass} for element {number}; known: {known}"
            ) from None
    return product
