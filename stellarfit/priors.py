"""Priors: every free parameter lives in a box, with a uniform or a Gaussian density inside it.

Samplers and optimisers work in an unbounded position u, value = lower + (upper - lower) *
sigmoid(u), so nothing can leave the box and no emulator is asked for a label it never saw.

What is known from elsewhere is given as NumPyro distributions, by name or, for parameters that it
ties together, by a tuple of names::

    priors = {
        "logg": dist.Normal(4.30, 0.05),  # from a parallax
        "v_sini": dist.TruncatedNormal(8.0, 2.0, low=0.0),
        ("teff", "fe_h"): dist.MultivariateNormal([5700.0, -0.2], covariance),  # from colours
    }

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
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, Float64

from emulators.bundle import tree_to_arrays
from emulators.errors import InputError
from emulators.labels import LabelSpace

from .arms import ZERO_POINT

VELOCITIES = ("v_rad", "v_sini", "v_mac")
# What may be asked for at all [km/s], and what is assumed where nothing is said.
_LIMITS = {"v_rad": (-3000.0, 3000.0), "v_sini": (0.0, 500.0), "v_mac": (0.0, 100.0)}
_DEFAULTS = {"v_rad": (-300.0, 300.0), "v_sini": (0.0, 100.0)}
_HELD = {"v_mac": 0.0}
_ZERO_POINT_LIMITS = (-100.0, 100.0)
_TRUNCATED = (
    dist.LeftTruncatedDistribution,
    dist.RightTruncatedDistribution,
    dist.TwoSidedTruncatedDistribution,
)
_FAR = 5.0  # sigma from the box, beyond which a mean is taken for a mistake


class Prior(eqx.Module):
    """Box and density of the free parameters.

    `precision` is the inverse covariance of a Gaussian about `mean`; rows of parameters with a
    uniform density are 0.
    """

    names: tuple[str, ...] = eqx.field(static=True)
    lower: Float64[Array, " parameter"]
    upper: Float64[Array, " parameter"]
    mean: Float64[Array, " parameter"]
    precision: Float64[Array, "parameter parameter"]

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
        away = values - self.mean
        return -0.5 * away @ self.precision @ away

    @property
    def wide(self) -> Float64[Array, "parameter parameter"]:
        """The precision with the box as a Gaussian of its variance: of any parameter positive."""
        return self.precision + jnp.diag(12 / (self.upper - self.lower) ** 2)

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

    @property
    def tied(self) -> np.ndarray:
        """Whether the prior of each parameter depends on others."""
        return np.count_nonzero(np.asarray(self.precision), axis=1) > 1

    def distribution(self, name: str) -> dist.Distribution:
        """The prior of one parameter as a NumPyro distribution.

        Of a parameter that is tied to others only its box; their density is `log_joint`.
        """
        i = self.names.index(name)
        precision = float(self.precision[i, i])
        if precision == 0 or self.tied[i]:
            return dist.Uniform(self.lower[i], self.upper[i])
        return dist.TruncatedNormal(
            self.mean[i], precision**-0.5, low=self.lower[i], high=self.upper[i]
        )

    def log_joint(self, values: Float[Array, " parameter"]) -> Float64[Array, ""]:
        """Log prior of the parameters that are tied together, up to a constant."""
        away = jnp.where(self.tied, values - self.mean, 0.0)
        return -0.5 * away @ self.precision @ away


def make_prior(
    label_space: LabelSpace,
    fixed: Mapping[str, float | int] | None = None,
    priors: Mapping[Any, Any] | None = None,
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
        ``numpyro.distributions.Uniform``, ``Normal`` or ``TruncatedNormal`` by name, or
        ``MultivariateNormal`` by a tuple of names; all are cut off at the parameters' boxes.
    zero_points
        Names of the velocity zero points, of which there is one for every arm but the first.

    Returns
    -------
    Prior
        Of the free parameters: labels in the emulator's order, then v_rad, v_sini, v_mac, then
        zero points.
    dict
        Values of the fixed ones.

    Raises
    ------
    InputError
        An unknown name, a parameter given twice, a value or a prior outside the box, another
        distribution than these, no free parameter.
    """
    fixed, priors = dict(fixed or {}), dict(priors or {})
    asked = [name for key in priors for name in _names(key)]
    box = zip(label_space.lower, label_space.upper, strict=True)
    limits = dict(zip(label_space.names, box, strict=True)) | _LIMITS
    limits |= dict.fromkeys(zero_points, _ZERO_POINT_LIMITS)
    for key, names in (("fixed", fixed), ("priors", asked)):
        for name in names:
            if name not in limits:
                raise InputError(f"{key}: unknown label {name!r}; known: {', '.join(limits)}")
    if both := sorted(fixed.keys() & set(asked)):
        raise InputError(f"fixed: {both[0]} also has a prior; give one of the two")
    if twice := [name for name in asked if asked.count(name) > 1]:
        raise InputError(f"priors: {twice[0]} has more than one; give one, alone or joint")
    for name, value in fixed.items():
        low, high = limits[name]
        if not low <= float(value) <= high:  # also refuses NaN
            raise InputError(f"fixed: {name} = {value:g} is outside {low:g} .. {high:g}")
    usually = _HELD | dict.fromkeys(zero_points, 0.0)
    held = {name: value for name, value in usually.items() if name not in asked} | fixed
    free = [name for name in limits if name not in held]
    if not free:
        raise InputError("fixed: every parameter is fixed; leave at least one free")
    ends = [({name: limits[name]} | _DEFAULTS)[name] for name in free]
    lower, upper = np.array(ends, np.float64).T
    mean, precision = 0.5 * (lower + upper), np.zeros((len(free), len(free)))
    for key, given in priors.items():
        names = _names(key)
        density = _joint(names, given) if isinstance(key, tuple) else _single(key, given)
        where = np.array([free.index(name) for name in names])
        for name, i, one in zip(names, where, density.ends, strict=True):
            lower[i], upper[i] = _cut(name, one, limits[name])
        if density.mean is None:
            mean[where] = 0.5 * (lower[where] + upper[where])
            continue
        _check_near(names, density, lower[where], upper[where])
        mean[where] = density.mean
        precision[np.ix_(where, where)] = np.linalg.inv(density.covariance)
    prior = Prior(tuple(free), *map(jnp.asarray, (lower, upper, mean, precision)))
    return prior, {name: float(held[name]) for name in limits if name in held}


