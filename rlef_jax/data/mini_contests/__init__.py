"""MiniContests: the built-in default data, a seeded generator of contest problems in the form of CodeContests.

    problem_at("train", seed, index)   a pure function
    eval_split("test_500")             the fixed problems of a split

Most statements are ambiguous about the output: they have five or six readings, and only the public tests after the
example show which reading is correct. See `readings.py`, and `bounds.py` for the best possible scores with and without
feedback.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from rlef_jax.data.mini_contests.build import FAMILIES, Spec, build_problem, draw_spec, stable_hash, structure_held_out
from rlef_jax.data.mini_contests.draft import pick
from rlef_jax.data.mini_contests.readings import OPEN_QUESTIONS
from rlef_jax.types import Problem

EVAL_SIZES = {"valid": 117, "test": 165, "test_500": 500, "held_out_families": 100}
SPLITS = ("train", *EVAL_SIZES)
# A statement's split, by its hash modulo 20, so that no statement is in two splits.
_BUCKETS = {"train": range(11), "valid": range(11, 14), "test": range(14, 17), "test_500": range(17, 20)}
_EVAL_SEED = 2025
_MOST_DRAWS = 5  # for each problem of a fixed split
_HELD_OUT_SHARE = 0.25  # part of test_500 whose programs have a shape that no training problem has


def problem_at(split: str, seed: int, index: int, only: Sequence[str] = (), *, even_questions: float = 0.0) -> Problem:
    """The `index`-th problem of a split's endless stream, the same in every process.

    Args:
      only: families that problems may come from; empty means all of the split's.
      even_questions: the share of problems whose open question is drawn evenly, nothing left open being one of them.
        The others' follows from their family, and some are rare. The problems of a smaller share, or of none, that
        aren't replaced stay the same.

    Raises:
      ValueError: for an unknown split, families that the split doesn't have, or even questions from families that
        don't have all of them.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of mini_contests: it has {', '.join(SPLITS)}")
    held_out_families = split == "held_out_families"
    families = tuple(f for f in FAMILIES if f.held_out == held_out_families and (not only or f.name in only))
    want_held_out = split == "test_500" and stable_hash(f"{seed}/{index}") % 1000 < 1000 * _HELD_OUT_SHARE
    # Of families that have no such shapes there are none to want.
    want_held_out = want_held_out and not (only and not any(f.composed for f in families))
    if want_held_out:
        families = tuple(f for f in families if f.composed)

    if not families:
        raise ValueError(f"the split {split!r} of mini_contests has none of {', '.join(only)}")
    if even_questions and (only or held_out_families):
        raise ValueError("even questions need all families of training")

    def accept(description: str) -> bool:
        return held_out_families or stable_hash(description) % 20 in _BUCKETS[split]

    rng = np.random.default_rng([stable_hash(split), seed, index])
    is_even = stable_hash(f"question {seed}/{index}") % 1000 < 1000 * even_questions
    wanted = pick(rng, ("", *OPEN_QUESTIONS)) if is_even else None
    while True:
        spec: Spec = draw_spec(rng, families)
        if wanted is not None and spec.open_question != wanted:
            continue
        if not held_out_families and structure_held_out(spec) != want_held_out:
            continue
        problem = build_problem(spec, rng, accept)
        if problem is not None:
            return problem


@functools.lru_cache(maxsize=8)
def eval_split(split: str, only: tuple[str, ...] = ()) -> tuple[Problem, ...]:
    """All problems of a fixed split, each statement once: as many of the families `only` as there are of all families,
    or fewer where they have so few statements.

    Raises ValueError for another split, or for families that it doesn't have.
    """
    if split not in EVAL_SIZES:
        raise ValueError(f"unknown split {split!r} of mini_contests: fixed ones are {', '.join(EVAL_SIZES)}")
    size = EVAL_SIZES[split]
    problems: dict[str, Problem] = {}
    for index in range(_MOST_DRAWS * size):
        if len(problems) == size:
            break
        problem = problem_at(split, _EVAL_SEED, index, only)
        problems.setdefault(problem.description, problem)
    return tuple(problems.values())
