"""Small factorisations on one thread.

XLA leaves them to the BLAS of scipy, whose threads wait for each other: a triangular solve of 40
columns took 8 ms instead of 0.06 on two busy cores.
"""

import functools
from contextlib import AbstractContextManager
from typing import Any

from threadpoolctl import ThreadpoolController


def one_blas_thread() -> AbstractContextManager[Any]:
    """Within it the BLAS of this process uses one thread."""
    return _controller().limit(limits=1, user_api="blas")


@functools.cache
def _controller() -> ThreadpoolController:
    import scipy.linalg.cython_blas  # noqa: F401  what was loaded before is controlled

    return ThreadpoolController()
