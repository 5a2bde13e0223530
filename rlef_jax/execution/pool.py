"""A pool of warm workers: programs in, judged test results out, asynchronously.

One thread per worker waits for it, so that a program's run costs this process nothing but the judging. Expected
outputs stay here: workers learn a program and its inputs only.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rlef_jax.execution import worker as protocol
from rlef_jax.execution.interpreter import Interpreter
from rlef_jax.execution.judge import outputs_match
from rlef_jax.execution.supervisor import BrokenWorkerError, Outcome, WorkerProcess
from rlef_jax.types import Limits, Status, TestCase, TestResult

RETRIES = 3  # of a request whose worker broke, before its unfinished tests are INFRA_ERROR
KEPT_CHARS = 20_000  # of a test's standard output, in its result; the whole of it is judged
_REQUEST_CHARS = 8 << 20  # inputs that go to a worker in one message


class PoolClosedError(RuntimeError):
    """The pool was closed before the program had run."""


@dataclasses.dataclass(frozen=True)
class _Job:
    program: str
    tests: tuple[TestCase, ...]
    limits: Limits
    stop_at_first_failure: bool
    future: concurrent.futures.Future[tuple[TestResult, ...]]


class ExecutionPool:
    """Runs programs on tests in `workers` processes of `interpreter`. A context manager; all methods are thread-safe.

    `scratch` is the folder in which programs get their (empty) working directories, the system's own by default.
    """

    def __init__(self, workers: int, interpreter: Interpreter, scratch: str | None = None):
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._interpreter = interpreter
        self._scratch = scratch
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._workers: dict[int, WorkerProcess] = {}  # by supervisor
        self._counts: collections.Counter[Status] = collections.Counter()
        self._retries = 0
        self._busy_s = 0.0
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

    def run(
        self, program: str, tests: Sequence[TestCase], limits: Limits, *, stop_at_first_failure: bool = False
    ) -> concurrent.futures.Future[tuple[TestResult, ...]]:
        """Queues a program; the future holds one result per test, in order (up to the first failure if so asked).

        A program that doesn't compile is a SYNTAX_ERROR on every test. A broken worker is replaced and what it
        left unfinished run again, `RETRIES` times; then the rest is INFRA_ERROR. PoolClosedError after `close`.
        """
        job = _Job(program, tuple(tests), limits, stop_at_first_failure, concurrent.futures.Future())
        with self._lock:
            if self._closed:
                raise PoolClosedError("the pool is closed")
            self._jobs.put(job)
        return job.future

    def stats(self) -> dict[str, Any]:
        """What the pool has done so far: tests, retries, busy worker seconds, jobs waiting, tests per status."""
        with self._lock:
            return {
                "workers": len(self._threads),
                "tests": sum(self._counts.values()),
                "retries": self._retries,
                "busy_s": self._busy_s,
                "queue_length": self._jobs.qsize(),
                "statuses": {status.value: count for status, count in sorted(self._counts.items())},
            }

    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the workers that are running now."""
        with self._lock:
            return tuple(worker.pid for worker in self._workers.values())

    def close(self) -> None:
        """Ends all workers. Waiting jobs are cancelled; running ones end with PoolClosedError. May be called twice."""
        with self._lock:
            already, self._closed = self._closed, True
            if not already:
                while not self._jobs.empty():
                    job = self._jobs.get()
                    if job is not None:
                        job.future.cancel()
                for _ in self._threads:
                    self._jobs.put(None)
            for worker in self._workers.values():
                worker.kill()
        for thread in self._threads:
            thread.join()

    def _supervise(self, index: int) -> None:
        """One worker's thread."""
        try:
            self._worker(index)  # warm before the first job comes
        except (BrokenWorkerError, PoolClosedError):
            pass  # the first job will try again and say so
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            start = time.monotonic()
            try:
                results = self._run(index, job)
            except BaseException as exc:
                job.future.set_exception(exc)
                continue
            with self._lock:
                self._busy_s += time.monotonic() - start
                self._counts.update(result.status for result in results)
            job.future.set_result(results)
        self._discard(index)

    def _run(self, index: int, job: _Job) -> tuple[TestResult, ...]:
        results: list[TestResult] = []
        for attempt in range(1 + RETRIES):
            try:
                for result in self._results(self._worker(index), job, len(results)):
                    results.append(result)
                    if job.stop_at_first_failure and result.status is not Status.PASSED:
                        break
                return tuple(results)
            except BrokenWorkerError as exc:
                self._discard(index)
                reason = str(exc)
                with self._lock:
                    self._retries += attempt < RETRIES
        unfinished = 1 if job.stop_at_first_failure else len(job.tests) - len(results)
        return (*results, *[TestResult(Status.INFRA_ERROR, error=reason)] * unfinished)

    def _results(self, worker: WorkerProcess, job: _Job, done: int) -> Iterator[TestResult]:
        """Judged results of the tests from number `done` on."""
        while done < len(job.tests):
            chunk = 1 if job.stop_at_first_failure else _chunk(job.tests, done)
            tests = job.tests[done : done + chunk]
            outcomes = worker.run(job.program, [test.input for test in tests], job.limits)
            for test, outcome in zip(tests, outcomes):  # a program that doesn't compile has a single outcome
                if outcome.kind == protocol.NOT_COMPILED:
                    error = outcome.error.decode("utf-8", "replace")
                    yield from [TestResult(Status.SYNTAX_ERROR, error=error)] * (len(job.tests) - done)
                    return
                yield judged(outcome, test.output, job.limits)
                done += 1

    def _worker(self, index: int) -> WorkerProcess:
        with self._lock:
            if self._closed:
                raise PoolClosedError("the pool was closed")
            if index not in self._workers:
                self._workers[index] = WorkerProcess(self._interpreter, self._scratch)
            return self._workers[index]

    def _discard(self, index: int) -> None:
        with self._lock:
            worker = self._workers.pop(index, None)
        if worker is not None:
            worker.kill()
            worker.close()


