"""Line lists: what a spectral line needs to absorb, one row a line.

A `LineList` is host-side numpy, sorted by wavelength. `LineList.build` fills what published
lists leave open (damping), so that every row of a finished list can be used as it is.

Conventions
-----------
- Wavelengths are vacuum Angstrom.
- Species are integers: atoms 100 Z + charge (Fe I 2600, Fe II 2601); molecules 100 times the
  MOOG code with the lighter element first (CH 10600, C2 60600, CN 60700, MgH 11200, TiO 82200).
- loggf already holds the isotopic fraction: rows of one transition add up to the element.
- Every width is a full width at half maximum in angular frequency, as in VALD and Turbospectrum:
  the Lorentz profile has gamma = gamma_rad + N_e gamma_stark + N_H gamma_vdw.
"""

import os
from functools import cache

import equinox as eqx
import h5py
import numpy as np
from jaxtyping import Float, Int
from scipy.special import gamma as gamma_function

from emulators.errors import InputError
from emulators.physics import data_path
from emulators.physics.abundances import ATOMIC_WEIGHTS
from emulators.physics.constants import (
    ATOMIC_MASS,
    BOHR_RADIUS,
    BOLTZMANN,
    BOLTZMANN_EV,
    HC_OVER_K,
    PLANCK,
    RYDBERG_EV,
)
from emulators.storage import atomic_write

NO_BROADENING = -99.0
"""log10 width that stands for none: 10^-99 vanishes beside any natural width."""

DEFAULT_ENHANCEMENT = 2.5
"""Factor on the Unsold width where a list gives no van der Waals width. Unsold's estimate is known
to be too small: empirical factors from solar lines lie between 1.3 and 3, and 2.5 is what
Turbospectrum and the Gaia-ESO list use for all species without a value of their own."""

Column = np.ndarray | list | float
"""A column [line], or one value for all lines."""

_REFERENCE_TEMPERATURE = 1e4  # K, at which collisional widths are given
_HYDROGEN_MASS = ATOMIC_WEIGHTS[0]  # u
_MAX_LEVEL = 10.0
# Effective quantum number above which the hydrogenic estimates stop growing: levels that close to
# the limit are perturbed, and their formal widths would exceed the line spacing.
_EV_ANGSTROM = HC_OVER_K * BOLTZMANN_EV  # h c


@cache
def ionization_energies() -> np.ndarray:
    """Energies [93, 3] (eV) of neutral, singly and doubly charged atoms by Z; NaN for none."""
    energies = np.full((93, 3), np.nan)
    with h5py.File(data_path("chemistry.h5")) as h5:
        energies[1:] = h5["ionization_energy"][()]
    return energies


def is_molecule(species: Int[np.ndarray, " line"]) -> np.ndarray:
    """True where a species code is a molecule's; shape of the input."""
    return species >= 10000


