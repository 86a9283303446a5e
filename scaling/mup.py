"""Maximal update parametrization: one learning rate for every width and depth."""

import math

import equinox as eqx

from emulators.errors import InputError
from emulators.parametrization import Leaf, Parametrization, check_role


class MaximalUpdate(Parametrization):
    """muP for Adam in width, CompleteP with alpha = 1 in depth.

    A step of Adam moves every entry of a weight by about the learning rate, and all entries that
    are summed into one activation move together: where a sum has `width` terms, the activation
    moves `width` times as much. So the rate of those weights falls as 1/width, and the rate that
    is best for a small network is best for a wide one. Activations are products of 1/sqrt(fan_in)
    weights at the start and keep their size.

    ==========================  ==================  ===================
    leaf                        initial deviation   factor on the rate
    ==========================  ==================  ===================
    input (labels to width)     1/sqrt(fan_in)      1
    hidden (width to width)     1/sqrt(fan_in)      base_width / width
    output (width to flux)      0                   base_width / width
    ==========================  ==================  ===================

    Residual branches carry ``sqrt(base_depth) / depth`` and the rate does not depend on the depth:
    both from CompleteP with alpha = 1, so that `depth` branches that learn together move the
    residual stream as one does. (depth-muP would ask for 1/sqrt(depth) on both; the two must not
    be mixed.) Adam's epsilon would have to fall with the size too; the trainer's is so small
    that no gradient feels it.

    At ``width == base_width`` and ``depth == base_depth`` every number equals that of `Standard`.

    Parameters
    ----------
    base_width, base_depth
        Size at which the learning rate was chosen; by default the trainer's default model.

    References
    ----------
    Yang et al. 2022 (arXiv:2203.03466), table 3; Dey et al. 2025 (arXiv:2505.01618).
    """

    base_width: int = eqx.field(static=True, default=64)
    base_depth: int = eqx.field(static=True, default=4)

    def __check_init__(self):
        for name in ("base_width", "base_depth"):
            if getattr(self, name) < 1:
                raise InputError(f"mup: {name} is {getattr(self, name)}; give at least 1")

    def init_std(self, leaf: Leaf) -> float:
        check_role(leaf)
        return 0.0 if leaf.role == "output" else 1.0 / math.sqrt(leaf.fan_in)

    def learning_rate_factor(self, leaf: Leaf) -> float:
        check_role(leaf)
        return 1.0 if leaf.role == "input" else self.base_width / leaf.width

    def branch_scale(self, depth: int) -> float:
        # In this order the ratio is exactly 1 at the base, and the rest is what Standard has.
        return self.base_depth / depth / math.sqrt(self.base_depth)
