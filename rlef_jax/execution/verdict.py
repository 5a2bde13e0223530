"""Runs a response's program and gives its Verdict, in two steps: on public tests, then on hidden ones (2.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import FunctionTest, Limits, Problem, Status, TestResult, Verdict

RESULT_BYTES = 256 << 20  # encoded size of a function problem's results; those of Mbpp/255 take 153 MB


def limits_for(problem: Problem, default: Limits, max_wall_s: float | None = None) -> Limits:
    """The problem's own time (seconds) and memory (bytes) limits, else the default ones (A.2).

    The output limit of a function problem is at least `RESULT_BYTES`, since its results count as output. `max_wall_s`
    (seconds; None or 0 for none) is an upper bound on the time limit, for small machines (ours).
    """
    wall_s = default.wall_s if problem.time_limit_s is None else problem.time_limit_s
    memory = default.memory_bytes if problem.memory_limit_bytes is None else problem.memory_limit_bytes
    function = any(isinstance(test, FunctionTest) for test in problem.tests)
    output = max(default.output_bytes, RESULT_BYTES) if function else default.output_bytes
    return dataclasses.replace(
        default, wall_s=min(wall_s, max_wall_s or wall_s), memory_bytes=memory, output_bytes=output
    )


def submit_public(pool: ExecutionPool, program: str | None, problem: Problem, limits: Limits) -> Future[Verdict]:
    """Runs a response's program on all public tests. Without a program (None) the verdict is NO_CODE.

    If the problem has no public tests, one hidden test is run only to see whether the program parses; if it does, the
    verdict is PASSED. Raises ValueError for a problem without any test.
    """
    if not problem.tests:
        raise ValueError(f"problem {problem.name!r} has no test: leave it out of the data")
    if program is None:
        return _done(Verdict(Status.NO_CODE))

    def finish(results: tuple[TestResult, ...]) -> Verdict:
        status = _status(results)
        if problem.public_tests or status in (Status.SYNTAX_ERROR, Status.INFRA_ERROR):
            return Verdict(status, public=results)
        return Verdict(Status.PASSED)

    tests = problem.public_tests or problem.hidden_tests[:1]
    return _then(pool.run(program, tests, limits, **_frame(problem)), finish)


def submit_hidden(
    pool: ExecutionPool,
    program: str | None,
    problem: Problem,
    verdict: Verdict,
    limits: Limits,
    *,
    stop_at_first_failure: bool = True,
) -> Future[Verdict]:
    """Adds the hidden tests to the public verdict of the response that ended its episode.

    Nothing is run if there is no valid code or the judge broke, nor with `stop_at_first_failure` if a public test has
    failed already.
    """
    hopeless = verdict.status in (Status.NO_CODE, Status.SYNTAX_ERROR, Status.INFRA_ERROR)
    if program is None or hopeless or (stop_at_first_failure and verdict.status is not Status.PASSED):
        return _done(verdict)

    def finish(results: tuple[TestResult, ...]) -> Verdict:
        return Verdict(_status((*verdict.public, *results)), public=verdict.public, hidden=results)

    future = pool.run(
        program, problem.hidden_tests, limits, stop_at_first_failure=stop_at_first_failure, **_frame(problem)
    )
    return _then(future, finish)


def _frame(problem: Problem) -> dict[str, Any]:
    """The frame as a keyword argument, only if there is one: other judges need not support it."""
    return {"frame": problem.frame} if problem.frame else {}


def _status(results: Sequence[TestResult]) -> Status:
    """INFRA_ERROR if any test has it, else the status of the first failure, else PASSED."""
    statuses = [result.status for result in results]
    if Status.INFRA_ERROR in statuses:
        return Status.INFRA_ERROR
    return next((status for status in statuses if status is not Status.PASSED), Status.PASSED)


def _done(verdict: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


def _then(
    future: Future[tuple[TestResult, ...]], finish: Callable[[tuple[TestResult, ...]], Verdict]
) -> Future[Verdict]:
    """A future of `finish(result)`; exceptions and cancellation pass through."""
    chained: Future[Verdict] = Future()

    def forward(done: Future[tuple[TestResult, ...]]) -> None:
        if done.cancelled():
            chained.cancel()
            chained.set_running_or_notify_cancel()
        elif (error := done.exception()) is not None:
            chained.set_exception(error)
        else:
            chained.set_result(finish(done.result()))

    future.add_done_callback(forward)
    return chained
