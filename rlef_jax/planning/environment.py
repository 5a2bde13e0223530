"""Where programs can be compiled for a target: a Python with the platform's plugin, started with the flags it needs.

Compiling for a card that isn't there takes XLA flags that must be set before JAX starts, so it happens in a process of
its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlef_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
_PLUGINS = {"cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin"), "tpu": ("libtpu",)}
_FOLDERS = {"cuda": ".gpu-env", "tpu": ".tpu-env"}
_TARGETS = {"cuda": "make gpu-env", "tpu": "make tpu-env"}
_NO_CARD = "--xla_gpu_autotune_level=0"  # there is no card to time kernels on


def is_ready(platform: str) -> bool:
    """Whether this process can compile for the platform: it has the plugin, and was started with what it needs."""
    started = "TPU_SKIP_MDS_QUERY" in os.environ if platform == "tpu" else _NO_CARD in os.environ.get("XLA_FLAGS", "")
    return platform == "cpu" or (_has_plugin(platform) and started)


def variables(platform: str, given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that compiles for the platform: the one `given`, and what that takes."""
    quiet = given.get("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's warnings of a card that isn't there
    wanted = {
        **given,
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": quiet,
        "PYTHONPATH": f"{ROOT}:{given.get('PYTHONPATH', '')}".rstrip(":"),
    }
    if platform == "tpu":
        return wanted | {"TPU_SKIP_MDS_QUERY": "1"}
    return wanted | {"XLA_FLAGS": f"{given.get('XLA_FLAGS', '')} {_NO_CARD}".strip()}


def find_python(platform: str, root: Path | None = None) -> Path:
    """A Python with the platform's plugin: this one, or that of the environment that the Makefile makes.

    Raises ConfigError, naming the command that makes it, where there is none.
    """
    if _has_plugin(platform):
        return Path(sys.executable)
    python = (root or ROOT) / _FOLDERS[platform] / "bin" / "python"
    if not python.exists():
        raise ConfigError(
            f"compiling for {platform} needs JAX's plugin for it, here or in {python.parents[1]}: {_TARGETS[platform]}"
        )
    return python


def run_again(platform: str, module: str, arguments: Sequence[str]) -> int:
    """Runs `python -m module arguments` where it can compile for the platform. Its exit code."""
    command = [str(find_python(platform)), "-m", module, *arguments]
    return subprocess.run(command, env=variables(platform, os.environ), check=False).returncode


def _has_plugin(platform: str) -> bool:
    return any(importlib.util.find_spec(name) is not None for name in _PLUGINS[platform])
