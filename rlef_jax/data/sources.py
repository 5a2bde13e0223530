"""Problem sources by name: where `config.data` leads.

A `Source` is what the section says, and, for each split that `fit` has been asked for, what its rules leave of it: then
which problems an iteration gets is a pure function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rlef_jax.data import mini_contests
from rlef_jax.data.code_contests import reader
from rlef_jax.data.code_contests.build import read_plan
from rlef_jax.data.code_contests.release import SPLITS as CODE_CONTESTS_SPLITS
from rlef_jax.data.mini_contests.bounds import bounds
from rlef_jax.data.missing_tests import Tell, tell_nobody, testable
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem

MINI_CONTESTS, CODE_CONTESTS = SOURCES = ("mini_contests", "code_contests")
# Called with (name of the work, done, all).
type Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Source:
    """Where problems come from.

    Attributes:
      name: one of SOURCES.
      dir: CodeContests' data folder.
      families: MiniContests' families that problems come from; none stands for all of them.
      exclude: rules by which CodeContests' problems are left out (`code_contests.reader.left_out`).
      max_prompt_tokens: problems with longer first prompts are left out; 0 leaves none out.
      kept: the positions that these rules leave, by split (see `fit`); splits without an entry are whole.
    """

    name: str
    dir: str = ""
    families: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_prompt_tokens: int = 0
    kept: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: ConfigDict) -> Source:
        """The source that `config.data` describes."""
        d = config.data
        return cls(d.name, d.dir, tuple(d.families), tuple(d.exclude), d.max_prompt_tokens)


def check_source(source: Source) -> None:
    """Raises ConfigError for a source that there isn't, or can't be used."""
    if source.name not in SOURCES:
        raise ConfigError(f"config.data.name: no problem source {source.name!r}; there is {', '.join(SOURCES)}")
    if source.name == CODE_CONTESTS:
        if not source.dir:
            raise ConfigError("config.data.dir: give the folder that python -m rlef_jax.data.code_contests has built")
        read_plan(Path(source.dir))
    known = sorted(family.name for family in mini_contests.FAMILIES if not family.held_out)
    if unknown := [family for family in source.families if family not in known]:
        raise ConfigError(f"config.data.families: no family {unknown[0]!r}; there is {', '.join(known)}")


def check_splits(source: Source | str, *, train: str, evaluated: Mapping[str, str]) -> None:
    """Raises ConfigError for a source or a split that there isn't; `evaluated` is {config key: split}, "" for none.

    A source's name alone stands for the source without rules.
    """
    source = _source(source)
    check_source(source)
    if source.name == CODE_CONTESTS:
        trained = fixed = tuple(read_plan(Path(source.dir))["splits"])
    else:
        trained, fixed = mini_contests.SPLITS, tuple(mini_contests.EVAL_SIZES)
    if train not in trained:
        raise ConfigError(f"config.data.train_split: {train!r} is none of {', '.join(trained)}")
    for key, split in evaluated.items():
        if split and split not in fixed:
            raise ConfigError(f"config.{key}: {split!r} is none of {', '.join(fixed)}")


def fit(
    source: Source,
    splits: Sequence[str],
    first_prompt: Callable[[str], Sequence[int]],
    *,
    tell: Callable[[str], None] = print,
    report: Report | None = None,
) -> Source:
    """The source with its rules applied to some splits; `tell` gets a line for each split that they shorten.

    Args:
      first_prompt: from a statement to the ids of its prompt (`chat.first_prompt(problem_prompt(...), ...)`).
      report: progress, where prompts must be counted: once for a tokenizer, then the data folder remembers.

    Raises ConfigError where a rule can't be applied, or leaves nothing.
    """
    if source.name != CODE_CONTESTS or not (source.exclude or source.max_prompt_tokens):
        return source
    kept = dict(source.kept)
    for split in dict.fromkeys(splits):
        size = len(reader.open_split(source.dir, split))
        rules = reader.left_out(source.dir, split, source.exclude)
        if source.max_prompt_tokens:
            lengths = _lengths(source, split, first_prompt, report)
            longer = np.flatnonzero(lengths > source.max_prompt_tokens).tolist()
            rules[f"prompt of more than {source.max_prompt_tokens} tokens"] = set(longer)
        gone = set[int]().union(*rules.values())
        reasons = ", ".join(f"{len(places)} {rule}" for rule, places in rules.items())
        tell(f"{split}: {size - len(gone)} of {size} problems; left out: {reasons}")
        if len(gone) == size:
            raise ConfigError(f"config.data: the rules leave no problem of {split}: {reasons}")
        kept[split] = tuple(i for i in range(size) if i not in gone)
    return dataclasses.replace(source, kept=kept)


def _lengths(
    source: Source, split: str, first_prompt: Callable[[str], Sequence[int]], report: Report | None
) -> np.ndarray:
    def step(done: int, total: int) -> None:
        if report is not None:
            report(f"prompts of {split}", done, total)

    return reader.prompt_lengths(source.dir, split, first_prompt, step)


def training_problems(
    source: Source | str, split: str, seed: int, step: int, count: int, share: range | None = None
) -> list[Problem]:
    """The problems of iteration `step`, or a process's `share` of range(count): a pure function of its arguments.

    The shares of an iteration are disjoint, and together the same however many there are. Raises ConfigError for a
    problem without any test, which a build leaves out.
    """
    source = _source(source)
    check_splits(source, train=split, evaluated={})
    places = [step * count + i for i in (range(count) if share is None else share)]
    if source.name == CODE_CONTESTS:
        kept = source.kept.get(split)
        problems = [reader.problem_at(source.dir, split, seed, place, kept) for place in places]
        if bare := [problem.name for problem in problems if not problem.tests]:
            raise ConfigError(
                f"config.data.dir: {bare[0]!r} of {split} has no test: delete {source.dir}, build it anew"
            )
        return problems
    return [mini_contests.problem_at(split, seed, place, source.families) for place in places]


def evaluation_problems(
    source: Source | str, split: str, count: int = 0, tell: Tell = tell_nobody
) -> Sequence[Problem]:
    """A fixed split's problems, the first `count` of them (0 = all), less what the source's rules leave out, and less
    those without any test; `tell` hears of missing tests (`missing_tests.testable`)."""
    source = _source(source)
    if not split:
        fixed = CODE_CONTESTS_SPLITS if source.name == CODE_CONTESTS else mini_contests.EVAL_SIZES
        raise ConfigError(f"config.eval.split is empty: give one of {', '.join(fixed)}")
    check_splits(source, train="train" if source.name == MINI_CONTESTS else split, evaluated={"eval.split": split})
    if source.name == CODE_CONTESTS:
        whole = reader.open_split(source.dir, split)
        places = source.kept.get(split, range(len(whole)))
        return testable(f"{source.name}/{split}", [whole[i] for i in places[: count or None]], tell)
    problems = mini_contests.eval_split(split)
    if source.families:
        problems = tuple(p for p in problems if p.tags["family"] in source.families)
    return problems[:count] if count else problems


def split_bounds(source: Source | str, problems: Sequence[Problem]) -> dict[str, float]:
    """What the best player can reach on these problems with and without feedback, in percent, where that is known."""
    source = _source(source)
    check_source(source)
    return bounds(problems) if source.name == MINI_CONTESTS else {}


def _source(source: Source | str) -> Source:
    return Source(source) if isinstance(source, str) else source
