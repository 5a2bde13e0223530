"""Problems that lack tests, for all sources; the rules are those of `types.Problem`.

Without hidden tests the public ones decide. Without public tests an episode ends at the first response with valid code.
A problem without any test is left out. The counts are reported to a callback.

Text with a lone surrogate (JSON can write half a character) can't be encoded as UTF-8, so no program can read or print
it: such a test is left out, and in a statement or name the surrogate becomes U+FFFD.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from rlef_jax.errors import ConfigError
from rlef_jax.types import FunctionTest, Problem, Test

LEFT_OUT = "asserts_left_out"  # tag of a problem: the number of its published asserts that can't be judged


@dataclasses.dataclass(frozen=True)
class Missing:
    """A one-line summary of missing tests, and the names of the problems left out."""

    line: str
    left_out: tuple[str, ...] = ()


type Tell = Callable[[Missing], None]


def ignore_missing(missing: Missing) -> None:
    """The default callback: does nothing."""


def testable(name: str, problems: Sequence[Problem], tell: Tell = ignore_missing) -> list[Problem]:
    """The problems that have a test. `tell` is called once if any lacks public, hidden or all tests.

    Raises ConfigError if no problem has a test.
    """
    encoded = [encodable(problem) for problem in problems]
    unencodable = sum(len(problem.tests) for problem in problems) - sum(len(problem.tests) for problem in encoded)
    with_tests = [problem for problem in encoded if problem.tests]
    without_tests = tuple(problem.name for problem in encoded if not problem.tests)
    if encoded and not with_tests:
        raise ConfigError(f"{name}: none of its {len(encoded)} problems has a test that can be judged")
    hidden = sum(not (p.private_tests or p.generated_tests) for p in with_tests)
    public = sum(not p.public_tests for p in with_tests)
    asserts = sum(int(p.tags.get(LEFT_OUT, 0)) for p in problems)
    counts = {
        "without hidden tests: their public tests decide": hidden,
        "without public tests: nothing can be fed back, and their first valid program is the last": public,
        "without any test left out": len(without_tests),
        "asserts left out, which can't be judged on results alone": asserts,
        "tests left out, whose text UTF-8 can't hold": unencodable,
    }
    if lines := [f"{count} {words}" for words, count in counts.items() if count]:
        tell(Missing(f"{name}: {len(with_tests)} problems; {'; '.join(lines)}", without_tests))
    return with_tests


def encodable(problem: Problem) -> Problem:
    """The problem without tests that UTF-8 can't encode, and with U+FFFD for lone surrogates in other text."""
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
    """Whether UTF-8 can encode a test's input and output. Function tests aren't sent as text, so any string will do."""
    return isinstance(test, FunctionTest) or all(well_formed(text) == text for text in (test.input, test.output))


def well_formed(text: str) -> str:
    """`text` with each lone surrogate replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
