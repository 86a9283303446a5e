"""TransformerPayne: labels become tokens, and every wavelength asks them for its flux."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from .depth import in_chunks, line_depth
from .errors import InputError
from .fused_block import run_blocks
from .half_precision import half_head
from .labels import LabelSpace
from .parametrization import Leaf, Parametrization, Standard
from .precision import HALF, Precision, dot, hidden_layer, normalise
from .spectral_model import SpectralModel

_ROLES: dict[str, Literal["input", "hidden", "output"]] = {
    "label_in": "input",
    "label_out": "hidden",
    "query": "hidden",
    "key": "hidden",
    "value": "hidden",
    "output": "hidden",
    "up": "hidden",
    "down": "hidden",
    "head_in": "hidden",
    "head_out": "output",
}

# Bytes that the derivative of one spectrum may keep; above, it recomputes chunk by chunk.
_MOST_KEPT = 2**30


class Encoding(NamedTuple):
    """Sines and cosines of the phases of a wavelength grid, [..., pixel, width] float32."""

    sin: Float32[Array, "*batch pixel width"]
    cos: Float32[Array, "*batch pixel width"]


class Answers(NamedTuple):
    """What all wavelengths share of one star: attention with the star's tokens folded in.

    Attention of a normalised query x in block n is ``softmax_heads(x @ logits[n]) @ values[n]``.
    """

    logits: Float32[Array, "*batch depth width heads_tokens"]
    values: Float32[Array, "*batch depth heads_tokens width"]


class TransformerPayne(SpectralModel):
    """An emulator of normalised spectra whose query is one wavelength (Rozanski et al. 2025).

    The scaled labels pass through a small network to become `tokens` vectors of size `width`.
    Each wavelength is encoded by `width` sines, and passes `depth` blocks of cross-attention to
    those tokens and a feed-forward layer. The network predicts the depth below the continuum,
    so a rounding error is relative to the line, not to 1. Nothing but the weights is learned:
    no biases, no scales in the normalisations.

    Parameters
    ----------
    label_space
        Labels and their box; scaled to [0, 1] inside.
    width, depth, tokens, head_dim
        Size d, number of blocks N, number of tokens t and size of one attention head.
    periods
        Shortest and longest period of the encoding in log10(wavelength).
    parametrization
        Initial values and depth scaling; see `emulators.parametrization`.
    key
        Seed of the initial weights.

    References
    ----------
    Rozanski, Ting & Jablonska 2025, ApJ 980, 66 (arXiv:2407.05751); arXiv:2503.18617.
    """

    label_space: LabelSpace
    label_in: Float32[Array, "labels width"]
    label_out: Float32[Array, "width tokens_width"]
    query: Float32[Array, "depth width width"]
    key: Float32[Array, "depth width width"]
    value: Float32[Array, "depth width width"]
    output: Float32[Array, "depth width width"]
    up: Float32[Array, "depth width width4"]
    down: Float32[Array, "depth width4 width"]
    head_in: Float32[Array, "width width"]
    head_out: Float32[Array, " width"]
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)
    tokens: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    periods: tuple[float, float] = eqx.field(static=True)
    branch_scale: float = eqx.field(static=True)

    def __init__(
        self,
        label_space: LabelSpace,
        *,
        width: int = 64,
        depth: int = 4,
        tokens: int = 16,
        head_dim: int = 32,
        periods: tuple[float, float] = (1e-6, 10.0),
        parametrization: Parametrization | None = None,
        key: PRNGKeyArray,
    ):
        parametrization = Standard() if parametrization is None else parametrization
        if width % head_dim:
            raise InputError(
                f"transformer_payne: width {width} is no multiple of head_dim {head_dim}"
            )
        if not 0 < periods[0] < periods[1]:
            raise InputError(
                f"transformer_payne: periods {periods}; give the shortest first, both above 0"
            )
        self.label_space = label_space
        self.width, self.depth, self.tokens, self.head_dim = width, depth, tokens, head_dim
        self.periods = (float(periods[0]), float(periods[1]))
        self.branch_scale = float(parametrization.branch_scale(depth))
        shapes = {
            "label_in": (len(label_space), width),
            "label_out": (width, tokens * width),
            "query": (depth, width, width),
            "key": (depth, width, width),
            "value": (depth, width, width),
            "output": (depth, width, width),
            "up": (depth, width, 4 * width),
            "down": (depth, 4 * width, width),
            "head_in": (width, width),
            "head_out": (width,),
        }
        stds = tuple(parametrization.init_std(self._leaf(name)) for name in shapes)
        weights = _draw(key, tuple(shapes.values()), stds)
        for name, weight in zip(shapes, weights, strict=True):
            setattr(self, name, weight)

    def _leaf(self, name: str) -> Leaf:
        if name not in _ROLES:
            raise InputError(f"transformer_payne: leaf {name!r} has no role; give it one in _ROLES")
        fan_in = {"label_in": len(self.label_space), "down": 4 * self.width}.get(name, self.width)
        return Leaf(name, _ROLES[name], fan_in, self.width)

    def map_leaves(self, function: Callable[[Leaf], Any]) -> "TransformerPayne":
        """The same tree with every weight replaced by `function` of its `Leaf`."""

        def describe(path, _):
            return function(self._leaf(path[-1].name))

        return jax.tree_util.tree_map_with_path(describe, self)

    def architecture(self) -> dict[str, Any]:
        """The JSON-able settings from which `from_architecture` makes the same tree."""
        names = ("width", "depth", "tokens", "head_dim", "periods", "branch_scale")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_architecture(
        cls, label_space: LabelSpace, architecture: dict[str, Any]
    ) -> "TransformerPayne":
        """A model whose weights are only shapes, to be filled with stored arrays."""
        settings = dict(architecture)
        settings["periods"] = tuple(settings["periods"])
        settings["parametrization"] = _Stored(settings.pop("branch_scale"))
        return eqx.filter_eval_shape(lambda: cls(label_space, **settings, key=jax.random.key(0)))

    @property
    def num_parameters(self) -> int:
        """Number of weights: (t + 12 N + 1) d^2 + (d_in + 1) d."""
        return sum(leaf.size for leaf in jax.tree.leaves(self))

    def flops(self, num_wavelengths: int) -> int:
        """Operations of one forward evaluation of one star by the paper's counting.

        Attention is counted unfolded, whatever is run, so that figures compare; a training
        step costs three times this.
        """
        d, n, t = self.width, self.depth, self.tokens
        star = 2 * len(self.label_space) * d + 2 * t * d**2 + 4 * n * t * d**2
        return star + num_wavelengths * (n * (20 * d**2 + 4 * t * d) + 2 * d**2 + 2 * d)

    # -- wavelengths ----------------------------------------------------------------------

    def _turns_per_dex(self) -> Float[Array, " width"]:
        """Turns of each sine in one unit of log10(wavelength), float64."""
        low, high = (math.log10(period) for period in self.periods)
        return 1.0 / jnp.logspace(low, high, self.width, dtype=jnp.float64)

    def encode(self, wavelength: Float[Array, " pixel"]) -> Encoding:
        """Phases of vacuum wavelengths [Angstrom, float64]; cache the result for a fixed grid."""
        log_wavelength = jnp.log10(wavelength.astype(jnp.float64))
        turns = log_wavelength[:, None] * self._turns_per_dex()[None, :]
        # The whole turns (up to 4e6) go away in float64; what is left is good to 1e-9 turns
        # there, and loses only float32's own rounding afterwards.
        angle = (2 * jnp.pi * (turns - jnp.round(turns))).astype(jnp.float32)
        return Encoding(jnp.sin(angle), jnp.cos(angle))

    def shifted_sines(self, encoding: Encoding, shift: Float[Array, ""]) -> Float32[Array, "p d"]:
        """Sines at wavelength * exp(shift), by sin(a + b): exact for every shift."""
        turns = jnp.asarray(shift, jnp.float64) * self._turns_per_dex() / math.log(10.0)
        angle = (2 * jnp.pi * (turns - jnp.round(turns))).astype(jnp.float32)
        cos, sin = jnp.cos(angle)[None, :], jnp.sin(angle)[None, :]
        return encoding.sin * cos + encoding.cos * sin

    # -- labels ---------------------------------------------------------------------------

    def answers(self, labels: Float[Array, " labels"], precision: Precision = "float32") -> Answers:
        """Fold the tokens of one star into the attention of every block.

        ``(W_q x) . (W_k token) = x . (W_q W_k^T token)``: keys and values are the same for all
        wavelengths, so query and key weights, and value and output weights, are multiplied
        together once a star. This is the same function with fewer operations a wavelength.
        """
        heads = self.width // self.head_dim
        # The published factor on the tokens would vanish in this normalisation.
        tokens = normalise(self._read_labels(labels, precision)[1])

        def split(weight):
            return weight.reshape(self.depth, self.width, heads, self.head_dim)

        keys = dot("td,ndhk->nthk", tokens, split(self.key), precision)
        logits = dot("ndhk,nthk->ndht", split(self.query), keys, precision) / self.head_dim
        values = dot("td,ndhk->nthk", tokens, split(self.value), precision)
        output = self.output.reshape(self.depth, heads, self.head_dim, self.width)
        values = dot("nthk,nhkd->nhtd", values, output, precision)
        return Answers(
            logits.reshape(self.depth, self.width, heads * self.tokens),
            values.reshape(self.depth, heads * self.tokens, self.width),
        )

    def _read_labels(
        self, labels: Float[Array, " labels"], precision: Precision
    ) -> tuple[Float32[Array, " width"], Float32[Array, "tokens width"]]:
        """The hidden layer of the label network, and the tokens before their normalisation."""
        unit = self.label_space.to_unit(labels).astype(jnp.float32)
        hidden = jax.nn.gelu(dot("l,ld->d", unit, self.label_in, precision))
        tokens = dot("d,df->f", hidden, self.label_out, precision)
        return hidden, tokens.reshape(self.tokens, self.width)

    # -- flux -----------------------------------------------------------------------------

    def line_depth(
        self, answers: Answers, sines: Float32[Array, "pixel width"], precision: Precision
    ) -> Float32[Array, " pixel"]:
        """Depth below the continuum of one star at encoded wavelengths."""
        *_, (_, depth) = self._stages(answers, sines, precision)
        return depth

    def _stages(
        self, answers: Answers, sines: Float32[Array, "pixel width"], precision: Precision
    ) -> Iterator[tuple[str, Array]]:
        """What `line_depth` computes, stage by stage with its name; the last is the depth."""
        x = sines
        for block in range(self.depth):
            logits = dot("pd,da->pa", normalise(x), answers.logits[block], precision)
            yield f"block{block}.logits", logits
            weights = self.attention_weights(logits)
            branch = dot("pa,ad->pd", weights, answers.values[block], precision)
            yield f"block{block}.attention", branch
            x = x + self.branch_scale * branch
            hidden = hidden_layer(x, self.up[block], precision)
            yield f"block{block}.hidden", hidden
            branch = dot("pf,fd->pd", hidden, self.down[block], precision)
            yield f"block{block}.feed_forward", branch
            x = x + self.branch_scale * branch
            yield f"block{block}.residual", x
        hidden = hidden_layer(x, self.head_in, precision)
        yield "head_hidden", hidden
        # The last product stays in float32: its rounding would be the floor of the error.
        yield "output", dot("pe,e->p", hidden.astype(jnp.float32), self.head_out, "float32")

    def attention_weights(self, logits: Float[Array, "pixel heads_tokens"]) -> Array:
        """Attention weights: in every head a softmax over the tokens."""
        split = logits.reshape(-1, self.width // self.head_dim, self.tokens)
        return jax.nn.softmax(split, axis=-1).reshape(logits.shape)

    def activations(
        self, labels: Float[Array, " labels"], encoding: Encoding
    ) -> dict[str, Float32[Array, "..."]]:
        """Every stage of one star's evaluation in float32, by name, in the order of computation.

        ``label_hidden`` [width]; ``tokens`` [token, width] before their normalisation; of every
        block ``block<n>.logits`` [pixel, heads x tokens], ``.attention`` (the branch before its
        depth scaling), ``.hidden`` [pixel, 4 width], ``.feed_forward`` and ``.residual``
        [pixel, width]; ``head_hidden`` [pixel, width]; ``output`` [pixel], the line depth.
        """
        hidden, tokens = self._read_labels(labels, "float32")
        stages = self._stages(self.answers(labels), encoding.sin, "float32")
        return {"label_hidden": hidden, "tokens": tokens, **dict(stages)}

    def flux_at(
        self,
        labels: Float[Array, " labels"],
        encoding: Encoding,
        shift: Float[Array, ""] | float = 0.0,
        precision: Precision = "float32",
    ) -> Float32[Array, " pixel"]:
        """Normalised flux at ``wavelength * exp(shift)`` for an encoded wavelength grid.

        A common factor on all wavelengths is a radial velocity: shift = -ln(1 + v_rad/c) gives
        the star's spectrum on an observed grid, exactly, and differentiably in the shift.

        Parameters
        ----------
        labels
            In the order and units of the label space.
        encoding
            Of the wavelength grid, from `encode`.
        shift
            Natural logarithm of the factor on the wavelengths.
        """
        answers = self.answers(labels, precision)

        def evaluate(part):
            sines = self.shifted_sines(part, jnp.asarray(shift, jnp.float64))
            return line_depth(precision, self, answers, sines)

        # What the derivative keeps of a pixel: two vectors of d and two of d/2 in every block.
        kept = 12 * self.depth * self.width * encoding.sin.shape[0]
        return 1.0 - in_chunks(evaluate, encoding, recompute=kept > _MOST_KEPT)

    def batch_depth(
        self,
        labels: Float[Array, "star labels"],
        encoding: Encoding,
        shift: Float[Array, " star"],
        precision: Precision = "float32",
    ) -> Float32[Array, "star pixel"]:
        """Depth below the continuum of many stars at once: the forward pass of training.

        Parameters
        ----------
        labels
            One row a star.
        encoding
            Of one grid for all stars, [pixel, width], or of one a star, [star, pixel, width].
        shift
            Each star's displacement of the grid in ln(wavelength): its dither.
        """
        axis = 0 if encoding.sin.ndim == 3 else None
        sines = jax.vmap(self.shifted_sines, in_axes=(axis, 0))(encoding, shift)
        # Tokens are made once a star: next to nothing, so they are never rounded to 16 bits.
        for_tokens: Precision = "tf32" if precision in HALF else precision
        answers = jax.vmap(lambda labels: self.answers(labels, for_tokens))(labels)
        if precision not in HALF:

            def one(answers, sines):
                return self.line_depth(answers, sines, precision)

            return jax.vmap(one)(answers, sines)
        x = run_blocks(
            sines.astype(HALF[precision]),
            answers.logits,
            answers.values,
            self.up,
            self.down,
            self.branch_scale,
            self.tokens,
        )
        return half_head(x, self.head_in, self.head_out)

    def __call__(
        self, labels: Float[Array, " labels"], wavelength: Float[Array, " pixel"]
    ) -> Float32[Array, " pixel"]:
        """Normalised flux at vacuum wavelengths [Angstrom]; any order, any length."""
        return self.flux_at(labels, self.encode(wavelength))


@partial(jax.jit, static_argnums=(1, 2))
def _draw(
    key: PRNGKeyArray, shapes: tuple[tuple[int, ...], ...], stds: tuple[float, ...]
) -> list[Array]:
    """Normal weights of every leaf; in one compiled call, which is what takes the time."""
    keys = jax.random.split(key, len(shapes))
    return [
        std * jax.random.normal(keys[i], shape, jnp.float32)
        for i, (shape, std) in enumerate(zip(shapes, stds, strict=True))
    ]


class _Stored(Parametrization):
    """The depth scaling that a stored model was trained with; its weights come from the file."""

    scale: float = eqx.field(static=True)

    def init_std(self, leaf: Leaf) -> float:
        return 0.0

    def learning_rate_factor(self, leaf: Leaf) -> float:
        raise InputError("transformer_payne: a stored model has no parametrization to train with")

    def branch_scale(self, depth: int) -> float:
        return self.scale
