"""The residual blocks of a training step, for a GPU: fewer passes through its memory.

A block has two branches of one form, ``y = x + scale * act(rms(x) @ first) @ second``: attention
(act is the softmax of each head, the weights are the star's) and the feed-forward layer (act is
GELU). Plain JAX writes and reads every intermediate of these, and small widths wait for that.
Here a branch is either one kernel, in the manner of Dao et al. 2022 (arXiv:2205.14135), whose
hidden columns stay on the chip and are computed again on the way back, or the library's products
with one kernel between each two. The arithmetic is that of `half_precision.half_blocks`, with
fewer roundings to 16 bits. Kept for the way back are the normalised rows and their factors, and
of a branch that is not one kernel its hidden columns.

On one H200 (jax 0.11.2) the feed-forward kernels took 1.10 ns a pixel forward and 1.81 back at
width 128, 3.6 and 7.5 at width 256; there the four library products together take 4.7.

The kernels are Triton's, through Pallas; JAX 0.11 says that it will drop them one day, and then
`plan_for` finds no plan. ``benchmarks/training_throughput.py`` measures what they gain.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Float32

from .half_precision import half_blocks

plgpu: Any
try:
    from jax.experimental.pallas import triton as plgpu
except ImportError:
    plgpu = None

# Elements of one program of a kernel without products, and programs that fill a large GPU.
_ELEMENTS = 8192
_PROGRAMS = 256


class Tiles(NamedTuple):
    """A program's pixels, its hidden columns a turn, and its warps and stages of prefetching."""

    pixels: int
    hidden: int
    warps: int
    stages: int


class Plan(NamedTuple):
    """Tiles of the forward and the backward kernel of a branch; None: products by the library."""

    feed: tuple[Tiles, Tiles] | None
    attention: tuple[Tiles, Tiles] | None


# -- arithmetic inside the kernels --------------------------------------------------------------


def _gelu(pre, tanh):
    """GELU as jax.nn.gelu has it by default, and its derivative."""
    square = pre * pre
    gate = 0.5 + 0.5 * tanh(pre * (0.7978845608028654 + 0.03567740813636141 * square))
    hidden = pre * gate
    slope = 1.5957691216057308 + 0.21406443847660482 * square
    return hidden, gate + hidden * (1.0 - gate) * slope


