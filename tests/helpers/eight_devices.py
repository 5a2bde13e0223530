"""Runs on eight pretend devices, which only a new process can have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.small_run import environment

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
_ROOT = str(Path(__file__).parents[2])


def told_by(module: str, *arguments: object) -> Any:
    """What `python -m module arguments` prints as its last line of JSON, on eight devices."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        env=environment(PYTHONPATH=_ROOT, **EIGHT), capture_output=True, text=True, cwd=_ROOT, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
