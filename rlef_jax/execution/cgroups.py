"""Control groups, if they can be written: the kernel limits a worker's memory and tasks as a whole."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import time

_ROOT = pathlib.Path("/sys/fs/cgroup")
_NAME = re.compile(r"rlef-(\d+)-(\d+)-\d+")  # process id and start of the pool's process, the worker's number
_REMOVAL_S = 5.0


class NoCgroupError(RuntimeError):
    """Raised if control groups can't be used here; the message says why."""


class Cgroup:
    """One worker's control group for memory and tasks. `version` is 1 or 2."""

    def __init__(self, index: int):
        """Creates the group of worker number `index`. Raises NoCgroupError if that isn't possible."""
        self.version, self._folders = _folders(index)
        try:
            for folder in set(self._folders.values()):
                folder.mkdir(exist_ok=True)
            self._limit_file = self._folders["memory"] / (
                "memory.max" if self.version == 2 else "memory.limit_in_bytes"
            )
            if not self._limit_file.exists():
                raise NoCgroupError(f"no {self._limit_file.name} in {self._limit_file.parent}")
            self._write("pids", "pids.max", "1024")  # above any program's limit: it includes the worker's own processes
            if self.version == 2:
                self._write("memory", "memory.swap.max", "0", optional=True)
        except (OSError, NoCgroupError) as exc:
            self.remove()
            raise NoCgroupError(str(exc)) from exc
        self._limit = -1

    def add(self, pid: int) -> None:
        """Moves a process into the group; its future children start there. Raises OSError."""
        for folder in set(self._folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def events(self) -> int:
        """An open descriptor of the file that counts processes killed for memory. Raises OSError."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        return os.open(self._folders["memory"] / name, os.O_RDONLY | os.O_CLOEXEC)

    def used(self) -> int:
        """Bytes that the group's processes hold now. Raises OSError."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return int((self._folders["memory"] / name).read_text())

    def limit_memory(self, count: int) -> None:
        """Sets the memory limit in bytes, unless it is set already. Raises OSError."""
        if count != self._limit:
            self._limit_file.write_text(str(count))
            self._limit = count

    def remove(self) -> None:
        """Kills the processes still in the group and removes it. May be called twice."""
        for folder in set(self._folders.values()):
            remove_folder(folder)

    def _write(self, kind: str, name: str, text: str, optional: bool = False) -> None:
        try:
            (self._folders[kind] / name).write_text(text)
        except OSError:
            if not optional:
                raise


def remove_folder(folder: pathlib.Path) -> None:
    """Kills a group's processes and removes its folder once they are gone; gives up after _REMOVAL_S seconds."""
    give_up = time.monotonic() + _REMOVAL_S
    while folder.is_dir() and time.monotonic() < give_up:
        try:
            for pid in (folder / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.005)


def folders(index: int) -> tuple[str, ...]:
    """The folders of worker `index`'s group, for the janitor. Raises NoCgroupError."""
    return tuple(sorted({str(folder) for folder in _folders(index)[1].values()}))


def sweep() -> None:
    """Removes groups left by pools whose process no longer exists (killed together with their janitor)."""
    try:
        _, parents = _parents()
    except NoCgroupError:
        return
    for parent in set(parents.values()):
        for folder in parent.glob("rlef-*"):
            match = _NAME.fullmatch(folder.name)
            if match and start_of(int(match[1])) != int(match[2]):
                remove_folder(folder)


def start_of(pid: int) -> int:
    """A process's start in ticks since boot, -1 if it doesn't exist. With the id it identifies a process uniquely."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError):
        return -1


def _folders(index: int) -> tuple[int, dict[str, pathlib.Path]]:
    version, parents = _parents()
    name = f"rlef-{os.getpid()}-{start_of(os.getpid())}-{index}"
    return version, {kind: parent / name for kind, parent in parents.items()}


def _parents() -> tuple[int, dict[str, pathlib.Path]]:
    """(cgroup version, {controller: the group of this process, in which ours are created}). Raises NoCgroupError."""
    group_paths = {}
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            group_paths[controller] = path.lstrip("/")
    if (_ROOT / "memory").is_dir() and "memory" in group_paths and "pids" in group_paths:
        return 1, {kind: _ROOT / kind / group_paths[kind] for kind in ("memory", "pids")}
    if "" in group_paths:
        unified = (
            _ROOT / group_paths[""] if (_ROOT / "cgroup.controllers").exists() else _ROOT / "unified" / group_paths[""]
        )
        try:
            _delegate(unified)
        except OSError as exc:
            raise NoCgroupError(f"cgroup v2 at {unified}: {exc}") from exc
        return 2, {"memory": unified, "pids": unified}
    raise NoCgroupError("no memory and pids controllers are mounted")


def _delegate(folder: pathlib.Path) -> None:
    """Enables memory and pids for a v2 group's children. Raises OSError if it can't, as for a group with processes."""
    available = (folder / "cgroup.controllers").read_text().split()
    missing = {"memory", "pids"} - set(available)
    if missing:
        raise OSError(f"no {' and '.join(sorted(missing))} controller here")
    if {"memory", "pids"} - set((folder / "cgroup.subtree_control").read_text().split()):
        (folder / "cgroup.subtree_control").write_text("+memory +pids")
