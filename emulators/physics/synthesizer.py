"""From labels to a spectrum: the synthesiser's interface and the 1D LTE one."""

from abc import abstractmethod
from importlib import metadata
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
from emulators.physics import data_path
from emulators.physics.formation import LineFormation, Star, Synthesis
from emulators.physics.linelist import LineList
from emulators.physics.star import LabelledStar
from emulators.storage import array_hash, file_hash

_FLOAT32 = np.dtype("float32")
_ELECTRON_DONORS = ("na", "mg", "al", "si", "k", "ca")


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


class LTESynthesizer(Synthesizer):
    """1D plane-parallel LTE spectra from MARCS atmospheres, in JAX.

    Pure, differentiable in every label, and vectorised over stars by `batch`.

    Attributes
    ----------
    label_space
        teff, logg and fe_h are required, vmic too unless fixed; any [X/Fe] or [X/H] besides. [M/H]
        of the atmosphere is fe_h, all other abundances are solar + fe_h.
    wavelength
        Vacuum Angstrom.
    """

    wavelength: Float[Array, " wavelength"]
    star: LabelledStar
    formation: LineFormation
    sources: tuple[tuple[str, str], ...] = eqx.field(static=True)

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
        lines: LineList | str | Path | None = None,
        atmospheres: str | Path | None = None,
        vmic: float | None = None,
        cut: float = 1.5e-4,
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
            A line is computed where it is deeper than this fraction of the continuum at any
            corner of the label box. In the box of the shipped emulators the default costs at most
            8e-4 rms of normalised flux, at the corner of cool dwarfs rich in metals other than the
            electron donors, and 2e-4 in stars drawn from it.
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
        lines_path = lines if isinstance(lines, str | Path) else data_path("lines.h5")
        atmospheres = atmospheres or data_path("atmospheres.h5")
        star = LabelledStar.build(label_space, atmospheres, vmic)
        used = {"chemistry": data_path("chemistry.h5"), "atmospheres": atmospheres}
        hashes = {name: file_hash(path) for name, path in used.items()}
        if isinstance(lines, LineList):
            hashes["lines"] = array_hash(vars(lines))
        else:
            hashes["lines"] = file_hash(lines_path)
            lines = LineList.load(lines_path)
            _check_range(wavelength, lines)
        margin = 0.01  # ln wavelength: 50 A beyond the grid's ends, for wings that reach in
        near = lines.select(wavelength[0] * (1 - margin), wavelength[-1] * (1 + margin))
        formation = LineFormation.build(wavelength, near, _strongest(star), cut, dtype)
        # pyright takes `label_space`, which the interface leaves abstract, for a field.
        return cls(  # pyright: ignore[reportCallIssue]
            jnp.asarray(wavelength), star, formation, tuple(hashes.items())
        )

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
        return self.formation(*self.star(labels), shift)

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


def _strongest(star: LabelledStar) -> list[Star]:
    """The corners of a label box among which every line is strongest and widest."""
    space = star.label_space
    corners = set()
    for teff, logg, vmic, donors, carbon in product((0.0, 1.0), repeat=5):
        # Abundances at their upper end make lines strong, with two exceptions. Oxygen binds carbon
        # and carbon oxygen: the molecules of either are strongest where the other is scarce. And
        # where metals give few electrons, the continuum is low, and all other lines stand out.
        unit = dict.fromkeys(space.names, 1.0)
        special = {"teff": teff, "logg": logg, "vmic": vmic}
        for scale in ("fe", "h"):
            special |= {f"c_{scale}": carbon, f"o_{scale}": 1.0 - carbon}
            special |= {f"{element}_{scale}": donors for element in _ELECTRON_DONORS}
        unit |= {name: value for name, value in special.items() if name in unit}
        corners.add(tuple(unit.values()))
    at = eqx.filter_jit(LabelledStar.__call__)
    return [at(star, space.from_unit(jnp.array(corner))) for corner in sorted(corners)]


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
