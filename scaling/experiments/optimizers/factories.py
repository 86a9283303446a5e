"""SOAP beside the trainer's own optimizers, as `emulators.train.train` takes them."""

import math

import jax
import optax

from emulators.optimizers import (
    MakeOptimizer,
    is_matrix,
    leaves_by_name,
    make_adam,
    make_muon,
    with_adam,
)
from emulators.train_config import TrainConfig
from emulators.transformer_payne import TransformerPayne
from scaling.experiments.optimizers.soap import scale_by_soap


def make_soap(config: TrainConfig, model: TransformerPayne) -> optax.GradientTransformation:
    """SOAP with the parametrization's factors, as for Adam, whose size of entries it has.

    In its eigenbasis a gradient is not spread over all entries, so the rule 1/width may be too
    strict for it (Qiu et al. 2025, arXiv:2512.05620): compare rates at each width.
    """
    factors = leaves_by_name(model.map_leaves(config.parametrization.learning_rate_factor))

    def scale(updates, _params):
        return {name: update * factors[name] for name, update in updates.items()}

    # label_out's output side, t d = 2048 for d = 128, keeps its axes.
    soap = scale_by_soap(longest=512)
    return with_adam(config, model, optax.chain(soap, optax.stateless(scale)))


def optimizer_flops(name: str, model: TransformerPayne) -> int:
    """Operations of one optimizer step beyond Adam's few a weight; QR and eigh left out."""
    total = 0
    for weight, matrix in zip(
        jax.tree.leaves(model), jax.tree.leaves(model.map_leaves(is_matrix)), strict=True
    ):
        if not matrix:
            continue
        stack = math.prod(weight.shape[:-2])
        short, long = sorted(weight.shape[-2:])
        if name == "muon":
            # A = X X^T, A A, (b A + c A A) X, five times.
            total += stack * 5 * (4 * short**2 * long + 2 * short**3)
        if name == "soap":
            # A side n of [n, k]: three rotations and a covariance.
            sides = [(short, long)] + ([(long, short)] if long <= 512 else [])
            total += stack * sum(8 * n * n * k for n, k in sides)
    return total


FACTORIES: dict[str, MakeOptimizer] = {"adam": make_adam, "muon": make_muon, "soap": make_soap}
