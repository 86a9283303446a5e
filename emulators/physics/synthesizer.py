"""From labels to a spectrum: the synthesiser's interface and the 1D LTE one."""

from abc import abstractmethod
from importlib import metadata, resources
from itertools import product
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.physics.abundances import SOLAR_SCALES, SYMBOLS
from emulators.physics.atmosphere import Atmosphere, AtmosphereGrid
from emulators.physics.chemistry import EquilibriumTables, equilibrium
from emulators.physics.continuum import MetalEdges, continuous_opacity
from emulators.physics.formation import LineFormation, Synthesis
from emulators.physics.hydrogen import HydrogenLines
from emulators.physics.linelist import LineList
from emulators.physics.lines import LineOpacity, LineTable, line_profiles, line_reach
from emulators.storage import array_hash, file_hash

_FLOAT32 = np.dtype("float32")
_ATMOSPHERE_LABELS = ("teff", "logg", "fe_h")
_SEEN_DEPTH = 5.0  # continuum optical depth below which a layer's lines cannot be seen


class Synthesizer(eqx.Module):
    """Labels in, a spectrum out. An interface: see `LTESynthesizer` and `PySMESynthesizer`."""

    label_space: eqx.AbstractVar[LabelSpace]
    wavelength: eqx.AbstractVar[Float[Array, " wavelength"]]  # vacuum Angstrom

    @abstractmethod
    def __call__(
        self, labels: Float[Array, " label"], shift: Float[Array, ""] | float = 0.0
    ) -> Synthesis:
        """One spectrum at `wavelength` times exp(shift), |shift| at most one pixel."""

    @abstractmethod
    def batch(self, labels: Float[Array, "star label"], shift: Float[Array, " star"]) -> Synthesis:
        """Spectra of many stars, each with its own shift."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What made the spectra: code, versions, tables and their hashes; JSON-able."""


def data_path(name: str) -> Path:
    """Path of one of the tables that are shipped with the package."""
    return Path(str(resources.files("emulators.physics") / "data" / name))


class LabelledStar(eqx.Module):
    """What the labels of a star mean: its atmosphere, composition and microturbulence."""

    label_space: LabelSpace
    atmospheres: AtmosphereGrid
    solar: Float[Array, " 92"]
    vmic: float | None = eqx.field(static=True)

    def atmosphere(self, labels: Float[Array, " label"]) -> Atmosphere:
        """Structure at teff, logg and [M/H] = fe_h; NaN outside the grid."""
        return self.atmospheres(*(labels[self.label_space.index(n)] for n in _ATMOSPHERE_LABELS))

    def abundances(self, labels: Float[Array, " label"]) -> Float[Array, " 92"]:
        """log10 N(X)/N(H) + 12 of elements 1-92."""
        space = self.label_space
        metals = jnp.arange(92) >= 2
        result = self.solar + jnp.where(metals, labels[space.index("fe_h")], 0.0)
        for name in space.names:
            if name.endswith("_fe"):
                result = result.at[_element(name)].add(labels[space.index(name)])
        return result

    def microturbulence(self, labels: Float[Array, " label"]) -> Float[Array, ""]:
        """Microturbulence [km/s]: a label, or the same for every star."""
        if self.vmic is not None:
            return jnp.asarray(self.vmic)
        return labels[self.label_space.index("vmic")]


