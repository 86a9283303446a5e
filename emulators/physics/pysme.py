"""PySME as a second synthesiser: the same labels, atmospheres and lines through another code.

PySME (Wehrhahn, Piskunov & Ryabchikova 2023, A&A 671, A171) wraps the SME library. It needs the
extra `pysme`: ``pip install 'stellarfit[pysme]'``. It solves chemistry, opacity and transfer by
itself; from us it gets the structure (temperature, density, particle densities at each column
mass), abundances, microturbulence and line list. It is slower and not differentiable: a check of
our own synthesis and a way to train on another code's spectra, not a part of a fit.
"""

import importlib
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.physics import data_path
from emulators.physics.abundances import SYMBOLS
from emulators.physics.chemistry import EquilibriumTables, equilibrium
from emulators.physics.constants import BOLTZMANN
from emulators.physics.formation import Synthesis
from emulators.physics.linelist import NO_BROADENING, LineList, abo_width, species_mass
from emulators.physics.star import LabelledStar
from emulators.physics.synthesizer import Synthesizer
from emulators.storage import file_hash

_HYDROGEN_LOWER = 10.199  # eV, of the Balmer lines
_VDW_EXPONENT = 0.3  # a line with another one has ABO data
_NOT_IN_OUR_SCALES = ("Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es")


class PySMESynthesizer(Synthesizer):
    """1D LTE spectra from PySME; not differentiable and not traceable by JAX.

    Attributes
    ----------
    label_space
        teff, logg and fe_h are required, vmic too unless fixed; any [X/Fe] besides.
    wavelength
        Vacuum Angstrom.
    """

    wavelength: Float[Array, " wavelength"]
    star: LabelledStar
    tables: EquilibriumTables
    lines: LineList
    sources: dict[str, str]

    @property
    def label_space(self) -> LabelSpace:
        """Names, units and box of the labels."""
        return self.star.label_space

    @classmethod
    def build(
        cls,
        wavelength: Float[np.ndarray, " wavelength"],
        label_space: LabelSpace,
        *,
        lines: LineList | None = None,
        atmospheres: str | Path | None = None,
        vmic: float | None = None,
    ) -> "PySMESynthesizer":
        """Load what PySME is given.

        Parameters
        ----------
        wavelength
            Vacuum Angstrom, increasing.
        label_space
            The box that the labels come from.
        lines
            A line list. Default: the shipped list, 4000-5500 A. The Balmer lines are added.
        atmospheres
            A grid file. Default: the shipped MARCS grid.
        vmic
            Microturbulence [km/s] of every star when it is not a label.

        Raises
        ------
        InputError
            If PySME is not installed; for labels it does not know or a box that leaves the
            atmosphere grid.
        """
        _pysme("sme")
        wavelength = np.asarray(wavelength, float)
        atmospheres = atmospheres or data_path("atmospheres.h5")
        lines = LineList.load(data_path("lines.h5")) if lines is None else lines
        # Lines within 1% of the window's ends: their wings may reach in.
        near = lines.select(float(wavelength[0]) * 0.99, float(wavelength[-1]) * 1.01)
        # pyright takes `label_space`, which the interface leaves abstract, for a field.
        return cls(  # pyright: ignore[reportCallIssue]
            jnp.asarray(wavelength),
            LabelledStar.build(label_space, atmospheres, vmic),
            EquilibriumTables.load(data_path("chemistry.h5")),
            near,
            {"atmospheres": file_hash(atmospheres)},
        )

    def __call__(
        self, labels: Float[Array, " label"], shift: Float[Array, ""] | float = 0.0
    ) -> Synthesis:
        """The spectrum of one star at `wavelength` times exp(shift)."""
        teff, logg = (float(labels[self.label_space.index(name)]) for name in ("teff", "logg"))
        atmosphere, abundance, microturbulence = self.star(jnp.asarray(labels))
        vmic = float(microturbulence)
        gas = equilibrium(atmosphere.temperature, atmosphere.pressure, abundance, self.tables)
        temperature = np.asarray(atmosphere.temperature)
        electrons = np.asarray(gas.electrons)
        particles = np.asarray(atmosphere.pressure) / (BOLTZMANN * temperature)
        structure = _pysme("atmosphere.atmosphere").Atmosphere(
            teff=teff,
            logg=logg,
            vturb=vmic,
            method="embedded",
            geom="PP",
            depth="RHOX",
            interp="RHOX",
            rhox=np.asarray(atmosphere.column_mass),
            temp=temperature,
            xne=electrons,
            xna=particles - electrons,
            rho=np.asarray(gas.density),
            wlstd=5000.0,
        )
        sme = _pysme("sme").SME_Structure()
        sme.teff, sme.logg, sme.monh = teff, logg, 0.0
        sme.vmic, sme.vmac, sme.vsini = vmic, 0.0, 0.0
        sme.abund = _pysme("abund").Abund(
            monh=0.0, pattern=_pattern(np.asarray(abundance)), type="H=12"
        )
        sme.atmo = structure
        table = line_table(self.lines)
        sme.linelist = _pysme("linelist.linelist").LineList(table, lineformat="short", medium="vac")
        sme.wave = np.asarray(self.wavelength) * np.exp(float(shift))
        sme.cscale_flag, sme.vrad_flag = "none", "none"
        sme.normalize_by_continuum = False
        sme = _pysme("synthesize").synthesize_spectrum(sme)
        return Synthesis(jnp.asarray(np.array(sme.synth[0])), jnp.asarray(np.array(sme.cont[0])))

    def batch(self, labels: Float[Array, "star label"], shift: Float[Array, " star"]) -> Synthesis:
        """Spectra of many stars, one after the other."""
        spectra = [self(row, offset) for row, offset in zip(labels, shift, strict=True)]
        return Synthesis(*(jnp.stack(arrays) for arrays in zip(*spectra, strict=True)))

    def provenance(self) -> dict[str, Any]:
        """Code, versions and table hashes."""
        return {
            "synthesizer": "PySMESynthesizer",
            "pysme": metadata.version("pysme-astro"),
            "solar_scale": self.label_space.solar_scale,
            "medium": "vacuum",
            "vmic": self.star.vmic,
            "lines": len(self.lines),
            **{f"sha256_{name}": digest for name, digest in self.sources.items()},
        }


