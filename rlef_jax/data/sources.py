"""Problem sources by name: where `config.data.name` leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlef_jax.data import mini_contests
from rlef_jax.data.mini_contests.bounds import bounds
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem

SOURCES = ("mini_contests",)


def check_source(name: str) -> None:
    """Raises ConfigError for a source that there isn't."""
    if name not in SOURCES:
        raise ConfigError(f"config.data.name: no problem source {name!r}; there is {', '.join(SOURCES)}")


def check_splits(name: str, *, train: str, evaluated: Mapping[str, str]) -> None:
    """Raises ConfigError for a source or a split that there isn't; `evaluated` is {config key: split}, "" for none."""
    check_source(name)
    if train not in mini_contests.SPLITS:
        raise ConfigError(f"config.data.train_split: {train!r} is none of {', '.join(mini_contests.SPLITS)}")
    for key, split in evaluated.items():
        if split and split not in mini_contests.EVAL_SIZES:
            raise ConfigError(f"config.{key}: {split!r} is none of {', '.join(mini_contests.EVAL_SIZES)}")


def training_problems(name: str, split: str, seed: int, step: int, count: int) -> list[Problem]:
    """The problems of iteration `step`: a pure function of its arguments."""
    check_splits(name, train=split, evaluated={})
    return [mini_contests.problem_at(split, seed, step * count + i) for i in range(count)]


def evaluation_problems(name: str, split: str, count: int = 0) -> Sequence[Problem]:
    """A fixed split's problems, the first `count` of them (0 = all)."""
    if not split:
        raise ConfigError(f"config.eval.split is empty: give one of {', '.join(mini_contests.EVAL_SIZES)}")
    check_splits(name, train="train", evaluated={"eval.split": split})
    problems = mini_contests.eval_split(split)
    return problems[:count] if count else problems


def split_bounds(name: str, problems: Sequence[Problem]) -> dict[str, float]:
    """What the best player can reach on these problems with and without feedback, in percent."""
    check_source(name)
    return bounds(problems)
