"""Settings that every test runs under: CPU, no silent broadcasting of ranks, reproducible property tests."""

import os

# Before jax is imported: tests state what they need of devices themselves, in subprocesses where it is more than one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default",
    deadline=None,  # two shared cores: a slow example says nothing about the code
    derandomize=True,
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("default")
