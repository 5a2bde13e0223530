"""Memory counts when touched, not when only reserved. Pools of processes see the cores that they may use."""

import dataclasses

import pytest

from rlef_jax.execution.isolation import Level
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.worker_factory import trial
from rlef_jax.types import Limits, Status, TestCase

SMALL = Limits(wall_s=60.0, memory_bytes=256_000_000)
THREAD = (
    "import threading\nthreading.stack_size({})\nt = threading.Thread(target=print, args=(7,))\nt.start()\nt.join()"
)
RESERVING = {
    "a stack of the limit's size": THREAD.format(256 << 20),
    "a larger one": THREAD.format(512 << 20),
    "a mapping": "import mmap\nm = mmap.mmap(-1, 300 << 20)\nprint(7)",
    "many stacks": (
        "import threading\nthreading.stack_size(64 << 20)\ne = threading.Event()\n"
        "ts = [threading.Thread(target=e.wait) for _ in range(10)]\n[t.start() for t in ts]\ne.set()\nprint(7)"
    ),
}
TOUCHING = {
    "more than the limit": "x = bytearray(300 << 20)\nprint(7)",
    "a mapping": "import mmap\nm = mmap.mmap(-1, 300 << 20)\nfor i in range(0, 300 << 20, 4096): m[i] = 1\nprint(7)",
    "all there is": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "more than can be reserved": "import threading\nthreading.stack_size(1 << 30)\n"
    "ts = [threading.Thread(target=print) for _ in range(3)]\n[t.start() for t in ts]\nx = bytearray(300 << 20)",
}


@pytest.fixture(scope="module", params=list(Level))
def judge(request, interpreter):
    if isinstance(reason := trial(request.param, interpreter), str):
        pytest.skip(f"level {request.param} is not available here: {reason}")
    with ExecutionPool(1, interpreter, level=request.param.value) as pool:
        yield lambda program, limits=SMALL: pool.run(program, [TestCase("3 4\n", "7\n")], limits).result(120)[0]


@pytest.mark.parametrize("name", RESERVING)
def test_what_is_reserved_does_not_count(judge, name):
    result = judge(RESERVING[name])
    assert result.status is Status.PASSED, result


@pytest.mark.parametrize("name", TOUCHING)
def test_what_is_touched_counts(judge, name):
    result = judge(TOUCHING[name])
    assert result.status is Status.MEMORY_LIMIT, result


POOL = (
    "import multiprocessing\nif __name__ == '__main__':\n    with multiprocessing.Pool({}) as pool:\n"
    "        print(sum(pool.map(int, input().split())))"
)
EXECUTOR = (
    "from concurrent.futures import ProcessPoolExecutor\nif __name__ == '__main__':\n"
    "    with ProcessPoolExecutor({}) as pool:\n        print(sum(pool.map(int, input().split())))"
)


@pytest.mark.parametrize("program", [POOL.format(""), POOL.format(13), EXECUTOR.format(64)])
def test_pools_of_processes(pool, program):
    if pool.level is not Level.FULL:
        pytest.skip("a program is a single process where no cgroup counts memory")
    (result,) = pool.run(program, [TestCase("3 4\n", "7\n")], Limits(wall_s=60.0)).result(120)
    assert result.status is Status.PASSED, result


def test_a_pool_is_no_larger_than_its_limits(pool):
    """On a host with many cores, a pool with a process per core must stay within the limit of processes."""
    if pool.level is not Level.FULL:
        pytest.skip("a program is a single process where no cgroup counts memory")
    limits = Limits(wall_s=60.0, processes=5)
    counts = (
        "import os, multiprocessing\nprint(os.cpu_count(), multiprocessing.cpu_count(), len(os.sched_getaffinity(0)))"
    )
    for program, expected in ((counts, "1 1 1"), (POOL.format(""), "7")):
        (result,) = pool.run(program, [TestCase("3 4\n", expected)], limits).result(120)
        assert result.status is Status.PASSED, result
    (result,) = pool.run(counts, [TestCase("", "")], dataclasses.replace(limits, processes=128)).result(120)
    assert 1 <= int(result.stdout.split()[0]) <= 124
