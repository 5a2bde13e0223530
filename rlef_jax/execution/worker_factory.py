"""Where workers are made: the level of isolation, chosen once, and what must be tidied up when the process is gone."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import subprocess
import sys
import threading

from rlef_jax.execution import cgroups, janitor
from rlef_jax.execution.interpreter import Interpreter
from rlef_jax.execution.isolation import LEVELS, IsolationError, Level, Plan, plan
from rlef_jax.execution.supervisor import BrokenWorkerError, WorkerProcess
from rlef_jax.types import Limits

_TRIAL_INDEX = 63  # of the worker that is started to see whether a level works
_TRIAL = Limits(wall_s=30.0)
_trials = threading.Lock()


class WorkerFactory:
    """Makes workers at the best level of isolation that there is, or at the one asked for."""

    def __init__(self, interpreter: Interpreter, require: str = "", level: str = ""):
        """Raises IsolationError where `require` (at least) or `level` (exactly) can't be had, ValueError for others."""
        wanted = [Level(level)] if level else list(LEVELS[: LEVELS.index(Level(require)) + 1] if require else LEVELS)
        self._plan: Plan | None = None
        self._reason = ""
        reasons = []
        for candidate in wanted:
            found = trial(candidate, interpreter)
            if isinstance(found, Plan):
                self._plan = found
                break
            reasons.append(f"{candidate.value}: {found}")
        if self._plan is None:
            self._reason = "; ".join(reasons)
            if level or require:
                raise IsolationError(f"isolation {level or require!r} is not available: {self._reason}")
        self._janitor = _Janitor() if self._plan is not None and self._plan.cgroup else None

    @property
    def level(self) -> Level | None:
        """The level of the workers made here; None where none can be started."""
        return None if self._plan is None else self._plan.level

    def make(self, index: int) -> WorkerProcess:
        """A new worker. BrokenWorkerError, with the reason, if it can't be started."""
        if self._plan is None:
            raise BrokenWorkerError(self._reason)
        if self._janitor is not None:
            self._janitor.tell("+", index)
        return WorkerProcess(self._plan, index)

    def dispose(self, worker: WorkerProcess) -> None:
        """Ends a worker and removes what it had."""
        worker.close()
        if self._janitor is not None:
            self._janitor.tell("-", worker.index)

    def close(self) -> None:
        """Nothing is left to tidy up."""
        if self._janitor is not None:
            self._janitor.close()


class _Janitor:
    """The process that removes control groups should this one be killed."""

    def __init__(self) -> None:
        cgroups.sweep()
        self._lock = threading.Lock()
        reader, self._writer = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(pathlib.Path(janitor.__file__)), str(reader)],
                pass_fds=[reader],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(reader)

    def tell(self, sign: str, index: int) -> None:
        with self._lock, contextlib.suppress(OSError):  # a janitor that was killed: the next pool sweeps
            for folder in cgroups.folders(index):
                os.write(self._writer, f"{sign}{folder}\n".encode())

    def close(self) -> None:
        with self._lock:
            if self._writer >= 0:
                os.close(self._writer)
                self._writer = -1
        self._process.wait()


@functools.cache
def _tried(level: Level, interpreter: Interpreter) -> Plan | str:
    try:
        found = plan(level, interpreter)
        worker = WorkerProcess(found, _TRIAL_INDEX)
    except (IsolationError, BrokenWorkerError) as exc:
        return str(exc)
    try:
        (outcome,) = worker.run("print(6 * 7)", [b""], _TRIAL)
    except BrokenWorkerError as exc:
        return str(exc)
    finally:
        worker.kill()
        worker.close()
    return found if outcome.stdout == b"42\n" else f"a trial ended wrongly: {outcome}"


def trial(level: Level, interpreter: Interpreter) -> Plan | str:
    """How to start workers at a level, after one has been; or why that isn't possible. Tried once per process."""
    with _trials:
        return _tried(level, interpreter)
