"""The compiled programs of test runs: one folder for all processes of a run, kept for the next one.

Nothing of JAX's own key tells one processor from another, so the folder's name does: a program compiled for
instructions that this processor lacks would end the process. Delete `.compiled` (or `make clean`) to start cold.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
from pathlib import Path

BASE = Path(__file__).parents[2] / ".compiled"
MOST_BYTES = 2 << 30


def processor() -> str:
    """A name for all processors with this one's model and instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = {
        line for line in lines if line.startswith(("model name", "flags", "CPU implementer", "CPU part", "Features"))
    }
    text = "\n".join(sorted(features)) or platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def environment() -> dict[str, str]:
    """The variables by which a process, and whatever it starts, finds the folder and keeps every program there.

    Several processes may: where one reads what another has half written, JAX warns and compiles.
    """
    return {
        "JAX_COMPILATION_CACHE_DIR": str(BASE / f"jaxlib-{importlib.metadata.version('jaxlib')}-{processor()}"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


# A process that is killed while it writes would leave half an entry, which nobody replaces: it only reads.
READ_ONLY = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}


def prune(base: Path = BASE, most: int = MOST_BYTES) -> None:
    """Deletes the oldest entries, of whatever processor and version, until `most` bytes are left."""
    entries = []
    for path in base.glob("*/*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another run's pruning
            entries.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(entries, reverse=True):
        total += size
        if total > most:
            path.unlink(missing_ok=True)
