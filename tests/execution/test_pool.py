"""The pool: order, early stops, broken workers, closing without leftovers; and verdicts made with it."""

import concurrent.futures
import os
import signal
import threading
import time

import pytest

from rlef_jax.execution.interpreter import Interpreter, InterpreterNotFoundError, find_python
from rlef_jax.execution.pool import RETRIES, ExecutionPool, PoolClosedError
from rlef_jax.execution.verdict import limits_for, submit_hidden, submit_public
from rlef_jax.types import Limits, Problem, Status, TestCase
from tests.helpers.host import call_itself, descendants, is_running, processes_called, wait_until

LIMITS = Limits(wall_s=30.0, memory_bytes=256 << 20, output_bytes=1 << 16, processes=8)
DOUBLE = "print(2 * int(input()))"
TESTS = [TestCase(str(i), str(2 * i)) for i in range(5)]


def problem(public, hidden):
    return Problem("p", "", tuple(public), tuple(hidden[:1]), tuple(hidden[1:]))


def test_results_come_in_the_tests_order_from_many_threads(pool):
    def ask(k):
        tests = [TestCase(str(i), str(i + k) if i % 3 else "no") for i in range(4)]
        return pool.run(f"print(int(input()) + {k})", tests, LIMITS).result(timeout=60)

    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        for k, results in enumerate(threads.map(ask, range(12))):
            assert [r.stdout.strip() for r in results] == [str(i + k) for i in range(4)]
            assert [r.status is Status.PASSED for r in results] == [False, True, True, False]


def test_stops_at_the_first_failure_only_if_asked(run):
    tests = [("1", "2"), ("2", "4"), ("3", "no"), ("4", "8")]
    assert [r.status for r in run(DOUBLE, *tests, stop=True)] == [Status.PASSED] * 2 + [Status.WRONG_ANSWER]
    assert len(run(DOUBLE, *tests)) == 4
    assert [r.status for r in run("x = (", *tests, stop=True)] == [Status.SYNTAX_ERROR]
    assert [r.status for r in run("x = (", *tests)] == [Status.SYNTAX_ERROR] * 4
    assert len(run(DOUBLE, *tests[:2], stop=True)) == 2


def test_no_tests_no_results(pool):
    assert pool.run(DOUBLE, [], LIMITS).result(timeout=60) == ()


def test_the_program_of_a_request_is_the_one_that_runs(run):
    for program, output in [
        ("print(1)", "1"),
        ("print(1)", "1"),
        ("", ""),
        ("x = (", None),
        ("", ""),
        ("print(2)", "2"),
    ]:
        for _ in range(3):  # both workers have run another program before
            (result,) = run(program, ("", output or ""))
            assert result.status is (Status.SYNTAX_ERROR if output is None else Status.PASSED)


def test_a_killed_worker_changes_no_result(interpreter):
    slow = f"{call_itself('rlef-slow-1')}import time\nn = int(input())\nif n == 2: time.sleep(2)\nprint(2 * n)"
    with ExecutionPool(1, interpreter) as pool:
        future = pool.run(slow, TESTS, Limits(wall_s=70.0, memory_bytes=256 << 20))
        assert is_running("rlef-slow-1")
        time.sleep(0.5)  # during the test that sleeps
        for pid in pool.worker_pids():
            os.kill(pid, signal.SIGKILL)
        results = future.result(timeout=60)
        assert [r.status for r in results] == [Status.PASSED] * 5
        assert [r.stdout for r in results] == [f"{t.output}\n" for t in TESTS]
        assert pool.stats()["retries"] == 1


def test_a_worker_that_always_breaks_is_an_infrastructure_error_not_a_failure(interpreter):
    name = "rlef-slow-2"
    sleep = f"    {call_itself(name)}    import time; time.sleep(60)"
    program = f"n = int(input())\nif n == 2:\n{sleep}\nprint(2 * n)"
    with ExecutionPool(1, interpreter) as pool:
        future = pool.run(program, TESTS, Limits(wall_s=70.0))
        for _ in range(1 + RETRIES):
            assert is_running(name)
            for pid in pool.worker_pids():
                os.kill(pid, signal.SIGKILL)
            assert wait_until(lambda: not processes_called(name))
        results = future.result(timeout=60)
        assert [r.status for r in results] == [Status.PASSED] * 2 + [Status.INFRA_ERROR] * 3
        assert pool.run(DOUBLE, TESTS, LIMITS).result(timeout=60)[2].status is Status.PASSED  # the next one is fine


def test_an_interpreter_that_does_not_run_is_an_infrastructure_error(tmp_path):
    with ExecutionPool(1, Interpreter(str(tmp_path / "python"), "3.10.0")) as pool:
        results = pool.run(DOUBLE, TESTS, LIMITS).result(timeout=60)
        stopped = pool.run(DOUBLE, TESTS, LIMITS, stop_at_first_failure=True).result(timeout=60)
    assert [r.status for r in results] == [Status.INFRA_ERROR] * 5
    assert "could not be started" in results[0].error or "process: " in results[0].error
    assert len(stopped) == 1


