"""The residual blocks in 16-bit arithmetic, as training runs them on a GPU: the plain path.

Products take 16-bit factors and add up in float32. Their results, and the stream of residuals
between blocks, are rounded to 16 bits, since what is moved is what costs; the gradients of the
weights, sums over millions of pixels, stay in float32. Softmax, GELU and norms are float32 inside.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from .precision import normalise


def product(equation: str, left: Array, right: Array, dtype: Any) -> Array:
    """An einsum of two factors in a 16-bit type, whose derivative by `right` is float32.

    Every index of a factor must occur in the other one or in the result.
    """
    result: Any = _product(equation, left, right, dtype)
    return result


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _product(equation, left, right, dtype):
    return jnp.einsum(equation, left.astype(dtype), right.astype(dtype))


def _forward(equation, left, right, dtype):
    return _product(equation, left, right, dtype), (left, right)


def _backward(equation, dtype, factors, cotangent):
    left, right = factors
    inputs, out = equation.split("->")
    first, second = inputs.split(",")
    cotangent = cotangent.astype(dtype)
    by_left = jnp.einsum(f"{out},{second}->{first}", cotangent, right.astype(dtype))
    by_right = jnp.einsum(
        f"{first},{out}->{second}",
        left.astype(dtype),
        cotangent,
        preferred_element_type=jnp.float32,
    )
    return by_left.astype(left.dtype), by_right.astype(right.dtype)


_product.defvjp(_forward, _backward)


def half_blocks(
    x: Float[Array, "star pixel width"],
    logits: Float32[Array, "star depth width heads_tokens"],
    values: Float32[Array, "star depth heads_tokens width"],
    up: Float32[Array, "depth width width4"],
    down: Float32[Array, "depth width4 width"],
    scale: float,
    tokens: int,
) -> Float[Array, "star pixel width"]:
    """All residual blocks of `TransformerPayne` on many stars, in the 16-bit type of `x`.

    Parameters
    ----------
    x
        Sines of the encoded wavelengths.
    logits, values
        Of every star: see `transformer_payne.Answers`.
    up, down
        Weights of the feed-forward layers.
    scale
        Of every branch.
    tokens
        Over which a softmax runs.
    """
    dtype = x.dtype
    stars, pixels, _ = x.shape
    for block in range(up.shape[0]):
        pre = product("spd,sda->spa", normalise(x), logits[:, block], dtype).astype(jnp.float32)
        weights = jax.nn.softmax(pre.reshape(stars, pixels, -1, tokens), axis=-1)
        weights = weights.astype(dtype).reshape(pre.shape)
        x = x + (scale * product("spa,sad->spd", weights, values[:, block], dtype)).astype(dtype)
        pre = product("spd,df->spf", normalise(x), up[block], dtype)
        x = x + (scale * product("spf,fd->spd", _gelu(pre), down[block], dtype)).astype(dtype)
    return x


def half_head(
    x: Float[Array, "star pixel width"],
    head_in: Float32[Array, "width width"],
    head_out: Float32[Array, " width"],
) -> Float32[Array, "star pixel"]:
    """Depths from the last residuals; the last product is float32, or it would be the error."""
    hidden = _gelu(product("spd,de->spe", normalise(x), head_in, x.dtype))
    return hidden.astype(jnp.float32) @ head_out


def _gelu(x: Array) -> Array:
    return jax.nn.gelu(x.astype(jnp.float32)).astype(x.dtype)
