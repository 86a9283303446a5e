"""Line formation: from one atmosphere and its composition to flux and continuum."""

from collections.abc import Iterable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emulators.errors import InputError
from emulators.physics import data_path
from emulators.physics.atmosphere import Atmosphere
from emulators.physics.chemistry import Equilibrium, EquilibriumTables, equilibrium
from emulators.physics.continuum import MetalEdges, continuous_opacity
from emulators.physics.hydrogen import HydrogenLines
from emulators.physics.linelist import LineList
from emulators.physics.lines import LineOpacity, LineTable, line_profiles, line_reach
from emulators.physics.transfer import emergent_flux, planck

_FLOAT32 = np.dtype("float32")
_NODE_SPACING = 1e-3  # of the continuum in ln(wavelength): 5 A at 5000 A


class Synthesis(NamedTuple):
    """A synthetic spectrum at the star's surface [erg s^-1 cm^-2 A^-1]."""

    flux: Float[Array, "*star wavelength"]
    continuum: Float[Array, "*star wavelength"]

    @property
    def normalized(self) -> Float[Array, "*star wavelength"]:
        """Flux over continuum."""
        return self.flux / self.continuum


class Star(NamedTuple):
    """What a spectrum is computed from: the arguments of `LineFormation`."""

    atmosphere: Atmosphere
    log_abundance: Float[Array, " 92"]  # log10 N(X)/N(H) + 12 of elements 1-92, -inf where absent
    microturbulence: Float[Array, ""]  # km/s


class LineFormation(eqx.Module):
    """Opacities and transfer on one wavelength grid; a pure function of a star's structure.

    The continuum is computed on nodes 5 A apart and interpolated: it has no structure on smaller
    scales in the range that the tables cover.
    """

    ln_wavelength: Float[Array, " wavelength"]
    ln_nodes: Float[Array, " node"]
    lines: LineOpacity
    hydrogen: HydrogenLines
    edges: MetalEdges
    tables: EquilibriumTables
    dtype: np.dtype = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        wavelength: Float[np.ndarray, " wavelength"],
        lines: LineList,
        stars: Iterable[Star],
        cut: float,
        dtype: np.dtype = _FLOAT32,
    ) -> "LineFormation":
        """Each line as far from its centre as it matters in any of some stars.

        Parameters
        ----------
        wavelength
            Vacuum Angstrom, increasing.
        stars
            Those in which lines are strongest, or the only one.
        cut
            A line is computed where it is deeper than this fraction of the continuum.
        dtype
            Precision of the line profiles; chemistry and transfer are always float64.

        Raises
        ------
        InputError
            If a line's opacity is not finite in one of the stars.
        """
        tables = EquilibriumTables.load(data_path("chemistry.h5"))
        edges = MetalEdges.load(data_path("metal_bf.h5"))
        table, reach = LineTable.build(lines), np.zeros(len(lines))
        both = np.concatenate([wavelength, lines.wavelength])
        ends = jnp.array([both.min(), both.max()])
        for star in stars:
            here = _reach(star, *_layers(star, ends, tables, edges), ends, table, tables, cut)
            reach = np.maximum(reach, np.asarray(here))
        if not np.all(np.isfinite(reach)):
            raise InputError("a line's opacity is not finite in a corner of the label box")
        ln_wavelength = np.log(wavelength)
        span = ln_wavelength[-1] - ln_wavelength[0]
        count = int(np.ceil(span / _NODE_SPACING)) + 2
        middle = 0.5 * (ln_wavelength[-1] + ln_wavelength[0])
        nodes = middle + _NODE_SPACING * (np.arange(count) - 0.5 * (count - 1))
        return cls(
            jnp.asarray(ln_wavelength),
            jnp.asarray(nodes),
            LineOpacity.build(wavelength, lines, reach),
            HydrogenLines.load(data_path("hydrogen.h5"), wavelength),
            edges,
            tables,
            dtype,
        )

    def __call__(
        self,
        atmosphere: Atmosphere,
        log_abundance: Float[Array, " 92"],
        microturbulence: Float[Array, ""],
        shift: Float[Array, ""] | float = 0.0,
    ) -> Synthesis:
        """The spectrum at the grid's wavelengths times exp(shift).

        Parameters
        ----------
        atmosphere, log_abundance, microturbulence
            As in `Star`.
        shift
            Displacement of the whole grid in ln(wavelength), at most one pixel.
        """
        temperature, shift = atmosphere.temperature, jnp.asarray(shift)
        gas = equilibrium(temperature, atmosphere.pressure, log_abundance, self.tables)
        # The stages are kept apart: fused, XLA would repeat the chemistry for every pixel.
        gas = jax.lax.optimization_barrier(gas)
        nodes = jnp.exp(self.ln_nodes)
        at_nodes = continuous_opacity(nodes, temperature, gas, self.edges)
        source = planck(nodes[None, :], temperature[:, None])
        continuum = emergent_flux(at_nodes, atmosphere.column_mass, source)

        ln_wavelength = self.ln_wavelength + shift
        wavelength = jnp.exp(ln_wavelength)
        opacity = self._from_nodes(at_nodes, ln_wavelength)
        lines = self.lines(
            temperature,
            gas,
            microturbulence,
            self.tables,
            shift,
            self.dtype,
        )
        opacity += lines.astype(opacity.dtype)
        opacity += self.hydrogen(wavelength, temperature, gas, self.tables)
        opacity = jax.lax.optimization_barrier(opacity)
        source = planck(wavelength[None, :], temperature[:, None])
        flux = emergent_flux(opacity, atmosphere.column_mass, source)
        return Synthesis(flux, self._from_nodes(continuum, ln_wavelength))

    def _from_nodes(
        self, values: Float[Array, "*layer node"], ln_wavelength: Float[Array, " wavelength"]
    ) -> Float[Array, "*layer wavelength"]:
        position = (ln_wavelength - self.ln_nodes[0]) / _NODE_SPACING
        left = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, self.ln_nodes.shape[0] - 2)
        weight = position - left
        return values[..., left] * (1.0 - weight) + values[..., left + 1] * weight


