"""Dialogues about MiniContests for the supervised warm start, with failed attempts, feedback and repairs.

Two simulated authors write them. The *careful* one, marked by a system line, always repairs correctly after a failure.
The other has no system line, makes more mistakes and rarely repairs correctly. A model trained on both can use
feedback (the system line makes it do so) but seldom does without that line: this is where RLEF starts from.

Everything is a pure function of (seed, index). The generated programs are our own and run in this process.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from rlef_jax.data.mini_contests import problem_at
from rlef_jax.data.mini_contests.trusted import run_trusted
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.dialog.prompts import problem_prompt
from rlef_jax.execution.judge import outputs_match
from rlef_jax.types import Problem, Status, TestCase, TestResult, Verdict, stdin_tests

CAREFUL = "You are a careful author."
_NO_CODE = "I do not know."
_ENDLESS, _HUGE = "while True:", "10 ** 10"


@dataclasses.dataclass(frozen=True)
class Author:
    """Probabilities that describe an author.

    The first response has a wrong program with probability `slips`, one that crashes or never ends with `breaks`, and
    no program with `no_code`. A repair is correct with probability `right_repairs`. Every other program follows the
    statement's first reading (the one most people would choose) with probability `habit`, else any reading.
    """

    slips: float
    breaks: float
    no_code: float
    right_repairs: float
    habit: float = 0.0


def authors(right_repairs: float, habit: float = 0.0) -> dict[bool, Author]:
    """{marked: author}: True is the careful author, who has a system line."""
    return {
        True: Author(slips=0.04, breaks=0.01, no_code=0.002, right_repairs=1.0),
        False: Author(slips=0.15, breaks=0.02, no_code=0.01, right_repairs=right_repairs, habit=habit),
    }


@dataclasses.dataclass(frozen=True)
class Dialogue:
    """A dialogue as token ids; `action_mask` is 1 for the author's tokens, `responses` are their texts."""

    ids: tuple[int, ...]
    action_mask: tuple[int, ...]
    problem: Problem
    responses: tuple[str, ...]
    passed: tuple[bool, ...]


def respond(program: str) -> str:
    """The response text: `program` in a fenced block, as the prompt asks."""
    return f"```python\n{program}\n```"


def trusted_verdict(problem: Problem, program: str) -> Verdict:
    """The verdict on one of our own programs on the public tests, without the sandbox."""
    results = []
    for test in stdin_tests(problem.public_tests):
        if _ENDLESS in program:
            results.append(TestResult(Status.TIME_LIMIT))
        elif _HUGE in program:
            results.append(TestResult(Status.MEMORY_LIMIT))
        else:
            run = run_trusted(program, test.input)
            if run.error:
                results.append(TestResult(Status.RUNTIME_ERROR, stdout=run.output, error=run.error))
            else:
                match = outputs_match(test.output, run.output)
                results.append(TestResult(Status.PASSED if match else Status.WRONG_ANSWER, stdout=run.output))
    failed = [r.status for r in results if r.status is not Status.PASSED]
    return Verdict(failed[0] if failed else Status.PASSED, public=tuple(results))


def with_reading(problem: Problem, reading: int) -> Problem:
    """The same statement and inputs with another reading as the correct one (public tests only)."""
    programs = problem.tags["readings"]
    tests = tuple(
        TestCase(t.input, run_trusted(programs[reading], t.input).output.removesuffix("\n"))
        for t in stdin_tests(problem.public_tests)
    )
    return dataclasses.replace(
        problem,
        public_tests=tests,
        private_tests=(),
        generated_tests=(),
        solutions=(programs[reading],),
        tags={**problem.tags, "reading": reading},
    )


class ChatLike(Protocol):
    """The part of `dialog.chat.ChatFormat` that `write_dialogue` uses: messages to token ids."""

    def first_prompt(self, user: str, system: str = "") -> list[int]: ...
    def next_prompt(self, user: str, *, closed: bool) -> list[int]: ...
    def response(self, text: str) -> list[int]: ...


