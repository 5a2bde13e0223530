"""Runs reference solutions in the judge while a benchmark is read, many at a time.

A reader that needs such runs is a generator: it yields a list of runs, is sent their results, and returns the value
that it read. `finished` advances many readers concurrently: while one waits for its results, others go on.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from rlef_jax.execution.results import ANY, Answer
from rlef_jax.types import FunctionTest, Limits, Status, TestResult

if TYPE_CHECKING:
    from rlef_jax.execution.pool import ExecutionPool

# For one run, a few calls of a reference, of which the longest takes 8 to 11 s of a processor. With wall_patience, so
# that a busy machine can't make reading fail.
LIMITS = Limits(wall_s=20.0, memory_bytes=4 << 30, output_bytes=256 << 20, wall_patience=20.0)
_FAILURES = {
    Status.TIME_LIMIT: f"did not end within {LIMITS.wall_s:.0f} s",
    Status.MEMORY_LIMIT: f"took more than {LIMITS.memory_bytes >> 30} GB of memory",
    Status.OUTPUT_LIMIT: "printed without end",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """Calls of a program's function, made in one process."""

    program: str
    entry_point: str
    calls: tuple[tuple[Any, ...], ...]


# A run's future holds one result: an `Answer`, or the failure.
type Runner = Callable[[Run], Future[tuple[TestResult, ...]]]
type Reading[T] = Generator[Sequence[Run], Sequence[TestResult], T]


def finished[T](readings: Sequence[Reading[T]], runner: Runner) -> list[T]:
    """The readings' return values, in order. Their exceptions propagate."""
    ended: dict[int, T] = {}
    waiting: collections.deque[tuple[int, list[Future[tuple[TestResult, ...]]]]] = collections.deque()

    def go_on(i: int, futures: list[Future[tuple[TestResult, ...]]] | None) -> None:
        reading = readings[i]
        try:
            try:
                results = [future.result()[0] for future in futures or ()]
            except ValueError as error:  # arguments that can't be sent
                runs = reading.throw(error)
            else:
                runs = next(reading) if futures is None else reading.send(results)
            waiting.append((i, [runner(run) for run in runs]))
        except StopIteration as end:
            ended[i] = end.value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # published solutions have invalid escape sequences
        for i in range(len(readings)):
            go_on(i, None)
        while waiting:
            go_on(*waiting.popleft())
    return [ended[i] for i in range(len(readings))]


def values(result: TestResult, name: str) -> tuple[Any, ...]:
    """The values that a run's calls returned. Raises ValueError if it failed, with `name` for the program."""
    if isinstance(result, Answer):
        return result.values
    if result.status is Status.INFRA_ERROR:
        raise ValueError(f"the judge could not run {name}: {result.error}")
    lines = [line.strip() for line in result.error.split("\n") if line.strip()]
    raise ValueError(
        f"{name} {_FAILURES.get(result.status) or f'fails: {lines[-1][:300] if lines else result.status}'}"
    )


@contextlib.contextmanager
def running(make_pool: Callable[[], ExecutionPool]) -> Iterator[Runner]:
    """A runner in a pool of the judge's workers, which starts at the first run."""
    with contextlib.ExitStack() as stack:
        pools: list[ExecutionPool] = []

        def run(request: Run) -> Future[tuple[TestResult, ...]]:
            if not pools:
                pools.append(stack.enter_context(make_pool()))
            return runner_of(pools[0])(request)

        yield run


def runner_of(pool: ExecutionPool) -> Runner:
    """A runner in an existing pool."""
    return lambda run: pool.run(run.program, [FunctionTest(run.entry_point, run.calls, (), compare=ANY)], LIMITS)
