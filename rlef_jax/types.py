"""The vocabulary of everything below: problems, tests, verdicts, turns, episodes, token batches.

Frozen data only. Nothing here reads a clock, a file or a device.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import Any

import flax.struct
import jax


@dataclasses.dataclass(frozen=True)
class TestCase:
    """One test: the program's standard input and the standard output expected of it."""

    __test__ = False  # not a pytest class

    input: str
    output: str


@dataclasses.dataclass(frozen=True)
class FunctionTest:
    """One test of a function problem: calls of `entry_point`, made in one process, and the result expected of each.

    Arguments and results are plain data (None, numbers, str, bytes, list, tuple, set, frozenset, dict). `compare` is
    "equal" (what `==` says), or one of the other ways that `execution.functions` knows; `atol` is the absolute
    tolerance for floats where that way has one. `text` is the assert as a prompt or feedback shows it.

    Where `check` isn't empty, an assert decides instead (`execution.checks`): sources of the names that it needs, and
    at last its own, which runs on the calls' results in a process of its own. `calls` are then those that it is known
    to make, and nothing is `expected`.
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
    """The tests of a contest problem, as such. Raises TypeError for those of a function problem."""
    checked = []
    for test in tests:
        if not isinstance(test, TestCase):
            raise TypeError(f"a test of {test.entry_point} has no standard input")
        checked.append(test)
    return tuple(checked)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A contest problem in the form of CodeContests (Li et al., 2022), or a function problem.

    `time_limit_s` (seconds) and `memory_limit_bytes` are None where the source has none; the judge then uses
    its configured defaults. `tags` holds what analyses group by (family, reading, ...); no prompt shows it.
    `style` says how the dialogue about it is worded: "contest" (C.1), "human_eval" (C.4), "mbpp" (C.5) or "function"
    (ours). Every response begins with the text `start`, which is given to the model, not sampled. `shown_tests` are
    the asserts that the first prompt shows, where the style has a place for them. `frame`, where there is
    one, is two texts that the benchmark runs before and behind each program, in its names; no prompt shows them.

    Where tests are missing: without private and generated tests the public ones decide; without public ones nothing can
    be shown, so that the first response with valid code is the last; a problem without any test can't be judged.
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
        """Private and generated tests: they decide the reward and never enter a prompt. Else the public ones."""
        return self.private_tests + self.generated_tests or self.public_tests

    @property
    def tests(self) -> tuple[Test, ...]:
        """All of them, each kind once."""
        return self.public_tests + self.private_tests + self.generated_tests


class Status(enum.StrEnum):
    """What became of a program, on one test or as a whole."""

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
    """What one run of a program on one test may use (the paper's defaults: A.2).

    With `wall_patience` 1 the wall clock alone decides. Above 1 a test is out of time once it has used `wall_s` seconds
    of the processor, or `wall_patience * wall_s` by the wall clock: a machine that is busy with other things fails
    nobody.
    """

    wall_s: float = 10.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    processes: int = 128  # processes and threads; programs are told of no more cores than these can keep busy
    wall_patience: float = 1.0

    @property
    def longest_s(self) -> float:
        """Seconds by the wall clock after which a test is out of time whatever it did."""
        return self.wall_s * max(1.0, self.wall_patience)


@dataclasses.dataclass(frozen=True)
class TestResult:
    """One program on one test. `stdout` is cut to a stated length; `error` is the stack trace or message, if any."""

    __test__ = False

    status: Status
    stdout: str = ""
    error: str = ""
    exit_code: int | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    memory_bytes: int = 0
    stderr: str = ""  # its end, if it is long: the cut is marked


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judge says of one response.

    `public` has one result per public test (empty if there was no code to run, or there are no such tests). `hidden`
    is empty unless this response ended its episode; it may stop at the first failure. `status` is that of the first
    test not passed, PASSED if every test that was run passed, or the status of the whole program (NO_CODE,
    SYNTAX_ERROR, INFRA_ERROR).
    """

    status: Status
    public: tuple[TestResult, ...] = ()
    hidden: tuple[TestResult, ...] = ()

    @property
    def valid(self) -> bool:
        """Whether the response held code that parses (section 2.2's condition for no penalty)."""
        return self.status not in (Status.NO_CODE, Status.SYNTAX_ERROR)

    @property
    def public_passed(self) -> bool:
        """No public test failed a program that could be run: the condition that ends an episode early."""
        ran = self.valid and self.status is not Status.INFRA_ERROR
        return ran and all(result.status is Status.PASSED for result in self.public)

    @property
    def passed(self) -> bool:
        """Every public and hidden test passed: true only for a response that ended its episode, and so has results of
        hidden tests, since `Problem.hidden_tests` are never none where there is any test."""
        return self.status is Status.PASSED and self.public_passed and bool(self.hidden)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One prompt delta and the response to it.

    The episode's token ids are the concatenation of `prompt_delta_ids` and `response_ids` over its turns, and
    nothing else. Closing tokens of a response cut by length stand at the head of the next turn's delta: they are
    not actions.

    Attributes:
      prompt_delta_ids: tokens appended to the context before the response.
      response_ids: sampled tokens, the stop token included where one was sampled.
      behavior_logp: per response token, log-probability under the distribution that it was sampled from.
      policy_version: per response token, the version of the weights that made it.
      finish_reason: "stop" (a stop id was sampled) or "length".
      verdict: None until judged.
    """

    prompt_delta_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    behavior_logp: tuple[float, ...]
    policy_version: tuple[int, ...]
    finish_reason: str
    verdict: Verdict | None = None


@dataclasses.dataclass(frozen=True)
class Episode:
    """One dialogue about one problem: (seed, step, index) name it, turns are its data.

    With a turn and a token the name is the key of a random number (docs/sampler.md).

    `end` is "" while it goes on, then "public_passed", "turn_limit", "context" (the next prompt didn't fit) or
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
    def solved(self) -> bool:
        """Whether the last response passed every public and hidden test."""
        verdict = self.turns[-1].verdict if self.turns else None
        return bool(self.end) and self.end != "infra" and verdict is not None and verdict.passed


@flax.struct.dataclass
class TokenBatch:
    """Rows for the update. B rows, T tokens a row, N turns a row (padded).

    Per-token arrays are aligned to the *predicted* token: entry [b, t] speaks of `tokens[b, t]`, whose
    distribution is read from position t - 1. Turn positions point at the last token of each turn's prompt: the
    position whose next token is the turn's first sampled one.
    """

    tokens: jax.Array  # [B, T] int32
    positions: jax.Array  # [B, T] int32
    segment_ids: jax.Array  # [B, T] int32, 0 = padding
    action_mask: jax.Array  # [B, T] float32, 1 where tokens[b, t] was sampled
    turn_index: jax.Array  # [B, T] int32, the turn that a sampled token belongs to (0 elsewhere)
    behavior_logp: jax.Array  # [B, T] float32
    old_logp: jax.Array  # [B, T] float32
    ref_logp: jax.Array  # [B, T] float32
    advantages: jax.Array  # [B, T] float32
    turn_positions: jax.Array  # [B, N] int32
    turn_mask: jax.Array  # [B, N] float32
    turn_rewards: jax.Array  # [B, N] float32, r_t without the KL term
    returns: jax.Array  # [B, N] float32, G_t
    old_values: jax.Array  # [B, N] float32
    weight: jax.Array  # [B] float32, 0 for rows that must not count (infra errors, padding rows)
