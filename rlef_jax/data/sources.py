"""Problem sources by name, as `config.data` describes them.

A `Source` holds that section, and the positions of each split that `fit` selected by its rules. Which problems an
iteration gets is then a pure function of the source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rlef_jax.config_checks import is_problem_file, mix_entries
from rlef_jax.data import mini_contests
from rlef_jax.data.code_contests import reader
from rlef_jax.data.code_contests.build import read_plan
from rlef_jax.data.code_contests.order import position_at
from rlef_jax.data.code_contests.release import SPLITS as CODE_CONTESTS_SPLITS
from rlef_jax.data.jsonl import reader as jsonl
from rlef_jax.data.jsonl.index import NO_HIDDEN, NO_PUBLIC
from rlef_jax.data.jsonl.schema import SPLITS as JSONL_SPLITS
from rlef_jax.data.mini_contests.bounds import bounds
from rlef_jax.data.missing_tests import Tell, ignore_missing, testable
from rlef_jax.data.mixing import member_at
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem

MINI_CONTESTS, CODE_CONTESTS, JSONL = SOURCES = ("mini_contests", "code_contests", "jsonl")
MIX = "mix"  # tag of a training problem that is one of several sources': which
# Progress: called with (name of the work, units done, all units).
type Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """What a source's rules leave out of a split.

    Attributes:
      of: problems of the whole split.
      kept: those that remain.
      rules: {rule: how many it leaves out}; a problem may break several.
    """

    of: int
    kept: int
    rules: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.kept} of {self.of} problems; left out: {self.reasons}"

    @property
    def reasons(self) -> str:
        return ", ".join(f"{count} {rule}" for rule, count in self.rules.items())


@dataclasses.dataclass(frozen=True)
class Source:
    """Where problems come from.

    Attributes:
      name: one of SOURCES.
      dir: CodeContests' data folder.
      families: MiniContests' families that problems come from; empty means all of them.
      even_questions: share of MiniContests' training problems whose open question is drawn evenly (`problem_at`).
      exclude: rules that leave out problems of CodeContests (`code_contests.reader.left_out`).
      max_prompt_tokens: problems with longer first prompts are left out; 0 leaves none out.
      positions: {split: positions that remain under these rules}, set by `fit`; other splits are used whole.
      left_out: {split: what the rules leave out of it}, set by `fit`.
      files: {split: its files of own problems} (`data.jsonl`).
      mix: what training problems come from instead, by weight; evaluations' come from this source.
      contents: {split: a hash of each file of `files`}, set by `fit`: other content is refused from then on.
    """

    name: str
    dir: str = ""
    families: tuple[str, ...] = ()
    even_questions: float = 0.0
    exclude: tuple[str, ...] = ()
    max_prompt_tokens: int = 0
    positions: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    left_out: Mapping[str, LeftOut] = dataclasses.field(default_factory=dict)
    files: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    mix: tuple[Share, ...] = ()
    contents: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, config: ConfigDict) -> Source:
        """The source that `config.data` describes."""
        d = config.data
        of_splits = {"train": d.train_files, "valid": d.valid_files, "test": d.test_files}
        files = {split: tuple(names) for split, names in of_splits.items() if names}
        source = cls(
            d.name, d.dir, tuple(d.families), d.even_questions, tuple(d.exclude), d.max_prompt_tokens, files=files
        )
        return dataclasses.replace(source, mix=tuple(_shares(source, d.mix, d.train_split)))

    def reading(self, file: str) -> Source:
        """A source of the problems of one file, with this one's rules."""
        return dataclasses.replace(self, name=JSONL, files={split: (file,) for split in JSONL_SPLITS}, mix=())


@dataclasses.dataclass(frozen=True)
class Share:
    """One of several sources of training problems: what metrics call it, its weight, and the split they are of."""

    label: str
    weight: float
    source: Source
    split: str


def _shares(source: Source, mix: Sequence[str], split: str) -> Iterator[Share]:
    for name, weight in mix_entries(mix):
        if is_problem_file(name):
            yield Share(Path(name).name.partition(".")[0], weight, source.reading(name), split)
        else:
            yield Share(name, weight, dataclasses.replace(source, name=name), split)


def check_source(source: Source) -> None:
    """Raises ConfigError for an unknown source, or one that can't be used. Files of own problems aren't read yet."""
    if source.name not in SOURCES:
        raise ConfigError(f"config.data.name: no problem source {source.name!r}; there is {', '.join(SOURCES)}")
    if source.name == CODE_CONTESTS:
        if not source.dir:
            raise ConfigError("config.data.dir: give the folder that python -m rlef_jax.data.code_contests has built")
        read_plan(Path(source.dir))
    if source.name == JSONL and not source.files:
        keys = ", ".join(f"config.data.{split}_files" for split in JSONL_SPLITS)
        raise ConfigError(f'{keys}: name the files of problems for data.name="jsonl" (docs/own_problems.md)')
    known = sorted(family.name for family in mini_contests.FAMILIES if not family.held_out)
    if unknown := [family for family in source.families if family not in known]:
        raise ConfigError(f"config.data.families: no family {unknown[0]!r}; there is {', '.join(known)}")


