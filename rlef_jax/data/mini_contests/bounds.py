"""The best possible scores with and without feedback, by exact enumeration over the readings.

    python -m rlef_jax.data.mini_contests.bounds --split=test_500

The player knows everything except which reading of a statement is correct (all are equally likely). Each response is
the program of one reading. No program is correct for two readings, since some tests have a different output for each.

    no_feedback  three responses without feedback or early stop; the last one is judged
    pass_fail    passing the public tests ends the episode; otherwise the player knows only that it failed
    full         as pass_fail, but the player also sees the feedback text
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import defaultdict
from collections.abc import Sequence

from rlef_jax import arguments
from rlef_jax.command_line import errors_as_lines
from rlef_jax.data.mini_contests import EVAL_SIZES, eval_split
from rlef_jax.data.mini_contests.trusted import run_trusted
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.execution.judge import outputs_match
from rlef_jax.types import Problem, Status, TestCase, TestResult, Verdict, stdin_tests

MAX_TURNS = 3


@dataclasses.dataclass(frozen=True)
class Game:
    """A problem as a game: entries [right][answer], for each correct reading and each reading given as the answer."""

    public: tuple[tuple[bool, ...], ...]  # passes the public tests
    solved: tuple[tuple[bool, ...], ...]  # passes all tests
    message: tuple[tuple[str, ...], ...]  # the feedback text, "" where the public tests pass


def game_of(problem: Problem) -> Game:
    """Runs every reading's program against every correct reading on the problem's test inputs."""
    programs = problem.tags["readings"]
    tests = stdin_tests(problem.public_tests + problem.hidden_tests)
    outputs = [[run_trusted(p, t.input).output for p in programs] for t in tests]
    shown = len(problem.public_tests)
    public, solved, message = [], [], []
    for right in range(len(programs)):
        passes = [[outputs_match(row[right], row[answer]) for row in outputs] for answer in range(len(programs))]
        public.append(tuple(all(p[:shown]) for p in passes))
        solved.append(tuple(all(p) for p in passes))
        public_tests = tuple(TestCase(t.input, outputs[i][right]) for i, t in enumerate(tests[:shown]))
        variant = dataclasses.replace(problem, public_tests=public_tests)
        texts = []
        for answer, passed in enumerate(passes):
            results = tuple(
                TestResult(Status.PASSED if ok else Status.WRONG_ANSWER, stdout=outputs[i][answer])
                for i, ok in enumerate(passed[:shown])
            )
            failed = not all(passed[:shown])
            texts.append(feedback_message(variant, Verdict(Status.WRONG_ANSWER, results)) if failed else "")
        message.append(tuple(texts))
    return Game(tuple(public), tuple(solved), tuple(message))


def best_without_feedback(game: Game) -> float:
    """The probability that the best single answer is correct: without feedback, earlier responses don't matter."""
    count = len(game.solved)
    return max(sum(game.solved[right][answer] for right in range(count)) for answer in range(count)) / count


def best_with_stops(game: Game, *, shown: bool, turns: int = MAX_TURNS) -> float:
    """The probability that the best adaptive player succeeds. `shown`: it sees the messages, else only pass or fail."""
    count = len(game.solved)

    @functools.cache
    def value(possible: frozenset[int], left: int) -> int:
        """The number of readings among `possible` that the best player solves with `left` more responses."""
        best = 0
        for answer in range(count):
            solved = sum(game.solved[r][answer] for r in possible if left == 1 or game.public[r][answer])
            if left > 1:
                groups: dict[str, set[int]] = defaultdict(set)
                for r in possible:
                    if not game.public[r][answer]:
                        groups[game.message[r][answer] if shown else ""].add(r)
                solved += sum(value(frozenset(group), left - 1) for group in groups.values())
            best = max(best, solved)
        return best

    return value(frozenset(range(count)), turns) / count


def bounds(problems: Sequence[Problem]) -> dict[str, float]:
    """The three bounds on 1@3 and the share of ambiguous problems ("open"), in percent."""
    games = [game_of(p) for p in problems]
    scale = 100.0 / len(games)
    return {
        "no_feedback": scale * sum(best_without_feedback(g) for g in games),
        "pass_fail": scale * sum(best_with_stops(g, shown=False) for g in games),
        "full": scale * sum(best_with_stops(g, shown=True) for g in games),
        "open": scale * sum(len(g.solved) > 1 for g in games),
    }


def main() -> None:
    """Prints the bounds of a split, as a table and as a line of JSON."""
    parser = arguments.Parser(description=__doc__)
    parser.add_argument("--split", default="test_500", choices=sorted(EVAL_SIZES))
    with errors_as_lines():
        percentages = bounds(eval_split(parser.parse_args().split))
        for name, percent in percentages.items():
            print(f"{name:<12} {percent:6.2f} %")
        print(json.dumps(percentages))


if __name__ == "__main__":
    main()