def species_mass(species: int) -> float:
    """Mass [u] of a species' particle: the atom, or both atoms of a diatomic molecule."""
    code = species // 100
    if species >= 10000:
        return float(ATOMIC_WEIGHTS[code // 100 - 1] + ATOMIC_WEIGHTS[code % 100 - 1])
    return float(ATOMIC_WEIGHTS[code - 1])


def upper_energy(
    wavelength: Float[np.ndarray, " line"], e_low: Float[np.ndarray, " line"]
) -> Float[np.ndarray, " line"]:
    """Energy [eV] of the upper level from the vacuum wavelength [A] and the lower level [eV]."""
    return e_low + _EV_ANGSTROM / wavelength


def classical_gamma_rad(wavelength: Float[np.ndarray, " line"]) -> Float[np.ndarray, " line"]:
    """Radiative width [1/s] of a classical oscillator at a wavelength [A]: 0.2223e16/lambda^2."""
    return 0.2223e16 / wavelength**2


def abo_width(
    cross_section: Float[np.ndarray, " line"],
    velocity_exponent: Float[np.ndarray, " line"],
    mass: Float[np.ndarray, " line"],
) -> tuple[np.ndarray, np.ndarray]:
    """Van der Waals width of the Anstee-Barklem-O'Mara theory.

    Parameters
    ----------
    cross_section
        Broadening cross section at 10 km/s, in squared Bohr radii.
    velocity_exponent
        alpha: the cross section goes as v^-alpha.
    mass
        Mass [u] of the absorber.

    Returns
    -------
    log_gamma, exponent
        log10 of the full width [1/s per H atom per cm^3] at 10^4 K, and the exponent of its
        temperature dependence, (1 - alpha) / 2 (Anstee & O'Mara 1995, MNRAS 276, 859).
    """
    alpha = velocity_exponent
    reduced = ATOMIC_MASS / (1 / _HYDROGEN_MASS + 1 / mass)
    speed = np.sqrt(8 * BOLTZMANN * _REFERENCE_TEMPERATURE / (np.pi * reduced))
    half = (4 / np.pi) ** (alpha / 2) * gamma_function(2 - alpha / 2)
    half = half * speed * cross_section * BOHR_RADIUS**2 * (speed / 1e6) ** -alpha
    return np.log10(2 * half), (1 - alpha) / 2


def unsold_width(
    charge: Int[np.ndarray, " line"],
    ionization_energy: Float[np.ndarray, " line"],
    e_low: Float[np.ndarray, " line"],
    e_up: Float[np.ndarray, " line"],
) -> Float[np.ndarray, " line"]:
    """Van der Waals width in Unsold's approximation.

    The levels are hydrogenic, <r^2> = 5/2 n*^4 / Z^2 in Bohr radii with n*^2 =
    Z^2 13.6 eV / (I - E),
    so that C6 = alpha_H e^2 / hbar times the difference of <r^2>, and gamma = 8.08 C6^(2/5) v^(3/5)
    (Unsold 1955; 17 C6^(2/5) v^(3/5) where C6 is divided by 2 pi).

    Returns
    -------
    log10 of the full width [1/s per H atom per cm^3] at 10^4 K; `NO_BROADENING` where the upper
    level lies above the ionisation limit, where the approximation has no answer.
    """
    nuclear = charge + 1.0
    # alpha_H = 4.5 a0^3 and <r^2> = 5/2 n*^4 a0^2 / Z^2; e^2 = 2 a0 Ry.
    e_squared = 2 * BOHR_RADIUS * RYDBERG_EV * BOLTZMANN / BOLTZMANN_EV
    hbar = PLANCK / (2 * np.pi)
    scale = 4.5 * 2.5 * BOHR_RADIUS**5 * e_squared / hbar * RYDBERG_EV**2
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.maximum(ionization_energy - e_up, nuclear**2 * RYDBERG_EV / _MAX_LEVEL**2)
        c6 = scale * nuclear**2 * (gap**-2.0 - (ionization_energy - e_low) ** -2.0)
        speed = np.sqrt(
            8 * BOLTZMANN * _REFERENCE_TEMPERATURE / (np.pi * _HYDROGEN_MASS * ATOMIC_MASS)
        )
        log_gamma = np.log10(8.08) + 0.4 * np.log10(c6) + 0.6 * np.log10(speed)
    bound = np.isfinite(ionization_energy) & (e_up < ionization_energy) & (c6 > 0)
    return np.where(bound, log_gamma, NO_BROADENING)


def cowley_width(
    charge: Int[np.ndarray, " line"],
    ionization_energy: Float[np.ndarray, " line"],
    e_up: Float[np.ndarray, " line"],
) -> Float[np.ndarray, " line"]:
    """Stark width in the approximation of Cowley (1971, Observatory 91, 139).

    Returns
    -------
    log10 of the full width [1/s per electron per cm^3] at 10^4 K: 1.66e-8 n*^4 for neutrals and
    3.99e-8 n*^4 / (Z (Z + 1))^2 for ions, n* the upper level's effective quantum number and Z
    the core charge; `NO_BROADENING` above the ionisation limit. The constants are those that
    Turbospectrum uses; others in use differ by up to a factor of ten.
    """
    nuclear = charge + 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = np.maximum(ionization_energy - e_up, nuclear**2 * RYDBERG_EV / _MAX_LEVEL**2)
        n4 = (nuclear**2 * RYDBERG_EV / gap) ** 2
        ion = 3.986e-8 * n4 / (nuclear * (nuclear + 1)) ** 2
        width = np.where(charge == 0, 1.662e-8 * n4, ion)
        log_gamma = np.log10(width)
    bound = np.isfinite(ionization_energy) & (e_up < ionization_energy)
    return np.where(bound, log_gamma, NO_BROADENING)


class LineList(eqx.Module):
    """Spectral lines, one row a line, sorted by wavelength; host-side numpy.

    Attributes
    ----------
    wavelength
        Vacuum Angstrom.
    species
        Species codes (see the module's text).
    e_low
        Energy of the lower level [eV].
    loggf
        log10 of statistical weight times oscillator strength, isotopic fraction applied.
    gamma_rad
        Radiative width [1/s].
    log_gamma_stark
        log10 width [1/s per electron per cm^3] at 10^4 K; `NO_BROADENING` for none.
    log_gamma_vdw
        log10 width [1/s per hydrogen atom per cm^3] at 10^4 K; `NO_BROADENING` for none.
    vdw_exponent
        gamma_vdw goes as T^vdw_exponent: 0.3, or (1 - alpha) / 2 of the ABO theory.
    """

    wavelength: Float[np.ndarray, " line"]
    species: Int[np.ndarray, " line"]
    e_low: Float[np.ndarray, " line"]
    loggf: Float[np.ndarray, " line"]
    gamma_rad: Float[np.ndarray, " line"]
    log_gamma_stark: Float[np.ndarray, " line"]
    log_gamma_vdw: Float[np.ndarray, " line"]
    vdw_exponent: Float[np.ndarray, " line"]

    @classmethod
    def build(
        cls,
        wavelength: Column,
        species: Column,
        e_low: Column,
        loggf: Column,
        *,
        gamma_rad: Column = 0.0,
        stark: Column = 0.0,
        vdw: Column = 0.0,
        enhancement: float = DEFAULT_ENHANCEMENT,
        stark_default: str = "cowley",
    ) -> "LineList":
        """A complete, sorted list from columns with gaps.

        Parameters
        ----------
        wavelength, species, e_low, loggf
            Columns [line] as in the class.
        gamma_rad
            Radiative width [1/s], or its log10 as VALD writes it (values in 0 < x < 20). Zero,
            and the placeholder 1e5 of the Gaia-ESO list, mean none: the classical width is used.
        stark
            log10 width as in the class. Zero means none: see `stark_default`.
        vdw
            Van der Waals column in the notation VALD and Turbospectrum share:
            negative: log10 of the width; 20 and above: ABO cross section plus alpha as the
            decimals (328.244); 0 < x < 20: factor on the Unsold width; zero: none, and the
            Unsold width times `enhancement` is used. Molecules without a width get none, which
            is also what Turbospectrum does.
        enhancement
            Factor on the Unsold width where `vdw` is zero.
        stark_default
            "cowley": lines without a Stark width get Cowley's estimate; "none": they get none.
        """
        wavelength, e_low, loggf = (np.asarray(x, np.float64) for x in (wavelength, e_low, loggf))
        species = np.asarray(species, np.int32)
        shape = wavelength.shape
        columns = {"species": species, "e_low": e_low, "loggf": loggf}
        for name, column in columns.items():
            if column.shape != shape:
                raise InputError(f"line list: {name} has {column.shape} rows, wavelength {shape}")
        for name, column in {"wavelength": wavelength, **columns}.items():
            if not np.all(np.isfinite(column)):
                row = int(np.argmin(np.isfinite(column)))
                raise InputError(f"line list: {name} of row {row} is {column[row]}, not a number")
        if stark_default not in ("cowley", "none"):
            raise InputError(f"stark_default is {stark_default!r}; allowed: 'cowley', 'none'")
        gamma_rad, stark, vdw = (
            np.broadcast_to(np.asarray(x, np.float64), shape).copy()
            for x in (gamma_rad, stark, vdw)
        )
        is_log = (gamma_rad > 0) & (gamma_rad < 20)
        gamma_rad[is_log] = 10 ** gamma_rad[is_log]
        missing = (gamma_rad <= 0) | (gamma_rad == 1e5)
        gamma_rad[missing] = classical_gamma_rad(wavelength[missing])

        molecule = is_molecule(species)
        number = np.where(molecule, 0, species // 100)
        charge = np.where(molecule, 0, species % 100)
        unknown = (number > 92) | (charge > 2) | (species < 100)
        if unknown.any():
            raise InputError(
                f"line list: species {species[np.argmax(unknown)]} is not known; allowed: atoms "
                "100 Z + charge with Z <= 92 and charge 0-2, molecules 100 times the MOOG code"
            )
        limit = np.where(molecule, np.nan, ionization_energies()[number, charge])
        e_up = upper_energy(wavelength, e_low)

        if stark_default == "cowley":
            stark = np.where(stark == 0, cowley_width(charge, limit, e_up), stark)
        stark = np.where(stark == 0, NO_BROADENING, np.maximum(stark, NO_BROADENING))

        unsold = unsold_width(charge, limit, e_low, e_up)
        factor = np.where(vdw == 0, enhancement, np.where((vdw > 0) & (vdw < 20), vdw, 1.0))
        log_vdw = np.where(unsold > NO_BROADENING, unsold + np.log10(factor), NO_BROADENING)
        log_vdw = np.where(vdw < 0, np.maximum(vdw, NO_BROADENING), log_vdw)
        exponent = np.full(shape, 0.3)
        abo = (vdw >= 20) & ~molecule
        log_vdw[abo], exponent[abo] = abo_width(
            np.floor(vdw[abo]), vdw[abo] - np.floor(vdw[abo]), ATOMIC_WEIGHTS[number[abo] - 1]
        )
        order = np.lexsort((loggf, species, wavelength))
        return cls(
            wavelength[order],
            species[order],
            e_low[order],
            loggf[order],
            gamma_rad[order],
            stark[order],
            log_vdw[order],
            exponent[order],
        )

    def __len__(self) -> int:
        return len(self.wavelength)

    def take(self, rows: np.ndarray) -> "LineList":
        """The rows of an index or boolean array, in order of wavelength."""
        index = np.arange(len(self))[rows]
        index.sort()
        return LineList(**{name: getattr(self, name)[index] for name in _COLUMNS})

    def select(self, lo: float, hi: float) -> "LineList":
        """The lines with lo <= wavelength <= hi [vacuum Angstrom]."""
        return self.take((self.wavelength >= lo) & (self.wavelength <= hi))

    def strength(self, temperature: float = 5000.0) -> Float[np.ndarray, " line"]:
        """log10(gf lambda) - 5040 K/T E_low: relative strength [dex] within one species.

        It orders lines of one species by their central opacity at a temperature [K]; between
        species the abundance and the partition function come on top.
        """
        theta = np.log10(np.e) / (8.617333262e-5 * temperature)
        return self.loggf + np.log10(self.wavelength) - theta * self.e_low

    @staticmethod
    def concatenate(lists: "list[LineList]") -> "LineList":
        """One sorted list of all rows."""
        joined = {n: np.concatenate([getattr(x, n) for x in lists]) for n in _COLUMNS}
        order = np.lexsort((joined["loggf"], joined["species"], joined["wavelength"]))
        return LineList(**{name: column[order] for name, column in joined.items()})

    def save(self, path: str | os.PathLike[str], attributes: dict[str, str] | None = None) -> None:
        """Write to HDF5, atomically; see `columns` for the precision."""
        with atomic_write(path) as temporary, h5py.File(temporary, "w") as file:
            for name, column in self.columns().items():
                file.create_dataset(
                    name,
                    data=column,
                    compression="gzip",
                    compression_opts=9,
                    shuffle=True,
                    track_times=False,
                )
            for key, value in {"medium": "vacuum", **(attributes or {})}.items():
                file.attrs[key] = value

    def columns(self) -> dict[str, np.ndarray]:
        """The columns [line] as stored: wavelength float64, species int32, the rest float32."""
        kept = {"wavelength": self.wavelength, "species": self.species.astype(np.int32)}
        rest = [name for name in _COLUMNS if name not in kept]
        return kept | {name: getattr(self, name).astype(np.float32) for name in rest}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "LineList":
        """Read what `save` wrote."""
        try:
            with h5py.File(path, "r") as file:
                columns = {name: file[name][()] for name in _COLUMNS}
        except (OSError, KeyError) as error:
            raise InputError(
                f"line list {path}: not a line list written by stellarfit ({error})"
            ) from None
        # Packed wavelengths are equal only to rounding: the order of ties may have changed.
        order = np.argsort(columns["wavelength"], kind="stable")
        return cls(
            **{
                name: column[order].astype(np.int32 if name == "species" else np.float64)
                for name, column in columns.items()
            }
        )


_COLUMNS = (
    "wavelength",
    "species",
    "e_low",
    "loggf",
    "gamma_rad",
    "log_gamma_stark",
    "log_gamma_vdw",
    "vdw_exponent",
)
