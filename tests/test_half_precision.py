"""The 16-bit path of training against the float32 one: same values, same gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LABELS, tiny_data

from emulators.transformer_payne import TransformerPayne

DATA = tiny_data(8, pixels=256)


def random_model():
    model = TransformerPayne(LABELS, width=64, depth=2, tokens=4, key=jax.random.key(0))
    head = np.random.default_rng(0).normal(size=64) / 8
    return eqx.tree_at(lambda tree: tree.head_out, model, jnp.asarray(head, jnp.float32))


MODEL = random_model()
ENCODING = MODEL.encode(jnp.asarray(DATA.wavelength))


def depths(model, precision):
    return model.batch_depth(
        jnp.asarray(DATA.labels), ENCODING, jnp.asarray(DATA.dither * DATA.step), precision
    )


# A rounding to n bits after the point is wrong by 2^-(n+1) at most and by 0.3 of 2^-n in the mean;
# here some ten of them follow each other.
@pytest.mark.parametrize(("precision", "bits"), [("float16", 10), ("bfloat16", 7)])
def test_depths_and_gradients_are_those_of_float32(precision, bits):
    tolerance = 3 * 2.0**-bits

    def mean_depth(model, precision):
        return jnp.mean(depths(model, precision) ** 2)

    exact, rough = (jax.jit(depths, static_argnums=1)(MODEL, p) for p in ("float32", precision))
    difference = np.asarray(rough - exact, np.float64)
    assert 1e-7 < np.sqrt(np.mean(difference**2) / np.mean(np.asarray(exact) ** 2)) < tolerance
    gradient = jax.jit(jax.grad(mean_depth), static_argnums=1)
    # As training does, the loss is magnified so that float16 holds its derivatives.
    magnify = 64.0 * exact.size
    magnified = jax.jit(jax.grad(lambda m, p: magnify * mean_depth(m, p)), static_argnums=1)
    expected, found = gradient(MODEL, "float32"), magnified(MODEL, precision)
    for right, left in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        right, left = np.asarray(right), np.asarray(left) / magnify
        assert np.linalg.norm(left - right) < 2 * tolerance * np.linalg.norm(right)
