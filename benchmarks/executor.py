"""Throughput of the executor: milliseconds a test, against a new interpreter per test (`subprocess.run`).

    python benchmarks/executor.py [--quick]

Cases: a short program on many small tests as one request (public tests), the same with a stop at the first failure
(hidden tests, one message per test), many programs of three tests each through a pool of one worker per core (a
rollout's load), and a program that fails. Ours and the baseline take turns; medians over the repeats. The limit is
what this machine takes to fork and reap a minimal process that does nothing: no executor that forks can do better.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from rlef_jax.execution.interpreter import Interpreter, find_python
from rlef_jax.execution.judge import outputs_match
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import Limits, Status, TestCase

LIMITS = Limits(wall_s=10.0)
RIGHT = "a, b = map(int, input().split())\nprint(a + b)\n"
FAILING = "a, b = map(int, input().split())\nprint(a + c)\n"
TESTS = tuple(TestCase(f"{i} {i + 1}\n", f"{2 * i + 1}\n") for i in range(1000))
_FORK_LOOP = (
    "import os, sys, time\nn = int(sys.argv[1])\nstart = time.perf_counter()\nfor _ in range(n):\n"
    "    pid = os.fork()\n    if pid == 0: os._exit(0)\n    os.waitpid(pid, 0)\n"
    "print((time.perf_counter() - start) / n * 1e3)\n"
)


def subprocess_test(interpreter: Interpreter, path: str, test: TestCase) -> bool:
    """The baseline: one test in an interpreter of its own."""
    done = subprocess.run(
        [interpreter.path, "-S", path], input=test.input, capture_output=True, text=True, timeout=LIMITS.wall_s
    )
    return done.returncode == 0 and outputs_match(test.output, done.stdout)


def timed(run: Callable[[], object], tests: int) -> float:
    """Milliseconds a test of one call."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / tests * 1e3


def fork_limit(interpreter: Interpreter, repeats: int) -> float:
    """Milliseconds to fork and reap a lean process of the judge's Python that exits at once (median)."""
    command = [interpreter.path, "-I", "-S", "-c", _FORK_LOOP, "100"]
    runs = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(repeats)]
    return statistics.median(runs)


class Case:
    """One case: how ours and the baseline run `tests` tests, and what each took."""

    def __init__(self, name: str, tests: int, ours: Callable[[], object], baseline: Callable[[], object], share: int):
        self.name = name
        self.ours: list[float] = []
        self.baseline: list[float] = []
        self._sides = ((self.ours, ours, tests), (self.baseline, baseline, tests // share))

    def repeat(self) -> None:
        """Once each, one after the other."""
        for times, run, tests in self._sides:
            times.append(timed(run, tests))


def make_cases(
    interpreter: Interpreter, single: ExecutionPool, pool: ExecutionPool, path: str, size: int
) -> list[Case]:
    """All cases; the baseline runs a tenth of the tests, since each takes it so much longer."""
    share = 10

    def expect(program: str, tests: Sequence[TestCase], status: Status, stop: bool = False) -> None:
        results = single.run(program, tests, LIMITS, stop_at_first_failure=stop).result()
        assert all(result.status is status for result in results), results

    def rollout() -> None:
        futures = [pool.run(f"# {i}\n{RIGHT}", TESTS[3 * i : 3 * i + 3], LIMITS) for i in range(size // 3)]
        assert all(r.status is Status.PASSED for future in futures for r in future.result())

    def one_by_one() -> None:
        for test in TESTS[: size // share]:
            assert subprocess_test(interpreter, path, test)

    def in_threads() -> None:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            assert all(threads.map(lambda test: subprocess_test(interpreter, path, test), TESTS[: size // share]))

    return [
        Case("one program", size, lambda: expect(RIGHT, TESTS[:size], Status.PASSED), one_by_one, share),
        Case("stop at failure", size, lambda: expect(RIGHT, TESTS[:size], Status.PASSED, True), one_by_one, share),
        Case("exceptions", size, lambda: expect(FAILING, TESTS[:size], Status.RUNTIME_ERROR), one_by_one, share),
        Case(f"3 tests a program, {os.cpu_count()} workers", size // 3 * 3, rollout, in_threads, share),
    ]


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark, prints a table and a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run with small sizes")
    quick = parser.parse_args(argv).quick
    size, repeats = (60, 2) if quick else (600, 7)
    interpreter = find_python()
    with (
        ExecutionPool(1, interpreter) as single,
        ExecutionPool(os.cpu_count() or 1, interpreter) as pool,
        tempfile.TemporaryDirectory() as folder,
    ):
        path = os.path.join(folder, "solution.py")
        with open(path, "w") as f:
            f.write(RIGHT)
        cases = make_cases(interpreter, single, pool, path, size)
        for case in cases[::3]:
            case.repeat()  # warm, not counted
            case.ours.clear()
            case.baseline.clear()
        limits = [fork_limit(interpreter, repeats)]
        for _ in range(repeats):
            for case in cases:
                case.repeat()
        limits.append(fork_limit(interpreter, repeats))
    report(cases, statistics.median(limits), interpreter)


def report(cases: Sequence[Case], limit_ms: float, interpreter: Interpreter) -> None:
    """The table and the JSON line. `limit_share`: the limit as a share of our time (1 = at the limit)."""
    load = os.getloadavg()[0]
    print(f"Python {interpreter.version}, {os.cpu_count()} cores, load {load:.1f}, bare fork {limit_ms:.2f} ms")
    print(f"{'case':32} {'ours':>10} {'baseline':>10} {'ratio':>7} {'limit':>7}")
    results = []
    for case in cases:
        ours, baseline = statistics.median(case.ours), statistics.median(case.baseline)
        workers = (os.cpu_count() or 1) if "workers" in case.name else 1
        share = limit_ms / workers / ours
        print(f"{case.name:32} {ours:7.2f} ms {baseline:7.2f} ms {baseline / ours:6.1f}x {share:6.0%}")
        results.append(
            {
                "case": case.name,
                "ours": round(ours, 3),
                "baseline": round(baseline, 3),
                "ratio": round(baseline / ours, 2),
                "limit_share": round(share, 3),
                "unit": "ms/test",
            }
        )
    print(json.dumps({"benchmark": "executor", "results": results}))


if __name__ == "__main__":
    main(sys.argv[1:])
