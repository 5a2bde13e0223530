"""Turns a program's outcome on a test into a TestResult: status, cut texts, the judge's options. Pure."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

from rlef_jax.execution import child, worker
from rlef_jax.execution.functions import ALWAYS_READ_BYTES, function_failure, function_values
from rlef_jax.execution.judge import outputs_match
from rlef_jax.execution.supervisor import Outcome
from rlef_jax.types import FunctionTest, Limits, Status, TestCase, TestResult

ANY = "any"  # comparison that accepts all results: for reference solutions and the judge's own programs
KEPT_CHARS = 20_000  # length of the standard output kept in a result; all of it is judged


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """Options in which we differ from the paper's judge (CodeContests). False restores its behaviour.

    Attributes:
      clean_exit: a program that prints the right answer and then crashes, exits with a code other than 0 or exceeds a
        limit fails. The original checks standard output alone, which would reward such programs and hide their
        failure from the feedback.
      exact_integers: two integers match only if they are equal. The original compares them as doubles, so that
        neighbours above 2**53 match and a rounded answer passes.
    """

    clean_exit: bool = True
    exact_integers: bool = True


@dataclasses.dataclass(frozen=True)
class Answer(TestResult):
    """A clean run of calls (`status` is PASSED) with their results, which weren't compared with anything."""

    values: tuple[Any, ...] = ()

    def plain(self) -> TestResult:
        """The result without its values."""
        fields = (field.name for field in dataclasses.fields(TestResult))
        return TestResult(**{name: getattr(self, name) for name in fields})


def judged(outcome: Outcome, test: TestCase | FunctionTest, limits: Limits, options: JudgeOptions) -> TestResult:
    """A test's result. To pass it needs the right output and, with `options.clean_exit`, a clean end within limits.

    For calls that aren't compared (`compare` is ANY) the result has their values (see `answered`).
    """
    if isinstance(test, FunctionTest) and test.compare == ANY:
        return answered(outcome, len(test.calls), limits, limits.output_bytes)
    status, error = _status(outcome, limits)
    if isinstance(test, FunctionTest):
        if status is Status.PASSED and (failure := function_failure(test, outcome)) is not None:
            # A result may hold a lone surrogate, which can't be encoded.
            status, error = Status.WRONG_ANSWER, failure.encode("utf-8", "backslashreplace").decode()
    elif status is Status.PASSED or not options.clean_exit:
        if outputs_match(test.output, _text(outcome.stdout), exact_integers=options.exact_integers):
            status, error = Status.PASSED, ""
        elif status is Status.PASSED:
            status = Status.WRONG_ANSWER
    return _result(outcome, status, error)


def answered(outcome: Outcome, count: int, limits: Limits, longest: int = ALWAYS_READ_BYTES) -> TestResult:
    """The result of `count` calls: an `Answer` with their values, or a failed result if there are none.

    Encoded values of more than `longest` bytes aren't read.
    """
    status, error = _status(outcome, limits)
    if status is not Status.PASSED:
        return _result(outcome, status, error)
    values = function_values(outcome, count, longest)
    if isinstance(values, str):
        return _result(outcome, Status.WRONG_ANSWER, values)
    plain = _result(outcome, status, error)
    return Answer(**{field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}, values=values)


def _text(stdout: bytes) -> str:
    return stdout.decode("utf-8", "replace")


def _result(outcome: Outcome, status: Status, error: str) -> TestResult:
    stdout = _text(outcome.stdout)
    if len(stdout) > KEPT_CHARS:
        stdout = f"{stdout[:KEPT_CHARS]}...[{len(stdout) - KEPT_CHARS} characters cut]"
    return TestResult(
        status,
        stdout,
        error,
        outcome.exit_code,
        outcome.cpu_s,
        outcome.wall_s,
        outcome.memory_bytes,
        outcome.stderr.decode("utf-8", "replace"),
    )


def _late(outcome: Outcome, limits: Limits) -> bool:
    """Whether a test that ended by itself was over its time limit. Within the wall limit it may use several cores."""
    wall_clock_decides = limits.wall_patience <= 1 or outcome.cpu_s > limits.wall_s
    return outcome.wall_s > (limits.wall_s if wall_clock_decides else limits.longest_s)


def _status(outcome: Outcome, limits: Limits) -> tuple[Status, str]:
    """(status before the output is compared, error text). PASSED means that the output alone decides."""
    killed_by = -outcome.exit_code if outcome.exit_code < 0 else 0
    text = outcome.error.decode("utf-8", "replace")
    if outcome.out_of_memory:  # any process of the program may have been killed for it, not only the first
        return Status.MEMORY_LIMIT, ""
    if outcome.kind == worker.TIMED_OUT or killed_by == signal.SIGXCPU or _late(outcome, limits):
        return Status.TIME_LIMIT, ""
    if killed_by == signal.SIGXFSZ or len(outcome.stdout) > limits.output_bytes:
        return Status.OUTPUT_LIMIT, ""
    if outcome.exit_code != 0 and outcome.report == child.OUT_OF_MEMORY:
        return Status.MEMORY_LIMIT, text
    if outcome.exit_code != 0 and outcome.report == child.EXCEPTION:
        return Status.RUNTIME_ERROR, text
    text = outcome.stderr.decode("utf-8", "replace")
    text += "\n" if text and not text.endswith("\n") else ""
    if killed_by:
        return Status.RUNTIME_ERROR, f"{text}Killed by {signal.Signals(killed_by).name}."
    if outcome.exit_code != 0:
        return Status.RUNTIME_ERROR, f"{text}Exited with code {outcome.exit_code}."
    return Status.PASSED, ""