@eqx.filter_jit
def _layers(
    star: Star, ends: Float[Array, " end=2"], tables: EquilibriumTables, edges: MetalEdges
) -> tuple[Equilibrium, Float[Array, "layer end=2"], Float[Array, " layer"]]:
    """Gas of a star, its continuous opacity at two wavelengths [Angstrom], and exp(-tau) dtau.

    Apart from `_reach`, so that it is compiled once for line lists of every length.
    """
    temperature, pressure, mass = star.atmosphere
    gas = equilibrium(temperature, pressure, star.log_abundance, tables)
    opacity = continuous_opacity(ends, temperature, gas, edges)
    step = opacity.mean(axis=1) * jnp.asarray(jnp.gradient(mass))
    return gas, opacity, step * jnp.exp(-jnp.cumsum(step))


@eqx.filter_jit  # every table an argument: XLA would fold constants for minutes
def _reach(
    star: Star,
    gas: Equilibrium,
    opacity: Float[Array, "layer end=2"],
    seen: Float[Array, " layer"],
    ends: Float[Array, " end=2"],
    table: LineTable,
    tables: EquilibriumTables,
    cut: float,
) -> Float[Array, " line"]:
    """How far [ln wavelength] from its centre each line matters in a star.

    The continuum is taken to be straight between the two `ends` of the list.
    """
    temperature = star.atmosphere.temperature
    profiles = line_profiles(table, temperature, gas, star.microturbulence, tables, _FLOAT32)
    weight = ((table.wavelength - ends[0]) / (ends[1] - ends[0]))[None, :]
    continuum = opacity[:, :1] * (1 - weight) + opacity[:, 1:] * weight
    return line_reach(profiles, continuum.astype(_FLOAT32), seen.astype(_FLOAT32), cut)
