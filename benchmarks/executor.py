"""Throughput of the executor against a new interpreter per test: tests a second, and milliseconds of CPU a test.

    python benchmarks/executor.py [--quick] [--level LEVEL] [--workers N]

Cases: 60 mixed programs on 10 tests each (what they import and how they read differs), and one trivial program on
2000 tests. The baseline is `subprocess.run([python3.10, "-I", "-S", file])`, with as many at a time as we have workers
and no isolation at all; ours runs at the best level of isolation there is, or the one named. They take turns; medians
over the repeats. The limit is what this machine takes to fork and reap a bare interpreter that does nothing: no
executor that forks per test can do better.

The second table says where our CPU goes: in the tests' own processes, in the worker's (which fork, watch and report),
and in this process (which sends, receives and compares).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from rlef_jax.execution.cores import auto_workers
from rlef_jax.execution.interpreter import Interpreter, find_python
from rlef_jax.execution.judge import outputs_match
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import Limits, Status, TestCase

LIMITS = Limits(wall_s=10.0)
TRIVIAL = "a, b = map(int, input().split())\nprint(a + b)\n"
MIXED = (
    TRIVIAL,
    "import sys\na, b = map(int, sys.stdin.readline().split())\nsys.stdout.write(str(a + b) + '\\n')\n",
    "import sys\ndata = list(map(int, sys.stdin.read().split()))\nprint(sum(data))\n",
    "from collections import defaultdict, deque\nd = deque(map(int, input().split()))\ns = defaultdict(int)\n"
    "while d: s['x'] += d.popleft()\nprint(s['x'])\n",
    "import heapq\nh = list(map(int, input().split()))\nheapq.heapify(h)\nprint(heapq.heappop(h) + heapq.heappop(h))\n",
    "import math, bisect\na, b = map(int, input().split())\nassert math.gcd(a, b) >= 1\n"
    "assert bisect.bisect([1, 2], 3) == 2\nprint(a + b)\n",
    "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10000)\n@lru_cache(None)\ndef f(n):\n"
    "    return n if n < 2 else f(n - 1) + f(n - 2)\na, b = map(int, input().split())\nassert f(60) > 0\n"
    "print(a + b)\n",
    "from itertools import permutations\na, b = map(int, input().split())\n"
    "assert sum(1 for _ in permutations(range(5))) == 120\nprint(a + b)\n",
    "import re, string\na, b = map(int, re.findall(r'\\d+', input()))\nassert string.digits\nprint(a + b)\n",
    "from decimal import Decimal\nfrom fractions import Fraction\na, b = input().split()\n"
    "print(int(Fraction(a) + Fraction(b)) if Decimal(a) else int(b))\n",
    "import random\nfrom typing import List\ndef go(x: List[int]) -> int:\n    random.shuffle(x)\n    return sum(x)\n"
    "print(go(list(map(int, input().split()))))\n",
    "def main():\n    a, b = map(int, input().split())\n    sieve = [True] * 3000\n    for i in range(2, 55):\n"
    "        if sieve[i]: sieve[i * i :: i] = [False] * len(sieve[i * i :: i])\n    print(a + b)\n"
    "if __name__ == '__main__':\n    main()\n",
)
_FORK_LOOP = (
    "import os, sys, time\nn = int(sys.argv[1])\nstart = time.process_time()\nt = os.times()\nfor _ in range(n):\n"
    "    pid = os.fork()\n    if pid == 0: os._exit(0)\n    os.waitpid(pid, 0)\nu = os.times()\n"
    "print((sum(u[:4]) - sum(t[:4])) / n * 1e3)\n"
)

type Work = Sequence[tuple[str, tuple[TestCase, ...]]]  # programs, each with its tests


@dataclasses.dataclass
class Sample:
    """One run of a case by one side: seconds, CPU seconds in all and, for ours, in the tests and in this process."""

    wall_s: float
    cpu_s: float
    tests_cpu_s: float = 0.0
    own_cpu_s: float = 0.0


def tests_of(count: int, shift: int = 0) -> tuple[TestCase, ...]:
    """Small tests that every program here answers alike."""
    return tuple(TestCase(f"{i + 1} {i + shift}\n", f"{2 * i + shift + 1}\n") for i in range(1, count + 1))


def ours(pool: ExecutionPool, work: Work) -> Sample:
    """All programs at once through the pool."""
    pool_cpu, workers, start = time.process_time(), tree_cpu_s(pool.worker_pids()), time.perf_counter()
    futures = [pool.run(program, tests, LIMITS) for program, tests in work]
    results = [result for future in futures for result in future.result()]
    wall = time.perf_counter() - start
    pool_cpu = time.process_time() - pool_cpu
    time.sleep(0.05)  # the last programs' processes are being reaped
    workers = tree_cpu_s(pool.worker_pids()) - workers
    assert all(r.status is Status.PASSED for r in results), next(r for r in results if r.status is not Status.PASSED)
    return Sample(wall, pool_cpu + workers, sum(r.cpu_s for r in results), pool_cpu)


def baseline(
    interpreter: Interpreter, workers: int, folder: str, work: Sequence[tuple[str, Sequence[TestCase]]]
) -> Sample:
    """An interpreter per test, `workers` at a time."""
    jobs = []
    for number, (program, tests) in enumerate(work):
        path = os.path.join(folder, f"{number}.py")
        pathlib.Path(path).write_text(program)
        jobs += [(path, test) for test in tests]

    def run(job: tuple[str, TestCase]) -> bool:
        command = [interpreter.path, "-I", "-S", job[0]]
        done = subprocess.run(command, input=job[1].input, capture_output=True, text=True, timeout=LIMITS.wall_s)
        return done.returncode == 0 and outputs_match(job[1].output, done.stdout)

    children, process_cpu, start = children_cpu_s(), time.process_time(), time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        assert all(threads.map(run, jobs))
    wall = time.perf_counter() - start
    return Sample(wall, children_cpu_s() - children + time.process_time() - process_cpu)


def children_cpu_s() -> float:
    """CPU seconds of this process's children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def tree_cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds of processes, of their descendants, and of those of them that have ended."""
    total, todo = 0, list(pids)
    while todo:
        pid = todo.pop()
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += sum(map(int, fields[11:15]))
        todo += [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return total / os.sysconf("SC_CLK_TCK")


def fork_limit_ms(interpreter: Interpreter) -> float:
    """Milliseconds of CPU to fork and reap a bare interpreter that exits at once."""
    command = [interpreter.path, "-I", "-S", "-c", _FORK_LOOP, "1000"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class Case:
    """One case: what is run, how much of it by the baseline, and what each run took."""

    def __init__(self, name: str, work: Work, share: int):
        self.name, self.work = name, work
        # The baseline runs a part of the tests: of each program, or of the only one.
        self.part = [(program, tests[: max(1, len(tests) // share)]) for program, tests in work]
        self.ours: list[Sample] = []
        self.baseline: list[Sample] = []

    def per_test_ms(self, side: str, value: Callable[[Sample], float]) -> float:
        """The median of a value over the repeats, in milliseconds a test."""
        work = self.work if side == "ours" else self.part
        count = sum(len(tests) for _, tests in work)
        return statistics.median(map(value, getattr(self, side))) / count * 1e3


def main(argv: Sequence[str]) -> None:
    """Runs the benchmark, prints two tables and a last line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run with small sizes")
    parser.add_argument("--level", default="", help="the level of isolation; the best by default")
    parser.add_argument("--workers", type=int, default=0, help="0 = as execution.workers=0")
    parser.add_argument("--repeats", type=int, default=0, help="0 = 7, or 2 with --quick")
    args = parser.parse_args(argv)
    programs, per_program, trivial, repeats = (12, 3, 100, 2) if args.quick else (60, 10, 2000, 7)
    repeats = args.repeats or repeats
    workers = args.workers or auto_workers()
    interpreter = find_python()
    mixed = [(f"# {i}\n{MIXED[i % len(MIXED)]}", tests_of(per_program, i)) for i in range(programs)]
    cases = [Case("mixed programs", mixed, 2), Case("trivial program", [(TRIVIAL, tests_of(trivial))], 10)]
    limits = []
    with ExecutionPool(workers, interpreter, level=args.level) as pool, tempfile.TemporaryDirectory() as folder:
        for case in cases:
            ours(pool, case.work)  # warm, not counted
        for _ in range(repeats):
            limits.append(fork_limit_ms(interpreter))
            for case in cases:
                case.ours.append(ours(pool, case.work))
                case.baseline.append(baseline(interpreter, workers, folder, case.part))
        level = pool.level
    print(f"Python {interpreter.version}, isolation {level}, {workers} workers, {os.cpu_count()} cores", end=", ")
    print(f"load {os.getloadavg()[0]:.1f}, {repeats} repeats, bare fork {statistics.median(limits):.2f} ms of CPU")
    report(cases, statistics.median(limits))


def report(cases: Sequence[Case], limit_ms: float) -> None:
    """The tables and the JSON line. `limit_share`: the bare fork's share of our CPU (1 = at the limit)."""
    print(
        f"{'':18} {'tests/s':>9} {'baseline':>9} {'ratio':>6} | CPU ms/test {'baseline':>9} {'ratio':>6} {'limit':>6}"
    )
    results = []
    for case in cases:
        wall, base_wall = (case.per_test_ms(side, lambda s: s.wall_s) for side in ("ours", "baseline"))
        cpu, base_cpu = (case.per_test_ms(side, lambda s: s.cpu_s) for side in ("ours", "baseline"))
        print(f"{case.name:18} {1e3 / wall:9.0f} {1e3 / base_wall:9.0f} {base_wall / wall:5.1f}x |", end=" ")
        print(f"{cpu:11.2f} {base_cpu:9.2f} {base_cpu / cpu:5.1f}x {limit_ms / cpu:6.0%}")
        for unit, mine, theirs in (("tests/s", 1e3 / wall, 1e3 / base_wall), ("CPU ms/test", cpu, base_cpu)):
            ratio = mine / theirs if unit == "tests/s" else theirs / mine
            row = {"case": f"{case.name}, {unit}", "ours": round(mine, 3), "baseline": round(theirs, 3)}
            results.append({**row, "ratio": round(ratio, 2), "limit_share": round(limit_ms / cpu, 3), "unit": unit})
    print(f"\n{'CPU ms/test in':18} {'tests':>9} {'workers':>9} {'pool':>6}")
    for case in cases:
        tests, pool_cpu = (case.per_test_ms("ours", f) for f in (lambda s: s.tests_cpu_s, lambda s: s.own_cpu_s))
        workers = case.per_test_ms("ours", lambda s: s.cpu_s - s.tests_cpu_s - s.own_cpu_s)
        print(f"{case.name:18} {tests:9.2f} {workers:9.2f} {pool_cpu:6.2f}")
    print(json.dumps({"benchmark": "executor", "results": results}))


if __name__ == "__main__":
    main(sys.argv[1:])
