"""Ionisation and molecular equilibrium of a gas at given temperature and pressure.

Saha-Boltzmann ionisation of every element and a network of diatomic molecules, with charge,
nuclei and pressure conserved at each layer for the *given* abundances (Gray 2005, chapter 8;
data of Barklem & Collet 2016, A&A 588, A96). Raising [Mg/Fe] therefore raises the electron
density and with it the H- opacity.

Seven elements that are bound among each other form the network of nonlinear equations. Every other
element meets them only one atom at a time (ZrO, LaO, CaH, HS, ...), so that its neutrals follow
from the network's without an equation of their own.
"""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.interpolate import CubicSpline

from emulators.physics.abundances import ATOMIC_WEIGHTS
from emulators.physics.constants import ATOMIC_MASS, BOLTZMANN, BOLTZMANN_EV, ELECTRON_MASS, PLANCK

# The elements bound in molecules, and the molecules: code 100 * MOOG code -> the two elements.
NETWORK = (1, 6, 7, 8, 12, 14, 22)
MOLECULES = {
    "H2": (1, 1),
    "CH": (1, 6),
    "NH": (1, 7),
    "OH": (1, 8),
    "MgH": (1, 12),
    "SiH": (1, 14),
    "C2": (6, 6),
    "CN": (6, 7),
    "CO": (6, 8),
    "N2": (7, 7),
    "NO": (7, 8),
    "O2": (8, 8),
    "SiO": (8, 14),
    "TiO": (8, 22),
}
# Molecules of one element of the network with one outside it (named in chemistry.h5).
TRACE_MOLECULES = (
    "LiH", "HF", "NaH", "AlH", "PH", "HS", "HCl", "KH", "CaH", "CrH", "MnH", "FeH", "CoH", "NiH",
    "CuH", "CF", "CP", "CS", "AlN", "PN", "NS", "ZrN", "MgS", "SiS", "TiS", "AlO", "PO", "SO",
    "CaO", "ScO", "VO", "CrO", "MnO", "FeO", "NiO", "CuO", "SrO", "YO", "ZrO", "NbO", "BaO",
    "LaO", "TbO", "LuO", "HfO", "TaO", "WO", "ThO",
)  # fmt: skip
_H_AFFINITY = 0.754195  # eV (Lykke, Murray & Lineberger 1991)
_NEWTON_STEPS = 16
_MAX_STEP = 6.0  # largest change of a log density in one Newton step

# Partition functions are resampled once on nodes uniform in ln T.
_LN_T = np.linspace(np.log(1000.0), np.log(20000.0), 600)


def molecule_code(name: str) -> int:
    """Species code of a molecule of the network, e.g. 60700 for CN."""
    first, second = MOLECULES[name]
    return 100 * (100 * first + second)


class EquilibriumTables(eqx.Module):
    """Partition functions, ionisation energies and equilibrium constants on one ln T grid."""

    ln_q_atoms: Float[Array, "ion=3 element=92 node"]
    ln_q_molecules: Float[Array, "molecule node"]
    ln_k_molecules: Float[Array, "molecule node"]  # ln (p_A p_B / p_AB), dyn/cm^2
    ln_k_trace: Float[Array, "trace node"]
    # which element a trace molecule takes from outside and from inside the network (0 or 1)
    outside: Float[Array, "element=92 trace"]
    inside: Float[Array, "network trace"]
    ionization: Float[Array, "stage=2 element=92"]  # eV

    @classmethod
    def load(cls, path: Path) -> "EquilibriumTables":
        """Read `chemistry.h5` (see `emulators.physics.build_tables`)."""
        with h5py.File(path) as file:
            nodes = file["temperature"][()]
            atoms = np.log(np.moveaxis(file["atom_partition"][()], 1, 0))
            energy = file["ionization_energy"][()].T[:2]
            names = [name.decode() for name in file["molecule"][()]]
            rows = [names.index(name) for name in MOLECULES]
            trace = [names.index(name) for name in TRACE_MOLECULES]
            ln_q = np.log(file["molecule_partition"][()][rows])
            log_k = file["molecule_log_pk"][()][rows + trace]
            pairs = file["molecule_atoms"][()][trace]
        # Stages that do not exist (no electron left) are put out of reach.
        atoms, energy = np.nan_to_num(atoms, nan=0.0), np.nan_to_num(energy, nan=1000.0)
        # log10 pK is nearly linear in 1/T, ln Q nearly linear in T: splines in those variables.
        k_spline = CubicSpline(1.0 / nodes[::-1], log_k[:, ::-1] * np.log(10.0), axis=1)
        ln_k = k_spline(np.exp(-_LN_T))
        outside, inside = np.zeros((92, len(trace))), np.zeros((len(NETWORK), len(trace)))
        for column, pair in enumerate(pairs):
            for element in pair:
                if element in NETWORK:
                    inside[NETWORK.index(element), column] = 1.0
                else:
                    outside[element - 1, column] = 1.0
        return cls(
            ln_q_atoms=jnp.asarray(_resample(nodes, atoms)),
            ln_q_molecules=jnp.asarray(_resample(nodes, ln_q)),
            ln_k_molecules=jnp.asarray(ln_k[: len(rows)]),
            ln_k_trace=jnp.asarray(ln_k[len(rows) :]),
            outside=jnp.asarray(outside),
            inside=jnp.asarray(inside),
            ionization=jnp.asarray(energy),
        )

    def partition_atoms(self, temperature: Float[Array, " layer"]) -> Float[Array, "3 92 layer"]:
        """ln of the partition functions of neutral, singly and doubly ionised atoms."""
        return _interpolate(self.ln_q_atoms, temperature)

    def partition_molecules(self, temperature: Float[Array, " layer"]) -> Float[Array, "m layer"]:
        """ln of the partition functions of the molecules, in the order of `MOLECULES`."""
        return _interpolate(self.ln_q_molecules, temperature)


