"""The types that all other modules use: problems, tests, verdicts, turns, episodes.

Frozen data only: nothing here reads a clock, a file or a device, or imports JAX, which a judge does without.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class TestCase:
    """One test: the program's standard input and the standard output expected of it."""

    __test__ = False  # not a pytest class

    input: str
    output: str


@dataclasses.dataclass(frozen=True)
class FunctionTest:
    """One test of a function problem: calls of `entry_point`, made in one process, and their expected results.

    Arguments and results are plain data (None, numbers, str, bytes, list, tuple, set, frozenset, dict). `compare` is
    "equal" (`==`) or another comparison of `execution.functions`; `atol` is its absolute tolerance for floats, if it
    has one. `text` is the assert as prompts and feedback show it.

    If `check` isn't empty, an assert decides instead of a comparison (`execution.checks`). Its last entry is the
    assert's source, which runs on the calls' results in a separate process; the entries before are sources that define
    the names it uses. `calls` are then the calls it made with the reference solution, and `expected` is empty.
    """

    entry_point: str
    calls: tuple[tuple[Any, ...], ...]
    expected: tuple[Any, ...]
    atol: float = 0.0
    compare: str = "equal"
    text: str = ""
    check: tuple[str, ...] = ()


Test = TestCase | FunctionTest


def stdin_tests(tests: Iterable[Test]) -> tuple[TestCase, ...]:
    """The tests of a contest problem, typed as such. Raises TypeError for tests of a function problem."""
    checked = []
    for test in tests:
        if not isinstance(test, TestCase):
            raise TypeError(f"a test of {test.entry_point} has no standard input")
        checked.append(test)
    return tuple(checked)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A contest problem in the form of CodeContests (Li et al., 2022), or a function problem.

    `time_limit_s` (seconds) and `memory_limit_bytes` are None if the source has none; the judge then uses its
    configured defaults. `tags` are for analyses to group by (family, reading, ...); no prompt shows them. `style`
    selects the wording of the dialogue: "contest" (C.1), "human_eval" (C.4), "mbpp" (C.5) or "function" (ours). Every
    response begins with the text `start`, which is part of the prompt, not sampled. `shown_tests` are asserts for the
    first prompt, if the style shows any. `frame` is empty or two texts that run before and after each program, in its
    namespace; no prompt shows them.

    Without private and generated tests the public ones decide. Without public tests there is no feedback, and the
    episode ends at the first response with valid code. A problem without any test can't be judged.
    """

    name: str
    description: str
    public_tests: tuple[Test, ...]
    private_tests: tuple[Test, ...]
    generated_tests: tuple[Test, ...] = ()
    solutions: tuple[str, ...] = ()
    incorrect_solutions: tuple[str, ...] = ()
    time_limit_s: float | None = None
    memory_limit_bytes: int | None = None
    tags: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    style: str = "contest"
    start: str = ""
    shown_tests: tuple[str, ...] = ()
    frame: tuple[str, ...] = ()

    @property
    def hidden_tests(self) -> tuple[Test, ...]:
        """Private and generated tests, which decide the reward and never enter a prompt; else the public tests."""
        return self.private_tests + self.generated_tests or self.public_tests

    @property
    def tests(self) -> tuple[Test, ...]:
        """Public, private and generated tests."""
        return self.public_tests + self.private_tests + self.generated_tests


class Status(enum.StrEnum):
    """The outcome of a program, on one test or as a whole."""

    PASSED = "PASSED"
    WRONG_ANSWER = "WRONG_ANSWER"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    TIME_LIMIT = "TIME_LIMIT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    SYNTAX_ERROR = "SYNTAX_ERROR"
    NO_CODE = "NO_CODE"
    INFRA_ERROR = "INFRA_ERROR"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one run of a program on one test (the paper's defaults: A.2).

    With `wall_patience` 1 only the wall clock counts. Above 1, a test is out of time once it has used `wall_s` seconds
    of processor time, or `wall_patience * wall_s` seconds by the wall clock, so that programs don't fail because the
    machine is busy.
    """

    wall_s: float = 10.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    processes: int = 128  # processes and threads; limits also the number of cores that programs see
    wall_patience: float = 1.0

    @property
    def longest_s(self) -> float:
        """Wall clock seconds after which a test is out of time in any case."""
        return self.wall_s * max(1.0, self.wall_patience)


