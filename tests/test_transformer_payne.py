"""TransformerPayne against a plain float64 implementation of the published equations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LABELS, tiny_grid

from emulators import depth as depth_module
from emulators import transformer_payne
from emulators.errors import InputError
from emulators.labels import LabelSpace
from emulators.parametrization import Leaf, Standard
from emulators.transformer_payne import TransformerPayne

# Compiled whole: operation by operation each would be compiled alone.
flux_of = eqx.filter_jit(lambda model, labels, wavelength: model(labels, wavelength))
STAR = np.asarray([5200.0, 3.1, -0.7, 0.2])


def make_model(width=64, depth=2, periods=(1e-6, 10.0), seed=0):
    model = TransformerPayne(
        LABELS, width=width, depth=depth, tokens=8, periods=periods, key=jax.random.key(seed)
    )
    head = np.random.default_rng(seed).normal(size=width) / np.sqrt(width)
    return eqx.tree_at(lambda tree: tree.head_out, model, jnp.asarray(head, jnp.float32))


def naive_flux(model, labels, wavelength):
    """Queries, keys and values for every wavelength, in numpy and float64."""
    names = "label_in label_out query key value output up down head_in head_out"
    weight = {name: np.asarray(getattr(model, name), np.float64) for name in names.split(" ")}

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def rms(x):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    space, heads = model.label_space, model.width // model.head_dim
    lower, upper = np.asarray(space.lower), np.asarray(space.upper)
    hidden = gelu((np.asarray(labels) - lower) / (upper - lower) @ weight["label_in"])
    tokens = rms((hidden @ weight["label_out"]).reshape(model.tokens, model.width))
    low, high = np.log10(model.periods)
    periods = np.logspace(low, high, model.width)
    x = np.sin(2 * np.pi * np.log10(np.asarray(wavelength, np.longdouble))[:, None] / periods)
    x = x.astype(np.float64)
    scale = 1 / np.sqrt(model.depth)
    for n in range(model.depth):
        query = (rms(x) @ weight["query"][n]).reshape(len(x), heads, model.head_dim)
        key = (tokens @ weight["key"][n]).reshape(model.tokens, heads, model.head_dim)
        value = (tokens @ weight["value"][n]).reshape(model.tokens, heads, model.head_dim)
        logits = np.einsum("phk,thk->pht", query, key) / model.head_dim
        attention = np.exp(logits - logits.max(axis=-1, keepdims=True))
        attention /= attention.sum(axis=-1, keepdims=True)
        mixed = np.einsum("pht,thk->phk", attention, value).reshape(len(x), model.width)
        x = x + scale * mixed @ weight["output"][n]
        x = x + scale * gelu(rms(x) @ weight["up"][n]) @ weight["down"][n]
    return 1.0 - gelu(rms(x) @ weight["head_in"]) @ weight["head_out"]


def test_folded_attention_is_the_naive_one():
    model, wavelength = make_model(), tiny_grid(pixels=300)
    flux = flux_of(model, jnp.asarray(STAR), jnp.asarray(wavelength))
    truth = naive_flux(model, STAR, wavelength)
    assert flux.dtype == jnp.float32
    assert np.std(truth) > 0.01
    np.testing.assert_allclose(flux, truth, atol=2e-5)


def test_gradients_match_differences_of_the_naive_one():
    # Long periods, so that central differences in wavelength resolve them.
    model, wavelength = make_model(periods=(1e-4, 10.0)), tiny_grid(pixels=40)
    encoding = model.encode(jnp.asarray(wavelength))

    def total(labels, shift):
        weights = jnp.cos(jnp.arange(40.0, dtype=jnp.float32))
        return jnp.sum(weights * model.flux_at(labels, encoding, shift))

    def naive_total(labels, shift):
        return np.sum(
            np.cos(np.arange(40.0)) * naive_flux(model, labels, wavelength * np.exp(shift))
        )

    shift = 3e-5
    by_label, by_shift = jax.jit(jax.grad(total, argnums=(0, 1)))(
        jnp.asarray(STAR), jnp.asarray(shift)
    )
    for column, step in enumerate((0.3, 1e-3, 1e-3, 1e-3)):
        offset = np.zeros(4)
        offset[column] = step
        difference = naive_total(STAR + offset, shift) - naive_total(STAR - offset, shift)
        np.testing.assert_allclose(by_label[column], difference / (2 * step), rtol=2e-3)
    difference = naive_total(STAR, shift + 1e-7) - naive_total(STAR, shift - 1e-7)
    np.testing.assert_allclose(by_shift, difference / 2e-7, rtol=2e-3)


@pytest.fixture(params=["whole", "chunks", "recomputed"])
def spectrum(request, monkeypatch):
    """Model, and its flux at 90 wavelengths as a function of (labels, shift), with and without
    the derivative of its own."""
    if request.param != "whole":
        monkeypatch.setitem(depth_module._CHUNK, "cpu", 40)
    if request.param == "recomputed":
        monkeypatch.setattr(transformer_payne, "_MOST_KEPT", 0)
    model = make_model(periods=(1e-4, 10.0))
    encoding = model.encode(jnp.asarray(tiny_grid(pixels=90)))

    def plain(labels, shift):
        sines = model.shifted_sines(encoding, shift)
        return 1.0 - model.line_depth(model.answers(labels), sines, "float32")

    return (lambda labels, shift: model.flux_at(labels, encoding, shift)), plain


def test_derivatives_are_those_of_the_plain_evaluation(spectrum):
    own, plain = spectrum
    weights = jnp.cos(jnp.arange(90.0, dtype=jnp.float32))
    star, shift = jnp.asarray(STAR), jnp.asarray(3e-5)

    def everything(flux, jacobian_backward):
        def total(labels, shift):
            return jnp.sum(weights * flux(labels, shift) ** 2)

        return (
            jax.value_and_grad(total, argnums=(0, 1))(star, shift),
            jax.jacfwd(flux, argnums=(0, 1))(star, shift),
            jacobian_backward(flux, argnums=(0, 1))(star, shift),
            jax.hessian(total)(star, shift),
        )

    found = jax.tree.leaves(jax.jit(lambda: everything(own, jax.jacrev))())
    # jaxlib 0.10.2 compiles the plain jacrev wrongly on a CPU (YNNPACK fusions; off by 30%).
    wanted = jax.tree.leaves(jax.jit(lambda: everything(plain, jax.jacfwd))())
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.max(jnp.abs(other))))


def test_gradients_of_a_batch_are_those_of_each_star(spectrum):
    own, _ = spectrum
    value_and_gradient = jax.value_and_grad(
        lambda labels, shift: jnp.sum(own(labels, shift) ** 2), argnums=(0, 1)
    )
    labels, shift = jnp.asarray(LABELS.sobol(3, seed=1)), jnp.asarray([-4e-6, 0.0, 3e-6])
    batch = jax.jit(jax.vmap(value_and_gradient))(labels, shift)
    one = jax.jit(value_and_gradient)
    for star in range(3):
        single = jax.tree.leaves(one(labels[star], shift[star]))
        for found, wanted in zip(jax.tree.leaves(batch), single, strict=True):
            np.testing.assert_allclose(found[star], wanted, rtol=2e-4)


def test_weights_have_a_gradient_too():
    model = make_model(width=32)
    encoding = model.encode(jnp.asarray(tiny_grid(pixels=50)))
    labels, shift = jnp.asarray(STAR)[None], jnp.zeros(1)
    by_flux = eqx.filter_jit(
        eqx.filter_grad(lambda model: jnp.sum((1 - model.flux_at(labels[0], encoding)) ** 2))
    )(model)
    by_batch = eqx.filter_jit(
        eqx.filter_grad(lambda model: jnp.sum(model.batch_depth(labels, encoding, shift) ** 2))
    )(model)
    for found, wanted in zip(jax.tree.leaves(by_flux), jax.tree.leaves(by_batch), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5 * float(jnp.max(jnp.abs(wanted))))


@pytest.mark.parametrize("velocity", [-480.0, 0.013, 300.0])
def test_shift_is_exact(velocity):
    model, wavelength = make_model(), tiny_grid(pixels=200)
    shift = -np.log1p(velocity / 299792.458)
    shifted = eqx.filter_jit(model.flux_at)(
        jnp.asarray(STAR), model.encode(jnp.asarray(wavelength)), jnp.asarray(shift)
    )
    direct = naive_flux(model, STAR, wavelength * np.exp(shift))
    np.testing.assert_allclose(shifted, direct, atol=3e-5)


def test_phase_is_float64():
    # In float32, log10(wavelength) has steps of a quarter of the shortest period.
    model = make_model()
    wavelength = tiny_grid(pixels=500) * (1 + 3.3e-8)
    periods = np.logspace(-6, 1, 64)
    turns = np.log10(wavelength.astype(np.longdouble))[:, None] / periods
    encoding = model.encode(jnp.asarray(wavelength))
    np.testing.assert_allclose(encoding.sin, np.sin(2 * np.pi * turns), atol=5e-7)
    np.testing.assert_allclose(encoding.cos, np.cos(2 * np.pi * turns), atol=5e-7)


def test_chunks_change_nothing(monkeypatch):
    model = make_model(width=32, depth=2)
    labels, wavelength = jnp.asarray(STAR), jnp.asarray(tiny_grid(pixels=333))

    def loss(labels):
        return jnp.sum(model(labels, wavelength) ** 2)

    whole, slope = flux_of(model, labels, wavelength), jax.jit(jax.grad(loss))(labels)
    monkeypatch.setitem(depth_module._CHUNK, "cpu", 100)
    # A fresh function, or the compiled one with the longer chunk would be used again.
    chunked = jax.jit(lambda labels: model(labels, wavelength))
    np.testing.assert_allclose(chunked(labels), whole, atol=2e-6)
    again = jax.jit(jax.grad(lambda labels: loss(labels)))
    np.testing.assert_allclose(again(labels), slope, rtol=1e-4)


def test_batch_is_one_star_at_a_time():
    model, wavelength = make_model(width=32), jnp.asarray(tiny_grid(pixels=64))
    labels = jnp.asarray(LABELS.sobol(3, seed=1))
    shift = jnp.asarray([-4e-6, 0.0, 3e-6])
    encoding = model.encode(wavelength)
    depth = eqx.filter_jit(model.batch_depth)(labels, encoding, shift)
    stacked = jax.tree.map(lambda table: jnp.stack([table, table[::-1], table]), encoding)
    own = eqx.filter_jit(model.batch_depth)(labels, stacked, shift)
    for star in range(3):
        flux = flux_of(model, labels[star], wavelength * jnp.exp(shift[star]))
        np.testing.assert_allclose(1 - depth[star], flux, atol=1e-5)
    np.testing.assert_allclose(own[1], depth[1, ::-1], atol=1e-6)


def test_bfloat16_is_near_and_not_equal():
    model, wavelength = make_model(), jnp.asarray(tiny_grid(pixels=200))
    encoding = model.encode(wavelength)
    full = eqx.filter_jit(model.flux_at)(jnp.asarray(STAR), encoding)
    half = eqx.filter_jit(model.flux_at)(jnp.asarray(STAR), encoding, precision="bfloat16")
    error = float(jnp.sqrt(jnp.mean((half - full) ** 2)) / jnp.std(full))
    assert 1e-5 < error < 0.03


@pytest.mark.parametrize(("width", "depth", "tokens"), [(32, 1, 16), (64, 4, 16), (96, 8, 4)])
def test_parameter_count(width, depth, tokens):
    model = TransformerPayne(LABELS, width=width, depth=depth, tokens=tokens, key=jax.random.key(0))
    formula = (tokens + 12 * depth + 1) * width**2 + (len(LABELS) + 1) * width
    assert model.num_parameters == formula


def test_the_papers_sizes():
    # With about 95 labels (one an element) the ten published sizes come out; here 2 of them.
    names = tuple(f"x{i}_fe" for i in range(95))
    space = LabelSpace(names, (0.0,) * 95, (1.0,) * 95)
    for width, depth, published in [(64, 4, 272e3), (384, 16, 30.9e6)]:
        model = eqx.filter_eval_shape(
            lambda w=width, d=depth: TransformerPayne(
                space, width=w, depth=d, key=jax.random.key(0)
            )
        )
        assert abs(model.num_parameters / published - 1) < 0.01


def test_flops_by_hand():
    model = TransformerPayne(LABELS, width=64, depth=4, tokens=16, key=jax.random.key(0))
    # Multiply-adds of one wavelength: Q and O, feed-forward, attention; then the head.
    block = 2 * 64 * 64 + 2 * 64 * 256 + 2 * 16 * 64
    wavelength = 2 * (4 * block + 64 * 64 + 64)
    star = 2 * (4 * 64 + 64 * 16 * 64 + 4 * 2 * 16 * 64 * 64)
    assert model.flops(1000) == star + 1000 * wavelength


def test_standard_initial_values():
    model = TransformerPayne(LABELS, width=128, depth=2, key=jax.random.key(1))
    assert float(jnp.abs(model.head_out).max()) == 0.0
    flux = flux_of(model, jnp.asarray(STAR), jnp.asarray(tiny_grid(pixels=8)))
    assert flux.tolist() == [1.0] * 8
    for name, fan_in in [("label_in", 4), ("query", 128), ("down", 512), ("head_in", 128)]:
        assert abs(float(jnp.std(getattr(model, name))) * np.sqrt(fan_in) - 1) < 0.1


def test_every_leaf_has_a_role():
    model = make_model(width=32)
    leaves = jax.tree.leaves(
        model.map_leaves(lambda leaf: leaf), is_leaf=lambda leaf: isinstance(leaf, Leaf)
    )
    assert {leaf.name for leaf in leaves if leaf.role == "input"} == {"label_in"}
    assert {leaf.name for leaf in leaves if leaf.role == "output"} == {"head_out"}
    assert len(leaves) == 10
    with pytest.raises(InputError, match="'bias' has no role"):
        model._leaf("bias")
    with pytest.raises(InputError, match="role 'gain'"):
        Standard().init_std(Leaf("gain", "gain", 1, 32))  # pyright: ignore[reportArgumentType]


def test_the_corner_of_the_box_is_finite():
    # All scaled labels are 0 there, and so are the tokens before their normalisation.
    model = make_model(width=32)
    corner = jnp.asarray(LABELS.lower)
    wavelength = jnp.asarray(tiny_grid(pixels=16))
    slope = jax.jit(jax.jacfwd(lambda labels: model(labels, wavelength)))(corner)
    assert np.isfinite(flux_of(model, corner, wavelength)).all() and np.isfinite(slope).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"width": 40}, "width 40"), ({"periods": (1.0, 0.1)}, "shortest first")],
)
def test_refuses_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        TransformerPayne(LABELS, **settings, key=jax.random.key(0))


@pytest.mark.parametrize(("width", "depth"), [(32, 4), (64, 4), (128, 8)])
def test_formula_counts_the_operations_that_xla_counts(width, depth):
    """Within 15%, in one evaluation and in three times that for its gradient."""
    stars, pixels = 4, 512
    model = TransformerPayne(LABELS, width=width, depth=depth, key=jax.random.key(0))
    encoding = model.encode(jnp.asarray(tiny_grid(pixels=pixels)))
    labels, shift = jnp.asarray(LABELS.sobol(stars, seed=0)), jnp.zeros(stars)

    def loss(model):
        return jnp.mean(model.batch_depth(labels, encoding, shift, "float32") ** 2)

    for function, times in ((loss, 1), (jax.value_and_grad(loss), 3)):
        counted = (jax.jit(function).lower(model).compile().cost_analysis() or {})["flops"]
        assert counted == pytest.approx(times * stars * model.flops(pixels), rel=0.15)
