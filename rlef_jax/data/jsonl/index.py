"""Checks a file of problems once, line by line, and remembers where its lines begin.

What is remembered lies beside the file, in FILE.cache/: a later start, or another process, reads that as long as the
file's size, times of change and inode are the same. A gzipped file is unpacked there, since reading can't start in its
middle. One line is held in memory at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from rlef_jax.data import foreign
from rlef_jax.data.jsonl.schema import BOM, SPLITS, problem_of, row_of
from rlef_jax.errors import ConfigError
from rlef_jax.files import replacing
from rlef_jax.types import Problem

MOST_FAULTS = 20  # that are named at once
_FORMAT = 2  # of what is remembered, and of the checks: another number has files checked again
_ANY = len(SPLITS)  # the number of no split
NO_PUBLIC, NO_HIDDEN = 1, 2
_NONE = Problem("", "", (), ())  # in the place of one with faults
_ARRAYS = ("offsets", "numbers", "splits", "lacking", "names")
_NOTHING = "{}: no problem in it: each line is to be the JSON object of one (docs/own_problems.md)"


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the problems of a file are.

    Attributes:
      path: the file as it was given.
      text: the file of lines: itself, or what it was unpacked to.
      content: SHA-256 of the lines, in hexadecimal digits.
      offsets: [problems] int64, the first byte of each problem's line in `text`.
      numbers: [problems] int64, the numbers of these lines, from 1.
      splits: [problems] uint8, the place in SPLITS of each problem's split, `len(SPLITS)` for any.
      lacking: [problems] uint8, 1 without public tests, 2 without hidden ones, 0 with both.
      names: [problems] uint64, a hash of each problem's name.
    """

    path: Path
    text: Path
    content: str
    offsets: np.ndarray
    numbers: np.ndarray
    splits: np.ndarray
    lacking: np.ndarray
    names: np.ndarray

    def places(self, split: str) -> np.ndarray:
        """Which of the problems are of a split: those that say so, and those that name none. int64 of shape [n]."""
        return np.flatnonzero((self.splits == SPLITS.index(split)) | (self.splits == _ANY))


def cache_of(path: Path) -> Path:
    """The folder beside a file where what is known of it lies."""
    return path.with_name(f"{path.name}.cache")


def name_hash(name: str) -> int:
    """64 bits of a name."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def open_index(path: Path) -> Index:
    """The index of a file, checked now or before.

    Raises ConfigError with a line for each fault, FILE:LINE first, for files that can't be read, and for those without
    a problem.
    """
    with foreign.naming(path):
        state = path.stat()
    if not state.st_size:
        raise ConfigError(_NOTHING.format(path))
    return _opened(path, (_FORMAT, state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns))


@functools.lru_cache(maxsize=64)
def _opened(path: Path, stamps: tuple[int, ...]) -> Index:
    return _remembered(path, stamps) or _checked(path, stamps)


def _remembered(path: Path, stamps: tuple[int, ...]) -> Index | None:
    """What an earlier check has written, if it was of the same file."""
    saved = saved_arrays(cache_of(path) / f"index-{_name(stamps)}.npz")
    if str(saved.get("stamp")) != _stamp(stamps):
        return None
    text = cache_of(path) / f"lines-{_name(stamps)}.jsonl" if foreign.is_gzipped(path) else path
    with contextlib.suppress(OSError):
        if text.stat().st_size == int(saved["size"]):
            return Index(path, text, str(saved["content"]), **{name: saved[name] for name in _ARRAYS})
    return None


def saved_arrays(path: Path) -> Mapping[str, np.ndarray]:
    """The arrays that `save_arrays` wrote by their names; none where there is no such file, or a damaged one."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as saved:  # by its name it may be left open
            return {name: saved[name] for name in saved.files}
    except Exception:  # NumPy and zipfile raise errors of ten classes for what is cut or has another byte
        return {}


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays, with checksums, where other processes may do so too. Raises OSError."""
    with replacing(path, shared=True) as file:
        np.savez(file, **arrays)


def _stamp(stamps: tuple[int, ...]) -> str:
    return "-".join(map(str, stamps))


def _name(stamps: tuple[int, ...]) -> str:
    """Of the file's size and time: machines that share a folder may see other inodes, and mustn't delete each
    other's."""
    return _stamp(stamps[:3])


