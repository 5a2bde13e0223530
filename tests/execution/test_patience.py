"""Which clock decides: the wall's alone, as in the paper, or a busy machine's victims are given their time."""

import pytest

from rlef_jax.execution.results import JudgeOptions, judged
from rlef_jax.execution.supervisor import Outcome
from rlef_jax.types import Limits, Status, TestCase

SLEEP = "import time\ntime.sleep({})\nprint(1)\n"  # like a program that the machine doesn't let run
SPIN = "import time\nwhile time.process_time() < {}:\n    pass\nprint(1)\n"


@pytest.mark.parametrize(
    "program, patience, status",
    [
        (SLEEP.format(0.7), 1.0, Status.TIME_LIMIT),
        (SLEEP.format(0.7), 6.0, Status.PASSED),
        (SLEEP.format(9.0), 6.0, Status.TIME_LIMIT),
        (SPIN.format(9.0), 60.0, Status.TIME_LIMIT),
        (SPIN.format(0.1), 60.0, Status.PASSED),
    ],
)
def test_patience_is_for_those_who_did_not_run(pool, program, patience, status):
    limits = Limits(wall_s=0.3, patience=patience)
    [result] = pool.run(program, [TestCase("", "1")], limits).result()
    assert result.status is status
    if status is Status.TIME_LIMIT:
        assert result.wall_s < limits.longest_s + 1
    if "process_time" in program:
        assert result.cpu_s < 0.3 + 0.5  # an endless loop is not waited for any longer than without patience


def test_a_program_that_ended_late_before_it_was_killed_is_late():
    def status(wall_s, cpu_s, patience):
        outcome = Outcome(b"E", b"-", False, 0, cpu_s, wall_s, 0, b"1", b"", b"")
        limits = Limits(wall_s=0.5, patience=patience)
        return judged(outcome, TestCase("", "1"), limits, JudgeOptions()).status

    assert status(0.49, 0.4, 1.0) is Status.PASSED
    assert status(0.51, 0.4, 1.0) is Status.TIME_LIMIT
    assert status(0.51, 0.4, 2.0) is Status.PASSED
    assert status(0.51, 0.505, 2.0) is Status.TIME_LIMIT
    assert status(1.01, 0.4, 2.0) is Status.TIME_LIMIT
