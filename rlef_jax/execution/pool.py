"""A pool of warm workers: programs in, judged test results out, asynchronously.

One thread per worker waits for it, so that a program's run costs this process nothing but the judging. Expected
outputs stay here: workers learn a program and its inputs only.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

from rlef_jax.execution import checks
from rlef_jax.execution import worker as protocol
from rlef_jax.execution.cores import whole_cores
from rlef_jax.execution.functions import input_bytes
from rlef_jax.execution.interpreter import Interpreter
from rlef_jax.execution.isolation import Level
from rlef_jax.execution.results import JudgeOptions, judged
from rlef_jax.execution.supervisor import BrokenWorkerError, Outcome, WorkerProcess
from rlef_jax.execution.worker_factory import WorkerFactory
from rlef_jax.types import FunctionTest, Limits, Status, Test, TestCase, TestResult

RETRIES = 3  # of a request whose worker broke, before its unfinished tests are INFRA_ERROR
SLICE_S = 2.0  # a program that has run for so long lets a waiting one go first, after the test that runs
MAX_QUEUE = 8192  # programs that wait, before `run` does
_REQUEST_CHARS = 64 << 20  # inputs that go to a worker at once


class PoolClosedError(RuntimeError):
    """The pool was closed before the program had run."""


@dataclasses.dataclass
class _Job:
    """A program on its way. Only the thread that runs it changes it; `cancelled` is set from outside."""

    program: str
    tests: tuple[Test, ...]
    limits: Limits
    stop_at_first_failure: bool
    frame: tuple[str, ...]
    future: concurrent.futures.Future[tuple[TestResult, ...]]
    results: list[TestResult] = dataclasses.field(default_factory=list)
    started: bool = False
    cancelled: bool = False
    failures: int = 0  # of workers
    careful: bool = False  # after the program's process died: one reply at a time, to know which test did it

    @property
    def done(self) -> bool:
        failed = bool(self.results) and self.results[-1].status is not Status.PASSED
        return len(self.results) >= len(self.tests) or (self.stop_at_first_failure and failed)


class ExecutionPool:
    """Runs programs on tests in `workers` processes of `interpreter`. A context manager; all methods are thread-safe.

    Args:
      workers: how many programs run at a time.
      interpreter: the Python that they run under.
      require: the level of isolation that it takes at least ("full", "namespaces", "user" or "process";
        docs/executor.md). Empty: the best that there is. IsolationError, with the reason, where it can't be had.
      level: exactly this level, though there may be better (to test it). Empty: the best.
      options: where we judge otherwise than the paper's judge.
      wall_scale: factor on every wall clock limit, for slower machines.
      max_queue: how many programs may wait before `run` blocks.

    Attributes:
      interpreter: as given.
    """

    def __init__(
        self,
        workers: int,
        interpreter: Interpreter,
        *,
        require: str = "",
        level: str = "",
        options: JudgeOptions | None = None,
        wall_scale: float = 1.0,
        max_queue: int = MAX_QUEUE,
    ):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if wall_scale <= 0 or max_queue < 1:
            raise ValueError(f"wall_scale and max_queue must be above 0, got {wall_scale} and {max_queue}")
        self.interpreter = interpreter
        self._factory = WorkerFactory(interpreter, require, level)
        self._options = options or JudgeOptions()
        self._wall_scale = wall_scale
        self._max_queue = max_queue
        self._queue: collections.deque[_Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._workers: dict[int, WorkerProcess] = {}  # by supervisor
        self._running: dict[int, _Job] = {}
        self._counts: collections.Counter[Status] = collections.Counter()
        self._status_s: collections.defaultdict[Status, float] = collections.defaultdict(float)
        self._retries = self._cancellations = 0
        self._busy_s = 0.0
        self._began = time.monotonic()
        self._threads = [
            threading.Thread(target=self._supervise, args=(i,), name=f"execution-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> ExecutionPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def level(self) -> Level | None:
        """The level of isolation that programs run at; None where no worker can be started at all."""
        return self._factory.level

    def run(
        self,
        program: str,
        tests: Sequence[Test],
        limits: Limits,
        *,
        stop_at_first_failure: bool = False,
        frame: tuple[str, ...] = (),
    ) -> concurrent.futures.Future[tuple[TestResult, ...]]:
        """Queues a program; the future holds one result per test, in order (up to the first failure if so asked).

        A `frame` is two texts that run before and behind the program, in its names (`Problem.frame`).
        Blocks while `max_queue` programs wait (never a thread of the pool's own). A program that doesn't compile is a
        SYNTAX_ERROR on every test. A broken worker is replaced and what it left unfinished run again, `RETRIES` times;
        then the rest is INFRA_ERROR. PoolClosedError after `close`.
        """
        limits = dataclasses.replace(limits, wall_s=limits.wall_s * self._wall_scale)
        job = _Job(program, tuple(tests), limits, stop_at_first_failure, frame, concurrent.futures.Future())
        with self._changed:
            own = threading.current_thread() in self._threads  # a callback's: it must not wait for itself
            while len(self._queue) >= self._max_queue and not self._closed and not own:
                self._changed.wait()
            if self._closed:
                raise PoolClosedError("the pool is closed")
            self._queue.append(job)
            self._changed.notify_all()
        return job.future

    def cancel(self, future: concurrent.futures.Future[Any]) -> bool:
        """Gives up a program of this pool's, waiting or running (its future then raises CancelledError).

        False if it has ended already, or isn't here.
        """
        with self._changed:
            if future.cancel():
                return True
            for index, job in self._running.items():
                if job.future is future and not job.cancelled:
                    job.cancelled = True
                    if index in self._workers:
                        self._workers[index].stop(self._workers[index].number)
                    return True
            for job in self._queue:  # between two slices
                if job.future is future:
                    job.cancelled = True
                    return True
        return False

    def stats(self) -> dict[str, Any]:
        """What the pool has done so far.

        `tests` and `statuses` count judged tests, `status_s` their wall seconds by status, `tests_per_s` since the
        pool's start; `retries` of broken workers, `cancelled` programs; `busy_s` worker seconds; `queue_length` now.
        """
        with self._changed:
            tests = sum(self._counts.values())
            return {
                "workers": len(self._threads),
                "level": str(self.level or ""),
                "tests": tests,
                "tests_per_s": tests / max(time.monotonic() - self._began, 1e-9),
                "retries": self._retries,
                "cancelled": self._cancellations,
                "busy_s": self._busy_s,
                "queue_length": len(self._queue),
                "statuses": {status.value: count for status, count in sorted(self._counts.items())},
                "status_s": {status.value: seconds for status, seconds in sorted(self._status_s.items())},
            }

    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running now."""
        with self._changed:
            return tuple(worker.pid for worker in self._workers.values())

    def close(self) -> None:
        """Ends all workers. Waiting jobs are cancelled; running ones end with PoolClosedError. May be called twice."""
        with self._changed:
            self._closed = True
            waiting, self._queue = self._queue, collections.deque()
            for worker in self._workers.values():
                worker.kill()
            self._changed.notify_all()
        for job in waiting:
            if not job.future.cancel():  # it had its first slice
                job.future.set_exception(PoolClosedError("the pool was closed"))
        for thread in self._threads:
            thread.join()
        self._factory.close()

    def _supervise(self, index: int) -> None:
        """One worker's thread."""
        with contextlib.suppress(BrokenWorkerError, PoolClosedError):
            self._worker(index)  # warm before the first job comes; the first job will try again and say so
        while (job := self._take(index)) is not None:
            start = time.monotonic()
            finished = False
            try:
                finished = self._run(index, job)
            except BaseException as exc:
                self._leave(index, start)
                job.future.set_exception(exc)
                continue
            self._leave(index, start)
            if finished:
                self._count(job)
                job.future.set_result(tuple(job.results))
            else:
                self._requeue(job)
        self._discard(index)

    def _take(self, index: int) -> _Job | None:
        """The next job, marked as running. None once the pool is closed."""
        with self._changed:
            while True:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return None
                job = self._queue.popleft()
                self._changed.notify_all()
                if job.started or job.future.set_running_or_notify_cancel():
                    job.started = True
                    self._running[index] = job
                    return job
                self._cancellations += 1

    def _leave(self, index: int, start: float) -> None:
        with self._changed:
            self._running.pop(index, None)
            self._busy_s += time.monotonic() - start

    def _requeue(self, job: _Job) -> None:
        """Back to the end of the queue: others have waited."""
        with self._changed:
            if not self._closed:
                self._queue.append(job)
                self._changed.notify_all()
                return
        job.future.set_exception(PoolClosedError("the pool was closed"))

    def _count(self, job: _Job) -> None:
        with self._changed:
            for result in job.results:
                self._counts[result.status] += 1
                self._status_s[result.status] += result.wall_s

    def _run(self, index: int, job: _Job) -> bool:
        """A job's tests from where it stands, until they are done (True) or others shall have their turn."""
        until = time.monotonic() + SLICE_S
        while not job.done:
            if job.cancelled:
                with self._changed:
                    self._cancellations += 1
                raise concurrent.futures.CancelledError
            if time.monotonic() > until and self._others_wait():
                return False
            try:
                self._advance(self._worker(index), job, until)
            except BrokenWorkerError as exc:
                self._discard(index)
                job.failures += 1
                with self._changed:
                    self._retries += job.failures <= RETRIES
                if job.failures > RETRIES:
                    count = 1 if job.stop_at_first_failure else len(job.tests) - len(job.results)
                    job.results += [TestResult(Status.INFRA_ERROR, error=str(exc))] * count
        return True

    def _advance(self, worker: WorkerProcess, job: _Job, until: float) -> None:
        """One request: as many of a job's tests as fit in a message, judged as they come."""
        first = len(job.results)
        tests = job.tests[first : first + _chunk(job.tests, first)]
        if isinstance(tests[0], FunctionTest) and tests[0].check:
            return self._ask_in_turn(worker, job, checks.steps(tests[0], job.limits))
        functions = isinstance(tests[0], FunctionTest)
        eager = job.careful or job.stop_at_first_failure
        told = False  # to stop or pause
        inputs = list(map(input_bytes, tests))
        outcomes = worker.run(job.program, inputs, job.limits, frame=job.frame, eager=eager, functions=functions)
        for test, outcome in zip(itertools.chain(tests, itertools.repeat(tests[-1])), outcomes):  # a STOPPED may follow
            if not self._is_end(job, outcome, eager) and outcome.kind != protocol.STOPPED and not job.done:
                job.results.append(judged(outcome, test, job.limits, self._options))
            if told or outcome.kind == protocol.STOPPED:
                continue
            if job.done and len(job.results) < len(job.tests):
                worker.stop(worker.number)
                told = True
            elif time.monotonic() > until and self._others_wait():
                worker.pause(worker.number)
                told = True

    def _ask_in_turn(self, worker: WorkerProcess, job: _Job, steps: checks.Steps) -> None:
        """A test whose assert decides: the program's process and the assert's by turns."""
        ask = next(steps)
        while not job.cancelled:
            frame = () if ask.program else job.frame
            (outcome,) = worker.run(
                ask.program or job.program, [ask.data], job.limits, frame=frame, eager=True, functions=True
            )
            if outcome.kind == protocol.STOPPED or (not ask.program and self._is_end(job, outcome, eager=True)):
                return
            if outcome.kind in (protocol.NOT_COMPILED, protocol.DIED) and not outcome.out_of_memory:
                raise BrokenWorkerError("the process of an assert could not be run")
            try:
                ask = steps.send(outcome)
            except StopIteration as end:
                job.results.append(end.value)
                return

    def _is_end(self, job: _Job, outcome: Outcome, eager: bool) -> bool:
        """Whether an outcome is about the program as a whole, not about a test: then it is dealt with here."""
        if outcome.kind == protocol.NOT_COMPILED:
            error = outcome.error.decode("utf-8", "replace")
            left = 1 if job.stop_at_first_failure else len(job.tests) - len(job.results)
            job.results += [TestResult(Status.SYNTAX_ERROR, error=error)] * left
        elif outcome.kind == protocol.DIED:
            self._bury(job, eager, outcome.out_of_memory)
        return outcome.kind in (protocol.NOT_COMPILED, protocol.DIED)

    def _bury(self, job: _Job, known: bool, out_of_memory: bool) -> None:
        """The program's own process has died: of memory, or it is the judge's failure. BrokenWorkerError for that."""
        if not known:  # replies may have been lost: once more, one at a time
            job.careful = True
        elif out_of_memory:
            job.results.append(TestResult(Status.MEMORY_LIMIT))
        else:
            raise BrokenWorkerError("the program's process was killed from outside")

    def _others_wait(self) -> bool:
        with self._changed:
            return bool(self._queue)

    def _worker(self, index: int) -> WorkerProcess:
        with self._changed:
            if self._closed:
                raise PoolClosedError("the pool was closed")
            if index in self._workers:
                return self._workers[index]
        worker = self._factory.make(index)
        with self._changed:
            if not self._closed:
                self._workers[index] = worker
                return worker
        self._factory.dispose(worker)
        raise PoolClosedError("the pool was closed")

    def _discard(self, index: int) -> None:
        with self._changed:
            worker = self._workers.pop(index, None)
        if worker is not None:
            worker.kill()
            self._factory.dispose(worker)


def auto_workers() -> int:
    """As many workers as leave a quarter of the usable cores (`cores.usable_cores`), at least one, to JAX."""
    cores = whole_cores()
    return max(1, cores - max(1, cores // 4))


def _chunk(tests: Sequence[Test], start: int) -> int:
    """How many tests from `start` on go to the worker at once: all, unless inputs are huge or an assert decides."""
    count = chars = 0
    for test in tests[start:]:
        alone = isinstance(test, FunctionTest) and bool(test.check)
        chars += len(test.input) if isinstance(test, TestCase) else 0
        if count and (alone or chars > _REQUEST_CHARS or type(test) is not type(tests[start])):
            break
        count += 1
        if alone:
            break
    return count
