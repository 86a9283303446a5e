"""How a network's leaves are initialised and how fast each learns, as a function of its size."""

import abc
import math
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax

from .errors import InputError


class Leaf(NamedTuple):
    """What a parametrization may know about one weight array of a model.

    Parameters
    ----------
    name
        Name of the leaf in its model, such as ``query``.
    role
        ``input`` (from a fixed number of labels to the width), ``hidden`` (both sides grow with
        the width) or ``output`` (from the width to a fixed number of outputs).
    fan_in
        Numbers summed into one output of the weight.
    width
        Width of the model that owns the leaf.
    """

    name: str
    role: Literal["input", "hidden", "output"]
    fan_in: int
    width: int


class Parametrization(eqx.Module):
    """Initialisation, learning rates and depth scaling of a model. Fields must be static."""

    @abc.abstractmethod
    def init_std(self, leaf: Leaf) -> float:
        """Standard deviation of the leaf's normal initial values; 0 starts it at zero."""

    @abc.abstractmethod
    def learning_rate_factor(self, leaf: Leaf) -> float:
        """Factor on the learning rate of Adam for this leaf."""

    @abc.abstractmethod
    def branch_scale(self, depth: int) -> float:
        """Factor on every residual branch of a model of `depth` blocks."""


class Standard(Parametrization):
    """The usual scheme: variance 1/fan_in, one learning rate, branches damped by sqrt(depth).

    The output starts at zero, so an untrained model predicts a bare continuum.
    """

    def init_std(self, leaf: Leaf) -> float:
        check_role(leaf)
        return 0.0 if leaf.role == "output" else 1.0 / math.sqrt(leaf.fan_in)

    def learning_rate_factor(self, leaf: Leaf) -> float:
        check_role(leaf)
        return 1.0

    def branch_scale(self, depth: int) -> float:
        return 1.0 / math.sqrt(depth)


def check_role(leaf: Leaf) -> None:
    """Refuse a leaf whose role no parametrization knows: nothing gets a factor by default."""
    if leaf.role not in ("input", "hidden", "output"):
        raise InputError(
            f"parametrization: leaf {leaf.name!r} has role {leaf.role!r}; "
            "allowed: input, hidden, output"
        )


def resolve(model: Any, parametrization: Parametrization) -> dict[str, Any]:
    """The numbers that a parametrization gives a model: what was used, whatever was meant.

    Parameters
    ----------
    model
        A network with `map_leaves` and `branch_scale`, such as `TransformerPayne`.

    Returns
    -------
    ``class``, ``branch_scale``, and ``leaves``: of every weight by name its ``role``, ``fan_in``,
    ``init_std`` and ``learning_rate_factor``. JSON-able.
    """
    tree = model.map_leaves(lambda leaf: leaf)
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Leaf))
    return {
        "class": type(parametrization).__name__,
        "branch_scale": model.branch_scale,
        "leaves": {
            leaf.name: {
                "role": leaf.role,
                "fan_in": leaf.fan_in,
                "init_std": parametrization.init_std(leaf),
                "learning_rate_factor": parametrization.learning_rate_factor(leaf),
            }
            for leaf in leaves
        },
    }