def between(
    prior: Any, one: Float[Array, " parameter"], other: Float[Array, " parameter"]
) -> Float64[Array, " parameter"]:
    """The position whose values lie in the middle of those of two others."""
    return prior.position((prior.values(one) + prior.values(other)) / 2)


def describe_priors(priors: Mapping[Any, Any]) -> dict[str, Any]:
    """Priors as JSON has them: by their names, of each its kind and its numbers."""
    return {
        ",".join(_names(key)): {
            "kind": type(prior).__name__,
            "numbers": {name: one.tolist() for name, one in tree_to_arrays(prior).items()},
        }
        for key, prior in priors.items()
    }


class _Density(NamedTuple):
    """What a distribution says of some parameters: between which ends, and a Gaussian or none."""

    ends: list[tuple[float, float]]
    mean: np.ndarray | None = None
    covariance: np.ndarray = np.zeros((0, 0))


def _names(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _single(name: str, prior: Any) -> _Density:
    if isinstance(prior, dist.Uniform):
        return _Density([(_number(name, prior.low), _number(name, prior.high))])
    low, high = -np.inf, np.inf
    normal = getattr(prior, "base_dist", None) if isinstance(prior, _TRUNCATED) else prior
    if not isinstance(normal, dist.Normal):
        raise InputError(
            f"priors: {name} has a {type(prior).__name__}; give numpyro.distributions.Uniform, "
            "Normal or TruncatedNormal, for a tuple of names MultivariateNormal, and extend "
            "`stellar_model` for anything else"
        )
    mean, sigma = _number(name, normal.loc), _number(name, normal.scale)
    if not 0 < sigma < np.inf:
        raise InputError(f"priors: {name} has sigma {sigma:g}; give a positive number")
    if normal is not prior:
        low = _number(name, getattr(prior, "low", low))
        high = _number(name, getattr(prior, "high", high))
    near, far = _ends(name, mean, sigma)
    return _Density([(max(low, near), min(high, far))], np.array([mean]), np.array([[sigma**2]]))


def _joint(names: tuple[str, ...], prior: Any) -> _Density:
    together = ", ".join(names)
    if not isinstance(prior, dist.MultivariateNormal):
        raise InputError(
            f"priors: ({together}) has a {type(prior).__name__}; a tuple of names takes "
            "numpyro.distributions.MultivariateNormal"
        )
    mean, covariance = np.asarray(prior.loc), np.asarray(prior.covariance_matrix)
    if mean.shape != (len(names),) or covariance.shape != (len(names), len(names)):
        raise InputError(
            f"priors: ({together}) has a mean of shape {mean.shape} and a covariance of shape "
            f"{covariance.shape}; give {len(names)} numbers and a square of them"
        )
    with np.errstate(invalid="ignore", divide="ignore"):  # refused as NaN
        sigma = np.sqrt(np.diagonal(covariance))
        correlation = covariance / sigma[:, None] / sigma
    if not (np.isfinite(correlation).all() and np.linalg.eigvalsh(correlation).min() > 0):
        raise InputError(f"priors: the covariance of ({together}) is not positive definite")
    ends = [_ends(*one) for one in zip(names, mean.tolist(), sigma.tolist(), strict=True)]
    return _Density(ends, mean, covariance)


def _ends(name, mean, sigma):
    """Of a Gaussian: none, but the velocities' boxes set the margins of the wavelength grid."""
    if name in _DEFAULTS or name.startswith(ZERO_POINT):
        return mean - 8 * sigma, mean + 8 * sigma
    return -np.inf, np.inf


def _cut(name, ends, limits):
    """The part of a box between two ends."""
    low, high = max(limits[0], ends[0]), min(limits[1], ends[1])
    if not (ends[0] < ends[1] and low < high):  # also refuses NaN
        raise InputError(
            f"priors: {name} lies in {ends[0]:g} .. {ends[1]:g}, which leaves nothing of "
            f"{limits[0]:g} .. {limits[1]:g}"
        )
    return low, high


def _check_near(names, density, lower, upper):
    """Refuse a Gaussian of which nothing to speak of is in the box."""
    reach = _FAR * np.sqrt(np.diagonal(density.covariance))
    for name, mean, far, low, high in zip(names, density.mean, reach, lower, upper, strict=True):
        if not low - far <= mean <= high + far:  # also refuses NaN
            raise InputError(
                f"priors: {name} has mean {mean:g}, outside {low:g} .. {high:g} by more than "
                f"{_FAR:g} sigma"
            )


def _number(name: str, value: Any) -> float:
    array = np.asarray(value)
    if array.shape != ():
        raise InputError(f"priors: {name} has parameters of shape {array.shape}; give numbers")
    return float(array)
