"""Rows like those of APPS and TACO to problems of one's own: python -m rlef_jax.data.convert

    python -m rlef_jax.data.convert --source train.jsonl --output=apps_train.jsonl
    python -m rlef_jax.data.convert --source train/*.parquet --output=taco_train.jsonl.gz

SOURCE is JSON lines (.jsonl, .jsonl.gz), a list of rows (.json) or parquet (which takes pyarrow). Rows have the fields
`question` and `input_output`; `solutions`, `starter_code`, `difficulty`, `time_limit` and `memory_limit` are optional
(docs/own_problems.md). Prints how many rows were converted, and what was left out of the others, why and where.

Exit codes: 0 written, 1 it could not be written, 2 wrong usage or data.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from rlef_jax import arguments
from rlef_jax.command_line import errors_as_lines
from rlef_jax.data import apps, foreign
from rlef_jax.data.jsonl.schema import line_of, problem_of, row_of
from rlef_jax.errors import ConfigError
from rlef_jax.files import replacing_packed
from rlef_jax.types import FunctionTest, Problem

_BATCH_ROWS = 32  # rows of a parquet file that are held at a time
_NAMED = 3  # places in a line of the report
_ID_KEYS = ("problem_id", "id")

# (where it is, row), or a fault for what is no row.
type Rows = Iterator[tuple[str, Mapping[str, Any] | ConfigError]]


@dataclasses.dataclass
class Counts:
    """What became of the rows.

    Attributes:
      rows: all of them; written: those that make problems; functions: of these, problems of functions.
      left_out: {kind of row: where they are}.
      partly: {what isn't kept of a row that is written: where they are}.
    """

    rows: int = 0
    written: int = 0
    functions: int = 0
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    partly: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        kinds = f"{self.written - self.functions} read standard input, {self.functions} are functions"
        lines = [f"{self.rows} rows: {self.written} problems ({kinds}), {self.rows - self.written} rows left out"]
        for title, found in (("left out: rows", self.left_out), ("kept in part: rows", self.partly)):
            for what, places in sorted(found.items(), key=lambda pair: -len(pair[1])):
                more = f", and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
                lines.append(f"{len(places):7} {title} {what} ({', '.join(places[:_NAMED])}{more})")
        return "\n".join(lines)


def convert(sources: Sequence[Path], output: Path, *, public: int, solutions: int) -> Counts:
    """Writes the problems of some files of rows, whole or not at all.

    Args: public, solutions: see `apps.problem`.

    Raises ConfigError for a file that can't be read, or if no row makes a problem; OSError if it can't be written.
    """
    counts = Counts()
    labels = [source.name.partition(".")[0] for source in sources]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ConfigError(f"--source: two files are called {twice[0]!r}, and their problems would be: rename one")
    if output.resolve() in [source.resolve() for source in sources]:
        raise ConfigError(f"--output: {output} is a --source, which it would replace: name another file")
    with replacing_packed(output) as file:
        _write(file, sources, labels, counts, public, solutions)
        if not counts.written:
            raise ConfigError(f"--source: there is no problem in it\n{counts}")
    return counts


def _write(
    file: BinaryIO, sources: Sequence[Path], labels: Sequence[str], counts: Counts, public: int, solutions: int
) -> None:
    names: set[str] = set()
    for source, label in zip(sources, labels, strict=True):
        for number, (place, row) in enumerate(_rows(source), start=1):
            counts.rows += 1
            try:
                if isinstance(row, ConfigError):
                    raise apps.LeftOutError("that are no JSON object") from row
                problem, notes = apps.problem(row, _name(row, label, number), public=public, solutions=solutions)
                line = _checked_line(problem, names)
            except apps.LeftOutError as error:
                counts.left_out.setdefault(str(error), []).append(place)
                continue
            names.add(problem.name)
            for note in notes:
                counts.partly.setdefault(note, []).append(place)
            counts.written += 1
            counts.functions += isinstance(problem.tests[0], FunctionTest)
            file.write(f"{line}\n".encode("ascii"))


def _name(row: Mapping[str, Any], label: str, number: int) -> str:
    """FILE/ID, with the row's number where it has no id."""
    ids = (row[key] for key in _ID_KEYS if isinstance(row.get(key), str | int))
    return f"{label}/{next(ids, number)}"


def _checked_line(problem: Problem, names: set[str]) -> str:
    """The problem's line. Raises LeftOutError for one that reading would refuse."""
    if problem.name in names:
        raise apps.LeftOutError("whose id is that of a row before")
    faults: list[str] = []
    try:
        line = line_of(problem)
        problem_of(row_of(line.encode("ascii"), faults), faults)
    except ValueError as error:  # what JSON or a literal can't say
        faults.append(str(error))
    if faults:
        raise apps.LeftOutError(f"whose {re.sub(r'\[\d+\]', '[...]', faults[0])}")
    return line


def _rows(path: Path) -> Rows:
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.name.removesuffix(".gz").endswith(".json"):
        yield from foreign.records(path)
    else:
        yield from _json_rows(foreign.lines(path))


def _json_rows(lines: Iterable[tuple[str, bytes]]) -> Rows:
    for place, line in lines:
        try:
            row = foreign.parsed(line, place)
            yield place, row if isinstance(row, dict) else ConfigError(f"{place}: not a JSON object")
        except ConfigError as error:
            yield place, error


def _parquet_rows(path: Path) -> Rows:
    file = foreign.parquet_file(path)
    batches = file.iter_batches(_BATCH_ROWS)
    number = 0
    while True:
        with foreign.naming(path, f"row {number + 1} or after it"):
            batch = next(batches, None)
            rows = [] if batch is None else batch.to_pylist()
        if batch is None:
            return
        for row in rows:
            number += 1
            yield f"{path}, row {number}", row


def main() -> None:
    """Converts, and prints what became of the rows."""
    parser = arguments.Parser(prog="python -m rlef_jax.data.convert", description=__doc__)
    parser.add_argument("--source", type=arguments.path, nargs="+", required=True, help="files of rows")
    parser.add_argument("--output", type=arguments.path, required=True, help="a .jsonl or .jsonl.gz")
    parser.add_argument("--public-tests", type=int, default=2, help="tests that become public (default: 2)")
    parser.add_argument("--solutions", type=int, default=10, help="solutions kept of a problem (default: 10)")
    with errors_as_lines():
        args = parser.parse_args()
        for name, least in (("public_tests", 1), ("solutions", 0)):
            if getattr(args, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')}: {least} or more; it is {getattr(args, name)}")
        if not args.output.name.endswith((".jsonl", ".jsonl.gz")):
            raise ConfigError(f"--output: a file of the name ….jsonl or ….jsonl.gz, not {args.output.name!r}")
        counts = convert(args.source, args.output, public=args.public_tests, solutions=args.solutions)
        print(counts)
        print(f"{args.output}: name it in config.data.train_files, with data.name=jsonl")


if __name__ == "__main__":
    main()