def test_close_leaves_no_process_or_thread_behind(interpreter):
    old_threads, threads = descendants(), threading.active_count()
    pool = ExecutionPool(2, interpreter)
    pool.run("import os\nopen('x', 'w').close()\nos.fork()", TESTS, LIMITS).result(timeout=60)
    running = [pool.run("import time; time.sleep(60)", TESTS, Limits(wall_s=70.0)) for _ in range(2)]
    waiting = pool.run(DOUBLE, TESTS, LIMITS)
    while not all(f.running() for f in running):
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(descendants() - old_threads) >= 4  # workers and programs
    pool.close()
    pool.close()
    assert waiting.cancelled()
    for future in running:
        assert isinstance(future.exception(timeout=10), PoolClosedError)
    with pytest.raises(PoolClosedError):
        pool.run(DOUBLE, TESTS, LIMITS)
    deadline = time.monotonic() + 5
    while descendants() - old_threads and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not descendants() - old_threads
    assert threading.active_count() == threads


def test_stats_count_every_test(interpreter):
    with ExecutionPool(1, interpreter) as pool:
        pool.run(DOUBLE, [*TESTS, TestCase("1", "1")], LIMITS).result(timeout=60)
        stats = pool.stats()
    assert stats["tests"] == 6
    assert stats["statuses"] == {"PASSED": 5, "WRONG_ANSWER": 1}
    assert stats["retries"] == 0
    assert stats["busy_s"] > 0


def test_at_least_one_worker(interpreter):
    with pytest.raises(ValueError, match="at least 1"):
        ExecutionPool(0, interpreter)


def test_verdict_of_a_right_program(pool):
    p = problem(TESTS[:2], TESTS[2:])
    verdict = submit_public(pool, DOUBLE, p, LIMITS).result(timeout=60)
    assert verdict.public_passed and verdict.valid and not verdict.passed  # not before the hidden tests
    final = submit_hidden(pool, DOUBLE, p, verdict, LIMITS).result(timeout=60)
    assert final.passed and len(final.public) == 2 and len(final.hidden) == 3


def test_verdict_fails_by_the_first_failed_test(pool):
    only_small = "n = int(input())\nprint(2 * n if n < 3 else 1 // 0)"
    p = problem(TESTS[:2], TESTS[2:])
    verdict = submit_public(pool, only_small, p, LIMITS).result(timeout=60)
    assert verdict.public_passed
    final = submit_hidden(pool, only_small, p, verdict, LIMITS).result(timeout=60)
    assert final.status is Status.RUNTIME_ERROR and not final.passed
    assert [r.status for r in final.hidden] == [Status.PASSED, Status.RUNTIME_ERROR]
    all_tests = submit_hidden(pool, only_small, p, verdict, LIMITS, stop_at_first_failure=False).result(timeout=60)
    assert len(all_tests.hidden) == 3 and all_tests.status is Status.RUNTIME_ERROR


def test_verdict_without_a_program_or_with_failed_public_tests(pool):
    p = problem(TESTS[:2], TESTS[2:])
    none = submit_public(pool, None, p, LIMITS).result(timeout=0)
    assert none.status is Status.NO_CODE and not none.valid
    assert submit_hidden(pool, None, p, none, LIMITS).result(timeout=0) == none
    broken = submit_public(pool, "x = (", p, LIMITS).result(timeout=60)
    assert broken.status is Status.SYNTAX_ERROR and not broken.valid and len(broken.public) == 2
    wrong = submit_public(pool, "print(0)", p, LIMITS).result(timeout=60)
    assert [r.status for r in wrong.public] == [Status.PASSED, Status.WRONG_ANSWER]
    assert wrong.status is Status.WRONG_ANSWER and wrong.valid and not wrong.public_passed
    assert submit_hidden(pool, "print(0)", p, wrong, LIMITS).result(timeout=60) == wrong
    all_tests = submit_hidden(pool, "print(0)", p, wrong, LIMITS, stop_at_first_failure=False).result(timeout=60)
    assert len(all_tests.hidden) == 3 and not all_tests.passed


def test_any_infrastructure_error_is_the_verdicts(tmp_path):
    p = problem(TESTS[:2], TESTS[2:])
    with ExecutionPool(1, Interpreter(str(tmp_path / "python"), "3.10.0")) as pool:
        verdict = submit_public(pool, DOUBLE, p, LIMITS).result(timeout=60)
        assert verdict.status is Status.INFRA_ERROR
        assert submit_hidden(pool, DOUBLE, p, verdict, LIMITS).result(timeout=60) == verdict
        future = submit_public(pool, DOUBLE, p, LIMITS)
    assert future.cancelled() or future.exception() is not None or future.result().status is Status.INFRA_ERROR


def test_limits_are_the_problems_own_where_it_has_them():
    default = Limits(wall_s=10.0, memory_bytes=1 << 30)
    bare = problem(TESTS, TESTS)
    limited = Problem("q", "", (), (), time_limit_s=2.0, memory_limit_bytes=64 << 20)
    assert limits_for(bare, default) == default
    assert limits_for(limited, default) == Limits(wall_s=2.0, memory_bytes=64 << 20)
    assert limits_for(limited, default, max_wall_s=1.5).wall_s == 1.5
    assert limits_for(limited, default, max_wall_s=0).wall_s == 2.0
    assert limits_for(bare, default, max_wall_s=60).wall_s == 10.0


def test_an_interpreter_counts_once_it_has_run(tmp_path, monkeypatch):
    shim = tmp_path / "python3.77"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(InterpreterNotFoundError, match=r"uv python install 3\.77"):
        find_python("3.77", required=True)
    with pytest.warns(UserWarning, match=r"no Python 3\.77 runs"):
        fallback = find_python("3.77")
    assert fallback.version.startswith("3.")
