"""Problems that lack tests, in every source: without hidden ones the public ones decide, without public ones the first
response with valid code is the last (`types.Problem`); a problem without any is left out. What reading finds is told.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem

LEFT_OUT = "asserts_left_out"  # a tag: how many of a problem's published asserts can't be judged


@dataclasses.dataclass(frozen=True)
class Missing:
    """What some problems lack, in a line, and the names of those that were left out."""

    line: str
    left_out: tuple[str, ...] = ()


type Tell = Callable[[Missing], None]


def tell_nobody(missing: Missing) -> None:
    """For who doesn't ask."""


def testable(name: str, problems: Sequence[Problem], tell: Tell = tell_nobody) -> list[Problem]:
    """Those that have a test. `tell` hears once where any lacks public, hidden or all tests.

    Raises ConfigError where none has one.
    """
    found = [problem for problem in problems if problem.tests]
    bare = tuple(problem.name for problem in problems if not problem.tests)
    if problems and not found:
        raise ConfigError(f"{name}: none of its {len(problems)} problems has a test that can be judged")
    hidden = sum(not (p.private_tests or p.generated_tests) for p in found)
    public = sum(not p.public_tests for p in found)
    asserts = sum(int(p.tags.get(LEFT_OUT, 0)) for p in problems)
    counts = {
        "without hidden tests: their public tests decide": hidden,
        "without public tests: nothing can be fed back, and their first valid program is the last": public,
        "without any test left out": len(bare),
        "asserts left out, which can't be judged on results alone": asserts,
    }
    if said := [f"{count} {words}" for words, count in counts.items() if count]:
        tell(Missing(f"{name}: {len(found)} problems; {'; '.join(said)}", bare))
    return found
