"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

_EXACT = jax.lax.Precision.HIGHEST


class Side(NamedTuple):
    """Rows or columns of a matrix: covariance of the gradient, and the basis from it."""

    covariance: Float[Array, "*batch n n"]
    basis: Float[Array, "*batch n n"]


class Matrix(NamedTuple):
    """State of one weight; a side that is too long keeps its own axes (None)."""

    momentum: Float[Array, "*batch m n"]
    second: Float[Array, "*batch m n"]
    left: Side | None
    right: Side | None


class SoapState(NamedTuple):
    """Steps taken, and one `Matrix` a weight, in the order of the tree's leaves."""

    count: Array
    matrices: tuple[Matrix, ...]


def scale_by_soap(
    beta1: float = 0.95,
    beta2: float = 0.95,
    *,
    eps: float = 1e-12,
    refresh_every: int = 20,
    longest: int = 1024,
) -> optax.GradientTransformation:
    """Rescale gradients by Adam in slowly turning bases (Vyas et al. 2024, algorithm 3).

    Every weight is a matrix, or a stack of matrices along its leading axes, each by itself.

    Until the first refresh the bases are the weight's own axes, which is Adam: the first gradient
    of a network whose output starts at zero is zero and has no eigenvectors. The first refresh
    diagonalises; later ones are one step of orthogonal iteration, ordered by eigenvalue.

    Parameters
    ----------
    beta1, beta2
        Memory of the momentum, and of the second moments and covariances; defaults of the paper.
    eps
        Added to the root of the second moments. The paper has 1e-8; gradients of a mean squared
        error of 1e-6 are of that size themselves.
    refresh_every
        Steps between refreshes; the paper has 10, and loses little up to 100.
    longest
        Sides longer than this keep their axes, as in the paper's one-sided variant.

    References
    ----------
    Vyas et al. 2024, arXiv:2409.11321.
    """

    def init(params: Any) -> Any:
        def side(weight, axis):
            size = weight.shape[axis]
            if size > longest:
                return None
            shape = (*weight.shape[:-2], size, size)
            eye = jnp.broadcast_to(jnp.eye(size, dtype=weight.dtype), shape)
            return Side(jnp.zeros_like(eye), eye)

        def matrix(weight):
            # Two arrays of zeros: a trainer that donates its state cannot donate one twice.
            zeros = jnp.zeros_like(weight), jnp.zeros_like(weight)
            return Matrix(*zeros, side(weight, -2), side(weight, -1))

        leaves = tuple(matrix(weight) for weight in jax.tree.leaves(params))
        return SoapState(jnp.zeros((), jnp.int32), leaves)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        count = state.count + 1
        gradients, structure = jax.tree.flatten(updates)
        # 0: keep the bases, 1: diagonalise, 2: iterate.
        now = _of_all_runs(count)
        due = (now % refresh_every == 0).astype(jnp.int32)
        branch = due * jnp.where(now == refresh_every, 1, 2)
        steps, matrices = [], []
        for gradient, matrix in zip(gradients, state.matrices, strict=True):
            turned = _turn(gradient, matrix)
            momentum = beta1 * matrix.momentum + (1 - beta1) * gradient
            second = beta2 * matrix.second + (1 - beta2) * turned**2
            first = _turn(momentum, matrix) / _correction(beta1, count, gradient.dtype)
            root = jnp.sqrt(second / _correction(beta2, count, gradient.dtype))
            steps.append(_turn_back(first / (root + eps), matrix))
            matrix = Matrix(
                momentum,
                second,
                _accumulate(matrix.left, gradient, beta2),
                _accumulate(matrix.right, jnp.swapaxes(gradient, -1, -2), beta2),
            )
            matrices.append(jax.lax.switch(branch, (lambda m: m, _diagonalise, _iterate), matrix))
        return jax.tree.unflatten(structure, steps), SoapState(count, tuple(matrices))

    return optax.GradientTransformation(init, update)


@jax.custom_batching.custom_vmap
def _of_all_runs(count: Array) -> Array:
    """The number of the step, one number for runs in one stack, which take every step together.

    With a number for each run `switch` would turn into a choice among all its results, and the
    bases would be renewed at every step, to be thrown away at most.
    """
    return count


@_of_all_runs.def_vmap
def _of_any_run(axis_size: int, batched: Any, counts: Array) -> tuple[Array, bool]:
    del axis_size
    return (counts[0] if batched[0] else counts), False


def _correction(beta: float, count: Array, dtype: Any) -> Array:
    return 1 - jnp.asarray(beta, dtype) ** count.astype(dtype)


def _turn(x: Array, matrix: Matrix) -> Array:
    """Into the eigenbasis: left^T x right."""
    if matrix.left is not None:
        x = jnp.matmul(jnp.swapaxes(matrix.left.basis, -1, -2), x, precision=_EXACT)
    return x if matrix.right is None else jnp.matmul(x, matrix.right.basis, precision=_EXACT)


def _turn_back(x: Array, matrix: Matrix) -> Array:
    """Out of the eigenbasis: left x right^T."""
    if matrix.left is not None:
        x = jnp.matmul(matrix.left.basis, x, precision=_EXACT)
    if matrix.right is None:
        return x
    return jnp.matmul(x, jnp.swapaxes(matrix.right.basis, -1, -2), precision=_EXACT)


def _accumulate(side: Side | None, rows: Array, beta: float) -> Side | None:
    if side is None:
        return None
    outer = jnp.matmul(rows, jnp.swapaxes(rows, -1, -2), precision=_EXACT)
    return side._replace(covariance=beta * side.covariance + (1 - beta) * outer)


def _of_unit_trace(covariance: Array) -> Array:
    """The same eigenvectors; squares of gradients of 1e-6 lead float32 to its end in a QR."""
    trace = jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None]
    return covariance / jnp.maximum(trace, 1e-35)


def _diagonalise(matrix: Matrix) -> Matrix:
    """Eigenvectors, the largest eigenvalue first."""

    def exact(side):
        if side is None:
            return None
        return side._replace(basis=jnp.linalg.eigh(_of_unit_trace(side.covariance))[1][..., ::-1])

    matrix = matrix._replace(left=exact(matrix.left), right=exact(matrix.right))

    def squared(side):
        return None if side is None else side._replace(basis=side.basis**2)

    # What the second moments become if the entries were uncorrelated so far.
    squares = matrix._replace(left=squared(matrix.left), right=squared(matrix.right))
    return matrix._replace(second=_turn(matrix.second, squares))


def _iterate(matrix: Matrix) -> Matrix:
    """One orthogonal iteration a side; second moments follow the order of the eigenvalues."""
    second = matrix.second
    sides = []
    for side, axis in ((matrix.left, -2), (matrix.right, -1)):
        if side is not None:
            covariance = _of_unit_trace(side.covariance)
            image = jnp.matmul(covariance, side.basis, precision=_EXACT)
            order = jnp.argsort(-jnp.sum(side.basis * image, axis=-2), axis=-1)
            image = jnp.take_along_axis(image, order[..., None, :], axis=-1)
            side = side._replace(basis=jnp.linalg.qr(image)[0])
            index = order[..., :, None] if axis == -2 else order[..., None, :]
            second = jnp.take_along_axis(second, index, axis=axis)
        sides.append(side)
    return matrix._replace(second=second, left=sides[0], right=sides[1])
