"""Arithmetic of networks: products in a chosen precision, and the layers made of them."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

Precision = Literal["float32", "tf32", "float16", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
HALF = {"float16": jnp.float16, "bfloat16": jnp.bfloat16}


def dot(equation: str, left: Array, right: Array, precision: Precision) -> Array:
    """A product in the asked precision, returned in float32.

    In 16 bits the sums run in float32 and are rounded once at the end. Were they handed out
    unrounded, the backward pass would multiply float32 by 16 bits, which no matrix unit does.
    """
    if precision in HALF:
        product = jnp.einsum(equation, left.astype(HALF[precision]), right.astype(HALF[precision]))
        return product.astype(jnp.float32)
    # By default JAX multiplies float32 as TF32 where a GPU can; a CPU has float32 only.
    level = jax.lax.Precision.DEFAULT if precision == "tf32" else jax.lax.Precision.HIGHEST
    return jnp.einsum(equation, left, right, precision=level)


@jax.custom_jvp
def project(x: Float[Array, "*batch fan_in"], weight: Float[Array, "fan_in fan_out"]) -> Array:
    """A product in float32 whose derivatives are products in TF32, many times as fast on a GPU.

    A slope that is 1e-3 off changes the way to a maximum and the error there by as little.
    """
    return dot("...i,io->...o", x, weight, "float32")


def _rough_slope(primals, tangents):
    (x, weight), (dx, dweight) = primals, tangents
    product = project(x, weight)
    slope = jnp.zeros_like(product)
    if not isinstance(dx, SymbolicZero):
        slope += dot("...i,io->...o", dx, weight, "tf32")
    if not isinstance(dweight, SymbolicZero):
        slope += dot("...i,io->...o", x, dweight, "tf32")
    return product, slope


project.defjvp(_rough_slope, symbolic_zeros=True)


def normalise(x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Scale each row to a root mean square of 1, in float32 inside."""
    wide = x.astype(jnp.float32)
    factor = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
    return (wide * factor).astype(x.dtype)


def hidden_layer(x: Float[Array, "rows width"], weight: Array, precision: Precision) -> Array:
    """GELU of a product with the normalised rows."""
    return jax.nn.gelu(dot("pd,df->pf", normalise(x), weight, precision))
