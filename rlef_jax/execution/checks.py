"""Judges tests with a `check`: a published assert, evaluated on a program's results in a separate process.

Such an assert may accept many results (`math.isclose(f(10), 62.83, rel_tol=0.001)`, `abs(f(2) - 2) < 0.5`, a loop), so
the assert itself decides. In each round the program makes calls, then `checker.py` evaluates the assert on their
results: it passes, fails, or needs a further call. The program's process never sees the assert, and the assert's
process never runs the program. Both run in a worker under the test's limits, since some results make an assert run for
ever.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from rlef_jax.execution import calls
from rlef_jax.execution.functions import inequality
from rlef_jax.execution.results import Answer, answered
from rlef_jax.types import FunctionTest, Limits, Status, TestResult

if TYPE_CHECKING:
    from rlef_jax.execution.supervisor import Outcome

ROUNDS = 100  # rounds of calls and assert, for an assert whose calls depend on results
# Rounds after the program failed on a call that the reference made: with this program, the assert may not make it.
_ROUNDS_ALONE = 8
_TIMES = 3  # time limit of all rounds together, in units of the test's limit
_BYTES = 256 << 20  # largest size of encoded calls with their results
_LIMITS = (Status.TIME_LIMIT, Status.MEMORY_LIMIT, Status.OUTPUT_LIMIT)


@dataclasses.dataclass(frozen=True)
class CallRequest:
    """Calls to make (bytes of `calls.encode`), with the judge's own `program`; "" means the judged program."""

    data: bytes
    program: str = ""


type Steps = Generator[CallRequest, Outcome, TestResult]


@functools.cache
def checker() -> str:
    """The source text of `checker.py`, the program that evaluates asserts."""
    return (pathlib.Path(__file__).parent / "checker.py").read_text(encoding="utf-8")


def steps(test: FunctionTest, limits: Limits) -> Steps:
    """Judges a test with a `check`: yields what to run, is sent its outcome, returns the result. Pure."""
    try:
        return (yield from _steps(test, limits))
    except calls.CodecError as exc:  # results that fit when sent alone, but not with their calls
        return TestResult(Status.WRONG_ANSWER, error=f"No verdict: {exc}.")


def _steps(test: FunctionTest, limits: Limits) -> Steps:
    planned: list[Any] = [list(arguments) for arguments in test.calls]
    recorded: list[list[Any]] = []
    from_reference = len(planned) > 1  # recorded with the reference; with this program the assert may make others
    result, first_failure, spent_s, rounds = TestResult(Status.PASSED), None, 0.0, ROUNDS
    while rounds:
        rounds -= 1
        if planned:
            answer = answered((yield CallRequest(_encode(test.entry_point, planned))), len(planned), limits)
            spent_s += answer.wall_s
            if not isinstance(answer, Answer):
                if not from_reference:
                    return answer
                planned, from_reference, first_failure, rounds = [], False, answer, _ROUNDS_ALONE
                continue
            result, recorded = answer.plain(), [[*_parts(c), v] for c, v in zip(planned, answer.values, strict=True)]
        reply = answered((yield _verdict_request(test, recorded)), 1, limits)
        decision = _decision(reply, result)
        if isinstance(decision, TestResult):
            return decision
        if spent_s > _TIMES * limits.longest_s:
            return dataclasses.replace(result, status=Status.TIME_LIMIT)
        at, arguments, keywords = decision
        planned, from_reference = [_call(*recorded[i][:2]) for i in range(at)] + [_call(arguments, keywords)], False
    error = f"No verdict: the assert wants more than {ROUNDS} rounds of calls."
    return first_failure or dataclasses.replace(result, status=Status.WRONG_ANSWER, error=error)


def _verdict_request(test: FunctionTest, recorded: list[list[Any]]) -> CallRequest:
    return CallRequest(_encode("verdict", [[test.check, test.entry_point, recorded]]), checker())


def _encode(entry_point: str, call_list: list[Any]) -> bytes:
    return calls.encode([entry_point, call_list], _BYTES)


def _call(arguments: list[Any], keywords: dict[str, Any]) -> Any:
    """A call in the form of `calls.call_results`."""
    return (arguments, keywords) if keywords else arguments


def _parts(call: Any) -> tuple[list[Any], dict[str, Any]]:
    return call if isinstance(call, tuple) else (call, {})


def _decision(reply: TestResult, result: TestResult) -> TestResult | tuple[int, list[Any], dict[str, Any]]:
    """The test's result by the checker's reply, or the further call that the assert needs.

    `result` is that of the program's last run.
    """
    if not isinstance(reply, Answer):
        if reply.status in _LIMITS:
            return dataclasses.replace(result, status=reply.status, error="")
        reason = reply.error.split("\n")[-1]
        return dataclasses.replace(result, status=Status.WRONG_ANSWER, error=f"No verdict of the assert: {reason}")
    ((kind, *rest),) = reply.values
    if kind == "call":
        return rest[0], rest[1], rest[2]
    if kind == "passed":
        return result
    text = inequality(rest[0], rest[1], rest[2]) if kind == "unequal" else rest[0]
    return dataclasses.replace(result, status=Status.WRONG_ANSWER, error=text)
