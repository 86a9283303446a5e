"""What every test shares: determinism, a windowless matplotlib, and nothing imported too early.

The three packages must not be imported at the top of this file: the jaxtyping hook of
``pyproject.toml`` can only check modules that are imported after it is installed.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the suite's time is compilation, which is up to five times as quick so. The optimised
# programs that users run are tested by `XLA_FLAGS= pytest`.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
)

_MOST_MAPS = 25_000  # after a module, of which none takes as many again

settings.register_profile("stellarfit", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("stellarfit")


@pytest.fixture(scope="module", autouse=True)
def forget_compilations():
    """Drop what modules compiled before it is too much; below that, the next one may need it.

    Each program takes memory maps, of which Linux gives 65,530. A process that has used them up
    dies in the next compilation, by a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > _MOST_MAPS:
        import jax

        jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material beside the checkout; tests that need it skip without it."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the reference material (../shared) is not on this machine")
    return folder
