"""Guarantees of the pool besides correct results: back-pressure, fairness, cancellation, cleaning up."""

import concurrent.futures
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest

from rlef_jax.execution.cores import auto_workers
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.isolation import IsolationError, Level
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.worker_factory import trial
from rlef_jax.types import Limits, Status, TestCase
from tests.helpers.host import call_itself, is_running, processes_called, tree, wait_until

LIMITS = Limits(wall_s=30.0, memory_bytes=256 << 20)
ECHO = "print(input())"
SLEEP = "import time\ntime.sleep(float(input()))\nprint('woke')"


def cases(*inputs, output=None):
    return [TestCase(str(i), str(i) if output is None else output) for i in inputs]


def test_run_waits_while_the_queue_is_full(interpreter):
    with ExecutionPool(1, interpreter, max_queue=2) as pool:
        first = pool.run(SLEEP, cases(1.5, output="woke"), LIMITS)
        assert wait_until(first.running)
        rest = []

        def submit():
            rest.extend(pool.run(ECHO, cases(i), LIMITS) for i in range(4))

        thread = threading.Thread(target=submit)
        thread.start()
        assert wait_until(lambda: pool.stats()["queue_length"] == 2)
        assert thread.is_alive() and len(rest) == 2  # the third waits for room
        thread.join(60)
        assert [f.result(60)[0].status for f in (first, *rest)] == [Status.PASSED] * 5


def test_a_callback_may_submit_to_a_full_queue(interpreter):
    with ExecutionPool(1, interpreter, max_queue=1) as pool:
        after = concurrent.futures.Future()
        first = pool.run(SLEEP, cases(0.5, output="woke"), LIMITS)
        assert wait_until(first.running)
        waiting = pool.run(ECHO, cases(1), LIMITS)  # the queue is full
        first.add_done_callback(lambda _: after.set_result(pool.run(ECHO, cases(2), LIMITS)))
        assert after.result(60).result(60)[0].status is Status.PASSED
        assert waiting.result(60)[0].status is Status.PASSED


def test_a_long_program_lets_others_go_first(interpreter):
    with ExecutionPool(1, interpreter) as pool:
        long = pool.run(SLEEP.replace("woke", "{i}"), cases(*[0.25] * 24, output="{i}"), LIMITS)
        assert wait_until(long.running)
        short = pool.run(ECHO, cases(7), LIMITS)
        assert short.result(60)[0].status is Status.PASSED
        assert not long.done()
        assert [r.status for r in long.result(60)] == [Status.PASSED] * 24
        assert pool.stats()["tests"] == 25 and pool.stats()["retries"] == 0


def test_a_test_longer_than_a_slice_is_not_begun_again(interpreter):
    with ExecutionPool(1, interpreter) as pool:
        long = pool.run(SLEEP, cases(3, 0, output="woke"), LIMITS)
        assert wait_until(long.running)
        shorts = [pool.run(ECHO, cases(i), LIMITS) for i in range(3)]
        results = long.result(60)
        assert [r.status for r in results] == [Status.PASSED] * 2
        assert results[0].wall_s >= 3
        assert all(s.result(60)[0].status is Status.PASSED for s in shorts)


def test_cancelling_a_waiting_and_a_running_program(interpreter):
    with ExecutionPool(1, interpreter) as pool:
        running = pool.run(call_itself("rlef-cancel") + SLEEP, cases(60, output="woke"), Limits(wall_s=70.0))
        waiting = pool.run(ECHO, cases(1), LIMITS)
        other = pool.run(ECHO, cases(2), LIMITS)
        assert is_running("rlef-cancel")
        assert pool.cancel(waiting) and waiting.cancelled()
        pid = pool.worker_pids()
        assert pool.cancel(running)
        with pytest.raises(concurrent.futures.CancelledError):
            running.result(30)
        assert other.result(60)[0].status is Status.PASSED
        assert not processes_called("rlef-cancel") and pool.worker_pids() == pid  # the same worker goes on
        assert not pool.cancel(other)
        assert pool.stats()["cancelled"] == 2


def test_stopping_at_the_first_failure_does_not_wait_for_the_tests_after_it(interpreter):
    with ExecutionPool(1, interpreter) as pool:
        results = pool.run(SLEEP, cases(0, output="x") + cases(20), LIMITS, stop_at_first_failure=True).result(15)
        assert [r.status for r in results] == [Status.WRONG_ANSWER]
        assert pool.run(ECHO, cases(1), LIMITS).result(60)[0].status is Status.PASSED


def test_time_per_status_is_counted(interpreter):
    with ExecutionPool(1, interpreter) as pool:
        pool.run(SLEEP, cases(0.3, 60, output="woke"), Limits(wall_s=1.0)).result(60)
        stats = pool.stats()
    assert stats["statuses"] == {"PASSED": 1, "TIME_LIMIT": 1}
    assert stats["status_s"]["PASSED"] >= 0.3 and stats["status_s"]["TIME_LIMIT"] >= 1.0
    assert stats["tests_per_s"] > 0 and stats["queue_length"] == 0


def test_a_scale_stretches_the_wall_clock_limit(interpreter):
    with ExecutionPool(1, interpreter, wall_scale=20.0) as pool:
        assert pool.run(SLEEP, cases(1, output="woke"), Limits(wall_s=0.5)).result(60)[0].status is Status.PASSED


