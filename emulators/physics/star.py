"""What the labels of a star mean: its atmosphere, composition and microturbulence."""

from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.physics.abundances import SOLAR_SCALES, SYMBOLS
from emulators.physics.atmosphere import Atmosphere, AtmosphereGrid
from emulators.physics.formation import Star

_ATMOSPHERE_LABELS = ("teff", "logg", "fe_h")


class LabelledStar(eqx.Module):
    """The stars of a label space; called with the labels of one, it returns that `Star`.

    [M/H] of the atmosphere is fe_h; abundances are solar + fe_h, and [X/Fe] where it is a label.
    Where [X/H] is one, it alone says how much there is of the element.
    """

    label_space: LabelSpace
    atmospheres: AtmosphereGrid
    solar: Float[Array, " 92"]
    vmic: float | None = eqx.field(static=True)

    @classmethod
    def build(
        cls, label_space: LabelSpace, atmospheres: str | Path, vmic: float | None
    ) -> "LabelledStar":
        """From the part of a grid file of atmospheres that the label box needs.

        Raises
        ------
        InputError
            For labels that have no meaning here, or a box that leaves the grid.
        """
        _check_labels(label_space, vmic)
        index = [label_space.index(name) for name in _ATMOSPHERE_LABELS]
        lower, upper = (np.array(ends)[index] for ends in (label_space.lower, label_space.upper))
        grid = AtmosphereGrid.load(atmospheres).cover(tuple(lower), tuple(upper))
        return cls(label_space, grid, jnp.asarray(SOLAR_SCALES[label_space.solar_scale]), vmic)

    def __call__(self, labels: Float[Array, " label"]) -> Star:
        """What line formation needs to know of one star."""
        return Star(self.atmosphere(labels), self.abundances(labels), self.microturbulence(labels))

    def atmosphere(self, labels: Float[Array, " label"]) -> Atmosphere:
        """Structure at teff, logg and [M/H] = fe_h; NaN outside the grid."""
        return self.atmospheres(*(labels[self.label_space.index(n)] for n in _ATMOSPHERE_LABELS))

    def abundances(self, labels: Float[Array, " label"]) -> Float[Array, " 92"]:
        """log10 N(X)/N(H) + 12 of elements 1-92."""
        space = self.label_space
        metals = jnp.arange(92) >= 2
        result = self.solar + jnp.where(metals, labels[space.index("fe_h")], 0.0)
        for place, name in enumerate(space.names):
            symbol, _, scale = name.partition("_")
            if scale == "fe":
                result = result.at[_number(symbol)].add(labels[place])
            elif scale == "h":
                element = _number(symbol)
                result = result.at[element].set(self.solar[element] + labels[place])
        return result

    def microturbulence(self, labels: Float[Array, " label"]) -> Float[Array, ""]:
        """Microturbulence [km/s]: a label, or the same for every star."""
        if self.vmic is not None:
            return jnp.asarray(self.vmic)
        return labels[self.label_space.index("vmic")]


def _number(symbol: str) -> int:
    """Place of an element among the abundances."""
    return SYMBOLS.index(symbol.capitalize())


def _check_labels(space: LabelSpace, vmic: float | None) -> None:
    metals = [symbol.lower() for symbol in SYMBOLS[2:] if symbol != "Fe"]
    for name in _ATMOSPHERE_LABELS:
        if name not in space.names:
            raise InputError(f"the label space has no {name!r}, which a synthesis needs")
    for name in set(space.names) - {*_ATMOSPHERE_LABELS, "vmic"}:
        symbol, _, scale = name.partition("_")
        if symbol not in metals or scale not in ("fe", "h"):
            raise InputError(
                f"label {name!r} is not one of teff, logg, vmic, fe_h, [X/Fe] of an element such "
                "as mg_fe, or [X/H] such as mg_h"
            )
        if scale == "h" and f"{symbol}_fe" in space.names:
            raise InputError(f"the label space has both {name!r} and '{symbol}_fe'; give one")
    if ("vmic" in space.names) == (vmic is not None):
        raise InputError("give vmic either as a label or as the argument `vmic` [km/s]")