def judged(outcome: Outcome, expected: str, limits: Limits) -> TestResult:
    """What a program did on one test. Passing takes a clean exit within all limits, and the right output."""
    stdout = outcome.stdout.decode("utf-8", "replace")
    status, error = _status(outcome, limits)
    if status is Status.PASSED and not outputs_match(expected, stdout):
        status = Status.WRONG_ANSWER
    if len(stdout) > KEPT_CHARS:
        stdout = f"{stdout[:KEPT_CHARS]}...[{len(stdout) - KEPT_CHARS} characters cut]"
    return TestResult(status, stdout, error, outcome.exit_code, outcome.cpu_s, outcome.wall_s, outcome.memory_bytes)


def _status(outcome: Outcome, limits: Limits) -> tuple[Status, str]:
    """The status before the output is compared (PASSED: nothing but the output decides), and the error's text."""
    killed_by = -outcome.exit_code if outcome.exit_code < 0 else 0
    text = outcome.error.decode("utf-8", "replace")
    if outcome.kind == protocol.TIMED_OUT or killed_by == signal.SIGXCPU:
        return Status.TIME_LIMIT, ""
    if outcome.kind == protocol.TOO_MANY_PROCESSES:
        return Status.RUNTIME_ERROR, f"More than {limits.processes} processes."
    if killed_by == signal.SIGXFSZ or len(outcome.stdout) > limits.output_bytes:
        return Status.OUTPUT_LIMIT, ""
    if outcome.report == protocol.OUT_OF_MEMORY:
        return Status.MEMORY_LIMIT, text
    if killed_by == signal.SIGKILL and outcome.memory_bytes > 0.9 * limits.memory_bytes:
        return Status.MEMORY_LIMIT, ""
    if outcome.report == protocol.EXCEPTION:
        return Status.RUNTIME_ERROR, text
    text += "\n" if text and not text.endswith("\n") else ""  # what it wrote to stderr
    if killed_by:
        return Status.RUNTIME_ERROR, f"{text}Killed by {signal.Signals(killed_by).name}."
    if outcome.exit_code != 0:
        return Status.RUNTIME_ERROR, f"{text}Exited with code {outcome.exit_code}."
    return Status.PASSED, ""


def _chunk(tests: Sequence[TestCase], start: int) -> int:
    """How many tests from `start` on go to the worker at once."""
    count = chars = 0
    for test in tests[start:]:
        chars += len(test.input)
        if count and chars > _REQUEST_CHARS:
            break
        count += 1
    return count