def _activation(pre, tokens, tanh):
    if tokens is None:
        return _gelu(pre, tanh)[0]
    heads = pre.reshape(pre.shape[0], pre.shape[1] // tokens, tokens)
    weight = jnp.exp(heads - jnp.max(heads, axis=-1, keepdims=True))
    return (weight / jnp.sum(weight, axis=-1, keepdims=True)).reshape(pre.shape)


def _softmax_back(hidden, slope, tokens):
    shape = (hidden.shape[0], hidden.shape[1] // tokens, tokens)
    product = (hidden * slope).reshape(shape)
    mean = jnp.sum(product, axis=-1, keepdims=True)
    return (product - hidden.reshape(shape) * mean).reshape(hidden.shape)


def _activation_back(pre, slope, tokens, tanh):
    """The activation, and the gradient of its argument from that of its value."""
    if tokens is None:
        hidden, derivative = _gelu(pre, tanh)
        return hidden, slope * derivative
    hidden = _activation(pre, tokens, tanh)
    return hidden, _softmax_back(hidden, slope, tokens)


def _unit(x, dtype):
    """Rows scaled to a root mean square of 1, and the factors."""
    factor = lax.rsqrt(jnp.sum(x * x, axis=-1) * (1.0 / x.shape[-1]) + 1e-6)
    return (x * factor[..., None]).astype(dtype), factor


def _unit_back(unit, factor, total):
    """Gradient of the rows from that of the unit rows."""
    along = jnp.sum(total * unit, axis=-1, keepdims=True) * (1.0 / unit.shape[-1])
    return factor[:, None] * (total - unit * along)


def _turns(turn, hidden, chunk, shape):
    """Sum of turn(columns) over chunks of the hidden columns."""

    def body(index, total):
        return total + turn(pl.ds(pl.multiple_of(index * chunk, chunk), chunk))

    # int32, or the indices would be int64 in JAX's 64-bit mode
    bounds = jnp.int32(0), jnp.int32(hidden // chunk)
    return lax.fori_loop(*bounds, body, jnp.zeros(shape, jnp.float32))


# -- kernels: a whole branch --------------------------------------------------------------------


def _forward_kernel(
    unit_ref, x_ref, in_ref, out_ref, y_ref, next_ref, factor_ref, *, scale, tokens, tanh, chunk
):
    unit = unit_ref[...]

    def turn(columns):
        hidden = _activation(plgpu.dot(unit, in_ref[:, columns]), tokens, tanh)
        return plgpu.dot(hidden.astype(unit.dtype), out_ref[columns, :])

    total = _turns(turn, in_ref.shape[1], chunk, unit.shape)
    y = x_ref[...].astype(jnp.float32) + scale * total
    y_ref[...] = y.astype(y_ref.dtype)
    next_ref[...], factor_ref[...] = _unit(y, y_ref.dtype)


def _backward_kernel(
    unit_ref, factor_ref, in_ref, out_ref, dy_ref, dx_ref, hidden_ref, dpre_ref,
    *, scale, tokens, tanh, chunk,
):  # fmt: skip
    unit, dy = unit_ref[...], dy_ref[...]

    def turn(columns):
        weights = in_ref[:, columns]
        slope = scale * plgpu.dot(dy, out_ref[columns, :].T)
        hidden, dpre = _activation_back(plgpu.dot(unit, weights), slope, tokens, tanh)
        dpre = dpre.astype(unit.dtype)
        hidden_ref[:, columns] = hidden.astype(unit.dtype)
        dpre_ref[:, columns] = dpre
        return plgpu.dot(dpre, weights.T)

    total = _turns(turn, in_ref.shape[1], chunk, unit.shape)
    # Loaded once more, or they would fill registers during the turns.
    back = _unit_back(unit_ref[...].astype(jnp.float32), factor_ref[...], total)
    dx_ref[...] = (dy_ref[...].astype(jnp.float32) + back).astype(dx_ref.dtype)


# -- kernels: between the products of a branch --------------------------------------------------


def _activation_kernel(pre_ref, hidden_ref, *, tokens, tanh):
    hidden = _activation(pre_ref[...].astype(jnp.float32), tokens, tanh)
    hidden_ref[...] = hidden.astype(hidden_ref.dtype)


def _activation_back_kernel(pre_ref, hidden_ref, slope_ref, dpre_ref, *, scale, tokens, tanh):
    slope = scale * slope_ref[...].astype(jnp.float32)
    if tokens is None:
        dpre = slope * _gelu(pre_ref[...].astype(jnp.float32), tanh)[1]
    else:
        dpre = _softmax_back(hidden_ref[...].astype(jnp.float32), slope, tokens)
    dpre_ref[...] = dpre.astype(dpre_ref.dtype)


def _join_kernel(x_ref, branch_ref, y_ref, unit_ref, factor_ref, *, scale):
    y = x_ref[...].astype(jnp.float32) + scale * branch_ref[...].astype(jnp.float32)
    y_ref[...] = y.astype(y_ref.dtype)
    unit_ref[...], factor_ref[...] = _unit(y, y_ref.dtype)


def _join_back_kernel(unit_ref, factor_ref, total_ref, dy_ref, dx_ref):
    unit, total = unit_ref[...].astype(jnp.float32), total_ref[...].astype(jnp.float32)
    back = _unit_back(unit, factor_ref[...], total)
    dx_ref[...] = (dy_ref[...].astype(jnp.float32) + back).astype(dx_ref.dtype)


def _rowwise(kernel, interpret, arrays, outputs):
    """A kernel on rows of arrays [star, pixel, ...]; the outputs have these shapes, too."""
    columns = arrays[0].shape[2]
    rows = min(arrays[0].shape[1], max(1, _ELEMENTS // columns))

    def spec(array):
        if array.ndim == 2:
            return pl.BlockSpec((None, rows), lambda s, i: (s, i))
        return pl.BlockSpec((None, rows, columns), lambda s, i: (s, i, 0))

    return pl.pallas_call(
        kernel,
        grid=(arrays[0].shape[0], arrays[0].shape[1] // rows),
        in_specs=[spec(array) for array in arrays],
        out_specs=[spec(array) for array in outputs],
        out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs],
        compiler_params=_compiler_params(warps=8, stages=1),
        interpret=interpret,
    )(*arrays)


def _compiler_params(warps, stages):
    return plgpu.CompilerParams(num_warps=warps, num_stages=stages)


# -- branches -----------------------------------------------------------------------------------


class _Branch(NamedTuple):
    """One branch of one block: its weights in 16 bits, [(star,) ...], and how it is computed."""

    first: Array
    second: Array
    scale: float
    tokens: int | None
    tiles: tuple[Tiles, Tiles] | None
    interpret: bool

    @property
    def _options(self):
        tanh = jnp.tanh if self.interpret else plgpu.approx_tanh
        return {"tokens": self.tokens, "tanh": tanh}

    def _fused(self, kernel, tiles, arrays, outputs):
        """Run a kernel; arrays and outputs [star, pixel, (width or hidden)] are cut in tiles."""
        hidden = self.first.shape[-1]

        def spec(array):
            if array is self.first or array is self.second:
                if array.ndim == 2:
                    return pl.BlockSpec(array.shape, lambda s, i: (0, 0))
                return pl.BlockSpec((None, *array.shape[1:]), lambda s, i: (s, 0, 0))
            tail = array.shape[2:]
            return pl.BlockSpec(
                (None, tiles.pixels, *tail), lambda s, i: (s, i, 0)[: 2 + len(tail)]
            )

        return pl.pallas_call(
            partial(kernel, scale=self.scale, chunk=min(tiles.hidden, hidden), **self._options),
            grid=(arrays[0].shape[0], arrays[0].shape[1] // tiles.pixels),
            in_specs=[spec(array) for array in arrays],
            out_specs=[spec(array) for array in outputs],
            out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in outputs],
            compiler_params=_compiler_params(tiles.warps, tiles.stages),
            interpret=self.interpret,
        )(*arrays)

    def _product(self, array, weight, equation):
        return jnp.einsum(equation.replace("*", "s" if weight.ndim == 3 else ""), array, weight)

    def forward(self, unit, x):
        """y, its unit rows and their factors; and what the way back needs."""
        outputs = (x, unit, jax.ShapeDtypeStruct(x.shape[:2], jnp.float32))
        if self.tiles is not None:
            arrays = (unit, x, self.first, self.second)
            return self._fused(_forward_kernel, self.tiles[0], arrays, outputs), None
        pre = self._product(unit, self.first, "spd,*df->spf")
        kernel = partial(_activation_kernel, **self._options)
        (hidden,) = _rowwise(kernel, self.interpret, [pre], [pre])
        branch = self._product(hidden, self.second, "spf,*fd->spd")
        kernel = partial(_join_kernel, scale=self.scale)
        return _rowwise(kernel, self.interpret, [x, branch], outputs), (pre, hidden)

    def backward(self, unit, factor, made, dy):
        """Gradients of x and of the two weights."""
        if self.tiles is not None:
            shape = (*unit.shape[:2], self.first.shape[-1])
            hidden = jax.ShapeDtypeStruct(shape, unit.dtype)
            outputs = (unit, hidden, hidden)
            arrays = (unit, factor, self.first, self.second, dy)
            dx, hidden, dpre = self._fused(_backward_kernel, self.tiles[1], arrays, outputs)
        else:
            slope = self._product(dy, self.second, "spd,*fd->spf")
            kernel = partial(_activation_back_kernel, scale=self.scale, **self._options)
            # The kernel reads one of the two, but it is the product that needs `hidden` anyway.
            pre, hidden = made
            (dpre,) = _rowwise(kernel, self.interpret, [pre, hidden, slope], [pre])
            total = self._product(dpre, self.first, "spf,*df->spd")
            (dx,) = _rowwise(_join_back_kernel, self.interpret, [unit, factor, total, dy], [dy])
        return dx, self._outer(unit, dpre), self.scale * self._outer(hidden, dy)

    def _outer(self, left, right):
        """Gradient of a weight: a sum over pixels, cut in parts enough to fill the GPU."""
        stars, pixels = left.shape[:2]
        tiles = -(-left.shape[2] // 128) * -(-right.shape[2] // 128)
        parts = 1
        while 2 * parts * stars * tiles <= _PROGRAMS and pixels % (2 * parts) == 0:
            parts *= 2
        left = left.reshape(stars * parts, pixels // parts, -1)
        right = right.reshape(stars * parts, pixels // parts, -1)
        if self.first.ndim == 2 and parts == 1:
            return jnp.einsum("spl,spr->lr", left, right, preferred_element_type=jnp.float32)
        sums = jnp.einsum("spl,spr->slr", left, right, preferred_element_type=jnp.float32)
        if self.first.ndim == 2:
            return jnp.sum(sums, axis=0)
        return jnp.sum(sums.reshape(stars, parts, *sums.shape[1:]), axis=1)


# -- all blocks ---------------------------------------------------------------------------------

# The fastest of the tiles tried on an H200; other widths were not measured.
_PLANS = {
    128: Plan(
        feed=(Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 2)),
        attention=(Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2)),
    ),
    256: Plan(None, None),
    512: Plan(None, None),
}


def plan_for(width: int, tokens: int, stars: int, pixels: int) -> Plan | None:
    """How to run blocks of this shape on a GPU; None where plain JAX has to do."""
    fits = tokens == 16 and pixels % 128 == 0
    # The kernels count elements in int32.
    small = 4 * width * stars * pixels < 2**31
    return _PLANS.get(width) if plgpu is not None and fits and small else None


def run_blocks(
    x: Float[Array, "star pixel width"],
    logits: Float32[Array, "star depth width heads_tokens"],
    values: Float32[Array, "star depth heads_tokens width"],
    up: Float32[Array, "depth width width4"],
    down: Float32[Array, "depth width4 width"],
    scale: float,
    tokens: int,
) -> Float[Array, "star pixel width"]:
    """`half_blocks`, by the kernels of this module where they run and are faster."""
    blocks = (x, logits, values, up, down, scale, tokens)
    stars, pixels, width = x.shape
    plan = plan_for(width, tokens, stars, pixels) if jax.default_backend() == "gpu" else None
    return half_blocks(*blocks) if plan is None else fused_blocks(*blocks, plan)


def _branches(dtype, logits, values, up, down, scale, tokens, plan, interpret):
    blocks = []
    for block in range(up.shape[0]):
        # Cut here and not in the kernels, so that one compiled kernel serves all blocks.
        star = (logits[:, block].astype(dtype), values[:, block].astype(dtype))
        own = (up[block].astype(dtype), down[block].astype(dtype))
        attention = _Branch(*star, scale, tokens, plan.attention, interpret)
        feed = _Branch(*own, scale, None, plan.feed, interpret)
        blocks += [attention, feed]
    return blocks


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def fused_blocks(
    x: Float[Array, "star pixel width"],
    logits: Float32[Array, "star depth width heads_tokens"],
    values: Float32[Array, "star depth heads_tokens width"],
    up: Float32[Array, "depth width width4"],
    down: Float32[Array, "depth width4 width"],
    scale: float,
    tokens: int,
    plan: Plan,
    interpret: bool = False,
) -> Float[Array, "star pixel width"]:
    """All blocks of many stars, differentiable once, in reverse.

    Parameters
    ----------
    x
        The encoded wavelengths, in the 16-bit type of all products and residuals.
    logits, values
        Of each star: `Answers`.
    up, down
        Feed-forward weights.
    scale
        Factor on every branch.
    tokens
        Columns that one softmax runs over.
    plan
        From `plan_for`.
    interpret
        Run the kernels as plain JAX, on any machine, to test them.
    """
    return _fused_fwd(x, logits, values, up, down, scale, tokens, plan, interpret)[0]


def _fused_fwd(x, logits, values, up, down, scale, tokens, plan, interpret):
    branches = _branches(x.dtype, logits, values, up, down, scale, tokens, plan, interpret)
    saved = []
    unit, factor = _unit(x.astype(jnp.float32), x.dtype)
    for branch in branches:
        (x, *following), made = branch.forward(unit, x)
        saved.append((unit, factor, made, branch.first, branch.second))
        unit, factor = following
    return x, saved


def _fused_bwd(scale, tokens, plan, interpret, saved, gradient):
    gradients = []
    for index in reversed(range(len(saved))):
        unit, factor, made, first, second = saved[index]
        kind = (None, plan.feed) if index % 2 else (tokens, plan.attention)
        branch = _Branch(first, second, scale, *kind, interpret)
        gradient, *both = branch.backward(unit, factor, made, gradient)
        gradients.append(both)
    gradients.reverse()
    (dlogits, dvalues), (dup, ddown) = (zip(*gradients[i::2], strict=True) for i in (0, 1))
    stars = (jnp.stack(dlogits, axis=1), jnp.stack(dvalues, axis=1))
    return gradient, *stars, jnp.stack(dup), jnp.stack(ddown)


fused_blocks.defvjp(_fused_fwd, _fused_bwd)
