"""Feedback that has nothing to do with the response: the control experiment of section 3.3 (C.2).

An incorrect solution of *another* problem is run on that problem's public tests, and its failures are shown. If
none of that problem's incorrect solutions fails there, `raise NotImplementedError()` is run instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from rlef_jax.errors import ConfigError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for, submit_public
from rlef_jax.types import Episode, Limits, Problem, Verdict

LAST_RESORT = "raise NotImplementedError()"
_STREAM = 0xFEEDBAC  # keeps these draws apart from any other use of (seed, step, index, turn)


def check_donors(problems: Sequence[Problem], donors: Sequence[Problem]) -> None:
    """Raises ConfigError, naming the first, for a problem without another among the donors that has public tests."""
    testable = {_statement(problem) for problem in donors if problem.public_tests}
    for problem in problems:
        if not testable - {_statement(problem)}:
            raise _alone(problem, len(testable))


def _alone(problem: Problem, count: int) -> ConfigError:
    return ConfigError(
        f"random feedback shows another problem's failures, and {problem.name!r} has none beside it that has public"
        f" tests ({count} here have any): give more problems (ppo.rollouts, eval.problems), or another feedback"
    )


def _statement(problem: Problem) -> tuple[str, str]:
    return problem.name, problem.description


class RandomFeedback:
    """Messages for failed turns; which message is a function of the donors and (seed, step, index, turn) alone."""

    def __init__(
        self, pool: ExecutionPool, donors: Sequence[Problem], limits: Limits, max_wall_s: float | None = None
    ) -> None:
        """Args: donors: problems to take failures from.

        Those without public tests are left out; those without incorrect solutions are taken where no other problem has
        any (function problems): then `LAST_RESORT` fails for all.
        """
        self._pool = pool
        self._limits = limits
        self._max_wall_s = max_wall_s
        testable = [p for p in donors if p.public_tests]
        self._preferred = [p for p in testable if p.incorrect_solutions], testable
        self._verdicts: dict[tuple[int, str], Future[Verdict]] = {}  # (id of donor, program): each runs once

    def donor(self, episode: Episode) -> Problem:
        """The other problem whose failures follow the episode's last turn. Raises ConfigError as `check_donors`."""
        statement = _statement(episode.problem)
        for donors in self._preferred:
            first = int(_generator(episode).integers(len(donors))) if donors else 0
            for donor in (*donors[first:], *donors[:first]):
                if _statement(donor) != statement:
                    return donor
        raise _alone(episode.problem, len(self._preferred[-1]))

    def attempts(self, episode: Episode) -> Iterator[Future[Verdict]]:
        """Verdicts of the donor's incorrect solutions in random order, then of a program that fails for certain.

        The failures of the first one that has any are shown. A program is run when it is asked for.
        """
        donor = self.donor(episode)
        programs = donor.incorrect_solutions
        for i in _generator(episode, 1).permutation(len(programs)):
            yield self._submit(donor, programs[i])
        yield self._submit(donor, LAST_RESORT)

    def _submit(self, donor: Problem, program: str) -> Future[Verdict]:
        key = id(donor), program
        if key not in self._verdicts:
            limits = limits_for(donor, self._limits, self._max_wall_s)
            self._verdicts[key] = submit_public(self._pool, program, donor, limits)
        return self._verdicts[key]


def _generator(episode: Episode, stream: int = 0) -> np.random.Generator:
    turn = len(episode.turns)
    return np.random.default_rng([_STREAM, stream, episode.seed, episode.step, episode.index, turn])
