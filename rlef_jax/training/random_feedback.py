"""Feedback that has nothing to do with the response: the control experiment of section 3.3 (C.2).

An incorrect solution of *another* problem is run on that problem's public tests, and its failures are shown. If
none of that problem's incorrect solutions fails there, `raise NotImplementedError()` is run instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for, submit_public
from rlef_jax.types import Episode, Limits, Problem, Verdict

LAST_RESORT = "raise NotImplementedError()"
_STREAM = 0xFEEDBAC  # keeps these draws apart from any other use of (seed, step, index, turn)


class RandomFeedback:
    """Messages for failed turns; which message is a function of the donors and (seed, step, index, turn) alone."""

    def __init__(
        self, pool: ExecutionPool, donors: Sequence[Problem], limits: Limits, max_wall_s: float | None = None
    ) -> None:
        """Args: donors: problems to take failures from.

        Those without public tests are left out; so are those without incorrect solutions, unless none has any (function
        problems): then `LAST_RESORT` fails for all.
        """
        self._pool = pool
        self._limits = limits
        self._max_wall_s = max_wall_s
        testable = [p for p in donors if p.public_tests]
        self._donors = [p for p in testable if p.incorrect_solutions] or testable
        self._verdicts: dict[tuple[int, str], Future[Verdict]] = {}  # (donor, program): each runs once

    def donor(self, episode: Episode) -> Problem:
        """The other problem whose failures follow the episode's last turn. Raises ValueError where there is none."""
        return self._donors[self._choose(episode)]

    def attempts(self, episode: Episode) -> Iterator[Future[Verdict]]:
        """Verdicts of the donor's incorrect solutions in random order, then of a program that fails for certain.

        The failures of the first one that has any are shown. A program is run when it is asked for.
        """
        donor = self._choose(episode)
        programs = self._donors[donor].incorrect_solutions
        for i in _generator(episode, 1).permutation(len(programs)):
            yield self._submit(donor, programs[i])
        yield self._submit(donor, LAST_RESORT)

    def _choose(self, episode: Episode) -> int:
        own = episode.problem
        count = len(self._donors)
        first = int(_generator(episode).integers(count)) if count else 0
        for i in (*range(first, count), *range(first)):
            if (self._donors[i].name, self._donors[i].description) != (own.name, own.description):
                return i
        raise ValueError(f"random feedback for {own.name} needs another problem with public tests")

    def _submit(self, donor: int, program: str) -> Future[Verdict]:
        if (donor, program) not in self._verdicts:
            problem = self._donors[donor]
            limits = limits_for(problem, self._limits, self._max_wall_s)
            self._verdicts[donor, program] = submit_public(self._pool, program, problem, limits)
        return self._verdicts[donor, program]


def _generator(episode: Episode, stream: int = 0) -> np.random.Generator:
    turn = len(episode.turns)
    return np.random.default_rng([_STREAM, stream, episode.seed, episode.step, episode.index, turn])