def cgroups_of(pid):
    return [p for p in pathlib.Path("/sys/fs/cgroup").glob("**/rlef-*") if p.name.startswith(f"rlef-{pid}-")]


KEEPER = """
import sys, time
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import Limits, TestCase
if __name__ == "__main__":
    pool = ExecutionPool(2, find_python("3.10"))
    program = sys.argv[1] + "import os, time\\ntry: os.fork()\\nexcept OSError: pass\\ntime.sleep(60)"
    futures = [pool.run(program, [TestCase("", "")], Limits(wall_s=70.0)) for _ in range(3)]
    print("ready", flush=True)
    time.sleep(60)
"""


def tree_alive(pids):
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_pools_process_ends(number):
    name = f"rlef-k{int(number)}-{os.getpid()}"[:15]
    command = [sys.executable, "-c", KEEPER, call_itself(name)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    ) as p:
        try:
            assert p.stdout.readline() == "ready\n"
            assert wait_until(lambda: len(processes_called(name)) >= 2)
            family = tree([p.pid])
            cgroups = cgroups_of(p.pid)
            if isinstance(trial(Level.FULL, find_python("3.10")), str):
                assert not cgroups
            else:
                assert cgroups
        finally:
            p.send_signal(number)
    assert wait_until(lambda: not processes_called(name), 10)
    assert wait_until(lambda: not cgroups_of(p.pid), 10)
    assert wait_until(lambda: not tree_alive(family), 10)  # workers, launchers, the janitor


def test_close_leaves_no_descriptor_and_no_cgroup(interpreter):
    ExecutionPool(1, interpreter).close()  # after the first pool has loaded and cached everything
    old_descriptors = len(os.listdir("/proc/self/fd"))
    with ExecutionPool(2, interpreter) as pool:
        pool.run(ECHO, cases(1), LIMITS).result(60)
    assert len(os.listdir("/proc/self/fd")) == old_descriptors
    assert not cgroups_of(os.getpid())


def test_a_pool_sweeps_what_a_killed_janitor_could_not(interpreter):
    if isinstance(reason := trial(Level.FULL, interpreter), str):
        pytest.skip(f"no cgroups here: {reason}")
    from rlef_jax.execution import cgroups

    groups = [
        pathlib.Path(f).parent / "rlef-1-0-5" for f in cgroups.folders(5)
    ]  # process 1 exists, but with another start time
    for folder in groups:
        folder.mkdir()
    ExecutionPool(1, interpreter).close()
    assert not any(folder.exists() for folder in groups)


def test_a_level_can_be_required(interpreter):
    with pytest.raises(ValueError, match="not a valid Level"):
        ExecutionPool(1, interpreter, require="strong")
    with ExecutionPool(1, interpreter, require="process") as pool:
        assert pool.level is not None
    best = pool.level
    if best is not Level.FULL:
        with pytest.raises(IsolationError, match="full: "):
            ExecutionPool(1, interpreter, require="full")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_level_that_cannot_be_had_is_refused_with_the_reason():
    code = (
        "from rlef_jax.execution.interpreter import find_python\nfrom rlef_jax.execution.pool import ExecutionPool\n"
        "ExecutionPool(1, find_python('3.10'), require='namespaces')"
    )
    command = [sys.executable, "-m", "tests.helpers.as_user", "65534", sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode != 0
    assert "isolation 'namespaces' is not available: full: users other than one's own take root" in process.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_training_does_not_start_without_the_level_that_its_config_requires():
    arguments = [
        "--config=configs/tiny.py",
        "--config.execution.require_isolation=namespaces",
        "--workdir=/nonexistent/run",
    ]
    command = [sys.executable, "-m", "rlef_jax.train", *arguments]
    command = [sys.executable, "-m", "tests.helpers.as_user", "65534", *command]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    reason = "execution.require_isolation: isolation 'namespaces' is not available: full: users other than one's own"
    assert reason in process.stderr


@pytest.mark.parametrize("level", list(Level))
def test_every_level_judges_alike(level, interpreter):
    if isinstance(reason := trial(level, interpreter), str):
        pytest.skip(f"level {level} is not available here: {reason}")
    program = "import random\nn = int(input())\nif n == 2: 1 / 0\nprint(n, random.random())"
    with ExecutionPool(1, interpreter, level=level.value) as pool:
        assert pool.level is level
        results = pool.run(program, cases(1, 2, 3), LIMITS).result(60)
        big = pool.run("x = bytearray(1 << 30)", cases(1), LIMITS).result(60)
        loop = pool.run("while True: pass", cases(1), Limits(wall_s=1.0)).result(60)
    with ExecutionPool(1, interpreter) as best:
        expected = best.run(program, cases(1, 2, 3), LIMITS).result(60)
    assert [(r.status, r.stdout, r.error) for r in results] == [(r.status, r.stdout, r.error) for r in expected]
    assert results[1].status is Status.RUNTIME_ERROR and results[1].error.endswith(
        "ZeroDivisionError: division by zero"
    )
    assert big[0].status is Status.MEMORY_LIMIT and loop[0].status is Status.TIME_LIMIT


def test_auto_leaves_cores_to_the_model():
    assert 1 <= auto_workers() <= max(1, len(os.sched_getaffinity(0)) - 1)