def _resample(nodes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Cubic spline in T inside the nodes, straight on in ln T above the last one."""
    spline = CubicSpline(nodes, values, axis=-1)
    inside = spline(np.minimum(np.exp(_LN_T), nodes[-1]))
    slope = spline(nodes[-1], 1)[..., None] * nodes[-1]
    return inside + slope * np.maximum(_LN_T - np.log(nodes[-1]), 0.0)


def _interpolate(table: Float[Array, "*s node"], temperature: Float[Array, " layer"]) -> Array:
    position = (jnp.log(temperature) - _LN_T[0]) / (_LN_T[1] - _LN_T[0])
    left = jnp.clip(jnp.floor(position), 0, len(_LN_T) - 2)
    weight = position - left
    index = left.astype(jnp.int32)
    return table[..., index] * (1.0 - weight) + table[..., index + 1] * weight


class Equilibrium(NamedTuple):
    """Number densities [cm^-3] at each layer."""

    electrons: Float[Array, " layer"]
    hydrogen_nuclei: Float[Array, " layer"]
    atoms: Float[Array, "3 92 layer"]  # neutral, singly, doubly ionised
    molecules: Float[Array, "molecule layer"]  # in the order of MOLECULES
    trace_molecules: Float[Array, "trace layer"]  # in the order of TRACE_MOLECULES
    hminus: Float[Array, " layer"]
    density: Float[Array, " layer"]  # g/cm^3


class _Constants(NamedTuple):
    """What one layer's equations need, all in logs."""

    ln_saha: Float[Array, "2 92"]  # ln n_e n_{i+1} / n_i
    ln_hminus: Float[Array, ""]  # ln n(H-) / (n_H n_e)
    ln_molecule: Float[Array, " molecule"]  # ln n_AB / (n_A n_B)
    ln_trace: Float[Array, " trace"]
    ln_abundance: Float[Array, " 92"]  # ln n(X) / n(H), nuclei
    ln_particles: Float[Array, ""]  # ln P_gas / kT
    ln_electrons: Float[Array, ""]  # ln n_e where it is given, NaN where it is to be found


_ROW = {element: row for row, element in enumerate(NETWORK)}
_PAIRS = np.array([[_ROW[a], _ROW[b]] for a, b in MOLECULES.values()])
# nuclei of each network element in each molecule
_NUCLEI = np.zeros((len(NETWORK), len(MOLECULES)))
for _column, _pair in enumerate(_PAIRS):
    for _row in _pair:
        _NUCLEI[_row, _column] += 1.0
_IN_NETWORK = np.array([z in NETWORK for z in range(1, 93)])
_NETWORK_INDEX = np.array(NETWORK) - 1


class _Populations(NamedTuple):
    """Number densities [cm^-3] of one layer."""

    electrons: Float[Array, ""]
    nuclei: Float[Array, ""]  # of hydrogen
    atoms: Float[Array, "3 92"]
    molecules: Float[Array, " molecule"]
    trace: Float[Array, " trace"]
    hminus: Float[Array, ""]


def _populations(unknowns: Array, c: _Constants, tables: EquilibriumTables) -> _Populations:
    """Everything from ln(free neutrals of the network), ln n_e and ln n(H nuclei)."""
    free, ln_electrons, ln_nuclei = unknowns[:-2], unknowns[-2], unknowns[-1]
    first = c.ln_saha[0] - ln_electrons
    second = first + c.ln_saha[1] - ln_electrons
    # Elements outside the network are neutral, ionised or bound to one atom of the network: what
    # each of these is relative to the neutral is known, and so the neutral is explicit.
    bound = jnp.exp(c.ln_trace + free @ tables.inside)
    forms = 1.0 + jnp.exp(first) + jnp.exp(second) + tables.outside @ bound
    ln_neutral = c.ln_abundance + ln_nuclei - jnp.log(forms)
    ln_neutral = ln_neutral.at[_NETWORK_INDEX].set(free)
    return _Populations(
        electrons=jnp.exp(ln_electrons),
        nuclei=jnp.exp(ln_nuclei),
        atoms=jnp.exp(jnp.stack([ln_neutral, ln_neutral + first, ln_neutral + second])),
        molecules=jnp.exp(free[_PAIRS[:, 0]] + free[_PAIRS[:, 1]] + c.ln_molecule),
        trace=(jnp.exp(ln_neutral) @ tables.outside) * bound,
        hminus=jnp.exp(free[0] + ln_electrons + c.ln_hminus),
    )


def _residual(unknowns: Array, c: _Constants, tables: EquilibriumTables) -> Array:
    """Conservation of nuclei, charge and pressure as differences of logs.

    In logs the equations are close to linear even when a first guess of a molecule is wrong by
    many decades, so Newton's method needs few steps from any start. Where the electron density is
    given, it takes the place of the pressure.
    """
    n = _populations(unknowns, c, tables)
    in_molecules = jnp.asarray(_NUCLEI) @ n.molecules + tables.inside @ n.trace
    nuclei = jnp.sum(n.atoms[:, _NETWORK_INDEX], axis=0) + in_molecules
    nuclei = nuclei.at[0].add(n.hminus)
    mass = jnp.log(nuclei) - c.ln_abundance[_NETWORK_INDEX] - unknowns[-1]
    ions = jnp.sum(n.atoms[1] + 2.0 * n.atoms[2])
    charge = jnp.log(n.electrons + n.hminus) - jnp.log(ions)
    pressure = jnp.log(_particles(n)) - c.ln_particles
    given = jnp.isfinite(c.ln_electrons)
    electrons = unknowns[-2] - jnp.where(given, c.ln_electrons, 0.0)
    last = jnp.where(given, jnp.stack([electrons, -charge]), jnp.stack([charge, pressure]))
    return jnp.concatenate([mass, last])


def _particles(n: _Populations) -> Float[Array, ""]:
    return n.electrons + n.hminus + jnp.sum(n.atoms) + jnp.sum(n.molecules) + jnp.sum(n.trace)


def _solve(matrix: Float[Array, "n n"], right: Float[Array, " n"]) -> Float[Array, " n"]:
    """Gauss-Jordan elimination as rank-one updates: for thousands of small systems at once it
    beats a batched LU, and it compiles to one small kernel.

    No pivoting is needed: every row's diagonal is its largest term, in the order of the unknowns.
    """

    def eliminate(i: Array, rows: Array) -> Array:
        pivot = rows[i] / rows[i, i]
        column = rows[:, i].at[i].set(0.0)
        return rows.at[i].set(pivot) - column[:, None] * pivot[None, :]

    rows = jnp.concatenate([matrix, right[:, None]], axis=1)
    return jax.lax.fori_loop(0, right.shape[0], eliminate, rows)[:, -1]


def _newton(start: Array, c: _Constants, tables: EquilibriumTables) -> Array:
    def step(_: Array, unknowns: Array) -> Array:
        jacobian = jax.jacfwd(_residual)(unknowns, frozen, tables)
        change = _solve(jacobian, _residual(unknowns, frozen, tables))
        return unknowns - jnp.clip(change, -_MAX_STEP, _MAX_STEP)

    frozen = jax.lax.stop_gradient(c)
    solution = jax.lax.fori_loop(0, _NEWTON_STEPS, step, jax.lax.stop_gradient(start))
    # One more step with a frozen Jacobian carries the exact derivative (implicit functions).
    jacobian = jax.lax.stop_gradient(jax.jacfwd(_residual)(solution, frozen, tables))
    return solution - _solve(jacobian, _residual(solution, c, tables))


def equilibrium(
    temperature: Float[Array, " layer"],
    pressure: Float[Array, " layer"],
    log_abundance: Float[Array, " 92"],
    tables: EquilibriumTables,
) -> Equilibrium:
    """Solve ionisation and molecules at each layer.

    Parameters
    ----------
    temperature
        K.
    pressure
        Total gas pressure, electrons included, dyn/cm^2.
    log_abundance
        log10 N(X)/N(H) + 12 of elements 1-92; -inf where absent.
    tables
        Partition functions, ionisation energies, equilibrium constants.

    Returns
    -------
    Equilibrium
        Densities that satisfy charge, nuclei and pressure conservation; differentiable in every
        argument.
    """
    unknown = jnp.full_like(pressure, jnp.nan)
    return _equilibrium(temperature, pressure, unknown, log_abundance, tables)[0]


def pressure_from_electrons(
    temperature: Float[Array, " layer"],
    electrons: Float[Array, " layer"],
    pressure: Float[Array, " layer"],
    log_abundance: Float[Array, " 92"],
    tables: EquilibriumTables,
) -> Float[Array, " layer"]:
    """Gas pressure [dyn/cm^2] at which a gas of this composition has the given electron density.

    Some codes take a model atmosphere as temperature and electron density and find the pressure.
    The two differ where a model was computed for other abundances.

    Parameters
    ----------
    temperature
        K.
    electrons
        Number density of free electrons, cm^-3.
    pressure
        A first guess, dyn/cm^2: the model's own gas pressure.
    log_abundance, tables
        See `equilibrium`.
    """
    ln_electrons = jnp.log(electrons)
    return _equilibrium(temperature, pressure, ln_electrons, log_abundance, tables)[1]


def _equilibrium(
    temperature: Array,
    pressure: Array,
    ln_electrons: Array,
    log_abundance: Array,
    tables: EquilibriumTables,
) -> tuple[Equilibrium, Float[Array, " layer"]]:
    """The equilibrium and its gas pressure."""
    kt = BOLTZMANN * temperature
    ln_q = tables.partition_atoms(temperature)
    ln_thermal = 1.5 * jnp.log(2.0 * np.pi * ELECTRON_MASS * kt / PLANCK**2)
    energy = tables.ionization[:, :, None] / (BOLTZMANN_EV * temperature)
    ln_saha = np.log(2.0) + ln_q[1:] - ln_q[:-1] + ln_thermal - energy
    constants = _Constants(
        ln_saha=jnp.moveaxis(ln_saha, -1, 0),
        # one bound state (Q = 1); the ground state of H holds every neutral (Q = 2)
        ln_hminus=-np.log(4.0) - ln_thermal + _H_AFFINITY / (BOLTZMANN_EV * temperature),
        ln_molecule=(jnp.log(kt) - _interpolate(tables.ln_k_molecules, temperature)).T,
        ln_trace=(jnp.log(kt) - _interpolate(tables.ln_k_trace, temperature)).T,
        # absent elements get a density too small to matter instead of log(0)
        ln_abundance=jnp.broadcast_to(
            jnp.maximum((log_abundance - 12.0) * np.log(10.0), -80.0), (temperature.size, 92)
        ),
        ln_particles=jnp.log(pressure / kt),
        ln_electrons=ln_electrons,
    )
    start = jax.vmap(_guess)(constants)
    over_layers = jax.vmap(_newton, in_axes=(0, 0, None))
    unknowns = over_layers(start, constants, tables)
    n = jax.vmap(_populations, in_axes=(0, 0, None))(unknowns, constants, tables)
    weight = jnp.sum(10.0 ** (log_abundance - 12.0) * ATOMIC_WEIGHTS) * ATOMIC_MASS
    result = Equilibrium(
        electrons=n.electrons,
        hydrogen_nuclei=n.nuclei,
        atoms=jnp.moveaxis(n.atoms, 0, -1),
        molecules=n.molecules.T,
        trace_molecules=n.trace.T,
        hminus=n.hminus,
        density=n.nuclei * weight,
    )
    return result, jax.vmap(_particles)(n) * kt


def _guess(c: _Constants) -> Array:
    """A start: H and H2 in balance, metals neutral, a tenth of a part in a thousand ionised."""
    ln_nuclei = c.ln_particles - np.log(1.1)
    # x + 2 K x^2 = N for hydrogen, then every other element as if it were free
    ln_kn = np.log(8.0) + c.ln_molecule[0] + ln_nuclei
    free_h = ln_nuclei + np.log(2.0) - jnp.logaddexp(0.0, 0.5 * jnp.logaddexp(0.0, ln_kn))
    others = c.ln_abundance[_NETWORK_INDEX[1:]] + ln_nuclei
    given = jnp.isfinite(c.ln_electrons)
    ln_electrons = jnp.where(given, c.ln_electrons, ln_nuclei - 9.0)
    return jnp.concatenate([free_h[None], others, jnp.stack([ln_electrons, ln_nuclei])])


CODES = tuple(molecule_code(name) for name in MOLECULES)
MASSES = np.array([ATOMIC_WEIGHTS[a - 1] + ATOMIC_WEIGHTS[b - 1] for a, b in MOLECULES.values()])
