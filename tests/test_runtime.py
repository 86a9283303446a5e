"""The settings of JAX that importing the package makes, in processes of their own."""

import os
import subprocess
import sys

import jaxlib
import pytest

# As many branches at once as could occupy every thread; without the setting it never ends.
FACTORISE = """
import emulators, jax, os
import jax.numpy as jnp
import numpy as np

columns = np.random.default_rng(0).normal(size=(2 * os.cpu_count(), 8, 300, 50))

@jax.jit
def factors(columns):
    squares = [jnp.einsum("npk,npl->nkl", one, one) for one in columns]
    return [jnp.linalg.cholesky(one) for one in squares]

for _ in range(20):
    found = jax.block_until_ready(factors(list(columns)))
expected = np.linalg.cholesky(np.einsum("bnpk,bnpl->bnkl", columns, columns))
np.testing.assert_allclose(np.array(found), expected, rtol=1e-9, atol=1e-9)
"""
FLAG = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
NEEDED = [FLAG] if jaxlib.version.__version_info__ < (0, 11, 0) else []
TELL = "import emulators, os; print(os.environ['XLA_FLAGS'])"


def run(program, flags, seconds=100):
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, timeout=seconds,
    )  # fmt: skip


def test_factorisations_at_once_do_not_wait_for_each_other_for_ever():
    found = run(FACTORISE, "")
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize("own", ["", "--xla_cpu_use_fusion_emitters=false"])
def test_flags_of_the_user_stay(own):
    flags = run(TELL, own).stdout.split()
    assert flags == [*own.split(), *NEEDED]


def test_what_the_user_says_of_the_scheduler_stays():
    own = "--xla_cpu_enable_concurrency_optimized_scheduler=true"
    assert run(TELL, own).stdout.split() == [own]
