"""What JAX has to be told before its first computation.

jaxlib shares the matrices of a batched factorisation or triangular solve out among the threads of
the CPU backend, and waits for them on one of those threads. When as many of these run at once as
there are threads, each waits for threads that wait, and the process sleeps for ever: on two cores a
fit of eight stars did, and so does any program of two branches that end in a batched `cholesky`
(jaxlib 0.10.2; 0.11.2 no longer shares them out). Without the scheduler that makes operations
concurrent they run one after another, each still on all threads; fits and chains take as long as
with it, or a little less.
"""

import os

import jax
import jaxlib

_FLAG = "xla_cpu_enable_concurrency_optimized_scheduler"
# XLA ends a process for a flag that it does not know, and later ones do not need this.
_FIRST, _BEYOND = (0, 10, 0), (0, 11, 0)


def configure() -> None:
    """Switch JAX to 64-bit types, and the CPU backend to one operation at a time.

    The second comes too late in a process that has computed with JAX before; what the user says of
    it in ``XLA_FLAGS`` stays.
    """
    jax.config.update("jax_enable_x64", True)
    flags = os.environ.get("XLA_FLAGS", "")
    if _FLAG not in flags and _FIRST <= jaxlib.version.__version_info__ < _BEYOND:
        os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}=false".strip()
