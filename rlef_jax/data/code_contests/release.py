"""Reads the published CodeContests row by row: the parquet release, or JSON lines of the `ContestProblem` proto.

Both give equal `types.Problem`s. Only solutions in Python 3 are kept. Columns without a field in `Problem` go to
`Problem.tags`: source, difficulty, cf_tags, cf_rating, cf_contest_id, cf_index, input_file, output_file,
is_description_translated.

Layout and numbering: https://github.com/google-deepmind/code_contests (contest_problem.proto), and the dataset card of
deepmind/code_contests on Hugging Face.
"""

from __future__ import annotations

import dataclasses
import decimal
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.data import foreign
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem, TestCase

SPLITS = ("train", "valid", "test")
_TESTS = ("public_tests", "private_tests", "generated_tests")
_LANGUAGES = {"UNKNOWN_LANGUAGE": 0, "PYTHON": 1, "CPP": 2, "PYTHON3": 3, "JAVA": 4}
_PYTHON3 = _LANGUAGES["PYTHON3"]
_SOURCES = ("UNKNOWN_SOURCE", "CODECHEF", "CODEFORCES", "HACKEREARTH", "CODEJAM", "ATCODER", "AIZU")
_PROTO_SOURCES = dict(zip(_SOURCES, (0, 1, 2, 3, 4, 6, 7)))  # the parquet release numbers them 0 to 6
_WORDS = ("UNKNOWN_DIFFICULTY", "EASY", "MEDIUM", "HARD", "HARDER", "HARDEST", "EXTERNAL")
_DIFFICULTIES = {name: i for i, name in enumerate((*_WORDS, *"ABCDEFGHIJK"))} | {
    letter: 19 + i
    for i, letter in enumerate("LMNOPQRSTUV")  # 18 is skipped in the proto
}
_BATCH_ROWS = 8  # rows held in memory at a time: a row with all its solutions may have 100 MB
RANGE_BYTES = 256 << 20  # size of a unit of a JSON lines file


@dataclasses.dataclass(frozen=True)
class Unit:
    """A part of the release that is read, and written as a shard, in one go.

    `first` is a row group of a parquet file, or the first byte of a range of lines; `size` is the unit's size in bytes.
    """

    split: str
    path: Path
    first: int
    size: int


def units(folder: Path) -> list[Unit]:
    """The parts of a folder's release, split by split and in the order of file names.

    A file belongs to the split whose name is a word of the file's name. Raises ConfigError if the folder has no such
    file, or has both formats.
    """
    if not folder.is_dir():
        raise ConfigError(f"--source: no folder {str(folder)!r}")
    files = sorted(path for path in folder.iterdir() if path.name.endswith((".parquet", ".jsonl", ".jsonl.gz")))
    of_split = {path: split for path in files if (split := _split_of(path.name))}
    if not of_split:
        raise ConfigError(
            f"--source: {folder} has no file of CodeContests, such as train-00000-of-00039.parquet or train.jsonl"
        )
    if len({path.suffix == ".parquet" for path in of_split}) > 1:
        raise ConfigError(f"--source: {folder} has parquet files and JSON lines: give a folder with one of the two")
    parts = [unit for path, split in of_split.items() for unit in _parts(split, path)]
    return sorted(parts, key=lambda unit: SPLITS.index(unit.split))  # stable: files stay in their order


def _split_of(name: str) -> str:
    words = [split for split in SPLITS if re.search(rf"(?<![a-z]){split}(?![a-z])", name)]
    return words[0] if len(words) == 1 else ""


