"""The fused kernels compute the blocks of the plain formulation, and their gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emulators.fused_block import Plan, Tiles, fused_blocks, plan_for

STARS, PIXELS, WIDTH, DEPTH, TOKENS, SCALE = 2, 32, 64, 2, 16, 0.7
TILES = (Tiles(16, 64, 4, 2), Tiles(16, 64, 4, 2))


def plain_blocks(x, logits, values, up, down):
    def unit(x):
        return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    for block in range(DEPTH):
        heads = (unit(x) @ logits[:, block]).reshape(STARS, PIXELS, -1, TOKENS)
        weights = jax.nn.softmax(heads, axis=-1).reshape(STARS, PIXELS, -1)
        x = x + SCALE * weights @ values[:, block]
        x = x + SCALE * jax.nn.gelu(unit(x) @ up[block]) @ down[block]
    return x


def draw(seed):
    """Inputs of the blocks in float64, with logits steep enough to matter, and a cotangent."""
    rng = np.random.default_rng(seed)
    columns = WIDTH // 2
    fan_in = {
        (STARS, PIXELS, WIDTH): 1,
        (STARS, DEPTH, WIDTH, columns): WIDTH / 9,
        (STARS, DEPTH, columns, WIDTH): 16,
        (DEPTH, WIDTH, 4 * WIDTH): WIDTH,
        (DEPTH, 4 * WIDTH, WIDTH): 4 * WIDTH,
    }
    arrays = [jnp.asarray(rng.normal(size=s) / np.sqrt(f)) for s, f in fan_in.items()]
    return arrays, jnp.asarray(rng.normal(size=(STARS, PIXELS, WIDTH)))


def distance(result, expected):
    result = np.asarray(result, np.float64)
    return np.linalg.norm(result - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("plan", "dtype", "limit"),
    [(Plan(TILES, TILES), jnp.bfloat16, 1.5e-2), (Plan(None, None), jnp.float16, 2e-3)],
    ids=["kernels", "library"],
)
def test_values_and_gradients_are_those_of_float64(plan, dtype, limit):
    arrays, cotangent = draw(0)

    @jax.jit
    def reference(arrays):
        value, pull = jax.vjp(plain_blocks, *arrays)
        return value, pull(cotangent)

    @jax.jit
    def fused(arrays):
        def blocks(x, *weights):
            return fused_blocks(x.astype(dtype), *weights, SCALE, TOKENS, plan, True)

        value: Any
        value, pull = jax.vjp(blocks, *arrays)
        return value, pull(cotangent.astype(value.dtype))

    value, gradients = fused([array.astype(jnp.float32) for array in arrays])
    expected, expected_gradients = reference(arrays)
    assert distance(value, expected) < limit / 2
    for gradient, right in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == jnp.float32
        assert distance(gradient, right) < limit


def test_a_head_far_below_the_others_keeps_its_softmax():
    arrays, _ = draw(1)
    x, logits, values, up, down = (array.astype(jnp.float32) for array in arrays)
    # The second head's logits are all about -300 where the first's are 0.
    x = x.at[..., 0].set(8.0)
    logits = logits.at[:, :, 0, TOKENS:].add(-60.0)
    plan = Plan(TILES, TILES)
    run = jax.jit(lambda *arrays: fused_blocks(*arrays, SCALE, TOKENS, plan, True))
    value = run(x.astype(jnp.float16), logits, values, up, down)
    expected = plain_blocks(x, logits, values, up, down)
    # 16 bits round such logits to 1/8
    assert np.isfinite(value).all() and distance(value, np.asarray(expected)) < 0.1


@pytest.mark.parametrize(
    "shape", [(96, 16, 32, 1024), (128, 8, 32, 1024), (128, 16, 32, 1000), (512, 16, 256, 8192)]
)
def test_shapes_without_a_plan_are_left_to_plain_jax(shape):
    assert plan_for(*shape) is None
    assert plan_for(128, 16, 32, 8192) is not None