class LTESynthesizer(Synthesizer):
    """1D plane-parallel LTE spectra from MARCS atmospheres, in JAX.

    Pure, differentiable in every label, and vectorised over stars by `batch`.

    Attributes
    ----------
    label_space
        teff, logg and fe_h are required, vmic too unless fixed; any [X/Fe] besides. [M/H] of the
        atmosphere is fe_h, all other abundances are solar + fe_h.
    wavelength
        Vacuum Angstrom.
    """

    label_space: LabelSpace
    wavelength: Float[Array, " wavelength"]
    star: LabelledStar
    formation: LineFormation
    sources: tuple[tuple[str, str], ...] = eqx.field(static=True)

    @classmethod
    def build(
        cls,
        wavelength: Float[np.ndarray, " wavelength"],
        label_space: LabelSpace,
        *,
        lines: LineList | str | Path | None = None,
        atmospheres: str | Path | None = None,
        vmic: float | None = None,
        cut: float = 3e-3,
        dtype: np.dtype = _FLOAT32,
    ) -> "LTESynthesizer":
        """Choose the lines that matter in a label box and prepare the opacities.

        Parameters
        ----------
        wavelength
            Vacuum Angstrom, increasing.
        label_space
            The box that the labels will come from; it also decides which lines are strong enough
            and how far their wings reach.
        lines
            A line list or the path of a saved one. Default: the shipped list, 4000-5500 A.
        atmospheres
            A grid file. Default: the shipped MARCS grid.
        vmic
            Microturbulence [km/s] of every star when it is not a label.
        cut
            A line is computed where its opacity exceeds this fraction of the continuum's at any
            corner of the label box. The default costs less than 6e-4 rms of normalised flux in
            stars drawn from the box of the shipped emulators, and 2e-3 at its extreme corners.
        dtype
            Precision of the line profiles.

        Raises
        ------
        InputError
            For labels it does not know, a box that leaves the atmosphere grid, wavelengths
            outside the shipped line list.
        """
        wavelength = np.asarray(wavelength, float)
        if wavelength.ndim != 1 or wavelength.size < 2 or np.any(np.diff(wavelength) <= 0):
            raise InputError("wavelength must be one increasing array of at least two values")
        _check_labels(label_space, vmic)
        tables_path = data_path("chemistry.h5")
        lines_path = lines if isinstance(lines, str | Path) else data_path("lines.h5")
        atmospheres_path = atmospheres or data_path("atmospheres.h5")
        hashes = {"chemistry": file_hash(tables_path), "atmospheres": file_hash(atmospheres_path)}
        if isinstance(lines, LineList):
            hashes["lines"] = array_hash(vars(lines))
        else:
            hashes["lines"] = file_hash(lines_path)
            lines = LineList.load(lines_path)
            _check_range(wavelength, lines)
        index = [label_space.index(name) for name in _ATMOSPHERE_LABELS]
        lower, upper = np.array(label_space.lower), np.array(label_space.upper)
        grid = AtmosphereGrid.load(atmospheres_path).cover(tuple(lower[index]), tuple(upper[index]))
        tables = EquilibriumTables.load(tables_path)
        edges = MetalEdges.load(data_path("metal_bf.h5"))
        solar = jnp.asarray(SOLAR_SCALES[label_space.solar_scale])

        margin = 0.01  # ln wavelength: 50 A beyond the grid's ends, for wings that reach in
        near = lines.select(wavelength[0] * (1 - margin), wavelength[-1] * (1 + margin))
        star = LabelledStar(label_space, grid, solar, vmic)
        reach = _reach(star, near, tables, edges, cut)
        formation = LineFormation.build(
            wavelength,
            LineOpacity.build(wavelength, near, reach),
            HydrogenLines.load(data_path("hydrogen.h5"), wavelength),
            edges,
            tables,
            dtype,
        )
        sources = tuple(hashes.items())
        return cls(label_space, jnp.asarray(wavelength), star, formation, sources)

    def __call__(
        self, labels: Float[Array, " label"], shift: Float[Array, ""] | float = 0.0
    ) -> Synthesis:
        """The spectrum of one star; NaN outside the label box's atmospheres.

        Parameters
        ----------
        labels
            In the order and units of `label_space`.
        shift
            Displacement of the grid in ln(wavelength), at most one pixel.
        """
        star = self.star
        return self.formation(
            star.atmosphere(labels), star.abundances(labels), star.microturbulence(labels), shift
        )

    @eqx.filter_jit
    def batch(self, labels: Float[Array, "star label"], shift: Float[Array, " star"]) -> Synthesis:
        """Spectra of many stars at once; memory goes with the number of stars."""
        return jax.vmap(self)(labels, shift)

    def provenance(self) -> dict[str, Any]:
        """Code, versions and table hashes."""
        return {
            "synthesizer": "LTESynthesizer",
            "stellarfit": _version("stellarfit"),
            "jax": jax.__version__,
            "solar_scale": self.label_space.solar_scale,
            "medium": "vacuum",
            "vmic": self.star.vmic,
            "lines": self.formation.lines.table.ln_wavelength.shape[0],
            "profile_dtype": jnp.dtype(self.formation.dtype).name,
            **{f"sha256_{name}": digest for name, digest in self.sources},
        }


