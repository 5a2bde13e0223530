"""Problem sources by name: where `config.data.name` leads."""

from __future__ import annotations

from collections.abc import Sequence

from rlef_jax.config import ConfigError
from rlef_jax.data import mini_contests
from rlef_jax.data.mini_contests.bounds import bounds
from rlef_jax.types import Problem

SOURCES = ("mini_contests",)


def check_source(name: str) -> None:
    """Raises ConfigError for a source that there isn't."""
    if name not in SOURCES:
        raise ConfigError(f"config.data.name: no problem source {name!r}; there is {', '.join(SOURCES)}")


def training_problems(name: str, split: str, seed: int, step: int, count: int) -> list[Problem]:
    """The problems of iteration `step`: a pure function of its arguments."""
    check_source(name)
    if split not in mini_contests.SPLITS:
        raise ConfigError(f"config.data.train_split: {split!r} is none of {', '.join(mini_contests.SPLITS)}")
    return [mini_contests.problem_at(split, seed, step * count + i) for i in range(count)]


def evaluation_problems(name: str, split: str, count: int = 0) -> Sequence[Problem]:
    """A fixed split's problems, the first `count` of them (0 = all)."""
    check_source(name)
    if split not in mini_contests.EVAL_SIZES:
        raise ConfigError(f"config.eval.split: {split!r} is none of {', '.join(mini_contests.EVAL_SIZES)}")
    problems = mini_contests.eval_split(split)
    return problems[:count] if count else problems


def split_bounds(name: str, problems: Sequence[Problem]) -> dict[str, float]:
    """What the best player can reach on these problems with and without feedback, in percent."""
    check_source(name)

    return bounds(problems)
