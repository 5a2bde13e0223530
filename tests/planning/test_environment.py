"""Where programs for other hardware are compiled: in which Python, with which variables, or what to make first."""

import sys

import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.planning import environment


def test_flags_are_added_to_those_that_are_set():
    found = environment.variables("cuda", {"XLA_FLAGS": "--mine=1", "HOME": "/home/x", "PYTHONPATH": "/p"})
    assert found["XLA_FLAGS"] == "--mine=1 --xla_gpu_autotune_level=0"
    assert found["JAX_PLATFORMS"] == "cpu" and found["HOME"] == "/home/x" and found["PYTHONPATH"].endswith(":/p")
    assert environment.variables("tpu", {})["TPU_SKIP_MDS_QUERY"] == "1"
    assert "XLA_FLAGS" not in environment.variables("tpu", {})


@pytest.mark.parametrize("platform, command", [("cuda", "make gpu-env"), ("tpu", "make tpu-env")])
def test_without_a_plugin_the_environments_python_is_taken_or_its_command_named(
    tmp_path, monkeypatch, platform, command
):
    monkeypatch.setattr(environment, "_has_plugin", lambda _: False)
    assert not environment.is_ready(platform) and environment.is_ready("cpu")
    with pytest.raises(ConfigError, match=command):
        environment.find_python(platform, tmp_path)
    python = tmp_path / f".{'gpu' if platform == 'cuda' else 'tpu'}-env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert environment.find_python(platform, tmp_path) == python


def test_a_process_with_plugin_and_flags_compiles_itself(monkeypatch):
    monkeypatch.setattr(environment, "_has_plugin", lambda _: True)
    assert str(environment.find_python("cuda")) == sys.executable
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert not environment.is_ready("cuda")
    monkeypatch.setenv("XLA_FLAGS", environment.variables("cuda", {})["XLA_FLAGS"])
    assert environment.is_ready("cuda")