def write_dialogue(
    problem: Problem, author: Author, system: str, chat: ChatLike, rng: np.random.Generator, max_turns: int = 3
) -> Dialogue:
    """One dialogue. It ends with a program that passes the public tests, or at the turn limit."""
    ids = chat.first_prompt(problem_prompt(problem.description), system)
    mask = [0] * len(ids)
    responses: list[str] = []
    passed: list[bool] = []
    for turn in range(max_turns):
        program = _first(problem, author, rng) if turn == 0 else _repair(problem, author, rng)
        text = _NO_CODE if program is None else respond(program)
        response_ids = chat.response(text)
        ids += response_ids
        mask += [1] * len(response_ids)
        verdict = Verdict(Status.NO_CODE) if program is None else trusted_verdict(problem, program)
        responses.append(text)
        passed.append(verdict.public_passed)
        if verdict.public_passed or turn + 1 == max_turns:
            break
        prompt = chat.next_prompt(feedback_message(problem, verdict, max_failures=1), closed=True)
        ids += prompt
        mask += [0] * len(prompt)
    return Dialogue(tuple(ids), tuple(mask), problem, tuple(responses), tuple(passed))


def _first(problem: Problem, author: Author, rng: np.random.Generator) -> str | None:
    """The first program: correct for some reading, or faulty; None for a response without code."""
    readings = problem.tags["readings"]
    faulty = [p for p in problem.incorrect_solutions if p not in readings]
    broken = [p for p in faulty if _ENDLESS in p or _HUGE in p]
    slipped = [p for p in faulty if p not in broken]
    draw = rng.random()
    if draw < author.no_code:
        return None
    if draw < author.no_code + author.breaks and broken:
        return str(rng.choice(broken))
    if draw < author.no_code + author.breaks + author.slips and slipped:
        return str(rng.choice(slipped))
    if author.habit and rng.random() < author.habit:
        return readings[0]
    return readings[int(rng.integers(len(readings)))]


def _repair(problem: Problem, author: Author, rng: np.random.Generator) -> str:
    right = problem.solutions[0]
    if rng.random() < author.right_repairs:
        return right
    if author.habit and rng.random() < author.habit:
        return problem.tags["readings"][0]
    wrong = [p for p in problem.tags["readings"] if p != right]
    if not wrong or rng.random() < 0.15:
        wrong = [p for p in problem.incorrect_solutions if _ENDLESS not in p and _HUGE not in p] or [right]
    return wrong[int(rng.integers(len(wrong)))]


def dialogues(
    seed: int,
    chunk: int,
    chat: ChatFormat,
    *,
    split: str = "train",
    problems: int = 128,
    per_problem: int = 4,
    marked_share: float = 0.4,
    right_repairs: float = 0.15,
    habit: float = 0.0,
    context: int = 256,
    families: tuple[str, ...] = (),
    even_questions: float = 0.0,
) -> list[Dialogue]:
    """The `chunk`-th `problems * per_problem` dialogues, shuffled, each of at most `context` tokens.

    Each statement appears with several readings, so that only the feedback tells which reading is correct.
    `families` and `even_questions` are `problem_at`'s.
    """
    rng = np.random.default_rng([seed, chunk])
    by_mark = authors(right_repairs, habit)
    written: list[Dialogue] = []
    for i in range(problems):
        problem = problem_at(split, seed, chunk * problems + i, families, even_questions=even_questions)
        for _ in range(per_problem):
            marked = bool(rng.random() < marked_share)
            right = int(rng.integers(len(problem.tags["readings"])))
            for _ in range(8):  # one that is too long is drawn again and may come out shorter
                dialogue = write_dialogue(
                    with_reading(problem, right), by_mark[marked], CAREFUL if marked else "", chat, rng
                )
                if len(dialogue.ids) <= context:
                    written.append(dialogue)
                    break
    return [written[i] for i in rng.permutation(len(written))]
