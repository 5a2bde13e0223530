"""Creates workers at a level of isolation chosen once, and cleans up after this process ends, even if it is killed."""

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

_TRIAL_INDEX = 63  # number of the worker that is started to try a level
_TRIAL = Limits(wall_s=30.0)
_trials = threading.Lock()


class WorkerFactory:
    """Creates workers at the best available level of isolation, or at a given one."""

    def __init__(self, interpreter: Interpreter, require: str = "", level: str = ""):
        """Chooses the level: at least `require`, or exactly `level`; "" for the best available.

        Raises IsolationError if that isn't available, ValueError for an unknown level.
        """
        candidates = (
            [Level(level)] if level else list(LEVELS[: LEVELS.index(Level(require)) + 1] if require else LEVELS)
        )
        self._plan: Plan | None = None
        self._reason = ""
        reasons = []
        for candidate in candidates:
            result = trial(candidate, interpreter)
            if isinstance(result, Plan):
                self._plan = result
                break
            reasons.append(f"{candidate.value}: {result}")
        if self._plan is None:
            self._reason = "; ".join(reasons)
            if level or require:
                raise IsolationError(f"isolation {level or require!r} is not available: {self._reason}")
        self._janitor = _Janitor() if self._plan is not None and self._plan.cgroup else None

    @property
    def level(self) -> Level | None:
        """The level of the workers; None if none can be started."""
        return None if self._plan is None else self._plan.level

    def make(self, index: int) -> WorkerProcess:
        """Starts a new worker. Raises BrokenWorkerError, with the reason, if it can't be started."""
        if self._plan is None:
            raise BrokenWorkerError(self._reason)
        if self._janitor is not None:
            self._janitor.record("+", index)
        return WorkerProcess(self._plan, index)

    def dispose(self, worker: WorkerProcess) -> None:
        """Ends a worker and removes its control group."""
        worker.close()
        if self._janitor is not None:
            self._janitor.record("-", worker.index)

    def close(self) -> None:
        """Ends the janitor. Call it once all workers are disposed."""
        if self._janitor is not None:
            self._janitor.close()


class _Janitor:
    """The process that removes control groups if this process is killed."""

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

    def record(self, sign: str, index: int) -> None:
        # OSError: the janitor was killed; the next pool removes the groups (`cgroups.sweep`).
        with self._lock, contextlib.suppress(OSError):
            for folder in cgroups.folders(index):
                os.write(self._writer, f"{sign}{folder}\n".encode())

    def close(self) -> None:
        with self._lock:
            if self._writer >= 0:
                os.close(self._writer)
                self._writer = -1
        self._process.wait()


@functools.cache
def _try_level(level: Level, interpreter: Interpreter) -> Plan | str:
    try:
        candidate = plan(level, interpreter)
        worker = WorkerProcess(candidate, _TRIAL_INDEX)
    except (IsolationError, BrokenWorkerError) as exc:
        return str(exc)
    try:
        (outcome,) = worker.run("print(6 * 7)", [b""], _TRIAL)
    except BrokenWorkerError as exc:
        return str(exc)
    finally:
        worker.kill()
        worker.close()
    return candidate if outcome.stdout == b"42\n" else f"a trial ended wrongly: {outcome}"


def trial(level: Level, interpreter: Interpreter) -> Plan | str:
    """A plan that has started a worker at this level, or the reason why it failed. Tried once per process."""
    with _trials:
        return _try_level(level, interpreter)