def check_splits(source: Source | str, *, train: str, evaluated: Mapping[str, str]) -> None:
    """Raises ConfigError for an unknown source or split.

    Args:
      source: by its name alone it has no exclusion rules.
      train: the split of training problems, "" for none. Of a mix, its sources' own splits are checked instead.
      evaluated: {config key: split}, with "" for no split.
    """
    source = _source(source)
    if train and source.mix:
        for share in source.mix:
            try:
                check_splits(share.source, train=share.split, evaluated={})
            except ConfigError as error:
                raise ConfigError(f"config.data.mix: {share.label}: {error}") from error
    checked = {} if source.mix or not train else {"data.train_split": train}
    checked |= {key: split for key, split in evaluated.items() if split}
    if not checked and source.mix:
        return  # nothing comes from the source itself
    check_source(source)
    splits = _splits(source)
    for key, split in checked.items():
        if split not in splits:
            files = f" (config.data.{split}_files)" if source.name == JSONL and split in JSONL_SPLITS else ""
            raise ConfigError(f"config.{key}: {split!r}{files} is none of {', '.join(splits)}")


def _splits(source: Source) -> tuple[str, ...]:
    """The splits that a source has."""
    if source.name == CODE_CONTESTS:
        return tuple(read_plan(Path(source.dir))["splits"])
    return tuple(source.files) if source.name == JSONL else mini_contests.SPLITS


def fit(
    source: Source,
    splits: Sequence[str],
    first_prompt: Callable[[Problem], Sequence[int]],
    *,
    tell: Callable[[str], None] = print,
    report: Report | None = None,
) -> Source:
    """The source with its rules applied to some splits, and its mix with the rules applied to training's.

    Args:
      first_prompt: maps a problem to its prompt's token ids (`chat.first_prompt(first_message(...), ...)`).
      tell: called with one line per split, which counts the problems left out.
      report: progress of counting prompt tokens, which are counted once per tokenizer and cached in the data folder.

    Raises ConfigError if a rule can't be applied or leaves no problem, and for faults in files of own problems, with a
    line for each.
    """

    def of_share(share: Share) -> Share:
        def label(line: str) -> None:
            tell(f"{share.label}/{line}")

        return dataclasses.replace(
            share, source=fit(share.source, [share.split], first_prompt, tell=label, report=report)
        )

    source = dataclasses.replace(source, mix=tuple(map(of_share, source.mix)))
    if source.name == JSONL:
        found = {split: jsonl.open_split(source.files[split], split) for split in dict.fromkeys(splits)}
        for split, problems in found.items():
            tell(_counts(problems, split))
        contents = {split: problems.contents for split, problems in found.items()}
        source = dataclasses.replace(source, contents={**source.contents, **contents})
    if source.name == MINI_CONTESTS or not (source.exclude or source.max_prompt_tokens):
        return source
    positions, left_out = dict(source.positions), dict(source.left_out)
    for split in dict.fromkeys(splits):
        size = len(_opened(source, split))
        rules = reader.left_out(source.dir, split, source.exclude) if source.name == CODE_CONTESTS else {}
        if source.max_prompt_tokens:
            lengths = _lengths(source, split, first_prompt, report)
            too_long = np.flatnonzero(lengths > source.max_prompt_tokens).tolist()
            rules[f"with a prompt longer than max_prompt_tokens={source.max_prompt_tokens}"] = set(too_long)
        excluded = set[int]().union(*rules.values())
        counts = LeftOut(size, size - len(excluded), {rule: len(places) for rule, places in rules.items()})
        tell(f"{split}: {counts}")
        if not counts.kept:
            raise ConfigError(f"config.data: the rules leave no problem of {split}: {counts.reasons}")
        left_out[split] = counts
        positions[split] = tuple(i for i in range(size) if i not in excluded)
    return dataclasses.replace(source, positions=positions, left_out=left_out)


def _opened(source: Source, split: str) -> Sequence[Problem]:
    """The problems of a split by position, all of them. The source isn't MiniContests."""
    if source.name == CODE_CONTESTS:
        return reader.open_split(source.dir, split)
    return _own(source, split)


def _own(source: Source, split: str) -> jsonl.Split:
    """A split of own problems. Raises ConfigError for a file that holds something else than `fit` has found in it."""
    problems = jsonl.open_split(source.files[split], split)
    before = source.contents.get(split, problems.contents)
    for file, was, now in zip(source.files[split], before, problems.contents, strict=True):
        if was != now:
            raise ConfigError(f"{file} has changed since the run began: put it back as it was, or start anew")
    return problems


def _counts(problems: jsonl.Split, split: str) -> str:
    """What a split of own problems holds."""
    rules = {
        "without hidden tests: their public tests decide": problems.lacking(NO_HIDDEN),
        "without public tests: their first valid program is the last": problems.lacking(NO_PUBLIC),
    }
    return "; ".join([f"{split}: {len(problems)} problems", *(f"{n} {rule}" for rule, n in rules.items() if n)])