def _parts(split: str, path: Path) -> list[Unit]:
    size = path.stat().st_size
    if path.suffix == ".parquet":
        groups = foreign.parquet_file(path).metadata.num_row_groups
        return [Unit(split, path, group, size // groups) for group in range(groups)]
    if foreign.is_gzipped(path):
        return [Unit(split, path, 0, size)]  # reading can't start in the middle of gzip
    starts = range(0, max(size, 1), RANGE_BYTES)
    return [Unit(split, path, start, min(RANGE_BYTES, size - start)) for start in starts]


def read(unit: Unit, *, solutions: int, incorrect: int) -> Iterator[tuple[Problem, float]]:
    """A unit's problems, each with the fraction of the unit read so far.

    Args: solutions, incorrect: numbers of correct and incorrect programs to keep per problem (the first ones).

    Raises ConfigError for rows of another layout.
    """
    rows = parquet_problems(unit.path, unit.first) if unit.path.suffix == ".parquet" else _lines(unit)
    for problem, share in rows:
        yield (
            dataclasses.replace(
                problem,
                solutions=problem.solutions[:solutions],
                incorrect_solutions=problem.incorrect_solutions[:incorrect],
            ),
            share,
        )


def parquet_problems(path: Path, group: int | None = None) -> Iterator[tuple[Problem, float]]:
    """The problems of a parquet file, or of one of its row groups, with the fraction of rows read so far.

    Holds a few rows at a time. Raises ConfigError if it isn't a file of this release, or pyarrow isn't installed.
    """
    file = foreign.parquet_file(path)
    groups = list(range(file.metadata.num_row_groups)) if group is None else [group]
    rows = sum(file.metadata.row_group(i).num_rows for i in groups)
    needed = [*_COLUMNS, *_TESTS, "solutions", "incorrect_solutions", "time_limit"]
    if missing := [name for name in needed if name not in file.schema_arrow.names]:
        raise ConfigError(f"{path}: not a file of CodeContests: it has no column {', '.join(missing)}")
    done = 0
    batches = iter(file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=needed))
    while True:
        with foreign.naming(path, f"row {done + 1} or after it"):
            batch = next(batches, None)
            batch_rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        for row in batch_rows:
            done += 1
            with foreign.naming(path, f"row {done}"):
                problem = _from_row(row)
            yield problem, done / rows


_COLUMNS = (
    "name", "description", "source", "difficulty", "cf_contest_id", "cf_index", "cf_rating", "cf_tags",
    "is_description_translated", "memory_limit_bytes", "input_file", "output_file",
)  # fmt: skip


def _from_row(row: Mapping[str, Any]) -> Problem:
    """A row of the parquet release."""
    limit = row["time_limit"]
    programs = {
        kind: [text for language, text in zip(row[kind]["language"], row[kind]["solution"]) if language == _PYTHON3]
        for kind in ("solutions", "incorrect_solutions")
    }
    index = row["cf_index"] or ""
    source = row["source"] or 0
    return _problem(
        row,
        tests={kind: list(zip(row[kind]["input"], row[kind]["output"])) for kind in _TESTS},
        programs=programs,
        time_limit_ns=0 if limit is None else (limit["seconds"] or 0) * 10**9 + (limit["nanos"] or 0),
        source=_SOURCES[source] if 0 <= source < len(_SOURCES) else _SOURCES[0],
        difficulty=parquet_difficulty(row["difficulty"] or 0, index),
    )


def parquet_difficulty(number: int, cf_index: str) -> str:
    """The name of a difficulty number.

    Letters from L on start at 19 in the proto, but at 18 in some rows of the release. A Codeforces problem's `cf_index`
    begins with that letter, so it decides; without it the proto's numbering holds.
    """
    names = {value: name for name, value in _DIFFICULTIES.items()}
    if number >= 18 and cf_index and names.get(number + 1) == cf_index[0]:
        return cf_index[0]
    return names.get(number, _WORDS[0])


def time_limit_s(nanoseconds: int) -> float | None:
    """Seconds; None for 0, which means no limit."""
    return nanoseconds / 1e9 if nanoseconds else None


def _problem(
    row: Mapping[str, Any],
    *,
    tests: Mapping[str, Sequence[tuple[str, str]]],
    programs: Mapping[str, Sequence[str]],
    time_limit_ns: int,
    source: str,
    difficulty: str,
) -> Problem:
    public, private, generated = (tuple(TestCase(i, o) for i, o in tests[kind]) for kind in _TESTS)
    return Problem(
        row["name"] or "",
        row["description"] or "",
        public,
        private,
        generated,
        tuple(programs["solutions"]),
        tuple(programs["incorrect_solutions"]),
        time_limit_s(time_limit_ns),
        int(row["memory_limit_bytes"] or 0) or None,
        {
            "source": source,
            "difficulty": difficulty,
            "cf_tags": tuple(row["cf_tags"] or ()),
            "cf_rating": int(row["cf_rating"] or 0),
            "cf_contest_id": int(row["cf_contest_id"] or 0),
            "cf_index": row["cf_index"] or "",
            "input_file": row["input_file"] or "",
            "output_file": row["output_file"] or "",
            "is_description_translated": bool(row["is_description_translated"]),
        },
    )


def _lines(unit: Unit) -> Iterator[tuple[Problem, float]]:
    """The problems whose line begins in the unit, with the fraction of it read so far."""
    path, end = unit.path, None if foreign.is_gzipped(unit.path) else unit.first + unit.size
    with foreign.opened(path) as file:
        at = unit.first
        if unit.first:
            with foreign.naming(path):
                file.seek(unit.first - 1)
                # Skip the rest of a line that begins before the unit; it may extend past the unit's end.
                at += len(file.readline()) - 1
        while end is None or at < end:
            place = f"{path}: byte {at}"
            with foreign.naming(path, f"byte {at}"):
                line = file.readline()
            if not line:
                return
            at += len(line)
            if not line.strip():
                continue
            message = foreign.parsed(line, place)
            try:
                problem = from_proto(message)
            except (ValueError, KeyError, TypeError, AttributeError, decimal.InvalidOperation) as error:
                raise ConfigError(f"{place}: not a ContestProblem as JSON: {error!r}") from error
            yield problem, (min(1.0, (at - unit.first) / max(unit.size, 1)) if end else 0.0)


def from_proto(message: Mapping[str, Any]) -> Problem:
    """A problem from protobuf's JSON mapping of a `ContestProblem`.

    Field names may be in camelCase or snake_case, enums are names or numbers, 64-bit integers strings, durations text
    such as "1.5s"; absent fields have their defaults.

    Raises ValueError, KeyError, TypeError or AttributeError for anything else.
    """
    row = {name: _field(message, name) for name in _COLUMNS}
    tests = {
        kind: [(_text(test, "input"), _text(test, "output")) for test in _field(message, kind) or ()] for kind in _TESTS
    }
    programs = {
        kind: [
            _text(entry, "solution")
            for entry in _field(message, kind) or ()
            if _enum(_field(entry, "language"), _LANGUAGES) == "PYTHON3"
        ]
        for kind in ("solutions", "incorrect_solutions")
    }
    return _problem(
        row,
        tests=tests,
        programs=programs,
        time_limit_ns=_duration_ns(_field(message, "time_limit")),
        source=_enum(row["source"], _PROTO_SOURCES),
        difficulty=_enum(row["difficulty"], _DIFFICULTIES),
    )


def _field(message: Mapping[str, Any], name: str) -> Any:
    if name in message:
        return message[name]
    first, *rest = name.split("_")
    return message.get(first + "".join(word.capitalize() for word in rest))


def _text(message: Mapping[str, Any], name: str) -> str:
    value = _field(message, name)
    if not isinstance(value, str | None):
        raise TypeError(f"{name} is {value!r:.40}, no text")
    return value or ""


def _enum(value: Any, numbers: Mapping[str, int]) -> str:
    """The name of an enum's value, given as name or number; None means 0."""
    if isinstance(value, str):
        if value not in numbers:
            raise ValueError(f"{value!r} is none of {', '.join(numbers)}")
        return value
    return {number: name for name, number in numbers.items()}[value or 0]


def _duration_ns(value: str | None) -> int:
    if value is None:
        return 0
    if not value.endswith("s"):
        raise ValueError(f"{value!r} is no duration such as '1.5s'")
    return int(decimal.Decimal(value[:-1]).scaleb(9))
