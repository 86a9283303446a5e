"""The ladder of sizes, and the weights and operations of any network on it."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

# Width and depth of the ten networks of the paper, 70 thousand to 31 million weights.
PAPER_SIZES = (
    (32, 4), (32, 8), (64, 4), (64, 8), (96, 8), (128, 8), (160, 12), (224, 12), (256, 16),
    (384, 16),
)  # fmt: skip
# From (32, 4) to (384, 16) the depth grows as this power of the width; larger ones go on so.
_DEPTH_POWER = 0.56
# Widths beyond the paper's: a third of an octave apart, so that weights about double.
_WIDTHS = (480, 608, 768, 960, 1216, 1536, 1920, 2432, 3072, 3840, 4864, 6144, 7680, 9728, 12288)


class Recipe(NamedTuple):
    """What all runs of a ledger have in common, and what a step of them costs.

    Parameters
    ----------
    tokens, labels
        Of every network: label tokens, and labels read.
    pixels
        Wavelengths of every spectrum that a step looks at.
    batch_size
        Spectra a step.
    learning_rate
        At the base width, as muP carries it on; None where the ledger does not say it.
    """

    tokens: int
    labels: int
    pixels: int
    batch_size: int
    learning_rate: float | None = None


class Ladder(NamedTuple):
    """Sizes by rising number of weights.

    Parameters
    ----------
    width, depth
        Of the networks.
    parameters
        Weights.
    flops
        Operations of training on one spectrum once.
    """

    width: Float[np.ndarray, " size"]
    depth: Float[np.ndarray, " size"]
    parameters: Float[np.ndarray, " size"]
    flops: Float[np.ndarray, " size"]


def num_parameters(width: int, depth: int, tokens: int, labels: int) -> int:
    """Number of weights: (t + 12 N + 1) d^2 + (d_in + 1) d, as the network counts them."""
    return (tokens + 12 * depth + 1) * width**2 + (labels + 1) * width


def training_flops(width: int, depth: int, tokens: int, labels: int, pixels: int) -> int:
    """Operations of training on one spectrum once: three times `TransformerPayne.flops`."""
    star = 2 * labels * width + (2 + 4 * depth) * tokens * width**2
    pixel = depth * (20 * width**2 + 4 * tokens * width) + 2 * width**2 + 2 * width
    return 3 * (star + pixels * pixel)


def find_pixels(flops: float, width: int, depth: int, tokens: int, labels: int) -> float:
    """Wavelengths a spectrum of which training on one spectrum once takes `flops` operations."""
    star = training_flops(width, depth, tokens, labels, 0)
    return (flops - star) / (training_flops(width, depth, tokens, labels, 1) - star)


def make_ladder(recipe: Recipe) -> Ladder:
    """The paper's ten sizes, and fifteen larger ones of the same aspect up to 2e11 weights."""
    width, depth = PAPER_SIZES[-1]
    larger = [(w, 4 * round(depth * (w / width) ** _DEPTH_POWER / 4)) for w in _WIDTHS]
    sizes = (*PAPER_SIZES, *larger)
    weights = [num_parameters(*size, recipe.tokens, recipe.labels) for size in sizes]
    flops = [training_flops(*size, recipe.tokens, recipe.labels, recipe.pixels) for size in sizes]
    columns = (*zip(*sizes, strict=True), weights, flops)
    return Ladder(*(np.asarray(column, float) for column in columns))


def flops_at(parameters: Float[ArrayLike, "*shape"], recipe: Recipe) -> Any:
    """Training operations a spectrum of any number of weights, between the sizes of the ladder.

    Interpolated as a power law between neighbours, and carried on as one beyond both ends.
    """
    ladder = make_ladder(recipe)
    x, y = np.log(ladder.parameters), np.log(ladder.flops)
    at = np.log(np.asarray(parameters, float))
    left = np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2)
    slope = (y[left + 1] - y[left]) / (x[left + 1] - x[left])
    return np.exp(y[left] + slope * (at - x[left]))