def _lengths(
    source: Source, split: str, first_prompt: Callable[[Problem], Sequence[int]], report: Report | None
) -> np.ndarray:
    def step(done: int, total: int) -> None:
        if report is not None:
            report(f"prompts of {split}", done, total)

    if source.name == CODE_CONTESTS:
        return reader.prompt_lengths(source.dir, split, first_prompt, step)
    return jsonl.prompt_lengths(source.files[split], split, first_prompt, step)


def training_problems(
    source: Source | str,
    split: str,
    seed: int,
    step: int,
    count: int,
    share: range | None = None,
    group_size: int = 1,
) -> list[Problem]:
    """The problems of iteration `step`, or a process's `share` of range(count): a pure function of its arguments.

    Each problem stands `group_size` times in a row, so an iteration has count / group_size of them. The shares of an
    iteration are disjoint, and their union doesn't depend on the number of processes.

    Raises ConfigError for a problem without any test (a build leaves those out), ValueError for a `count` that groups
    of this size don't divide.
    """
    if count % group_size:
        raise ValueError(f"{count} episodes can't be split into groups of {group_size}")
    source = _source(source)
    check_splits(source, train=split, evaluated={})
    places = [(step * count + i) // group_size for i in (range(count) if share is None else share)]
    found = dict(zip(distinct := list(dict.fromkeys(places)), _problems_at(source, split, seed, distinct), strict=True))
    return [found[place] for place in places]


def _problems_at(source: Source, split: str, seed: int, places: Sequence[int]) -> list[Problem]:
    """The problems at places of the stream of a split. Raises ConfigError for one without any test."""
    if source.mix:
        return _mixed(source.mix, seed, places)
    if source.name == JSONL:
        own = _own(source, split)
        kept = source.positions.get(split, range(len(own)))
        return [own[kept[position_at(len(kept), seed, place)]] for place in places]
    if source.name == CODE_CONTESTS:
        positions = source.positions.get(split)
        problems = [reader.problem_at(source.dir, split, seed, place, positions) for place in places]
        if untested := [problem.name for problem in problems if not problem.tests]:
            raise ConfigError(
                f"config.data.dir: {untested[0]!r} of {split} has no test: delete {source.dir}, build it anew"
            )
        return problems
    even = source.even_questions
    return [mini_contests.problem_at(split, seed, place, source.families, even_questions=even) for place in places]


def _mixed(mix: Sequence[Share], seed: int, places: Sequence[int]) -> list[Problem]:
    """The problems at places of the stream of several sources, which say in a tag where they are from."""
    drawn = [member_at([share.weight for share in mix], seed, place) for place in places]
    found: dict[tuple[int, int], Problem] = {}
    for member, share in enumerate(mix):
        own = [place for number, place in drawn if number == member]
        for place, problem in zip(own, _problems_at(share.source, share.split, seed, own), strict=True):
            found[member, place] = dataclasses.replace(problem, tags={**problem.tags, MIX: share.label})
    return [found[pair] for pair in drawn]


def evaluation_problems(
    source: Source | str, split: str, count: int = 0, tell: Tell = ignore_missing
) -> Sequence[Problem]:
    """The first `count` problems of a fixed split (0 = all) that the source's rules leave and that have a test.

    `tell` is called if tests are missing (`missing_tests.testable`). MiniContests' "train" has no end: its first ones
    are those of seed 0. Raises ConfigError for an unknown source or split, or all of what has no end.
    """
    source = _source(source)
    if not split:
        fixed = {CODE_CONTESTS: CODE_CONTESTS_SPLITS, JSONL: JSONL_SPLITS}.get(source.name, mini_contests.SPLITS)
        raise ConfigError(f"config.eval.split is empty: give one of {', '.join(fixed)}")
    check_splits(source, train="", evaluated={"eval.split": split})
    if source.name != MINI_CONTESTS:
        all_problems = _opened(source, split)
        places = source.positions.get(split, range(len(all_problems)))
        return testable(f"{source.name}/{split}", [all_problems[i] for i in places[: count or None]], tell)
    if split == "train":
        if not count:
            raise ConfigError("config.eval.problems (--problems): how many of mini_contests/train? It has no end")
        only, even = source.families, source.even_questions
        return [mini_contests.problem_at(split, 0, i, only, even_questions=even) for i in range(count)]
    problems = mini_contests.eval_split(split, source.families)
    return problems[:count] if count else problems


def split_bounds(source: Source | str, problems: Sequence[Problem]) -> dict[str, float]:
    """Bounds on 1@3 in percent with and without feedback (`mini_contests.bounds`); {} for sources without them."""
    source = _source(source)
    check_source(source)
    return bounds(problems) if source.name == MINI_CONTESTS else {}


def _source(source: Source | str) -> Source:
    return Source(source) if isinstance(source, str) else source
