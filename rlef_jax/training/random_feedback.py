"""Feedback that has nothing to do with the response: the control experiment of section 3.3 (C.2).

An incorrect solution of *another* problem is run on that problem's public tests, and its failures are shown. If
none of that problem's incorrect solutions fails there, `raise NotImplementedError()` is run instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np

from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for, submit_public
from rlef_jax.types import Episode, Limits, Problem, Status, Verdict

LAST_RESORT = "raise NotImplementedError()"
_STREAM = 0xFEEDBAC  # keeps these draws apart from any other use of (seed, step, index, turn)


class RandomFeedback:
    """Messages for failed turns; which message is a function of the donors and (seed, step, index, turn) alone."""

    def __init__(
        self, pool: ExecutionPool, donors: Sequence[Problem], limits: Limits, max_wall_s: float | None = None
    ) -> None:
        """Args: donors: problems to take failures from; those without public tests or incorrect solutions are not."""
        self._pool = pool
        self._limits = limits
        self._max_wall_s = max_wall_s
        self._donors = [p for p in donors if p.public_tests and p.incorrect_solutions]
        self._verdicts: dict[tuple[int, str], Future[Verdict]] = {}  # (donor, program): each runs once

    def messages(self, episodes: Sequence[Episode], *, max_failures: int = 0, max_chars: int = 0) -> list[str | None]:
        """The message after each episode's last turn; None where the judge broke on the donor's program.

        Raises:
          ValueError: no donor is another problem than the episode's.
        """
        donors = [self._donor(episode) for episode in episodes]
        candidates = [self._programs(donor, episode) for donor, episode in zip(donors, episodes)]
        failures: dict[int, Verdict] = {}
        # In rounds: the first candidates of all episodes run side by side, then the second ones of those that passed.
        open_rows = list(range(len(episodes)))
        while open_rows:
            running = [(row, self._submit(donors[row], next(candidates[row]))) for row in open_rows]
            verdicts = {row: future.result() for row, future in running}
            failures |= {row: verdict for row, verdict in verdicts.items() if not verdict.public_passed}
            open_rows = [row for row in open_rows if row not in failures]
        return [
            None
            if failures[row].status is Status.INFRA_ERROR
            else feedback_message(self._donors[donor], failures[row], max_failures=max_failures, max_chars=max_chars)
            for row, donor in enumerate(donors)
        ]

    def _donor(self, episode: Episode) -> int:
        own = episode.problem
        count = len(self._donors)
        first = int(_generator(episode).integers(count)) if count else 0
        for i in (*range(first, count), *range(first)):
            if (self._donors[i].name, self._donors[i].description) != (own.name, own.description):
                return i
        raise ValueError(f"random feedback for {own.name} needs another problem with incorrect solutions")

    def _programs(self, donor: int, episode: Episode) -> Iterator[str]:
        """The donor's incorrect solutions in random order, then one that fails for certain."""
        programs = self._donors[donor].incorrect_solutions
        for i in _generator(episode, 1).permutation(len(programs)):
            yield programs[i]
        yield LAST_RESORT

    def _submit(self, donor: int, program: str) -> Future[Verdict]:
        if (donor, program) not in self._verdicts:
            problem = self._donors[donor]
            limits = limits_for(problem, self._limits, self._max_wall_s)
            self._verdicts[donor, program] = submit_public(self._pool, program, problem, limits)
        return self._verdicts[donor, program]


def _generator(episode: Episode, stream: int = 0) -> np.random.Generator:
    turn = len(episode.turns)
    return np.random.default_rng([_STREAM, stream, episode.seed, episode.step, episode.index, turn])
