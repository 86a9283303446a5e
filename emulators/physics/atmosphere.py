"""Model atmospheres between the nodes of a published grid."""

from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import h5py
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from emulators.errors import InputError


class Atmosphere(NamedTuple):
    """The structure of one star: what line formation needs at each layer, outermost first."""

    temperature: Float[Array, " layer"]  # K
    pressure: Float[Array, " layer"]  # gas pressure with electrons, dyn/cm^2
    column_mass: Float[Array, " layer"]  # g/cm^2


class AtmosphereGrid(eqx.Module):
    """A rectangular grid of model atmospheres in (teff, logg, [M/H]).

    Interpolation is a C1 cubic in each of the three directions, layer by layer at equal Rosseland
    depth, of ln T, ln P_gas and the logarithm of the mass between layers: fluxes are then smooth in
    the labels, which an emulator that learns them and a sampler that differentiates them both
    need. (The column mass itself may overshoot between nodes: near the Eddington limit, 7000 K at
    log g 1, its deepest layers lie so close that it turned round in one star in 1,800.)
    """

    teff: Float[Array, " teff"]
    logg: Float[Array, " logg"]
    fe_h: Float[Array, " fe_h"]
    structure: Float[Array, "teff logg fe_h quantity=3 layer"]
    available: Bool[np.ndarray, "teff logg fe_h"]

    @classmethod
    def load(cls, path: str | Path) -> "AtmosphereGrid":
        """Read a grid file (`atmospheres.h5`, or one made by `atmosphere_readers`)."""
        with h5py.File(path) as file:
            temperature = file["temperature"][()].astype(float)
            pressure = 10.0 ** file["log_gas_pressure"][()].astype(float)
            mass = np.diff(10.0 ** file["log_column_mass"][()].astype(float), prepend=0.0)
            axes = [jnp.asarray(file[name][()]) for name in ("teff", "logg", "fe_h")]
            available = file["available"][()] | file["filled"][()]
        rises = mass.min(axis=-1) > 0
        if not rises[available].all():
            raise InputError(
                f"{path}: the column mass of {np.sum(available & ~rises)} models does not rise "
                "inwards; the file is not a usable atmosphere grid"
            )
        # nodes without a model are never read: `cover` refuses a box that needs one
        values = np.stack([temperature, pressure, mass], axis=3)
        structure = jnp.asarray(np.log(np.where(values > 0, values, 1.0)))
        return cls(axes[0], axes[1], axes[2], structure, available)

    def cover(
        self, lower: tuple[float, float, float], upper: tuple[float, float, float]
    ) -> "AtmosphereGrid":
        """The part of the grid that a box of (teff, logg, fe_h) needs.

        Raises
        ------
        InputError
            If the box leaves the grid or needs a node without a model.
        """
        parts = []
        axes = (self.teff, self.logg, self.fe_h)
        for name, nodes, lo, hi in zip(("teff", "logg", "fe_h"), axes, lower, upper, strict=True):
            values = np.asarray(nodes)
            if not values[0] <= lo <= hi <= values[-1]:
                raise InputError(
                    f"{name} {lo:g} to {hi:g} leaves the atmosphere grid, which spans "
                    f"{values[0]:g} to {values[-1]:g}: narrow the label box or give another grid"
                )
            first = min(np.searchsorted(values, lo, side="right") - 1, len(values) - 2)
            last = max(np.searchsorted(values, hi, side="left"), first + 1)
            parts.append(slice(int(first), int(last) + 1))
        available = self.available[tuple(parts)]
        axes = [nodes[part] for nodes, part in zip(axes, parts, strict=True)]
        if not available.all():
            worst = np.argwhere(~available)[0]
            node = [float(nodes[index]) for nodes, index in zip(axes, worst, strict=True)]
            raise InputError(
                f"the atmosphere grid has no model at teff, logg, fe_h = {node}, which the label "
                "box needs: narrow the box or give another grid"
            )
        structure = self.structure[tuple(parts)]
        return AtmosphereGrid(axes[0], axes[1], axes[2], structure, available)

    def __call__(
        self, teff: Float[Array, ""], logg: Float[Array, ""], fe_h: Float[Array, ""]
    ) -> Atmosphere:
        """The structure at one point; outside the grid NaN, never an extrapolation."""
        block, outside = self.structure, jnp.zeros((), bool)
        for nodes, value in ((self.teff, teff), (self.logg, logg), (self.fe_h, fe_h)):
            start, weights = _cubic_weights(nodes, value)
            rows = start + jnp.arange(4)
            block = jnp.tensordot(weights, block[jnp.clip(rows, 0, nodes.shape[0] - 1)], 1)
            outside |= (value < nodes[0]) | (value > nodes[-1])
        temperature, pressure, mass = jnp.exp(jnp.where(outside, jnp.nan, block))
        return Atmosphere(temperature, pressure, jnp.cumsum(mass))


def _cubic_weights(nodes: Float[Array, " node"], value: Float[Array, ""]) -> tuple[Array, Array]:
    """First of the four nodes around a value and their weights in a C1 cubic.

    Hermite interpolation with three-point slopes (Catmull-Rom on uneven nodes); in the first and
    last interval the outer slope is the one-sided difference.
    """
    last = nodes.shape[0] - 2
    cell = jnp.clip(jnp.searchsorted(nodes, value, side="right") - 1, 0, last)
    left, right = nodes[cell], nodes[cell + 1]
    width = right - left
    t = (value - left) / width
    before = jnp.where(cell > 0, left - nodes[jnp.maximum(cell - 1, 0)], jnp.inf)
    after = jnp.where(cell < last, nodes[jnp.minimum(cell + 2, last + 1)] - right, jnp.inf)
    # weights of (f_-1, f_0, f_1, f_2) in the slopes at the two ends, in units of 1/width
    r, s = width / before, width / after
    slope_left = jnp.stack([-r * r / (1 + r), (r * r - 1) / (1 + r), 1 / (1 + r), 0.0])
    slope_right = jnp.stack([0.0, -1 / (1 + s), (1 - s * s) / (1 + s), s * s / (1 + s)])
    h00, h10 = (1 + 2 * t) * (1 - t) ** 2, t * (1 - t) ** 2
    h01, h11 = t**2 * (3 - 2 * t), t**2 * (t - 1)
    weights = h00 * jnp.array([0.0, 1, 0, 0]) + h01 * jnp.array([0.0, 0, 1, 0])
    return cell - 1, weights + h10 * slope_left + h11 * slope_right