def _reach(
    star: LabelledStar, lines: LineList, tables: EquilibriumTables, edges: MetalEdges, cut: float
) -> np.ndarray:
    """The farthest that each line matters at the corners of the label box."""

    @eqx.filter_jit  # every table an argument: XLA would fold constants for minutes
    def reach(
        star: LabelledStar,
        table: LineTable,
        tables: EquilibriumTables,
        edges: MetalEdges,
        labels: Array,
    ) -> Array:
        temperature, pressure, mass = star.atmosphere(labels)
        gas = equilibrium(temperature, pressure, star.abundances(labels), tables)
        vmic = star.microturbulence(labels)
        profiles = line_profiles(table, temperature, gas, vmic, tables, np.dtype("float64"))
        ends = jnp.asarray([lines.wavelength[0], lines.wavelength[-1]])
        opacity = continuous_opacity(ends, temperature, gas, edges)
        weight = ((table.wavelength - ends[0]) / (ends[1] - ends[0]))[None, :]
        continuum = opacity[:, :1] * (1 - weight) + opacity[:, 1:] * weight
        depth = jnp.cumsum(opacity.mean(axis=1) * jnp.asarray(jnp.gradient(mass)))
        return line_reach(profiles, continuum, depth < _SEEN_DEPTH, cut)

    table, space = LineTable.build(lines), star.label_space
    result = np.zeros(len(lines))
    # Abundances at their upper end make every line strong, except those of oxides when carbon
    # binds the oxygen: so the corners come with much carbon and with little.
    for teff, logg, carbon in product((0.0, 0.5, 1.0), (0.0, 1.0), (0.0, 1.0)):
        unit = np.ones(len(space.names))
        values = {"teff": teff, "logg": logg, "vmic": 0.0, "c_fe": carbon}
        for name in set(values) & set(space.names):
            unit[space.index(name)] = values[name]
        corner = space.from_unit(jnp.asarray(unit))
        result = np.maximum(result, np.asarray(reach(star, table, tables, edges, corner)))
    if not np.all(np.isfinite(result)):
        raise InputError("the line opacity is not finite at a corner of the label box")
    return result


def _element(name: str) -> int:
    return SYMBOLS.index(name.removesuffix("_fe").capitalize())


def _check_labels(space: LabelSpace, vmic: float | None) -> None:
    known = {symbol.lower() + "_fe" for symbol in SYMBOLS[2:]} - {"fe_fe"}
    for name in _ATMOSPHERE_LABELS:
        if name not in space.names:
            raise InputError(f"the label space has no {name!r}, which a synthesis needs")
    for name in set(space.names) - {*_ATMOSPHERE_LABELS, "vmic"}:
        if name not in known:
            raise InputError(
                f"label {name!r} is not one of teff, logg, vmic, fe_h or [X/Fe] of an element "
                "such as mg_fe"
            )
    if ("vmic" in space.names) == (vmic is not None):
        raise InputError("give vmic either as a label or as the argument `vmic` [km/s]")


def _check_range(wavelength: np.ndarray, lines: LineList) -> None:
    first, last = lines.wavelength[0], lines.wavelength[-1]
    if wavelength[0] < first or wavelength[-1] > last:
        raise InputError(
            f"wavelength {wavelength[0]:.1f}-{wavelength[-1]:.1f} A leaves the line list, which "
            f"spans {first:.1f}-{last:.1f} A: give your own list with `lines`"
        )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
