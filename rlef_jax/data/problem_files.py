"""Problems out of files, for judging by hand: CodeContests parquet shards, EvalPlus, and problems written as JSON."""

from __future__ import annotations

import gzip
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from rlef_jax.data import evalplus, mini_contests
from rlef_jax.data.code_contests.release import parquet_problems
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem, TestCase

_TESTS = ("public_tests", "private_tests", "generated_tests")


class ProblemFileError(ValueError):
    """A source of problems that can't be read, or holds no problem of that name."""


def find_problem(source: str, name: str) -> Problem:
    """The problem called `name` in `source`.

    Args:
      source: a `.parquet` shard of CodeContests (the public release's layout; takes pyarrow), a `.jsonl` or
        `.jsonl.gz` of EvalPlus in its `OriginFmt`, of HumanEval or of MBPP, a `.json` or `.jsonl` of problems with the
        fields of `types.Problem` (tests as `{"input": ..., "output": ...}`), or `mini_contests:SPLIT`.
      name: its name or, in EvalPlus, its task id; empty where the source holds a single problem.

    Raises:
      ProblemFileError: no such source, or not exactly one such problem in it.
    """
    found = [problem for problem in problems(source, name) if name in ("", problem.name)]
    if len(found) == 1:
        return found[0]
    if name and found:
        return found[0]  # names aren't unique in CodeContests: the first, as readers of the file see it
    raise ProblemFileError(f"{source}: {'several problems; name one' if found else f'no problem {name!r}'}")


def problems(source: str, name: str = "") -> Iterator[Problem]:
    """All problems of a source; see `find_problem`. Raises ProblemFileError.

    `name`: those of other names need not come (to know what a function problem expects takes running its reference).
    """
    kind, _, split = source.partition(":")
    if kind == "mini_contests":
        if split not in mini_contests.EVAL_SIZES:
            raise ProblemFileError(f"mini_contests has the splits {', '.join(mini_contests.EVAL_SIZES)}, not {split!r}")
        yield from mini_contests.eval_split(split)
        return
    path = pathlib.Path(source)
    if not path.is_file():
        raise ProblemFileError(f"no file {source!r}")
    if path.suffix == ".parquet":
        try:
            yield from (problem for problem, _ in parquet_problems(path))
        except ConfigError as exc:
            raise ProblemFileError(str(exc)) from exc
        return
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    try:
        rows = (
            [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
        )
        for row in rows:
            if name and str(row.get("task_id", name)) not in (name, name.removeprefix("Mbpp/")):
                continue
            yield evalplus.problem(row) if "entry_point" in row or "test_list" in row else _from_json(row)
    except (ValueError, KeyError, TypeError) as exc:
        raise ProblemFileError(f"{source}: not problems in a known form: {exc!r}") from exc


def _from_json(row: dict[str, Any]) -> Problem:
    public, private, generated = (
        tuple(TestCase(test["input"], test["output"]) for test in row.get(kind, ())) for kind in _TESTS
    )
    return Problem(
        row["name"],
        row.get("description", ""),
        public,
        private,
        generated,
        time_limit_s=row.get("time_limit_s"),
        memory_limit_bytes=row.get("memory_limit_bytes"),
    )
