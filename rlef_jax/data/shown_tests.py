"""Feedback from more tests than the public ones (appendix B.3): hidden tests that an evaluation makes public."""

from __future__ import annotations

import dataclasses

from rlef_jax.types import Problem, Test


def with_public(problem: Problem, count: int) -> Problem:
    """The problem with up to `count` public tests: private tests, then generated ones, come behind its own.

    A test that becomes public is no longer hidden: its failures are shown, passing it is needed to end a dialogue
    early, and submissions are chosen by it. What a program must pass in the end stays the same. Tests equal to a
    public one stay where they are, and so does the last hidden one, or nothing would be left to decide.
    """
    public: list[Test] = list(problem.public_tests)
    private, generated = list(problem.private_tests), list(problem.generated_tests)
    for kind in (private, generated):
        for test in tuple(kind):
            if len(public) < count and len(private) + len(generated) > 1 and test not in public:
                kind.remove(test)
                public.append(test)
    return dataclasses.replace(
        problem, public_tests=tuple(public), private_tests=tuple(private), generated_tests=tuple(generated)
    )
