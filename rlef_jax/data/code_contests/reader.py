"""The built data set: random access to its problems, and the rules by which some are left out.

problem_at(folder, "train", seed, index)     a pure function of its arguments and the folder
open_split(folder, "valid")[3]               the fourth problem of a split, in the release's order
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from rlef_jax.data.code_contests import references
from rlef_jax.data.code_contests.build import read_plan, shard_name
from rlef_jax.data.code_contests.examples import from_example, library
from rlef_jax.data.code_contests.order import position_at
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem

_PROMPTS = "prompt_tokens"  # folder of cached lengths
_HASHES = "shard_hashes"  # folder of kept hashes
_PROBES = 64  # statements whose tokens tell one tokenizer, or chat format, from another


class Split(Sequence[Problem]):
    """A split's problems by position. Reading one touches its own record only. May be shared between threads."""

    def __init__(self, name: str, source: Any) -> None:
        """Args: name: of the split. source: TFDS's data source."""
        self._name, self._source = name, source

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, place: int) -> Problem: ...

    @overload
    def __getitem__(self, place: slice) -> list[Problem]: ...

    def __getitem__(self, place: int | slice) -> Problem | list[Problem]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        i = range(len(self))[place]
        try:
            return from_example(self._source[i], f"{self._name}/{i}")
        except Exception as error:  # whatever ArrayRecord and TFDS say of a shard that was damaged
            raise ConfigError(
                f"config.data.dir: problem {i} of {self._name} can't be read ({error}): build it anew"
            ) from error


@functools.lru_cache(maxsize=8)
def open_split(folder: str, split: str) -> Split:
    """A split of a built folder. Raises ConfigError where it isn't there, or the build is not complete."""
    plan = read_plan(Path(folder))
    if split not in plan["splits"]:
        raise ConfigError(f"{folder} has no split {split!r}: it was built with {', '.join(plan['splits'])}")
    tfds = library("tensorflow_datasets")
    try:
        return Split(split, tfds.builder_from_directory(folder).as_data_source(split))
    except Exception as error:  # whatever TFDS says of files that were changed or deleted
        raise ConfigError(f"config.data.dir: {folder} can't be read ({error}): build it anew") from error


def problem_at(folder: str, split: str, seed: int, index: int, kept: Sequence[int] | None = None) -> Problem:
    """The `index`-th problem of the split's endless shuffled stream (see `order`); `kept`: of these positions only.

    Raises ConfigError where the folder can't be read.
    """
    problems = open_split(folder, split)
    if kept is None:
        return problems[position_at(len(problems), seed, index)]
    return problems[kept[position_at(len(kept), seed, index)]]


def left_out(folder: str, split: str, rules: Collection[str]) -> dict[str, set[int]]:
    """The positions that each rule leaves out.

    Rules: "several_answers", the statement says that several outputs are right (`counts.several_answers`); "files", the
    problem has a file for its input or output; "references_fail", none of its reference solutions passed its own tests
    in `judge_check`.

    Raises ConfigError where a rule needs a check that hasn't been made.
    """
    places = read_plan(Path(folder))["splits"][split]["places"]
    found = {rule: set(places[rule]) for rule in rules if rule in places}
    if "references_fail" in rules:
        found["references_fail"] = failing_references(folder, split)
    return found


def failing_references(folder: str, split: str) -> set[int]:
    """Positions of the problems that have reference solutions none of which passes. Raises ConfigError, see above."""
    found = references.read_report(Path(folder), split)
    if found is None or len(found.problems) != len(open_split(folder, split)):
        raise ConfigError(
            f"config.data.exclude: not all references of {split} have been run; do: "
            f"python -m rlef_jax.data.code_contests.judge_check --data={folder} --split={split}"
        )
    return {place for place, problem in enumerate(found.problems) if problem.fails}


def shard_hashes(folder: str, split: str) -> list[str]:
    """A hash of each shard's bytes, in order: what the problems of a split are, wherever it was built.

    Reading them all takes seconds a GB, so hashes are kept in the data folder, each until its shard's size or time of
    change is another. Raises ConfigError where the folder is no finished build, OSError where a shard can't be read.
    """
    count = len(read_plan(Path(folder))["splits"][split]["shard_lengths"])
    paths = [Path(folder) / shard_name(split, i, count) for i in range(count)]
    stamps = [[state.st_size, state.st_mtime_ns] for state in (path.stat() for path in paths)]
    kept_in = Path(folder) / _HASHES / f"{split}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(kept_in.read_text(encoding="utf-8"))
        if known["stamps"] == stamps and len(known["hashes"]) == count:
            return [str(text) for text in known["hashes"]]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        hashes = list(threads.map(_file_hash, paths))
    with contextlib.suppress(OSError):  # a folder that can't be written only costs time
        kept_in.parent.mkdir(exist_ok=True)
        part = kept_in.with_name(f"{split}-{os.getpid()}.part")
        part.write_text(json.dumps({"stamps": stamps, "hashes": hashes}), encoding="utf-8")
        os.replace(part, kept_in)
    return hashes


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prompt_lengths(
    folder: str, split: str, first_prompt: Callable[[str], Sequence[int]], report: Callable[[int, int], None] | None
) -> np.ndarray:
    """Tokens of each problem's first prompt, in the split's order: int64 of shape [problems].

    Kept in the data folder under a hash of the prompts of some statements: formats that agree on 64 statements, token
    by token, are taken to be the same.

    Args:
      first_prompt: from a statement to its prompt's ids.
      report: called with (done, all) where they must be counted.
    """
    problems = open_split(folder, split)
    spread = range(0, len(problems), max(1, -(-len(problems) // _PROBES)))
    probes = [list(map(int, first_prompt(problems[i].description))) for i in spread]
    key = hashlib.blake2b(json.dumps(probes).encode(), digest_size=8).hexdigest()
    path = Path(folder) / _PROMPTS / f"{split}-{key}.npy"
    with contextlib.suppress(OSError, ValueError):
        lengths = np.load(path)
        if lengths.shape == (len(problems),):
            return lengths
    lengths = np.fromiter(_lengths(problems, first_prompt, report), np.int64, len(problems))
    with contextlib.suppress(OSError):  # a folder that can't be written only costs time
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f"{path.stem}-{os.getpid()}.part.npy")
        np.save(part, lengths)
        os.replace(part, path)
    return lengths


def _lengths(
    problems: Split, first_prompt: Callable[[str], Sequence[int]], report: Callable[[int, int], None] | None
) -> Iterator[int]:
    for i in range(len(problems)):
        length = len(first_prompt(problems[i].description))
        if report is not None:
            report(i + 1, len(problems))
        yield length  # the last, whose reader comes back for no more
