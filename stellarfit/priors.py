"""Priors: every free parameter lives in a box, with a uniform or a Gaussian density inside it.

Samplers and optimisers work in an unbounded position u, value = lower + (upper - lower) *
sigmoid(u), so nothing can leave the box and no emulator is asked for a label it never saw.

Defaults
--------
labels
    Uniform in the emulator's box. Simulated stars with wrong line data (`stellarfit.mask`) gained
    nothing from a narrower prior on [X/Fe], and metal-poor ones were biased by it.
v_rad
    Uniform within +-300 km/s.
v_sini
    Uniform in 0 .. 100 km/s.
v_mac
    Held at 0: at moderate resolution it does the same as v_sini. Give it a prior to free it.
zero_point_<arm>
    Held at 0 for every arm but the first, which has none. Give it a prior to free it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Float64

from emulators.errors import InputError
from emulators.labels import LabelSpace

from .arms import ZERO_POINT

VELOCITIES = ("v_rad", "v_sini", "v_mac")
# What may be asked for at all [km/s], and what is assumed where nothing is said.
_LIMITS = {"v_rad": (-3000.0, 3000.0), "v_sini": (0.0, 500.0), "v_mac": (0.0, 100.0)}
_DEFAULTS = {"v_rad": (-300.0, 300.0), "v_sini": (0.0, 100.0)}
_HELD = {"v_mac": 0.0}
_ZERO_POINT_LIMITS = (-100.0, 100.0)


class Prior(eqx.Module):
    """Box and density of the free parameters.

    `precision` is 1/sigma^2 of a Gaussian about `mean`, or 0 for a uniform density.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    lower: Float64[Array, " parameter"]
    upper: Float64[Array, " parameter"]
    mean: Float64[Array, " parameter"]
    precision: Float64[Array, " parameter"]

    def values(self, position: Float[Array, " parameter"]) -> Float64[Array, " parameter"]:
        """Values in the box from the unbounded position."""
        return self.lower + (self.upper - self.lower) * jax.nn.sigmoid(position)

    def position(self, values: Float[ArrayLike, " parameter"]) -> Float64[Array, " parameter"]:
        """Unbounded position of values; those on the edge of the box go a little inside."""
        unit = (jnp.asarray(values) - self.lower) / (self.upper - self.lower)
        unit = jnp.clip(unit, 1e-3, 1 - 1e-3)
        return jnp.log(unit) - jnp.log1p(-unit)

    def slope(self, position: Float[Array, " parameter"]) -> Float64[Array, " parameter"]:
        """d value / d position."""
        return (self.upper - self.lower) * jax.nn.sigmoid(position) * jax.nn.sigmoid(-position)

    def log_density(self, values: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """Log prior in the values, up to a constant."""
        return -0.5 * jnp.sum(self.precision * (values - self.mean) ** 2)

    def log_jacobian(self, position: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """Log |d value / d position|, summed."""
        scale = jnp.log(self.upper - self.lower)
        return jnp.sum(scale - jax.nn.softplus(position) - jax.nn.softplus(-position))

    def narrowed(self, name: str, lower: float, upper: float) -> "Prior":
        """The same prior with the box of one parameter cut down to `lower` .. `upper`."""
        i = self.names.index(name)
        lower, upper = max(lower, float(self.lower[i])), min(upper, float(self.upper[i]))
        return eqx.tree_at(
            lambda prior: (prior.lower, prior.upper),
            self,
            (self.lower.at[i].set(lower), self.upper.at[i].set(upper)),
        )

    def distribution(self, name: str) -> dist.Distribution:
        """The prior of one parameter as a NumPyro distribution."""
        i = self.names.index(name)
        if float(self.precision[i]) == 0:
            return dist.Uniform(self.lower[i], self.upper[i])
        return dist.TruncatedNormal(
            self.mean[i], self.precision[i] ** -0.5, low=self.lower[i], high=self.upper[i]
        )


def make_prior(
    label_space: LabelSpace,
    fixed: Mapping[str, float | int] | None = None,
    priors: Mapping[str, Any] | None = None,
    zero_points: Sequence[str] = (),
) -> tuple[Prior, dict[str, float]]:
    """Sort parameters into free ones with a prior and fixed ones with a value.

    Parameters
    ----------
    label_space
        Of the emulator.
    fixed
        Values to hold, by name.
    priors
        ``numpyro.distributions.Uniform`` or ``Normal`` by name; cut off at the parameter's box.
    zero_points
        Names of the velocity zero points, of which there is one for every arm but the first.

    Returns
    -------
    Prior
        Of the free parameters: labels in the emulator's order, then v_rad, v_sini, v_mac, then
        zero points.
    dict
        Values of the fixed ones.
    """
    fixed, priors = dict(fixed or {}), dict(priors or {})
    box = zip(label_space.lower, label_space.upper, strict=True)
    limits = dict(zip(label_space.names, box, strict=True)) | _LIMITS
    limits |= dict.fromkeys(zero_points, _ZERO_POINT_LIMITS)
    for key, names in (("fixed", fixed), ("priors", priors)):
        for name in names:
            if name not in limits:
                raise InputError(f"{key}: unknown label {name!r}; known: {', '.join(limits)}")
    if both := sorted(fixed.keys() & priors.keys()):
        raise InputError(f"fixed: {both[0]} also has a prior; give one of the two")
    for name, value in fixed.items():
        low, high = limits[name]
        if not low <= float(value) <= high:  # also refuses NaN
            raise InputError(f"fixed: {name} = {value:g} is outside {low:g} .. {high:g}")
    usually = _HELD | dict.fromkeys(zero_points, 0.0)
    held = {name: value for name, value in usually.items() if name not in priors} | fixed
    free = [name for name in limits if name not in held]
    if not free:
        raise InputError("fixed: every parameter is fixed; leave at least one free")
    rows = [_row(name, priors.get(name), limits[name]) for name in free]
    columns = [jnp.asarray(column) for column in np.array(rows).T]
    prior = Prior(tuple(free), *columns)
    return prior, {name: float(held[name]) for name in limits if name in held}


def _row(name, prior, limits):
    """Lower, upper, mean and precision of one parameter."""
    low, high = limits
    if prior is None:
        low, high = ({name: limits} | _DEFAULTS)[name]
        return low, high, 0.5 * (low + high), 0.0
    if isinstance(prior, dist.Uniform):
        first, last = _number(prior.low), _number(prior.high)
        low, high = max(low, first), min(high, last)
        if not low < high:
            raise InputError(
                f"priors: {name} is uniform in {first:g} .. {last:g}, which leaves nothing of "
                f"{limits[0]:g} .. {limits[1]:g}"
            )
        return low, high, 0.5 * (low + high), 0.0
    if isinstance(prior, dist.Normal):
        mean, sigma = _number(prior.loc), _number(prior.scale)
        if not low <= mean <= high:
            raise InputError(f"priors: {name} has mean {mean:g}, outside {low:g} .. {high:g}")
        if name in _DEFAULTS or name.startswith(ZERO_POINT):
            # The box sets the margins of the wavelength grid: no wider than needed.
            low, high = max(low, mean - 8 * sigma), min(high, mean + 8 * sigma)
        return low, high, mean, sigma**-2
    raise InputError(
        f"priors: {name} has a {type(prior).__name__}; give numpyro.distributions.Uniform or "
        "Normal, and extend `stellar_model` for anything else"
    )


def _number(value: Any) -> float:
    return float(np.asarray(value))
