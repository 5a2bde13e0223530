"""Makes hidden tests public, so that an evaluation gives feedback from more tests (appendix B.3)."""

from __future__ import annotations

import dataclasses

from rlef_jax.types import Problem, Test, TestCase


def with_public(problem: Problem, count: int) -> Problem:
    """The problem with up to `count` public tests: its own, then private ones, then generated ones.

    A test that becomes public is no longer hidden: its failures are shown, a dialogue ends early only if it passes, and
    submissions are selected by it. The set of all tests, which decides the reward, stays the same. Duplicates of a
    public test stay hidden, and so does the last hidden test, since the final verdict needs one. Tests of function
    problems (HumanEval+'s and MBPP+'s plus tests) are never made public: B.3 is about contests.
    """
    public: list[Test] = list(problem.public_tests)
    private, generated = list(problem.private_tests), list(problem.generated_tests)
    for kind in (private, generated):
        for test in tuple(kind):
            if (
                isinstance(test, TestCase)
                and len(public) < count
                and len(private) + len(generated) > 1
                and test not in public
            ):
                kind.remove(test)
                public.append(test)
    return dataclasses.replace(
        problem, public_tests=tuple(public), private_tests=tuple(private), generated_tests=tuple(generated)
    )
