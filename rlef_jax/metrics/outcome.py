"""What metrics know of a finished rollout: some hundred bytes where its tokens and test results take tens of thousands.

An evaluation of 100,000 rollouts keeps an `Outcome` of each; their episodes are in files.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence

from rlef_jax.metrics.chrf import chrf
from rlef_jax.types import Episode, Status


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """A finished rollout.

    Attributes:
      problem: its problem's name and description. Names may repeat.
      end: how it ended, as in `Episode`; "infra" where the judge broke.
      solved: whether the last response passed every test.
      public: per response, its status on the public tests, to which the feedback relates; None where not judged.
      hidden: per response, its status on the hidden tests; None where they weren't run. They are for the last one only.
      tokens, cut: per response, how many tokens it has, and whether it ended by length.
      changed: from each response to the next, 100 less the chrF of the second program against the first; None where
        one of the two isn't there. () where programs weren't given.
    """

    problem: tuple[str, str]
    end: str
    solved: bool
    public: tuple[Status | None, ...]
    hidden: tuple[Status | None, ...]
    tokens: tuple[int, ...] = ()
    cut: tuple[bool, ...] = ()
    changed: tuple[float | None, ...] = ()

    @property
    def turns(self) -> int:
        """The number of responses."""
        return len(self.public)

    def passed_public(self, turn: int) -> bool:
        """Whether the response at `turn` (from 0) passed the public tests, which ends a rollout with feedback."""
        return self.public[turn] is Status.PASSED

    def solved_at(self, turn: int) -> bool:
        """Whether the response at `turn` (from 0) was the last and right."""
        return self.solved and self.turns == turn + 1


Rollout = Episode | Outcome


def outcome_of(rollout: Rollout, programs: Sequence[str | None] | None = None) -> Outcome:
    """The outcome of a finished episode; `programs` are those of its responses, None for one without code.

    Raises ValueError for an unfinished episode.
    """
    if isinstance(rollout, Outcome):
        return rollout
    if not rollout.end:
        raise ValueError(f"episode {rollout.index} of step {rollout.step} goes on")
    verdicts = [turn.verdict for turn in rollout.turns]
    return Outcome(
        # Episodes that were read from files don't share their problems' texts.
        problem=(sys.intern(rollout.problem.name), sys.intern(rollout.problem.description)),
        end=sys.intern(rollout.end),
        solved=rollout.solved,
        public=tuple(None if v is None else v.public_status for v in verdicts),
        hidden=tuple(None if v is None else v.hidden_status for v in verdicts),
        tokens=tuple(len(turn.response_ids) for turn in rollout.turns),
        cut=tuple(turn.finish_reason == "length" for turn in rollout.turns),
        changed=() if programs is None else _changes(programs[: len(rollout.turns)]),
    )


def outcomes_of(rollouts: Iterable[Rollout]) -> list[Outcome]:
    """The outcomes of finished rollouts, in order. Raises ValueError for an unfinished one."""
    return [outcome_of(rollout) for rollout in rollouts]


def judged_only(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those on which the judge didn't break."""
    return [outcome for outcome in outcomes if outcome.end != "infra"]


def by_problem(outcomes: Iterable[Outcome]) -> list[list[Outcome]]:
    """Groups of one problem each, in the order in which they first occur."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.problem, []).append(outcome)
    return list(groups.values())


def known_at(outcomes: Iterable[Outcome], turn: int) -> bool:
    """Whether it is known of each rollout if it was solved by the response at `turn` (from 0), had that been its last.

    It isn't of a response that passed the public tests when the rollout went on, as without feedback (B.5): hidden
    tests are run on last responses only.
    """
    return not any(o.turns > turn + 1 and o.passed_public(turn) for o in outcomes)


def _changes(programs: Sequence[str | None]) -> tuple[float | None, ...]:
    pairs = zip(programs, programs[1:])
    return tuple(None if a is None or b is None else max(0.0, 100.0 - 100.0 * chrf(b, a)) for a, b in pairs)