@dataclasses.dataclass(frozen=True)
class TestResult:
    """The result of one program on one test.

    `stdout` may be cut, which is marked; `error` is the stack trace or message, if any. Times are in seconds.
    """

    __test__ = False

    status: Status
    stdout: str = ""
    error: str = ""
    exit_code: int | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    memory_bytes: int = 0
    stderr: str = ""  # only its end if it is long; the cut is marked


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judge's verdict on one response.

    `public` has one result per public test; it is empty without such tests or without code. `hidden` is empty unless
    this response ended its episode; it may stop at the first failure. `status` is that of the first failed test, PASSED
    if every test that was run passed, or the status of the whole program (NO_CODE, SYNTAX_ERROR, INFRA_ERROR).
    """

    status: Status
    public: tuple[TestResult, ...] = ()
    hidden: tuple[TestResult, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the response has code that parses: then it gets no penalty (section 2.2)."""
        return self.status not in (Status.NO_CODE, Status.SYNTAX_ERROR)

    @property
    def public_status(self) -> Status:
        """The outcome on the public tests alone, which feedback relates to: that of the first failed one, PASSED if
        none failed, or that of the whole program."""
        if not self.valid or self.status is Status.INFRA_ERROR or not (self.public or self.hidden):
            return self.status
        return _first_failure(self.public)

    @property
    def hidden_status(self) -> Status | None:
        """The outcome on the hidden tests alone; None where none was run."""
        return _first_failure(self.hidden) if self.hidden else None

    @property
    def public_passed(self) -> bool:
        """Whether the program ran and no public test failed: this ends an episode early."""
        ran = self.valid and self.status is not Status.INFRA_ERROR
        return ran and all(result.status is Status.PASSED for result in self.public)

    @property
    def passed(self) -> bool:
        """Whether every public and hidden test passed. False without hidden results: only a response that ended its
        episode has them, and `Problem.hidden_tests` is never empty if the problem has any test."""
        return self.status is Status.PASSED and self.public_passed and bool(self.hidden)


def _first_failure(results: Iterable[TestResult]) -> Status:
    return next((r.status for r in results if r.status is not Status.PASSED), Status.PASSED)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One prompt delta and the response to it.

    The episode's token ids are exactly the concatenation of `prompt_delta_ids` and `response_ids` over its turns. If a
    response was cut by length, the next turn's delta begins with its closing tokens, which aren't actions.

    Attributes:
      prompt_delta_ids: tokens appended to the context before the response.
      response_ids: sampled tokens, including the stop token if one was sampled.
      behavior_logp: per response token, its log-probability under the distribution it was sampled from.
      policy_version: per response token, the version of the weights that sampled it.
      finish_reason: "stop" (a stop id was sampled) or "length".
      verdict: None until judged.
      restart: the context begins anew with this turn's prompt, which holds what is still seen of earlier turns.
    """

    prompt_delta_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    behavior_logp: tuple[float, ...]
    policy_version: tuple[int, ...]
    finish_reason: str
    verdict: Verdict | None = None
    restart: bool = False


@dataclasses.dataclass(frozen=True)
class Episode:
    """One dialogue about one problem, identified by (seed, step, index).

    With a turn and a token, (seed, step, index) is the key of a random number (docs/sampler.md).

    `end` is "" while it is unfinished, then "public_passed", "turn_limit", "context" (the next prompt didn't fit) or
    "infra" (the judge broke: the episode keeps its row with weight zero).
    """

    problem: Problem
    seed: int
    step: int
    index: int
    turns: tuple[Turn, ...] = ()
    end: str = ""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All tokens in order, each exactly as prompted or sampled."""
        return tuple(i for t in self.turns for i in (*t.prompt_delta_ids, *t.response_ids))

    @property
    def stretches(self) -> tuple[int, ...]:
        """The lengths of the sequences of tokens that make up `token_ids`: each sees nothing of those before it.

        One, but where a turn began its context anew.
        """
        lengths: list[int] = []
        for turn in self.turns:
            if turn.restart or not lengths:
                lengths.append(0)
            lengths[-1] += len(turn.prompt_delta_ids) + len(turn.response_ids)
        return tuple(lengths)

    @property
    def context_ids(self) -> tuple[int, ...]:
        """The tokens that the next prompt is appended to: the last of the stretches."""
        ids = self.token_ids
        return ids[len(ids) - self.stretches[-1] :] if self.turns else ()

    @property
    def solved(self) -> bool:
        """Whether the last response passed every public and hidden test."""
        verdict = self.turns[-1].verdict if self.turns else None
        return bool(self.end) and self.end != "infra" and verdict is not None and verdict.passed