def _pysme(module: str) -> Any:
    """A module of PySME, which is an optional dependency."""
    try:
        return importlib.import_module(f"pysme.{module}")
    except ImportError as error:
        raise InputError(
            f"PySME cannot be imported ({error}): pip install 'stellarfit[pysme]'"
        ) from None


def _pattern(abundance: np.ndarray) -> dict[str, float]:
    """Abundances by symbol as PySME wants them: every element it knows, NaN for absent."""
    pattern: dict[str, float] = {symbol: float("nan") for symbol in _NOT_IN_OUR_SCALES}
    for symbol, value in zip(SYMBOLS, abundance.tolist(), strict=True):
        pattern[symbol] = value if np.isfinite(value) else float("nan")
    return pattern


def species_name(species: int) -> str:
    """PySME's name of a species: 'Fe 2', 'CH 1', 'C2 1'. Heavier element first only in hydrides."""
    if species < 10000:
        return f"{SYMBOLS[species // 100 - 1]} {species % 100 + 1}"
    first, second = divmod(species // 100, 100)
    if first == second:
        return f"{SYMBOLS[first - 1]}2 1"
    if first == 1 or (first == 8 and second > 8):
        first, second = second, first  # CH, MgH, TiO
    return f"{SYMBOLS[first - 1]}{SYMBOLS[second - 1]} 1"


def abo_code(log_gamma: float, exponent: float, mass: float) -> float:
    """The notation sigma.alpha (328.244) of a van der Waals width that ABO theory gave."""
    alpha = 1.0 - 2.0 * exponent
    unit, _ = abo_width(np.ones(1), np.array([alpha]), np.array([mass]))
    return round(10 ** (log_gamma - float(unit[0]))) + alpha


def line_table(lines: LineList) -> Any:
    """A pandas table of the lines in PySME's columns, the Balmer lines among them.

    PySME takes negative van der Waals columns as log10 of the width, those above 20 as ABO data
    and zero as unknown; radiative and Stark widths are log10, zero for unknown.
    """
    pandas = importlib.import_module("pandas")
    vdw = np.where(lines.log_gamma_vdw <= NO_BROADENING, 0.0, lines.log_gamma_vdw)
    is_abo = np.abs(lines.vdw_exponent - _VDW_EXPONENT) > 1e-4
    for row in np.flatnonzero(is_abo & (vdw != 0)):
        mass = species_mass(int(lines.species[row]))
        vdw[row] = abo_code(float(vdw[row]), float(lines.vdw_exponent[row]), mass)
    stark = np.where(lines.log_gamma_stark <= NO_BROADENING, 0.0, lines.log_gamma_stark)
    names = {code: species_name(int(code)) for code in np.unique(lines.species)}
    table = pandas.DataFrame(
        {
            "species": [names[code] for code in lines.species],
            "wlcent": lines.wavelength,
            "excit": lines.e_low,
            "gflog": lines.loggf,
            "gamrad": np.log10(lines.gamma_rad),
            "gamqst": stark,
            "gamvw": vdw,
        }
    )
    with h5py.File(data_path("hydrogen.h5")) as h5:
        balmer = pandas.DataFrame(
            {
                "species": "H 1",
                "wlcent": h5["wavelength"][()],
                "excit": _HYDROGEN_LOWER,
                "gflog": h5["loggf"][()],
                "gamrad": 8.8,
                # of hydrogen lines VALD and SME keep the two principal quantum numbers here
                "gamqst": 2.0,
                "gamvw": h5["upper_level"][()].astype(float),
            }
        )
    table = pandas.concat([table, balmer]).sort_values("wlcent", ignore_index=True)
    table["atom_number"] = 1.0
    table["ionization"] = [float(name.split()[1]) for name in table["species"]]
    table["lande"], table["depth"], table["reference"] = 99.0, 1.0, ""
    return table
