"""The built data set: random access to its problems, and the rules that leave some out.

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

_PROMPTS = "prompt_tokens"  # folder of cached prompt lengths
_HASHES = "shard_hashes"  # folder of cached hashes
_PROBES = 64  # number of statements whose tokens identify a tokenizer and chat format


class Split(Sequence[Problem]):
    """A split's problems by position. Reading one reads only its own record. Safe to share between threads."""

    def __init__(self, name: str, source: Any) -> None:
        """Args: name: the split's name. source: its TFDS data source."""
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
        except Exception as error:  # ArrayRecord and TFDS raise many types for a damaged shard
            raise ConfigError(
                f"config.data.dir: problem {i} of {self._name} can't be read ({error}): build it anew"
            ) from error


@functools.lru_cache(maxsize=8)
def open_split(folder: str, split: str) -> Split:
    """A split of a built folder. Raises ConfigError if it doesn't exist or the build is incomplete."""
    plan = read_plan(Path(folder))
    if split not in plan["splits"]:
        raise ConfigError(f"{folder} has no split {split!r}: it was built with {', '.join(plan['splits'])}")
    tfds = library("tensorflow_datasets")
    try:
        return Split(split, tfds.builder_from_directory(folder).as_data_source(split))
    except Exception as error:  # TFDS raises many types for changed or deleted files
        raise ConfigError(f"config.data.dir: {folder} can't be read ({error}): build it anew") from error


def problem_at(folder: str, split: str, seed: int, index: int, positions: Sequence[int] | None = None) -> Problem:
    """The `index`-th problem of the split's endless shuffled stream (see `order`).

    `positions`: draw from these positions of the split only. Raises ConfigError if the folder can't be read.
    """
    problems = open_split(folder, split)
    if positions is None:
        return problems[position_at(len(problems), seed, index)]
    return problems[positions[position_at(len(positions), seed, index)]]


def left_out(folder: str, split: str, rules: Collection[str]) -> dict[str, set[int]]:
    """{rule: positions that it leaves out}.

    Rules: "several_answers", the statement accepts several outputs (`counts.several_answers`); "files", the problem
    uses a file for its input or output; "references_fail", no reference solution passed the problem's own tests in
    `judge_check`.

    Raises ConfigError if "references_fail" is given and `judge_check` hasn't been run.
    """
    places = read_plan(Path(folder))["splits"][split]["places"]
    excluded = {rule: set(places[rule]) for rule in rules if rule in places}
    if "references_fail" in rules:
        excluded["references_fail"] = failing_references(folder, split)
    return excluded


def failing_references(folder: str, split: str) -> set[int]:
    """Positions of problems with reference solutions of which none passes. Raises ConfigError as `left_out` does."""
    report = references.read_report(Path(folder), split)
    if report is None or len(report.problems) != len(open_split(folder, split)):
        raise ConfigError(
            f"config.data.exclude: not all references of {split} have been run; do: "
            f"python -m rlef_jax.data.code_contests.judge_check --data={folder} --split={split}"
        )
    return {place for place, problem in enumerate(report.problems) if problem.fails}


def shard_hashes(folder: str, split: str) -> list[str]:
    """A SHA-256 of each shard's bytes, in order. They identify a split's problems independently of the folder.

    Reading the shards takes seconds per GB, so the hashes are cached in the data folder, as long as the shards' sizes
    and times of change stay the same. Raises ConfigError if the folder isn't a finished build, OSError if a shard can't
    be read.
    """
    count = len(read_plan(Path(folder))["splits"][split]["shard_lengths"])
    paths = [Path(folder) / shard_name(split, i, count) for i in range(count)]
    stamps = [[state.st_size, state.st_mtime_ns] for state in (path.stat() for path in paths)]
    cache_path = Path(folder) / _HASHES / f"{split}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        cached = json.loads(cache_path.read_text(encoding="utf-8"))
        if cached["stamps"] == stamps and len(cached["hashes"]) == count:
            return [str(text) for text in cached["hashes"]]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        hashes = list(threads.map(_file_hash, paths))
    with contextlib.suppress(OSError):  # without the cache, shards are hashed again next time
        cache_path.parent.mkdir(exist_ok=True)
        part = cache_path.with_name(f"{split}-{os.getpid()}.part")
        part.write_text(json.dumps({"stamps": stamps, "hashes": hashes}), encoding="utf-8")
        os.replace(part, cache_path)
    return hashes


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def prompt_lengths(
    folder: str, split: str, first_prompt: Callable[[Problem], Sequence[int]], report: Callable[[int, int], None] | None
) -> np.ndarray:
    """The number of tokens of each problem's first prompt, in the split's order: int64 of shape [problems].

    Cached in the data folder under a hash of up to 64 prompts: formats that agree on these are taken to be the same.

    Args:
      first_prompt: maps a problem to its prompt's token ids.
      report: called with (prompts counted, all prompts) if they aren't cached.
    """
    problems = open_split(folder, split)
    spread = range(0, len(problems), max(1, -(-len(problems) // _PROBES)))
    probes = [list(map(int, first_prompt(problems[i]))) for i in spread]
    key = hashlib.blake2b(json.dumps(probes).encode(), digest_size=8).hexdigest()
    path = Path(folder) / _PROMPTS / f"{split}-{key}.npy"
    with contextlib.suppress(OSError, ValueError):
        lengths = np.load(path)
        if lengths.shape == (len(problems),):
            return lengths
    lengths = np.fromiter(_lengths(problems, first_prompt, report), np.int64, len(problems))
    with contextlib.suppress(OSError):  # without the cache, prompts are counted again next time
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f"{path.stem}-{os.getpid()}.part.npy")
        np.save(part, lengths)
        os.replace(part, path)
    return lengths


def _lengths(
    problems: Split, first_prompt: Callable[[Problem], Sequence[int]], report: Callable[[int, int], None] | None
) -> Iterator[int]:
    for i in range(len(problems)):
        length = len(first_prompt(problems[i]))
        if report is not None:
            report(i + 1, len(problems))
        yield length  # after the report: np.fromiter doesn't resume after the last length
