"""A long run of the executor: many tests, some hostile, while workers are killed. Every verdict must be right.

    python benchmarks/soak.py [--tests 200000] [--workers 2] [--kill-every 5]

2 % of the tests are hostile (1 s limits). Reports verdicts, retries, and what the process and its workers hold
(processes, descriptors, memory) over time; the last line is JSON. Exit code 1 if a verdict was wrong or something grew.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import Limits, Status, TestCase, TestResult

# Patience: on a busy machine an honest test may get no processor for a whole second.
LIMITS = Limits(wall_s=1.0, memory_bytes=128 << 20, output_bytes=1 << 16, wall_patience=3.0)
TESTS_PER_PROGRAM = 50
IN_FLIGHT = 64  # programs
HONEST = ("print(sum(map(int, input().split())))", "a, b = map(int, input().split())\nprint(a + b)")
WRONG = "a, b = map(int, input().split())\nprint(a + b + 1)"
HOSTILE = {  # program -> the statuses that are right for it
    "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass": {Status.TIME_LIMIT},
    "x = []\nwhile True: x.append(bytearray(1 << 20))": {Status.MEMORY_LIMIT},
    "while True: print('x' * 1000)": {Status.OUTPUT_LIMIT},
    "import os\nos._exit(0)": {Status.WRONG_ANSWER},
    "import os\nos.kill(os.getppid(), 9)\nos.kill(os.getppid(), 2)": {Status.WRONG_ANSWER, Status.RUNTIME_ERROR},
    "import os\nfor i in range(50): open(f'f{i}', 'w').write('x' * 10000)": {Status.WRONG_ANSWER, Status.RUNTIME_ERROR},
    "import ctypes\nctypes.string_at(8)": {Status.RUNTIME_ERROR},
    "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass": {Status.WRONG_ANSWER, Status.RUNTIME_ERROR},
    "x = (": {Status.SYNTAX_ERROR},
    "while True: pass": {Status.TIME_LIMIT},
}


def main(argv: Sequence[str]) -> int:
    """Runs the soak and prints what it saw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds between killings of a worker")
    args = parser.parse_args(argv)
    rng = random.Random(0)
    start = time.monotonic()
    with ExecutionPool(args.workers, find_python()) as pool:
        print(f"isolation {pool.level}, {pool.stats()['workers']} workers")
        soak = Soak(pool, rng)
        killer = threading.Thread(target=kill_workers, args=(pool, args.kill_every, soak.over), daemon=True)
        killer.start()
        soak.run(args.tests)
        soak.over.set()
        killer.join()
        report = soak.report(time.monotonic() - start)
    print(json.dumps({"soak": report}))
    return 0 if not report["wrong"] and not report["grown"] else 1


class Soak:
    """Programs in flight, and what became of those before them."""

    def __init__(self, pool: ExecutionPool, rng: random.Random):
        self.pool, self.rng = pool, rng
        self.over = threading.Event()
        self.wrong: list[str] = []
        self.statuses: collections.Counter[str] = collections.Counter()
        self.holdings: list[dict[str, int]] = []

    def run(self, count: int) -> None:
        """Runs about `count` tests."""
        flying: collections.deque[tuple[Future, tuple[TestCase, ...], set[Status]]] = collections.deque()
        begun = done = 0
        shown = time.monotonic()
        while begun < count or flying:
            while begun < count and len(flying) < IN_FLIGHT:
                program, tests, allowed = self.pick()
                flying.append((self.pool.run(program, tests, LIMITS), tests, allowed))
                begun += len(tests)
            future, tests, allowed = flying.popleft()
            done += len(tests)
            self.check(future.result(), tests, allowed)
            if time.monotonic() - shown > 30:
                shown = time.monotonic()
                self.look(done)

    def pick(self) -> tuple[str, tuple[TestCase, ...], set[Status]]:
        """The next program: a hostile one gets a single test, so that one in fifty tests is hostile."""
        if self.rng.random() < 0.5:
            program = self.rng.choice(list(HOSTILE))
            return program, (TestCase("1 2", "3"),), HOSTILE[program]
        numbers = [(self.rng.randrange(10**6), self.rng.randrange(10**6)) for _ in range(TESTS_PER_PROGRAM)]
        tests = tuple(TestCase(f"{a} {b}", str(a + b)) for a, b in numbers)
        if self.rng.random() < 0.1:
            return WRONG, tests, {Status.WRONG_ANSWER}
        return self.rng.choice(HONEST), tests, {Status.PASSED}

    def check(self, results: Sequence[TestResult], tests: Sequence[TestCase], allowed: set[Status]) -> None:
        """Notes what isn't as it must be."""
        if len(results) != len(tests):
            self.wrong.append(f"{len(results)} results for {len(tests)} tests")
        for result in results:
            self.statuses[result.status.value] += 1
            if result.status not in allowed:
                took = f"{result.cpu_s:.2f} s of the processor in {result.wall_s:.2f} s"
                self.wrong.append(f"{result.status}: {result.error[-200:]}, not one of {sorted(allowed)}, {took}")
                print(f"wrong: {self.wrong[-1]}", flush=True)

    def look(self, done: int) -> None:
        """Notes what this process and its workers hold now."""
        pids = family()
        status = pathlib.Path("/proc/self/status").read_text()
        memory = int(status.split("VmRSS:")[1].split()[0]) // 1024
        held = {"processes": len(pids), "descriptors": len(os.listdir("/proc/self/fd")), "MB": memory}
        self.holdings.append(held)
        retries = self.pool.stats()["retries"]
        print(f"{done} tests, {len(self.wrong)} wrong, {retries} workers killed at work, {held}", flush=True)

    def report(self, seconds: float) -> dict:
        """The result as data. What is held counts as grown if its later half's median exceeds the first's clearly."""
        grown = {}
        half = len(self.holdings) // 2
        for name in ("processes", "descriptors", "MB") if half else ():
            before, after = (
                sorted(h[name] for h in part)[half // 2] for part in (self.holdings[:half], self.holdings[half:])
            )
            if after > before * 1.2 + 10:
                grown[name] = [before, after]
        stats = self.pool.stats()
        rate = round(stats["tests"] / seconds, 1)
        return {
            "tests": stats["tests"],
            "seconds": round(seconds),
            "tests_per_s": rate,
            "retries": stats["retries"],
            "statuses": dict(self.statuses),
            "wrong": self.wrong[:10],
            "grown": grown,
            "held": self.holdings[-1:],
        }


def family() -> set[int]:
    """This process's descendants."""
    pids, todo = set(), [os.getpid()]
    while todo:
        for task in pathlib.Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                new = {int(pid) for pid in task.read_text().split()} - pids
                pids |= new
                todo += new
    return pids


def kill_workers(pool: ExecutionPool, every: float, over: threading.Event) -> None:
    """SIGKILL to the oldest worker, again and again.

    `every` is longer than any test may take: whichever worker takes up a program that was hit, it ends before it is hit
    four times in a row, after which the pool rightly gives up.
    """
    first_turn: dict[int, int] = {}  # pid -> when it was first seen
    for turn in itertools.count():
        if over.wait(every):
            return
        pids = pool.worker_pids()
        first_turn = {pid: first_turn.get(pid, turn) for pid in pids}
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(min(pids, key=lambda pid: first_turn[pid]), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
