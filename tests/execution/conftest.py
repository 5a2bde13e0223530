"""A pool of two workers for the whole session, and a function to run a program in it."""

import os

import pytest

from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import Limits, TestCase

LIMITS = Limits(wall_s=30.0, memory_bytes=256 << 20, output_bytes=1 << 16, processes=8)


@pytest.fixture(scope="session")
def interpreter():
    return find_python("3.10")


@pytest.fixture(scope="session")
def pool(interpreter):
    """At the best available level, or the one that RLEF_TEST_LEVEL names."""
    with ExecutionPool(2, interpreter, level=os.environ.get("RLEF_TEST_LEVEL", "")) as shared:
        yield shared


@pytest.fixture
def run(pool):
    """run(program, (input, output), ..., limits=..., stop=...) -> results; one empty test if none is given."""

    def call(program, *tests, limits=LIMITS, stop=False):
        cases = [TestCase(i, o) for i, o in tests or [("", "")]]
        return pool.run(program, cases, limits, stop_at_first_failure=stop).result(timeout=120)

    return call
