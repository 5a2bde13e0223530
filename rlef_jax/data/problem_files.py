"""Problems for `rlef_jax.judge`, from CodeContests parquet shards, EvalPlus files and problems written as JSON."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from rlef_jax.data import evalplus, foreign, mini_contests
from rlef_jax.data.code_contests.release import parquet_problems
from rlef_jax.data.jsonl.schema import problem_of
from rlef_jax.data.missing_tests import is_encodable
from rlef_jax.data.running import Runner
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem


class ProblemFileError(ConfigError):
    """Raised for a source that isn't one of problems, or doesn't hold the named problem."""


def find_problem(source: str, name: str, runner: Runner) -> Problem:
    """The problem called `name` in `source`.

    Args:
      source: a `.parquet` shard of CodeContests (the public release's layout; needs pyarrow), a `.jsonl` or
        `.jsonl.gz` of EvalPlus in its `OriginFmt`, of HumanEval or of MBPP, a `.json` or `.jsonl` of problems of one's
        own (`jsonl.schema`; only a name is required), or `mini_contests:SPLIT`.
      name: its name or, in EvalPlus, its task id; empty where the source holds a single problem.
      runner: runs reference solutions.

    Raises:
      ConfigError: the source doesn't exist or is damaged.
      ProblemFileError: no problem of that name, several problems and no name, or a test that UTF-8 can't encode.
    """
    matches = [problem for problem in problems(source, runner, name) if name in ("", problem.name)]
    for problem in matches:
        _check_texts(source, problem)
    if len(matches) == 1:
        return matches[0]
    if name and matches:
        return matches[0]  # names aren't unique in CodeContests: the first, as readers of the file see it
    raise ProblemFileError(f"{source}: {'several problems; name one' if matches else f'no problem {name!r}'}")


def problems(source: str, runner: Runner, name: str = "") -> Iterator[Problem]:
    """All problems of a source; see `find_problem`. Raises ConfigError.

    `name`: problems of other names may be skipped, since reading a function problem runs its reference solution.
    """
    kind, _, split = source.partition(":")
    if kind == "mini_contests":
        if split not in mini_contests.EVAL_SIZES:
            raise ProblemFileError(f"mini_contests has the splits {', '.join(mini_contests.EVAL_SIZES)}, not {split!r}")
        yield from mini_contests.eval_split(split)
        return
    path = pathlib.Path(source)
    if path.suffix == ".parquet":
        yield from (problem for problem, _ in parquet_problems(path))
        return
    for place, row in _rows(path):
        task = str(row.get("task_id", name))
        if name and task not in (name, name.removeprefix("Mbpp/")):
            continue
        try:
            if "entry_point" in row or "test_list" in row:
                yield from evalplus.problems([(row, None)], runner)
            else:
                faults: list[str] = []
                found = problem_of(row, faults, complete=False)[0]
                if faults:
                    raise ProblemFileError(f"{place}: {'; '.join(faults)}")
                yield found
        except ValueError as exc:
            raise ProblemFileError(f"{place}: {exc}") from exc
        except (KeyError, TypeError, AttributeError) as exc:
            raise ProblemFileError(f"{place}: not a problem in a known form: {exc!r}") from exc


def _check_texts(source: str, problem: Problem) -> None:
    """Raises ProblemFileError for a test whose input or output UTF-8 can't encode."""
    for number, test in enumerate(problem.tests, start=1):
        if not is_encodable(test):
            raise ProblemFileError(
                f"{source}: problem {problem.name!r}, test {number}: half of a surrogate pair in its text, which UTF-8"
                " can't hold: mend it or leave it out"
            )


def _rows(path: pathlib.Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix != ".json":
        yield from foreign.json_lines(path)
        return
    row = foreign.json_file(path)
    if not isinstance(row, dict):
        raise ProblemFileError(f"{path}: not the JSON object of a problem")
    yield str(path), row
