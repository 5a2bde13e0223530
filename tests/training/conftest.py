"""The judge of the tests of rollouts."""

import warnings

import pytest

from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool


@pytest.fixture(scope="module")
def pool():
    """Of one worker."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another Python than 3.10 serves here
        interpreter = find_python()
    with ExecutionPool(1, interpreter) as running:
        yield running
