"""Finds a Python interpreter by running it: a name on PATH may not work (a pyenv shim, for example)."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator

from rlef_jax.errors import ConfigError
from rlef_jax.paths import local_text

_PROBE = "import sys, resource, select; print(sys.executable); print('%d.%d.%d' % sys.version_info[:3])"
_PROBE_PACKAGES = "import os, site; print(*filter(os.path.isdir, site.getsitepackages()), sep='\\n')"
_PROBE_TIMEOUT_S = 30.0
_OLDEST = (3, 8)  # oldest version that the worker's files support


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """A Python executable that was run successfully.

    Attributes:
      path: the executable's path.
      version: its full version ("3.10.13").
      packages: folders of third-party modules that programs may import.
    """

    path: str
    version: str
    packages: tuple[str, ...] = ()


class InterpreterNotFoundError(ConfigError):
    """No Python of the required version runs on this machine."""


def find_python(version: str = "3.10", required: bool = False) -> Interpreter:
    """The first interpreter of `version` ("3.10") that runs: on PATH, in pyenv's versions folder, or known to uv.

    It has the standard library only. `version` may also be a path ("/opt/judge/bin/python", in a virtual environment
    for example): that executable, with its installed packages.

    Without an interpreter of that version, raises InterpreterNotFoundError with the fix if `required`; else warns and
    returns the interpreter of this process. Raises InterpreterNotFoundError for a path that doesn't run.
    """
    if "/" in version:
        return _named(os.path.abspath(local_text(version, "execution.python")))
    interpreter = _search(version)
    if interpreter is not None:
        return interpreter
    hint = f"install it with `uv python install {version}` or `pyenv install {version}`"
    if required:
        raise InterpreterNotFoundError(f"config.execution.require_python: no Python {version} runs here: {hint}")
    fallback = _probe(sys.executable)
    if fallback is None:
        raise InterpreterNotFoundError(f"neither Python {version} nor {sys.executable} runs here: {hint}")
    warnings.warn(
        f"no Python {version} runs on this machine, programs are judged under Python {fallback.version}: {hint}",
        stacklevel=2,
    )
    return fallback


@functools.cache
def _named(path: str) -> Interpreter:
    interpreter = _probe(path)
    if interpreter is None:
        raise InterpreterNotFoundError(f"execution.python: {path} is not a Python that runs here")
    if tuple(map(int, interpreter.version.split(".")[:2])) < _OLDEST:
        raise InterpreterNotFoundError(f"execution.python: {path} is Python {interpreter.version}; 3.8 is the oldest")
    return dataclasses.replace(
        interpreter, path=path, packages=tuple(_output([path, "-I", "-B", "-c", _PROBE_PACKAGES]))
    )


@functools.cache
def _search(version: str) -> Interpreter | None:
    for path in _candidates(version):
        interpreter = _probe(path)
        if interpreter is not None and interpreter.version.startswith(f"{version}."):
            return interpreter
    return None


def _candidates(version: str) -> Iterator[str]:
    name = f"python{version}"
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK):
            yield path
    # A user without a home folder (no HOME and no entry in passwd, as containers have them) leaves "~" as it is.
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"))
    if pyenv.is_absolute():
        yield from (str(p) for p in sorted(pyenv.glob(f"versions/{version}*/bin/{name}"), reverse=True))
    uv = shutil.which("uv")
    if uv is not None:
        yield from _output([uv, "python", "find", "--no-project", version])[:1]


def _probe(path: str) -> Interpreter | None:
    lines = _output([path, "-I", "-S", "-B", "-c", _PROBE])
    return Interpreter(path=lines[0] or path, version=lines[1]) if len(lines) == 2 else None


def _output(command: list[str]) -> list[str]:
    """The lines that a command prints; [] if it can't be run or fails."""
    try:
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return process.stdout.splitlines() if process.returncode == 0 else []
