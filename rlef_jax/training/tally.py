"""What was learned from and what was left out, counted by reason: nothing is passed over in silence."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

REASONS = {
    "not_solved": "episodes whose last program fails a test, or wasn't judged",
    "no_failure": "episodes whose first response passes the public tests, or wasn't judged",
    "no_program": "failures of problems without a right program",
    "no_room": "failures that leave no room for a response in config.episode.context",
    "wrong": "solutions that fail a test of their problem",
    "begun": "solutions of problems that begin the response themselves",
    "too_long": "examples longer than the longest of config.ppo.buckets",
    "not_drawn": "failures that weren't drawn",
}
"""Why something is left out, by the names that metrics have: what so many of it are."""


@dataclasses.dataclass(frozen=True)
class PassedOver:
    """Something that isn't learned from. Raises ValueError for a reason that isn't in `REASONS`."""

    reason: str

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"no reason {self.reason!r}; there are {', '.join(REASONS)}")


@dataclasses.dataclass(frozen=True)
class Tally:
    """How many were used, and how many were left out by their reasons, of which there are those that have any."""

    used: int
    left_out: Mapping[str, int]

    @classmethod
    def of(cls, used: int, passed_over: Iterable[PassedOver]) -> Tally:
        """Counts them; the reasons are in the order of `REASONS`."""
        counts = collections.Counter(one.reason for one in passed_over)
        return cls(used, {reason: counts[reason] for reason in REASONS if counts[reason]})

    @property
    def reasons(self) -> str:
        """ "3 failures of problems without a right program, 2 ...", or "nothing"."""
        return ", ".join(f"{count} {REASONS[reason]}" for reason, count in self.left_out.items()) or "nothing"

    def metrics(self, name: str) -> dict[str, float]:
        """{"NAME/used", "NAME/left_out/REASON"}."""
        left_out = {f"{name}/left_out/{reason}": float(count) for reason, count in self.left_out.items()}
        return {f"{name}/used": float(self.used)} | left_out
