"""Adam and Muon for TransformerPayne, with the factors of a parametrization, at rate 1.

The step multiplies an update by the rate of the hour, so that one program serves every schedule.

To Muon the hidden weights are matrices, stacked over the blocks: query, key, value and output with
all their heads, up, down, head_in, and label_out [d, t d] with all tokens. The input (label_in)
and the output (head_out, a vector) are Adam's, at the rate and the factor that they have there.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from .parametrization import Leaf
from .train_config import TrainConfig
from .transformer_payne import TransformerPayne

# Makes a descent of rate 1 with optax's sign: the update is added to the weights.
MakeOptimizer = Callable[[TrainConfig, TransformerPayne], optax.GradientTransformation]

# Gradients of hidden weights shrink with the width and with the error itself; the usual 1e-8 is
# as large as they are, and would slow wide networks and late steps. The smallest gradient whose
# square float32 holds is 1e-18, so that this still keeps 0/0 away.
_EPSILON = 1e-15
# A matrix [in, out] of a stack along the axes before it.
_MATRIX = MuonDimensionNumbers(-2, -1)
# Root mean square of Adam's update in units of the rate, in the middle of a training run.
_ADAM_RMS = 0.2
_BASE_WIDTH = 64


class _Split(NamedTuple):
    matrices: Any
    others: Any


def make_optimizer(config: TrainConfig, model: TransformerPayne) -> optax.GradientTransformation:
    """The optimizer that a configuration names."""
    return {"adam": make_adam, "muon": make_muon}[config.optimizer](config, model)


def make_adam(config: TrainConfig, model: TransformerPayne) -> optax.GradientTransformation:
    """Adam with one state and a factor a leaf from the parametrization."""
    factors = model.map_leaves(config.parametrization.learning_rate_factor)

    def scale(updates, _params):
        return jax.tree.map(lambda update, factor: update * factor, updates, factors)

    return optax.chain(
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=_EPSILON),
        optax.stateless(scale),
        optax.scale(-1.0),
    )


def make_muon(config: TrainConfig, model: TransformerPayne) -> optax.GradientTransformation:
    """Momentum 0.95 (Nesterov), orthogonalised by five steps of Newton-Schulz: optax's Muon.

    The update of a matrix [in, out] has singular values near ``gain sqrt(max(1, out/in))``, at
    every width: this scale is muP's for Muon (Bernstein & Newhouse 2024), so that the factors
    of the parametrization, which are Adam's, are left out. The gain makes entries of a
    64 x 64 matrix move 0.2 times the rate (Liu et al. 2025), so that rates compare with Adam's.

    References
    ----------
    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Bernstein & Newhouse 2024,
    arXiv:2409.20325; Liu et al. 2025, arXiv:2502.16982.
    """
    gain = _ADAM_RMS * math.sqrt(_BASE_WIDTH)

    def scale(updates, _params):
        def one(update):
            fan_in, fan_out = update.shape[-2:]
            return update * (gain * math.sqrt(max(1.0, fan_out / fan_in)))

        return jax.tree.map(one, updates)

    hidden = leaves_by_name(model.map_leaves(is_matrix))
    dimensions = {name: _MATRIX for name, matrix in hidden.items() if matrix}
    muon = scale_by_muon(beta=0.95, ns_steps=5, weight_dimension_numbers=dimensions)
    return with_adam(config, model, optax.chain(muon, optax.stateless(scale)))


def is_matrix(leaf: Leaf) -> bool:
    """Whether Muon takes the leaf."""
    return leaf.role == "hidden"


def leaves_by_name(tree: TransformerPayne) -> dict[str, Any]:
    """Leaves by name. optax takes a tree that can be called, as a model can, for a function."""
    return {path[-1].name: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def with_adam(
    config: TrainConfig, model: TransformerPayne, matrices: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`matrices` for the hidden weights, Adam for the others."""
    hidden = leaves_by_name(model.map_leaves(is_matrix))
    factors = leaves_by_name(model.map_leaves(config.parametrization.learning_rate_factor))
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=_EPSILON)

    def part(tree: Any, wanted: bool) -> dict[str, Any]:
        return {name: leaf for name, leaf in leaves_by_name(tree).items() if hidden[name] is wanted}

    def init(params: Any) -> Any:
        return _Split(matrices.init(part(params, True)), adam.init(part(params, False)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        of_matrices, of_others = state
        found: Any
        others: Any
        found, of_matrices = matrices.update(part(updates, True), of_matrices)
        others, of_others = adam.update(part(updates, False), of_others)
        found = found | {name: factors[name] * update for name, update in others.items()}
        steps = jax.tree_util.tree_map_with_path(lambda path, _: -found[path[-1].name], updates)
        return steps, _Split(of_matrices, of_others)

    return optax.GradientTransformation(init, update)
