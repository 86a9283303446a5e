"""The labels of a star: names, units, bounds, the unit cube, and quasi-random draws in it."""

import math
import warnings
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float64
from scipy.stats import qmc

from .errors import InputError

_VELOCITIES = ("vmic", "vmac", "vsini")


class LabelSpace(eqx.Module):
    """An ordered set of labels and the box they live in.

    Every field is static, so a label space is hashable and two equal ones compile once.

    Parameters
    ----------
    names
        Labels in order: ``teff`` [K], ``logg`` [dex, cgs], ``vmic`` [km/s], ``fe_h`` [dex],
        ``<symbol>_fe`` [dex] such as ``mg_fe`` or, for [X/H], ``<symbol>_h``.
    lower, upper
        Bounds, one a label, in the label's unit.
    solar_scale
        Name of the solar abundances that the bracket labels refer to.

    Examples
    --------
    >>> space = LabelSpace(("teff", "logg"), (4000.0, 1.0), (7000.0, 5.0))
    >>> space.units
    ('K', 'dex')
    >>> space.index("logg")
    1
    """

    names: tuple[str, ...] = eqx.field(static=True, converter=tuple)
    lower: tuple[float, ...] = eqx.field(
        static=True, converter=lambda values: tuple(map(float, values))
    )
    upper: tuple[float, ...] = eqx.field(
        static=True, converter=lambda values: tuple(map(float, values))
    )
    solar_scale: str = eqx.field(static=True, default="grevesse2007")

    def __check_init__(self):
        if not self.names:
            raise InputError("labels: a label space needs at least one label")
        if len(set(self.names)) != len(self.names):
            raise InputError(f"labels: every name must occur once, got {', '.join(self.names)}")
        if not len(self.names) == len(self.lower) == len(self.upper):
            raise InputError(
                f"labels: {len(self.names)} names, {len(self.lower)} lower and "
                f"{len(self.upper)} upper bounds; give one of each a label"
            )
        for name, low, high in zip(self.names, self.lower, self.upper, strict=True):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise InputError(
                    f"labels: bounds of {name} are {low:g} .. {high:g}; "
                    "give two finite numbers, the lower one first"
                )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of each label: K, km/s or dex."""

        def unit(name):
            return "K" if name == "teff" else "km/s" if name in _VELOCITIES else "dex"

        return tuple(unit(name) for name in self.names)

    def index(self, name: str) -> int:
        """Position of a label; an unknown name is an error that lists the known ones."""
        if name not in self.names:
            raise InputError(f"labels: unknown label {name!r}; known: {', '.join(self.names)}")
        return self.names.index(name)

    def _bounds(self, labels: Array) -> tuple[Array, Array]:
        """Both bounds in the dtype and shape of `labels`."""
        lower = jnp.broadcast_to(jnp.asarray(self.lower, labels.dtype), labels.shape)
        upper = jnp.broadcast_to(jnp.asarray(self.upper, labels.dtype), labels.shape)
        return lower, upper

    def to_unit(self, labels: Float[ArrayLike, "*batch labels"]) -> Float[Array, "*batch labels"]:
        """Scale labels to the unit cube: 0 at the lower bound, 1 at the upper. Not clipped."""
        labels = jnp.asarray(labels)
        lower, upper = self._bounds(labels)
        return (labels - lower) / (upper - lower)

    def from_unit(self, unit: Float[ArrayLike, "*batch labels"]) -> Float[Array, "*batch labels"]:
        """Scale unit-cube coordinates to labels; the inverse of `to_unit`."""
        unit = jnp.asarray(unit)
        lower, upper = self._bounds(unit)
        return lower + unit * (upper - lower)

    def contains(self, labels: Float[ArrayLike, "*batch labels"]) -> Bool[Array, "*batch"]:
        """Whether every label lies in the box, bounds included. NaN does not."""
        labels = jnp.asarray(labels)
        lower, upper = self._bounds(labels)
        return jnp.all((labels >= lower) & (labels <= upper), axis=-1)

    def check(self, labels: Float[ArrayLike, "*batch labels"]) -> None:
        """Raise an `InputError` naming the first label that is NaN or outside its bounds.

        Runs on the host: not for use inside ``jit``.
        """
        values = np.asarray(labels)
        if values.ndim == 0 or values.shape[-1] != len(self.names):
            raise InputError(
                f"labels: shape {values.shape}, expected {len(self.names)} values in the order "
                f"{', '.join(self.names)}"
            )
        values = values.reshape(-1, len(self.names))
        bad = ~((values >= self.lower) & (values <= self.upper))
        if bad.any():
            star, column = np.argwhere(bad)[0]
            where = f" (row {star})" if len(values) > 1 else ""
            raise InputError(
                f"labels: {self.names[column]} = {values[star, column]:g}{where} is outside "
                f"{self.lower[column]:g} .. {self.upper[column]:g} {self.units[column]}"
            )

    def sobol(self, num: int, *, seed: int, start: int = 0) -> Float64[np.ndarray, "num labels"]:
        """Draw labels that fill the box evenly: a scrambled Sobol sequence.

        Draw ``i`` depends only on the seed and on ``i``, so shards of one grid can be drawn
        separately, in any order.

        Parameters
        ----------
        num
            How many draws.
        seed
            Seed of the scrambling.
        start
            Index of the first draw.
        """
        engine = qmc.Sobol(len(self.names), scramble=True, rng=np.random.default_rng(seed))
        if start:
            engine.fast_forward(start)
        with warnings.catch_warnings():
            # A shard need not be a power of two long; the sequence is balanced where it matters.
            warnings.filterwarnings("ignore", message="The balance properties of Sobol")
            unit = engine.random(num)
        lower, upper = np.asarray(self.lower), np.asarray(self.upper)
        return lower + unit * (upper - lower)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description; `from_dict` gives the label space back."""
        return {
            "names": list(self.names),
            "lower": list(self.lower),
            "upper": list(self.upper),
            "solar_scale": self.solar_scale,
        }

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> "LabelSpace":
        """Build a label space from what `to_dict` gave."""
        missing = {"names", "lower", "upper", "solar_scale"} - set(description)
        if missing:
            raise InputError(f"labels: description lacks {', '.join(sorted(missing))}")
        return cls(
            names=description["names"],
            lower=description["lower"],
            upper=description["upper"],
            solar_scale=description["solar_scale"],
        )
