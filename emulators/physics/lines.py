"""Line opacity: thousands of Voigt profiles on a wavelength grid, layer by layer.

Only the pixels near a line are computed. How far "near" is depends on the line's strength: where
its depth falls below a stated fraction of the continuum in every probe atmosphere (the corners of
the label box), it is cut. The grid is cut into tiles, and every tile gets the list of lines
whose cores or whose wings touch it, so that the whole sum is a few loops over dense arrays that a
GPU or a vector CPU runs at full speed, and nothing is ever scattered.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from emulators.physics.abundances import ATOMIC_WEIGHTS
from emulators.physics.chemistry import CODES, MASSES, Equilibrium, EquilibriumTables
from emulators.physics.constants import (
    ATOMIC_MASS,
    BOLTZMANN,
    BOLTZMANN_EV,
    CLASSICAL_CROSS_SECTION,
    SPEED_OF_LIGHT,
)
from emulators.physics.continuum import stimulated
from emulators.physics.linelist import LineList
from emulators.physics.voigt import voigt, voigt_wing

_FLOAT32 = np.dtype("float32")
# Tiles of the wavelength grid, in pixels: narrow ones for lines that reach no farther than that.
_NARROW, _WIDE = 8, 32
_GROUPS = 6  # tiles with about as many lines as each other are computed together
# Farther from a line than this in ln(wavelength), 8 Doppler widths of the lightest elements in
# the hottest layers, only its Lorentz wing is left, which costs a tenth of the full profile.
_CORE = 1.2e-4
_BISECTIONS = 6  # for the end of a line's core, to a hundredth of its width
# van der Waals broadening by He and H2 relative to H, from polarisability and reduced mass
_HELIUM, _H2 = 0.41, 0.85


class Profiles(NamedTuple):
    """The Voigt profiles of all lines at each layer."""

    amplitude: Float[Array, "line layer"]  # opacity at the centre of a pure Doppler line, cm^2/g
    damping: Float[Array, "line layer"]  # Lorentz over Doppler width
    inverse_width: Float[Array, "line layer"]  # 1 / Doppler width in ln(wavelength)


class LineTable(eqx.Module):
    """A line list as device arrays, with the species it needs numbered from 0."""

    ln_wavelength: Float[Array, " line"]
    wavelength: Float[Array, " line"]
    species: Int[Array, " line"]  # index into `codes`
    e_low: Float[Array, " line"]
    ln_gf: Float[Array, " line"]
    gamma_rad: Float[Array, " line"]
    log_gamma_stark: Float[Array, " line"]
    log_gamma_vdw: Float[Array, " line"]
    vdw_exponent: Float[Array, " line"]
    masses: Float[Array, " species"]  # g
    codes: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def build(cls, lines: LineList) -> "LineTable":
        """From a host-side list; keeps its order."""
        codes, index = np.unique(lines.species, return_inverse=True)
        masses = [_mass(int(code)) * ATOMIC_MASS for code in codes]
        return cls(
            ln_wavelength=jnp.asarray(np.log(lines.wavelength)),
            wavelength=jnp.asarray(lines.wavelength),
            species=jnp.asarray(index.astype(np.int32)),
            e_low=jnp.asarray(lines.e_low, float),
            ln_gf=jnp.asarray(lines.loggf * np.log(10.0), float),
            gamma_rad=jnp.asarray(lines.gamma_rad, float),
            log_gamma_stark=jnp.asarray(lines.log_gamma_stark, float),
            log_gamma_vdw=jnp.asarray(lines.log_gamma_vdw, float),
            vdw_exponent=jnp.asarray(lines.vdw_exponent, float),
            masses=jnp.asarray(masses),
            codes=tuple(int(code) for code in codes),
        )


def _mass(code: int) -> float:
    return float(MASSES[CODES.index(code)] if code in CODES else ATOMIC_WEIGHTS[code // 100 - 1])


def _ln_population(
    codes: tuple[int, ...],
    temperature: Array,
    gas: Equilibrium,
    tables: EquilibriumTables,
) -> Float[Array, "species layer"]:
    """ln (number density / partition function) of each species."""
    ln_q_atoms = tables.partition_atoms(temperature)
    ln_q_molecules = tables.partition_molecules(temperature)
    rows = []
    for code in codes:
        if code in CODES:
            row = CODES.index(code)
            rows.append(jnp.log(gas.molecules[row]) - ln_q_molecules[row])
        else:
            element, ion = code // 100 - 1, code % 100
            rows.append(jnp.log(gas.atoms[ion, element]) - ln_q_atoms[ion, element])
    return jnp.stack(rows)


def line_profiles(
    lines: LineTable,
    temperature: Float[Array, " layer"],
    gas: Equilibrium,
    microturbulence: Float[Array, ""],
    tables: EquilibriumTables,
    dtype: np.dtype,
) -> Profiles:
    """Strength, damping and width of every line at every layer.

    Parameters
    ----------
    microturbulence
        km/s.
    dtype
        Precision of the result; float32 is enough for the profiles, whose arguments are
        differences of ln(wavelength) that were taken in float64.
    """
    thermal = 2.0 * BOLTZMANN * temperature / lines.masses[:, None]
    velocity = jnp.sqrt(thermal + (1e5 * microturbulence) ** 2)  # [species, layer] cm/s
    population = _ln_population(lines.codes, temperature, gas, tables)
    # per species, in float64; per line from here on in `dtype`
    scale = population - jnp.log(velocity) - jnp.log(gas.density)
    scale, velocity = scale.astype(dtype)[lines.species], velocity.astype(dtype)[lines.species]

    def column(values: Array) -> Array:
        return values.astype(dtype)[:, None]

    inverse_kt = (1.0 / (BOLTZMANN_EV * temperature)).astype(dtype)
    wavelength_cm = lines.wavelength * 1e-8
    # pi e^2/(m c) gf / (sqrt(pi) Doppler width in Hz): the width is velocity / wavelength
    constant = lines.ln_gf + jnp.log(CLASSICAL_CROSS_SECTION / np.sqrt(np.pi) * wavelength_cm)
    emission = stimulated(column(lines.wavelength), temperature.astype(dtype))
    amplitude = jnp.exp(column(constant) + scale - column(lines.e_low) * inverse_kt) * emission

    ln_t4 = jnp.log(temperature / 1e4).astype(dtype)
    perturbers = gas.atoms[0, 0] + _HELIUM * gas.atoms[0, 1] + _H2 * gas.molecules[0]
    ln_perturbers = jnp.log(perturbers).astype(dtype)
    ln_electrons = jnp.log(gas.electrons).astype(dtype)
    ln10 = np.log(10.0)
    gamma = (
        column(lines.gamma_rad)
        + jnp.exp(column(lines.log_gamma_stark * ln10) + ln_electrons + ln_t4 / 6.0)
        + jnp.exp(
            column(lines.log_gamma_vdw * ln10) + ln_perturbers + column(lines.vdw_exponent) * ln_t4
        )
    )
    damping = gamma * column(wavelength_cm) / (4.0 * np.pi * velocity)
    return Profiles(amplitude, damping, jnp.asarray(SPEED_OF_LIGHT, dtype) / velocity)


class _Group(eqx.Module):
    """Tiles of the grid that about as many lines touch, and those lines."""

    pixels: Float[Array, "tile pixel"]  # ln wavelength relative to the tile's centre
    lines: Int[Array, "slot tile"]  # rows of the line table; -1 pads
    offsets: Float[Array, "slot tile"]  # the line's ln wavelength relative to the tile's centre

    def opacity(
        self, profiles: Profiles, shift: Array, profile: Callable[[Array, Array], Array]
    ) -> Float[Array, "tile layer pixel"]:
        dtype = profiles.amplitude.dtype
        pixels = (self.pixels + shift).astype(dtype)

        # One line of every tile at a time: the sum stays in cache.
        def add(total: Array, slot: tuple[Array, Array]) -> tuple[Array, None]:
            row, offset = slot
            valid = (row >= 0)[:, None]
            amplitude = jnp.where(valid, profiles.amplitude[row], 0.0)[:, :, None]
            width = profiles.inverse_width[row][:, :, None]
            distance = (pixels - offset[:, None])[:, None, :] * width
            return total + amplitude * profile(profiles.damping[row][:, :, None], distance), None

        shape = (self.pixels.shape[0], profiles.amplitude.shape[1], self.pixels.shape[1])
        slots = (self.lines, self.offsets.astype(dtype))
        return jax.lax.scan(add, jnp.zeros(shape, dtype), slots)[0]


class _Tiles(eqx.Module):
    """The whole grid in tiles of one width, with one kind of profile."""

    groups: tuple[_Group, ...]
    order: Int[Array, " tile"]  # where each tile of the grid stands among the groups' tiles
    padding: int = eqx.field(static=True)
    profile: Callable[[Array, Array], Array] = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        tiles: Float[np.ndarray, "tile pixel"],
        touches: list[np.ndarray],
        ln_line: Float[np.ndarray, " line"],
        padding: int,
        profile: Callable[[Array, Array], Array],
    ) -> "_Tiles":
        """From the rows of the lines that touch each tile."""
        centres = 0.5 * (tiles[:, 0] + tiles[:, -1])
        ranked = np.argsort([len(rows) for rows in touches], kind="stable")
        groups = []
        for members in np.array_split(ranked, min(_GROUPS, len(ranked))):
            slots = max(len(touches[tile]) for tile in members)
            lines = np.full((slots, len(members)), -1, np.int32)
            for column, tile in enumerate(members):
                lines[: len(touches[tile]), column] = touches[tile]
            offsets = np.where(lines < 0, 0.0, ln_line[lines] - centres[members])
            pixels = tiles[members] - centres[members, None]
            groups.append(_Group(jnp.asarray(pixels), jnp.asarray(lines), jnp.asarray(offsets)))
        return cls(tuple(groups), jnp.asarray(np.argsort(ranked)), padding, profile)

    def opacity(self, profiles: Profiles, shift: Array) -> Float[Array, "layer wavelength"]:
        parts = [group.opacity(profiles, shift, self.profile) for group in self.groups]
        tiles = jnp.concatenate(parts)[self.order]
        flat = jnp.moveaxis(tiles, 1, 0).reshape(tiles.shape[1], -1)
        return flat[:, : flat.shape[1] - self.padding]


def _cut(ln_grid: Float[np.ndarray, " wavelength"], width: int) -> tuple[np.ndarray, int]:
    """The grid in tiles; it goes on past its end at its last step to fill the last one."""
    padding = -len(ln_grid) % width
    extra = ln_grid[-1] + (ln_grid[-1] - ln_grid[-2]) * np.arange(1, padding + 1)
    return np.concatenate([ln_grid, extra]).reshape(-1, width), padding


def _near(
    tiles: np.ndarray, rows: np.ndarray, ln_line: np.ndarray, distance: np.ndarray | float
) -> list[np.ndarray]:
    """For each tile, which of the rows lie within a distance of it."""
    distance = np.broadcast_to(distance, rows.shape)
    return [
        rows[(ln_line[rows] + distance >= tile[0]) & (ln_line[rows] - distance <= tile[-1])]
        for tile in tiles
    ]


class LineOpacity(eqx.Module):
    """Sum of all lines' opacities on one wavelength grid.

    Parameters of `build`
    ---------------------
    reach
        How far [ln wavelength] from its centre each line is computed; zero drops the line. See
        `line_reach`.
    """

    table: LineTable
    classes: tuple[_Tiles, ...]
    num_pixels: int = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        wavelength: Float[np.ndarray, " wavelength"],
        lines: LineList,
        reach: Float[np.ndarray, " line"],
    ) -> "LineOpacity":
        ln_grid, ln_line = np.log(wavelength), np.log(lines.wavelength)
        step = np.median(np.diff(ln_grid))
        used = (
            (reach > 0)
            & (ln_line + reach >= ln_grid[0] - step)
            & (ln_line - reach <= ln_grid[-1] + step)
        )
        kept = np.flatnonzero(used)
        lines, ln_line, reach = lines.take(kept), ln_line[kept], reach[kept]
        reach = reach + step  # a sub-pixel shift of the grid stays within reach
        narrow = np.flatnonzero(reach <= _NARROW * step)
        broad = np.flatnonzero(reach > _NARROW * step)
        classes = []
        tiles, padding = _cut(ln_grid, _NARROW)
        touches = _near(tiles, narrow, ln_line, reach[narrow])
        classes.append(_Tiles.build(tiles, touches, ln_line, padding, voigt))
        tiles, padding = _cut(ln_grid, _WIDE)
        touches = _near(tiles, broad, ln_line, reach[broad])
        cores = _near(tiles, broad, ln_line, np.minimum(reach[broad], _CORE))
        wings = [np.setdiff1d(rows, core) for rows, core in zip(touches, cores, strict=True)]
        classes.append(_Tiles.build(tiles, cores, ln_line, padding, voigt))
        classes.append(_Tiles.build(tiles, wings, ln_line, padding, voigt_wing))
        return cls(LineTable.build(lines), tuple(classes), len(wavelength))

    def __call__(
        self,
        temperature: Float[Array, " layer"],
        gas: Equilibrium,
        microturbulence: Float[Array, ""],
        tables: EquilibriumTables,
        shift: Float[Array, ""],
        dtype: np.dtype = _FLOAT32,
    ) -> Float[Array, "layer wavelength"]:
        """Line absorption per gram [cm^2/g] on the grid times exp(shift)."""
        profiles = line_profiles(self.table, temperature, gas, microturbulence, tables, dtype)
        # or XLA would compute them anew for every tile that a line touches
        profiles = jax.lax.optimization_barrier(profiles)
        total = jnp.zeros((temperature.shape[0], self.num_pixels), dtype)
        for tiles in self.classes:
            total += tiles.opacity(profiles, shift)
        return total


def line_reach(
    profiles: Profiles,
    continuum: Float[Array, "layer line"],
    weight: Float[Array, " layer"],
    cut: float,
) -> Float[Array, " line"]:
    """Distance [ln wavelength] at which each line is no deeper than `cut` of the continuum's flux.

    While a line is weak, its depth is at most the mean over the atmosphere of its opacity over the
    continuum's, weighted with exp(-tau) dtau: where its core is or a distant wing, a line is weak.

    Parameters
    ----------
    continuum
        Continuous opacity at each line's wavelength [cm^2/g].
    weight
        exp(-tau) dtau of the continuum at each layer.
    cut
        Depth below which a line is left out.

    Returns
    -------
    The larger of the Gaussian core's and the Lorentz wing's reach; zero for a line that is nowhere
    deeper than the cut.
    """
    layers = profiles.amplitude / continuum.T * weight
    depth = jnp.sum(layers, axis=1)
    wing = jnp.sum(layers * profiles.damping / profiles.inverse_width**2, axis=1) / np.sqrt(np.pi)

    # The core ends between nothing and where it would if all layers were as wide as the widest.
    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        start, end = bracket
        middle = 0.5 * (start + end)
        gauss = jnp.exp(-((middle[:, None] * profiles.inverse_width) ** 2))
        deep = jnp.sum(layers * gauss, axis=1) > cut
        return jnp.where(deep, middle, start), jnp.where(deep, end, middle)

    end = jnp.sqrt(jnp.log(jnp.maximum(depth / cut, 1.0))) / profiles.inverse_width.min(axis=1)
    _, end = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(end), end))
    return jnp.where(depth > cut, jnp.maximum(end, jnp.sqrt(wing / cut)), 0.0)
