"""Problems that lack tests, in every source: without hidden ones the public ones decide, without public ones the first
response with valid code is the last (`types.Problem`); a problem without any is left out. What reading finds is told.

Text that UTF-8 can't hold (a lone surrogate: JSON can write half a character) can't be sent to a program, nor come from
one: such a test is left out, and in a statement or name the half becomes U+FFFD.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rlef_jax.errors import ConfigError
from rlef_jax.types import FunctionTest, Problem, Test

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
    told = [encodable(problem) for problem in problems]
    halves = sum(len(problem.tests) for problem in problems) - sum(len(problem.tests) for problem in told)
    found = [problem for problem in told if problem.tests]
    bare = tuple(problem.name for problem in told if not problem.tests)
    if told and not found:
        raise ConfigError(f"{name}: none of its {len(told)} problems has a test that can be judged")
    hidden = sum(not (p.private_tests or p.generated_tests) for p in found)
    public = sum(not p.public_tests for p in found)
    asserts = sum(int(p.tags.get(LEFT_OUT, 0)) for p in problems)
    counts = {
        "without hidden tests: their public tests decide": hidden,
        "without public tests: nothing can be fed back, and their first valid program is the last": public,
        "without any test left out": len(bare),
        "asserts left out, which can't be judged on results alone": asserts,
        "tests left out, whose text UTF-8 can't hold": halves,
    }
    if said := [f"{count} {words}" for words, count in counts.items() if count]:
        tell(Missing(f"{name}: {len(found)} problems; {'; '.join(said)}", bare))
    return found


def encodable(problem: Problem) -> Problem:
    """The problem without the tests whose text UTF-8 can't hold, and with whole characters in the rest."""
    return dataclasses.replace(
        problem,
        name=well_formed(problem.name),
        description=well_formed(problem.description),
        start=well_formed(problem.start),
        shown_tests=tuple(map(well_formed, problem.shown_tests)),
        public_tests=_encodable(problem.public_tests),
        private_tests=_encodable(problem.private_tests),
        generated_tests=_encodable(problem.generated_tests),
    )


def _encodable(tests: Sequence[Test]) -> tuple[Test, ...]:
    return tuple(
        dataclasses.replace(test, text=well_formed(test.text)) if isinstance(test, FunctionTest) else test
        for test in tests
        if is_encodable(test)
    )


def is_encodable(test: Test) -> bool:
    """Whether UTF-8 can hold input and output. Arguments and results may be any strings: they aren't sent as text."""
    return isinstance(test, FunctionTest) or all(well_formed(text) == text for text in (test.input, test.output))


def well_formed(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair that stands alone."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
