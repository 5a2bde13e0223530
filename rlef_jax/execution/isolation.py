"""Levels of isolation, strongest first, and the settings with which a worker starts at one of them."""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from rlef_jax.execution import kernel, seccomp
from rlef_jax.execution.cores import whole_cores
from rlef_jax.execution.interpreter import Interpreter

BOX_BYTES, BOX_INODES = 64 << 20, 1024  # a test's scratch folder
_FIRST_UID = 0x70000000  # first user id of root's workers and their programs: far from any account's
_DEVICES = ("null", "zero", "full", "random", "urandom")
# Prints the interpreter, its library folder, and the shared objects mapped once all extension modules are loaded.
_PROBE = """
import ctypes, glob, os, sys
print(os.path.realpath(sys.executable)); print(os.path.dirname(os.path.realpath(os.__file__)))
for path in glob.glob(os.path.join(os.path.dirname(os.__file__), "lib-dynload", "*.so")):
    try: "tkinter" in path or ctypes.CDLL(path)
    except OSError: pass
for line in open("/proc/self/maps"):
    path = line.split(None, 5)[-1].strip()
    if ".so" in path and path.startswith("/"): print(path)
"""
# Host folders, readable by all users, with the shared libraries that an interpreter's packages may need.
_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64")
_LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")


class Level(enum.StrEnum):
    """Level of isolation between a program and the machine; docs/executor.md says what each level prevents."""

    FULL = "full"  # namespaces, separate users for server and program, cgroup, seccomp, Landlock
    NAMESPACES = "namespaces"  # the same without a cgroup: one process per program
    USER = "user"  # without root: namespaces with a single user, seccomp, Landlock
    PROCESS = "process"  # no namespaces: resource limits, seccomp and Landlock around one process


LEVELS = tuple(Level)


class IsolationError(RuntimeError):
    """Raised if a required level of isolation isn't available; the message says why."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How to start workers at a level: `sandbox` is for the launcher, `settings` for the worker; both plain data."""

    level: Level
    sandbox: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def cgroup(self) -> bool:
        """Whether each worker gets a control group."""
        return bool(self.settings["cgroup"])


def plan(level: Level, interpreter: Interpreter) -> Plan:
    """The plan for workers at a level, not yet tried. Raises IsolationError if the level is impossible here."""
    namespaces = level is not Level.PROCESS
    root = os.geteuid() == 0
    if level in (Level.FULL, Level.NAMESPACES) and not root:
        raise IsolationError("users other than one's own take root")
    machine = os.uname().machine
    try:
        program_filter = seccomp.program_filter(machine)
        child_filter = b""
        if level is not Level.FULL:
            child_filter = seccomp.single_process_filter(machine, files=namespaces, signals=namespaces)
    except seccomp.UnknownMachineError as exc:
        raise IsolationError(str(exc)) from exc
    files = interpreter_files(interpreter)
    landlock = _landlock((*files.binds, *map(os.path.realpath, interpreter.packages)), namespaces)
    if landlock is None and not namespaces and root:
        raise IsolationError("as root, without namespaces and without Landlock, programs could write anywhere")
    users = level in (Level.FULL, Level.NAMESPACES)
    settings: dict[str, Any] = dict(
        namespaces=namespaces,
        cgroup=level is Level.FULL,
        program_uid=1 if users else None,
        oom_score=500 if level is Level.FULL else 0,  # the kernel kills a program before its worker
        cores=whole_cores(),  # that programs see
        # Processes of the program's user: the program's process; without separate users also launcher and server.
        own_processes=1 if users else 3,
        box_bytes=BOX_BYTES if namespaces else 0,
        box_inodes=BOX_INODES,
        filter=program_filter,
        child_filter=child_filter,
        own_pid_mark=seccomp.OWN_PID,
        landlock=landlock,
    )
    packages = {f"/packages/{i}": os.path.realpath(folder) for i, folder in enumerate(interpreter.packages)}
    settings["packages"] = list(packages if namespaces else packages.values())
    sandbox = dict(
        python=files.python, mapped_by_pool=users, binds=files.binds, packages=packages, links=dict(files.links)
    )
    return Plan(level, sandbox, settings)


def _landlock(files: tuple[str, ...], namespaces: bool) -> tuple[list[str], list[str], list[str]] | None:
    """(readable paths, writable paths, device files) of the Landlock rules; None if the kernel has no Landlock."""
    try:
        kernel.landlock_version()
    except OSError:
        return None
    devices = [f"/dev/{name}" for name in _DEVICES]
    return (["/"], ["/box"], devices) if namespaces else (list(files), [], devices)


@dataclasses.dataclass(frozen=True)
class InterpreterFiles:
    """The files an interpreter needs: its executable, files and folders to bind, symbolic links (link, target)."""

    python: str
    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]


@functools.cache
def interpreter_files(interpreter: Interpreter) -> InterpreterFiles:
    """Finds these files by running the interpreter. Raises IsolationError if it doesn't run."""
    command = [interpreter.path, "-I", "-S", "-B", "-c", _PROBE]
    try:
        process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise IsolationError(f"the worker could not be started: {exc}") from exc
    if process.returncode != 0:
        raise IsolationError(f"the worker could not be started: {process.stderr[-500:]}")
    python, library, *objects = process.stdout.splitlines()
    folders = _outermost(library, *_shared_libraries(interpreter))
    binds = {python, *folders}
    binds |= {f"/dev/{name}" for name in _DEVICES}
    binds |= {path for path in ("/etc/ld.so.cache", *_LOADERS) if os.path.exists(path)}
    links = {"/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"}
    links |= {"/dev/fd": "/proc/self/fd", "/tmp": "/box/cwd", "/dev/shm": "/box/cwd"}
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):  # merged into /usr on most systems
        if os.path.islink(name):
            links[name] = os.readlink(name)
    libraries = {path for path in objects if not _within(path, folders)}
    for folder in {os.path.dirname(path) for path in libraries}:  # libraries are opened by a short name, a link
        for entry in os.scandir(folder):
            if ".so" in entry.name and entry.is_symlink() and os.path.realpath(entry.path) in libraries:
                links[entry.path] = os.path.realpath(entry.path)
    binds |= libraries
    binds -= {path for path in binds if path not in folders and _within(os.path.realpath(path), folders)}
    links = {link: target for link, target in links.items() if not _within(link, folders)}
    merged = {path for path in binds if os.path.realpath(os.path.dirname(path)) == os.path.dirname(path)}
    merged |= {os.path.realpath(os.path.dirname(p)) + "/" + os.path.basename(p) for p in binds - merged}
    return InterpreterFiles(python, tuple(sorted(merged)), tuple(sorted(links.items())))


def _shared_libraries(interpreter: Interpreter) -> list[str]:
    """Folders of shared libraries to bind for an interpreter with packages; [] without packages."""
    return [f for f in _SYSTEM_LIBRARIES if interpreter.packages and os.path.isdir(f) and not os.path.islink(f)]


def _outermost(*folders: str) -> list[str]:
    """The folders that aren't inside another of them."""
    return [folder for folder in dict.fromkeys(folders) if not _within(os.path.dirname(folder), folders)]


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def user_ids(slot: int) -> tuple[int, int]:
    """(user id of a worker's server, user id of its programs) outside the namespace. They differ between workers."""
    first = _FIRST_UID + 2 * (slot % (1 << 24))
    return first, first + 1
