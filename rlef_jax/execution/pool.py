"""A pool of warm workers that runs programs asynchronously and judges their results.

One thread per worker waits for it, so that this process only does the judging. Expected outputs stay in this process:
workers get only programs and inputs.
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
from rlef_jax.execution.functions import input_bytes
from rlef_jax.execution.interpreter import Interpreter
from rlef_jax.execution.isolation import Level
from rlef_jax.execution.results import JudgeOptions, judged
from rlef_jax.execution.supervisor import BrokenWorkerError, Outcome, WorkerProcess
from rlef_jax.execution.worker_factory import WorkerFactory
from rlef_jax.types import FunctionTest, Limits, Status, Test, TestCase, TestResult

RETRIES = 3  # retries of a request whose worker broke; then its unfinished tests are INFRA_ERROR
SLICE_S = 2.0  # time slice: a program that has run longer lets waiting ones go first, after its current test
MAX_QUEUE = 8192  # waiting programs before `run` blocks
_REQUEST_CHARS = 64 << 20  # length of the inputs sent to a worker at once


class PoolClosedError(RuntimeError):
    """Raised if the pool is closed before a program has run."""


@dataclasses.dataclass
class _Job:
    """A queued or running program. Only the thread that runs it changes it; other threads set only `cancelled`."""

    program: str
    tests: tuple[Test, ...]
    limits: Limits
    stop_at_first_failure: bool
    frame: tuple[str, ...]
    future: concurrent.futures.Future[tuple[TestResult, ...]]
    results: list[TestResult] = dataclasses.field(default_factory=list)
    started: bool = False
    cancelled: bool = False
    failures: int = 0  # number of workers that broke while running it
    careful: bool = False  # one reply at a time, after the program's process died, to find the test that caused it

    @property
    def done(self) -> bool:
        failed = bool(self.results) and self.results[-1].status is not Status.PASSED
        return len(self.results) >= len(self.tests) or (self.stop_at_first_failure and failed)


class ExecutionPool:
    """Runs programs on tests in `workers` processes of `interpreter`. A context manager; all methods are thread-safe.

    Args:
      workers: number of programs that run at a time.
      interpreter: the Python that they run under.
      require: lowest acceptable level of isolation ("full", "namespaces", "user" or "process"; docs/executor.md); the
        best available one is used. "" accepts any.
      level: use exactly this level, for tests; "" means the best available.
      options: options in which we differ from the paper's judge.
      wall_scale: factor on every wall clock limit, for slower machines.
      max_queue: number of programs that may wait before `run` blocks.

    Attributes:
      interpreter: the given interpreter.

    Raises:
      IsolationError: the required level isn't available; the message says why.
      ValueError: a number isn't above 0, or an unknown level.
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
        self._workers: dict[int, WorkerProcess] = {}  # by thread index
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
        """The level of isolation that programs run at; None if no worker can be started."""
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
        """Queues a program; the future holds one result per test, in order.

        With `stop_at_first_failure`, results end at the first failure. A `frame` is two texts that run before and after
        the program, in its namespace (`Problem.frame`). A program that doesn't compile has SYNTAX_ERROR on every test.
        If a worker breaks, its unfinished tests run again in a new one, up to `RETRIES` times; then they are
        INFRA_ERROR. Blocks while `max_queue` programs wait, except in the pool's own threads. Raises PoolClosedError
        after `close`.
        """
        limits = dataclasses.replace(limits, wall_s=limits.wall_s * self._wall_scale)
        job = _Job(program, tuple(tests), limits, stop_at_first_failure, frame, concurrent.futures.Future())
        with self._changed:
            in_pool_thread = threading.current_thread() in self._threads  # from a callback: must not wait for itself
            while len(self._queue) >= self._max_queue and not self._closed and not in_pool_thread:
                self._changed.wait()
            if self._closed:
                raise PoolClosedError("the pool is closed")
            self._queue.append(job)
            self._changed.notify_all()
        return job.future

    def cancel(self, future: concurrent.futures.Future[Any]) -> bool:
        """Cancels a waiting or running program; its future then raises CancelledError.

        Returns False if it has ended already or belongs to another pool.
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
            for job in self._queue:  # between two time slices
                if job.future is future:
                    job.cancelled = True
                    return True
        return False

    def stats(self) -> dict[str, Any]:
        """Counters since the pool's start.

        `tests` and `statuses` count judged tests, `status_s` has their wall seconds by status, `tests_per_s` is the
        average rate, `retries` counts retries after broken workers, `cancelled` programs. `busy_s` is the workers'
        total busy time in seconds, `queue_length` the number of programs waiting now.
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
        """Process ids of the running workers."""
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
            if not job.future.cancel():  # it has run for a time slice
                job.future.set_exception(PoolClosedError("the pool was closed"))
        for thread in self._threads:
            thread.join()
        self._factory.close()

    def _supervise(self, index: int) -> None:
        """The main loop of one worker's thread."""
        with contextlib.suppress(BrokenWorkerError, PoolClosedError):
            self._worker(index)  # starts the worker early; on failure the first job tries again and reports it
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
        """Takes the next job and marks it as running; None once the pool is closed."""
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
        """Puts a job back at the end of the queue, so that waiting ones run first."""
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
        """Runs a job's remaining tests. Returns True if all are done, False if its time slice ended and others wait."""
        until = time.monotonic() + SLICE_S
        while not job.done:
            if job.cancelled:
                with self._changed:
                    self._cancellations += 1
                raise concurrent.futures.CancelledError
            if time.monotonic() > until and self._jobs_wait():
                return False
            try:
                self._run_request(self._worker(index), job, until)
            except BrokenWorkerError as exc:
                self._discard(index)
                job.failures += 1
                with self._changed:
                    self._retries += job.failures <= RETRIES
                if job.failures > RETRIES:
                    count = 1 if job.stop_at_first_failure else len(job.tests) - len(job.results)
                    job.results += [TestResult(Status.INFRA_ERROR, error=str(exc))] * count
        return True

    def _run_request(self, worker: WorkerProcess, job: _Job, until: float) -> None:
        """Sends one request with as many of a job's tests as fit, and judges the outcomes as they arrive."""
        first = len(job.results)
        tests = job.tests[first : first + _chunk(job.tests, first)]
        if isinstance(tests[0], FunctionTest) and tests[0].check:
            return self._run_check_steps(worker, job, checks.steps(tests[0], job.limits))
        functions = isinstance(tests[0], FunctionTest)
        eager = job.careful or job.stop_at_first_failure
        interrupted = False  # to stop or pause
        inputs = list(map(input_bytes, tests))
        outcomes = worker.run(job.program, inputs, job.limits, frame=job.frame, eager=eager, functions=functions)
        # An outcome STOPPED may follow that of the last test.
        for test, outcome in zip(itertools.chain(tests, itertools.repeat(tests[-1])), outcomes):
            if not self._ends_program(job, outcome, eager) and outcome.kind != protocol.STOPPED and not job.done:
                job.results.append(judged(outcome, test, job.limits, self._options))
            if interrupted or outcome.kind == protocol.STOPPED:
                continue
            if job.done and len(job.results) < len(job.tests):
                worker.stop(worker.number)
                interrupted = True
            elif time.monotonic() > until and self._jobs_wait():
                worker.pause(worker.number)
                interrupted = True

    def _run_check_steps(self, worker: WorkerProcess, job: _Job, steps: checks.Steps) -> None:
        """Runs a test with a `check`: the program and the assert alternately (`checks`)."""
        request = next(steps)
        while not job.cancelled:
            frame = () if request.program else job.frame
            (outcome,) = worker.run(
                request.program or job.program, [request.data], job.limits, frame=frame, eager=True, functions=True
            )
            if outcome.kind == protocol.STOPPED or (
                not request.program and self._ends_program(job, outcome, eager=True)
            ):
                return
            if outcome.kind in (protocol.NOT_COMPILED, protocol.DIED) and not outcome.out_of_memory:
                raise BrokenWorkerError("the process of an assert could not be run")
            try:
                request = steps.send(outcome)
            except StopIteration as end:
                job.results.append(end.value)
                return

    def _ends_program(self, job: _Job, outcome: Outcome, eager: bool) -> bool:
        """Whether an outcome is about the program as a whole rather than a test; if so, handles it."""
        if outcome.kind == protocol.NOT_COMPILED:
            error = outcome.error.decode("utf-8", "replace")
            left = 1 if job.stop_at_first_failure else len(job.tests) - len(job.results)
            job.results += [TestResult(Status.SYNTAX_ERROR, error=error)] * left
        elif outcome.kind == protocol.DIED:
            self._handle_death(job, eager, outcome.out_of_memory)
        return outcome.kind in (protocol.NOT_COMPILED, protocol.DIED)

    def _handle_death(self, job: _Job, eager: bool, out_of_memory: bool) -> None:
        """Handles the death of a program's process: MEMORY_LIMIT, or BrokenWorkerError if the judge is at fault."""
        if not eager:  # replies may have been lost: run again, one reply at a time
            job.careful = True
        elif out_of_memory:
            job.results.append(TestResult(Status.MEMORY_LIMIT))
        else:
            raise BrokenWorkerError("the program's process was killed from outside")

    def _jobs_wait(self) -> bool:
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


def _chunk(tests: Sequence[Test], start: int) -> int:
    """The number of tests from `start` on to send at once: those of a type up to a size; a `check` goes alone."""
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
