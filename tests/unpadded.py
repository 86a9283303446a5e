"""Problems without the pixels that only round up their number, to hold against dense matrices."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import numpy as np

from stellarfit.model import Problem
from stellarfit.setup import Setup


def unpad(tree: Any, setup: Setup) -> Any:
    """Every array of pixels without those that have no weight."""
    if isinstance(tree, Problem):
        arms = [
            _cut(arm, setup.used[part])
            for arm, part in zip(tree.star.arms, setup.parts, strict=True)
        ]
        tree = eqx.tree_at(lambda problem: problem.star.arms, tree, tuple(arms))
    return _cut(tree, setup.used)


def _cut(tree, used):
    def cut(leaf):
        for axis, size in enumerate(np.shape(leaf)):
            if size == len(used):
                leaf = leaf.compress(used, axis=axis)
        return leaf

    return jax.tree.map(cut, tree)


def unpadded(setup: Setup) -> Setup:
    """The same pixels, and no more."""
    ends = np.cumsum([0, *(np.sum(setup.used[part]) for part in setup.parts)])
    return dataclasses.replace(
        setup,
        photons=unpad(setup.photons, setup),
        sizes=unpad(setup.sizes, setup),
        places=np.arange(len(setup.keep)),
        used=np.ones(len(setup.keep), bool),
        parts=tuple(slice(*map(int, pair)) for pair in zip(ends[:-1], ends[1:], strict=True)),
    )
