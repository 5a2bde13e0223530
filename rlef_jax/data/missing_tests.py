"""Problems that lack tests, in every source: without hidden ones the public ones decide, without public ones the first
response with valid code is the last (`types.Problem`); a problem without any is left out. What reading finds is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem

LEFT_OUT = "asserts_left_out"  # a tag: how many of a problem's published asserts can't be judged


def testable(name: str, problems: Sequence[Problem], tell: Callable[[str], None]) -> list[Problem]:
    """Those that have a test. `tell` gets one line where any lacks public, hidden or all tests.

    Raises ConfigError where none has one.
    """
    found = [problem for problem in problems if problem.tests]
    if problems and not found:
        raise ConfigError(f"{name}: none of its {len(problems)} problems has a test that can be judged")
    hidden = sum(not (p.private_tests or p.generated_tests) for p in found)
    public = sum(not p.public_tests for p in found)
    asserts = sum(int(p.tags.get(LEFT_OUT, 0)) for p in problems)
    said = [
        f"{count} {words}"
        for count, words in (
            (hidden, "without hidden tests: their public tests decide"),
            (public, "without public tests: nothing can be fed back, and their first valid program is the last"),
            (len(problems) - len(found), "without any test left out"),
        )
        if count
    ]
    if asserts:
        said.append(f"{asserts} asserts left out, which can't be judged on results alone")
    if said:
        tell(f"{name}: {len(found)} problems; {'; '.join(said)}")
    return found
