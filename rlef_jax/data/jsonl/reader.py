"""The problems of a split by position, over all of its files. Reading one reads its own line only."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from rlef_jax.data import foreign
from rlef_jax.data.jsonl.index import Index, cache_of, name_hash, open_index, save_arrays, saved_arrays
from rlef_jax.data.jsonl.schema import problem_of, row_of
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem

_PROBES = 64  # number of problems whose prompts identify a tokenizer and chat format


class Split(Sequence[Problem]):
    """A split's problems by position: file after file, line after line. Safe to share between threads."""

    def __init__(self, files: Sequence[Index], split: str) -> None:
        """Raises ConfigError for a name that two of the files have, and where no problem is of the split."""
        self._files = files
        self.contents = tuple(index.content for index in files)  # the files' hashes
        self._places = [index.places(split) for index in files]
        self._ends = np.cumsum([len(places) for places in self._places])
        if not self._ends[-1]:
            raise ConfigError(f"{', '.join(str(index.path) for index in files)}: every problem is of another split")
        self._check_names(split)

    def _check_names(self, split: str) -> None:
        names = np.concatenate([index.names[places] for index, places in zip(self._files, self._places)])
        order = np.argsort(names, kind="stable")
        for place in np.flatnonzero(names[order][1:] == names[order][:-1]):
            first, second = int(order[place]), int(order[place + 1])
            if (name := self[first].name) == self[second].name:  # and not two names of one hash
                raise ConfigError(
                    f'{self.place_of(second)}: name: "{name}" is that of {self.place_of(first)} too, where one of its'
                    f" own is wanted in {split}"
                )

    def _line(self, place: int) -> tuple[Index, int]:
        """(file, problem of that file)."""
        file = int(np.searchsorted(self._ends, place, side="right"))
        return self._files[file], int(self._places[file][place - (self._ends[file - 1] if file else 0)])

    def lacking(self, flag: int) -> int:
        """How many problems lack public tests (`index.NO_PUBLIC`), or hidden ones (`index.NO_HIDDEN`)."""
        pairs = zip(self._files, self._places, strict=True)
        return sum(int(np.count_nonzero(index.lacking[places] & flag)) for index, places in pairs)

    def place_of(self, place: int) -> str:
        """FILE:LINE of a problem."""
        index, i = self._line(place)
        return f"{index.path}:{index.numbers[i]}"

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, place: int) -> Problem: ...

    @overload
    def __getitem__(self, place: slice) -> list[Problem]: ...

    def __getitem__(self, place: int | slice) -> Problem | list[Problem]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        index, i = self._line(range(len(self))[place])
        with foreign.naming(index.path), open(index.text, "rb") as file:
            file.seek(int(index.offsets[i]))
            line = file.readline()
        faults: list[str] = []
        row = row_of(line, faults)
        problem = None if faults else problem_of(row, faults)[0]
        if problem is None or faults or name_hash(problem.name) != int(index.names[i]):
            raise ConfigError(f"{index.path}:{index.numbers[i]}: the file has changed since it was checked: start anew")
        return problem


def open_split(files: Sequence[str], split: str) -> Split:
    """The split that some files make. Raises ConfigError for faults in any of them, see `open_index` and `Split`."""
    indexes, faults = [], []
    for file in files:
        try:
            indexes.append(open_index(Path(file)))
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return _joined(tuple(files), split, tuple((index.content, index.text) for index in indexes))


@functools.lru_cache(maxsize=16)
def _joined(files: tuple[str, ...], split: str, found: tuple[tuple[str, Path], ...]) -> Split:
    return Split([open_index(Path(file)) for file in files], split)


def identity(files: Sequence[str]) -> list[str]:
    """What the files hold, each by its hash, in order, whatever they are called."""
    return [f"hash {open_index(Path(file)).content[:16]}" for file in files]


def prompt_lengths(
    files: Sequence[str],
    split: str,
    first_prompt: Callable[[Problem], Sequence[int]],
    report: Callable[[int, int], None] | None,
) -> np.ndarray:
    """The number of tokens of each problem's first prompt, in the split's order: int64 of shape [problems].

    Cached beside the first file, under a hash of the files' content and of up to 64 prompts: formats that agree on
    these are taken to be the same.

    Args:
      first_prompt: maps a problem to its prompt's token ids.
      report: called with (prompts counted, all prompts) if they aren't cached.
    """
    problems = open_split(files, split)
    spread = range(0, len(problems), max(1, -(-len(problems) // _PROBES)))
    probes = [list(map(int, first_prompt(problems[i]))) for i in spread]
    key = hashlib.blake2b(json.dumps([identity(files), split, probes]).encode(), digest_size=8).hexdigest()
    path = cache_of(Path(files[0])) / f"prompt_tokens-{key}.npz"
    known = saved_arrays(path).get("lengths")
    if known is not None and known.shape == (len(problems),):
        return known
    lengths = np.zeros(len(problems), np.int64)
    for i in range(len(problems)):
        lengths[i] = len(first_prompt(problems[i]))
        if report is not None:
            report(i + 1, len(problems))
    with contextlib.suppress(OSError):  # without the cache, prompts are counted again next time
        save_arrays(path, {"lengths": lengths})
    return lengths