def _checked(path: Path, stamps: tuple[int, ...]) -> Index:
    cache = cache_of(path)
    if foreign.is_gzipped(path):
        index, size = _unpacked(path, stamps)
    else:
        index, size = _scan(path, path)
        with contextlib.suppress(OSError):
            _renew(cache, stamps)
    with contextlib.suppress(OSError):  # where nothing can be written, the file is checked again next time
        arrays = {name: getattr(index, name) for name in _ARRAYS}
        facts = {"content": np.array(index.content), "size": np.array(size), "stamp": np.array(_stamp(stamps))}
        save_arrays(cache / f"index-{_name(stamps)}.npz", arrays | facts)
    return index


def _unpacked(path: Path, stamps: tuple[int, ...]) -> tuple[Index, int]:
    """As `_scan`, of a gzipped file, which is unpacked in the cache's folder."""
    text = cache_of(path) / f"lines-{_name(stamps)}.jsonl"
    try:
        _renew(text.parent, stamps)
        with replacing(text, shared=True) as file:
            return _scan(path, text, file)
    except OSError as error:
        fix = "unpack it yourself, with gunzip"
        raise ConfigError(f"{path} can't be unpacked to {text.parent} ({error.strerror}): {fix}") from error


def _renew(cache: Path, stamps: tuple[int, ...]) -> None:
    """The folder without what was remembered of the file as it was before."""
    cache.mkdir(exist_ok=True)
    for old in (*cache.glob("index-*.npz"), *cache.glob("lines-*.jsonl")):
        if old.stem.partition("-")[2] != _name(stamps):  # another process may have written the same just now
            with contextlib.suppress(OSError):
                old.unlink()


def _scan(path: Path, text: Path, unpacked: BinaryIO | None = None) -> tuple[Index, int]:
    """(index, size of its text) after a check of every line, which are copied to `unpacked` if that is given."""
    faults: list[str] = []
    known: dict[str, int] = {}
    rows: list[tuple[int, int, int, int, int]] = []
    digest, offset = hashlib.sha256(), 0
    for number, line in enumerate(_lines(path), start=1):
        digest.update(line)
        if unpacked is not None:
            unpacked.write(line)
        if line.strip().removeprefix(BOM):
            found: list[str] = []
            row = row_of(line, found)
            problem, split = problem_of(row, found) if not found else (_NONE, "")
            if (name := problem.name) in known and not found:
                found.append(f'name: "{name}" is the name of line {known[name]} too, where one of its own is wanted')
            faults += [f"{path}:{number}: {fault}" for fault in found]
            if len(faults) >= MOST_FAULTS:
                break
            known.setdefault(name, number)
            if not faults:
                of_split = SPLITS.index(split) if split else _ANY
                rows.append((offset, number, of_split, _lacking(problem), name_hash(name)))
        offset += len(line)
    if faults:
        more = f"\n{path}: no more is looked for after {MOST_FAULTS} faults" if len(faults) >= MOST_FAULTS else ""
        raise ConfigError("\n".join(faults[:MOST_FAULTS]) + more)
    if not rows:
        raise ConfigError(_NOTHING.format(path))
    kinds = (np.int64, np.int64, np.uint8, np.uint8, np.uint64)
    arrays = [np.array(column, kind) for column, kind in zip(zip(*rows), kinds, strict=True)]
    return Index(path, text, digest.hexdigest(), *arrays), offset


def _lacking(problem: Problem) -> int:
    hidden = problem.private_tests or problem.generated_tests
    return (0 if problem.public_tests else NO_PUBLIC) + (0 if hidden else NO_HIDDEN)


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, blank ones too; only a newline ends a line."""
    with foreign.opened(path) as file:
        while True:
            with foreign.naming(path):
                line = file.readline()
            if not line:
                return
            yield line
