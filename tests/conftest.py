"""Settings that every test runs under: CPU, no silent broadcasting of ranks, reproducible property tests."""

import os

# Before jax is imported: tests state what they need of devices themselves, in subprocesses where it is more than one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

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
def compiled(tmp_path_factory):
    """Where the runs that tests start as processes keep their compiled programs: one folder for all of them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "compiled"
    folder.mkdir(exist_ok=True)
    return folder
