"""The depth of many pixels of one star: in chunks, with a derivative made for few labels."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from .precision import Precision, dot, hidden_layer, normalise

if TYPE_CHECKING:
    from .transformer_payne import Answers, Encoding, TransformerPayne

# Pixels a chunk: on a CPU the activations of a chunk stay in the cache; a GPU wants few, big ones.
_CHUNK = {"cpu": 1024}
_CHUNK_ACCELERATOR = 32768


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def line_depth(
    precision: Precision, model: "TransformerPayne", answers: "Answers", sines: Array
) -> Any:
    """`TransformerPayne.line_depth`, with a derivative made for few labels and many pixels."""
    return model.line_depth(answers, sines, precision)


@partial(line_depth.defjvp, symbolic_zeros=True)
def _line_depth_tangent(precision, primals, tangents):
    """Depth, and its change with the answers and the sines.

    A pixel's depth is one number that depends on no other pixel. So a single backward sweep,
    right behind the forward one while the activations are in the cache, gives its gradient by
    the logits and by the attention branch of every block. What is left is linear in the change
    of the answers and as cheap as the attention: a Jacobian costs little more than a gradient,
    and a gradient needs no second forward pass and keeps little.
    """
    model, answers, sines = primals
    by_model, by_answers, by_sines = tangents
    if not all(_is_zero(leaf) for leaf in jax.tree.leaves(by_model)):
        # With the weights changing too there is nothing to save.
        return jax.jvp(
            lambda model, *rest: model.line_depth(*rest, precision),
            primals,
            jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if _is_zero(leaf) else leaf, tangents
            ),
        )
    x, blocks = sines, []
    for block in range(model.depth):
        query, normalise_back = jax.vjp(normalise, x)
        logits = dot("pd,da->pa", query, answers.logits[block], precision)
        weights, softmax_back = jax.vjp(model.attention_weights, logits)
        branch = dot("pa,ad->pd", weights, answers.values[block], precision)

        def feed_forward(x, block=block):
            hidden = hidden_layer(x, model.up[block], precision)
            return x + model.branch_scale * dot("pf,fd->pd", hidden, model.down[block], precision)

        x, feed_forward_back = jax.vjp(feed_forward, x + model.branch_scale * branch)
        blocks.append((query, weights, normalise_back, softmax_back, feed_forward_back))

    def head(x):
        hidden = hidden_layer(x, model.head_in, precision)
        return dot("pe,e->p", hidden.astype(jnp.float32), model.head_out, "float32")

    depth, head_back = jax.vjp(head, x)
    (slope,) = head_back(jnp.ones_like(depth))
    change = jnp.zeros_like(depth)
    for block in reversed(range(model.depth)):
        query, weights, normalise_back, softmax_back, feed_forward_back = blocks[block]
        (slope,) = feed_forward_back(slope)
        by_branch = model.branch_scale * slope
        (by_logits,) = softmax_back(dot("pd,ad->pa", by_branch, answers.values[block], precision))
        slope += normalise_back(dot("pa,da->pd", by_logits, answers.logits[block], precision))[0]
        if not _is_zero(by_answers.logits):
            moved = dot("pd,da->pa", query, by_answers.logits[block], precision)
            change += jnp.sum(moved * by_logits, axis=-1)
        if not _is_zero(by_answers.values):
            moved = dot("pa,ad->pd", weights, by_answers.values[block], precision)
            change += jnp.sum(moved * by_branch, axis=-1)
    if not _is_zero(by_sines):
        change += jnp.sum(slope * by_sines, axis=-1)
    return depth, change


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def in_chunks(
    function: Callable[[Any], Array], encoding: "Encoding", recompute: bool
) -> Float32[Array, " pixel"]:
    """Map a function of an encoding over stretches of pixels, and join the results.

    With `recompute` the memory of a gradient does not grow with the number of pixels, but it
    takes one more forward pass.
    """
    pixels = encoding.sin.shape[0]
    chunk = _CHUNK.get(jax.default_backend(), _CHUNK_ACCELERATOR)
    count = -(-pixels // chunk)
    if count <= 1:
        return function(encoding)
    length = -(-pixels // (8 * count)) * 8
    padding = count * length - pixels

    def split(array):
        array = jnp.pad(array, ((0, padding), (0, 0)))
        return array.reshape(count, length, array.shape[-1])

    function = jax.checkpoint(function) if recompute else function
    parts = jax.lax.map(function, jax.tree.map(split, encoding))
    return parts.reshape(-1)[:pixels]
