"""Time limits: by wall clock alone, as in the paper, or with `wall_patience` for busy machines."""

import pytest

from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.results import JudgeOptions, judged
from rlef_jax.execution.supervisor import Outcome
from rlef_jax.types import Limits, Status, TestCase

SLEEP = "import time\ntime.sleep({})\nprint(1)\n"  # like a program on a busy machine
SPIN = "import time\nwhile time.process_time() < {}:\n    pass\nprint(1)\n"


@pytest.mark.parametrize(
    "program, patience, status",
    [
        (SLEEP.format(0.7), 1.0, Status.TIME_LIMIT),
        (SLEEP.format(0.7), 6.0, Status.PASSED),
        (SLEEP.format(9.0), 6.0, Status.TIME_LIMIT),
        (SLEEP.format(90.0), 60.0, Status.TIME_LIMIT),
        ("import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()", 60.0, Status.TIME_LIMIT),
        (SPIN.format(9.0), 60.0, Status.TIME_LIMIT),
        (SPIN.format(0.1), 60.0, Status.PASSED),
    ],
)
def test_patience_is_for_those_who_did_not_run(pool, program, patience, status):
    limits = Limits(wall_s=0.3, wall_patience=patience)
    [result] = pool.run(program, [TestCase("", "1")], limits).result()
    assert result.status is status
    if status is Status.TIME_LIMIT:
        # A test that is idle for a second is ended: the patience is for tests that wait for the processor.
        assert result.wall_s < min(limits.longest_s, limits.wall_s + 2) + 1
    if "process_time" in program:
        assert result.cpu_s < 0.3 + 0.5  # an endless loop takes no longer than without patience


def test_a_program_that_ended_late_before_it_was_killed_is_late():
    def status(wall_s, cpu_s, patience):
        outcome = Outcome(b"E", b"-", False, 0, cpu_s, wall_s, 0, b"1", b"", b"")
        limits = Limits(wall_s=0.5, wall_patience=patience)
        return judged(outcome, TestCase("", "1"), limits, JudgeOptions()).status

    assert status(0.49, 0.4, 1.0) is Status.PASSED
    assert status(0.51, 0.4, 1.0) is Status.TIME_LIMIT
    assert status(0.51, 0.4, 2.0) is Status.PASSED
    assert status(0.51, 0.505, 2.0) is Status.TIME_LIMIT
    assert status(1.01, 0.4, 2.0) is Status.TIME_LIMIT
    assert status(0.49, 1.6, 2.0) is Status.PASSED  # four cores at work, within the limit


def test_many_programs_on_little_of_a_processor_all_have_their_time(interpreter):
    """Twelve programs at a time with a fortieth of a core each: tests end late and pass."""
    program = "import time\nt = time.process_time()\nwhile time.process_time() - t < 0.05: pass\nprint(1)"
    with ExecutionPool(24, interpreter) as pool:
        futures = [pool.run(program, [TestCase("", "1")], Limits(wall_s=0.1, wall_patience=50.0)) for _ in range(72)]
        results = [future.result(120)[0] for future in futures]
    assert {r.status for r in results} == {Status.PASSED}
    assert max(r.wall_s for r in results) > 0.1  # else nothing was tested
