"""A normal cut off at both ends of a box, as a map from a whole one.

The quantile of z among all normal deviates becomes the same quantile among those inside the box. A
parameter whose posterior is a Gaussian in a box is then a standard normal in z: far from the edges
nothing changes, at an edge half a Gaussian becomes a whole one, and what the data leave open, a
uniform density from edge to edge, does too.
"""

import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Float64

# A mean that lies further outside its box counts as being there: the tail of a normal beyond is
# an exponential for all purposes, and loses digits.
_FARTHEST = 8.0
_TINY = 1e-300


def truncate(
    z: Float[Array, ""],
    mean: Float[Array, ""],
    sigma: Float[Array, ""],
    lower: Float[Array, ""],
    upper: Float[Array, ""],
) -> tuple[Float64[Array, ""], Float64[Array, ""]]:
    """The value in the box at the quantile of z, and ln(d value / d z)."""
    mean = jnp.clip(mean, lower - _FARTHEST * sigma, upper + _FARTHEST * sigma)
    first, last = (lower - mean) / sigma, (upper - mean) / sigma
    # Mirrored so that the box lies to the left of the mean, where small masses keep their digits.
    side = jnp.where(first + last > 0, -1.0, 1.0)
    left, right = jnp.minimum(side * first, side * last), jnp.maximum(side * first, side * last)
    mass = ndtr(right) - ndtr(left)
    right_tail = (side * z > 0) & (right > 0)
    tail = jnp.where(right_tail, ndtr(-right), ndtr(left))
    tail = tail + mass * ndtr(jnp.where(right_tail, -side * z, side * z))
    standard = ndtri(jnp.maximum(tail, _TINY)) * jnp.where(right_tail, -side, side)
    value = jnp.clip(mean + sigma * standard, lower, upper)
    return value, jnp.log(sigma * mass) + 0.5 * (standard**2 - z**2)
