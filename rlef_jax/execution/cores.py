"""The number of cores that this process may use: its CPU affinity, limited by control group quotas.

The affinity alone isn't enough: in a container with a quota of two cores on a host of 64 it names all 64.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc/self")


def usable_cores(proc: Path = _PROC) -> float:
    """Usable cores, above 0, a fraction if a quota is. `proc` is a process's folder in /proc."""
    return min(float(len(os.sched_getaffinity(0))), cpu_quota(proc))


def whole_cores(proc: Path = _PROC) -> int:
    """`usable_cores` rounded down, at least 1."""
    return max(1, math.floor(usable_cores(proc) + 0.01))  # quotas are rounded to microseconds


def auto_workers() -> int:
    """The default number of workers: leaves a quarter of the usable cores, at least one, to JAX."""
    cores = whole_cores()
    return max(1, cores - max(1, cores // 4))


def cpu_quota(proc: Path = _PROC) -> float:
    """The smallest quota, in cores, of a process's control groups (v1 or v2); infinite without any.

    All groups from the process's own up to the mounted root count, since each limits the groups below it.
    """
    return min((quota for folder in _groups(proc) if (quota := _quota(folder)) is not None), default=math.inf)


def _groups(proc: Path) -> Iterator[Path]:
    """The folders of a process's groups and of their parents, in each hierarchy that may have quotas."""
    try:
        memberships = [line.split(":", 2) for line in _lines(proc / "cgroup")]
        mounts = [line.split(" ") for line in _lines(proc / "mountinfo")]
    except OSError:
        return
    for root, mount, kind, options in map(_mount, mounts):
        paths = [
            path
            for _, controllers, path in memberships
            if (kind == "cgroup2" and not controllers) or (kind == "cgroup" and "cpu" in controllers.split(","))
        ]
        if kind not in ("cgroup", "cgroup2") or (kind == "cgroup" and "cpu" not in options) or not paths:
            continue
        # Without a cgroup namespace, a container sees the host's path, with its own group as the mount's root. With
        # one, groups above its root are shown as `/..` and can't be entered.
        path = Path(paths[0])
        folder = Path(mount) / (path.relative_to(root) if path.is_relative_to(root) and ".." not in path.parts else "")
        yield from (place for place in (folder, *folder.parents) if place.is_relative_to(mount))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n").split("\n")


def _mount(fields: list[str]) -> tuple[str, str, str, list[str]]:
    """(root in the hierarchy, mount point, file system type, its options) of a line of mountinfo."""
    rest = fields[fields.index("-") + 1 :]
    return _path(fields[3]), _path(fields[4]), rest[0], rest[2].split(",")


def _path(text: str) -> str:
    """Decodes a path of mountinfo, where spaces are written in octal."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape")


def _quota(folder: Path) -> float | None:
    """A group's quota in cores; None if it has none or doesn't exist."""
    try:
        if (folder / "cpu.max").exists():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return None if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
