"""Benchmarks for `rlef_jax.evaluate --benchmark`: a split of a problem source, or a set of problems from files.

| benchmark | files searched for in `--data` and its subfolders |
| --- | --- |
| `human_eval_plus` | HumanEvalPlus-OriginFmt.jsonl.gz and HumanEvalPlus.jsonl.gz (EvalPlus) |
| `mbpp_plus` | MbppPlus-OriginFmt.jsonl.gz (EvalPlus) |
| `human_eval` | HumanEval.jsonl.gz |
| `mbpp` | mbpp.jsonl; only its test part, task ids 11 to 510 |
| `mbpp_sanitized` | sanitized-mbpp.json; the same task ids |
| `livecodebench` | test.jsonl, test2.jsonl, ... (livecodebench/code_generation_lite), all that exist |
| `code_contests/SPLIT` | a folder built by python -m rlef_jax.data.code_contests; default `config.data.dir` |
| `jsonl/SPLIT` | the file itself, of problems of one's own; default: `config.data.SPLIT_files` |
| `mini_contests/SPLIT` | none |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.data import evalplus, foreign, live_code_bench
from rlef_jax.data.missing_tests import Tell, ignore_missing, testable
from rlef_jax.data.running import Runner
from rlef_jax.data.sources import JSONL, Source, evaluation_problems
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem

_MBPP_TEST = range(11, 511)
LIVE_CODE_BENCH = "livecodebench"


def load(
    name: str,
    data: Path | None = None,
    count: int = 0,
    source: Source | None = None,
    *,
    runner: Runner | None = None,
    since: str = "",
    until: str = "",
    tell: Tell = ignore_missing,
) -> Sequence[Problem]:
    """The first `count` problems of a benchmark (0 = all), without those that have no test.

    Args:
      source: the source of a SOURCE/SPLIT name; by default the one of that name in `data`, without exclusion rules.
      runner: runs reference solutions; required for sets of function problems (`data.running`).
      since, until: first and last date of LiveCodeBench's questions (`live_code_bench.problems`).
      tell: called if tests are missing or asserts can't be judged (`missing_tests.testable`).

    Raises ConfigError for an unknown benchmark, and for files that are missing or in another format.
    """
    if (since or until) and name != LIVE_CODE_BENCH:
        raise ConfigError(f"--{'since' if since else 'until'}: only {LIVE_CODE_BENCH} has dates, {name} has none")
    source_name, slash, split = name.partition("/")
    if slash:
        named = Source(source_name, dir=str(data or ""))
        own = named.reading(str(data)) if source_name == JSONL and data else named
        return evaluation_problems(source or own, split, count, tell)
    if name not in FUNCTION_SETS and name != LIVE_CODE_BENCH:
        benchmarks = ", ".join((*FUNCTION_SETS, LIVE_CODE_BENCH, "SOURCE/SPLIT (such as mini_contests/test_500)"))
        raise ConfigError(f"--benchmark: no {name!r}; there is {benchmarks}")
    if data is None or not data.is_dir():
        raise ConfigError(
            f"--benchmark={name} needs --data=FOLDER, where its published files are"
            + (f"; there is no folder {data}" if data is not None else "")
        )
    if name == LIVE_CODE_BENCH:
        questions = live_code_bench.problems(_live_code_bench_files(data), since=since, until=until, count=count)
        return testable(name, questions, tell)
    if runner is None:
        raise ValueError(f"reading {name} runs reference solutions: it takes a runner")
    rows = FUNCTION_SETS[name](data)
    try:
        return testable(name, evalplus.problems(rows[:count] if count else rows, runner), tell)
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"--data={data}: {name}: {error}") from error


def _find(data: Path, *names: str) -> Path:
    for name in names:
        for path in (data / name, *sorted(data.glob(f"*/{name}"))):
            if path.exists():
                return path
    raise ConfigError(f"--data={data}: no {' or '.join(names)} in it")


def _read(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in foreign.records(path)]


def _live_code_bench_files(data: Path) -> list[Path]:
    """test.jsonl, test2.jsonl, ... in the order of their releases."""
    for folder in (data, *sorted(path for path in data.glob("*") if path.is_dir())):
        numbered = {path: re.fullmatch(r"test(\d*)\.jsonl", path.name) for path in folder.glob("test*.jsonl")}
        releases = {path: int(match[1] or 1) for path, match in numbered.items() if match}
        if releases:
            return sorted(releases, key=lambda path: releases[path])
    raise ConfigError(f"--data={data}: no test.jsonl, test2.jsonl, ... in it")


type Rows = list[tuple[Mapping[str, Any], Mapping[str, Any] | None]]


def _human_eval_plus(data: Path) -> Rows:
    plus = _find(data, "HumanEvalPlus-OriginFmt.jsonl.gz", "HumanEvalPlus-OriginFmt.jsonl")
    base = _find(data, "HumanEvalPlus.jsonl.gz", "HumanEvalPlus.jsonl", "HumanEval.jsonl.gz", "HumanEval.jsonl")
    by_task = {row.get("task_id"): row for row in _read(base)}
    rows = _read(plus)
    if missing := [str(row.get("task_id")) for row in rows if row.get("task_id") not in by_task]:
        raise ConfigError(f"{base}: no task {missing[0]}, which {plus} has: give files of one release")
    return [(row, by_task[row["task_id"]]) for row in rows]


def _mbpp_plus(data: Path) -> Rows:
    return [(row, None) for row in _read(_find(data, "MbppPlus-OriginFmt.jsonl.gz", "MbppPlus-OriginFmt.jsonl"))]


def _human_eval(data: Path) -> Rows:
    return [(row, None) for row in _read(_find(data, "HumanEval.jsonl.gz", "HumanEval.jsonl"))]


def _mbpp(data: Path) -> Rows:
    return [(row, None) for row in _read(_find(data, "mbpp.jsonl")) if row.get("task_id") in _MBPP_TEST]


def _mbpp_sanitized(data: Path) -> Rows:
    return [(row, None) for row in _read(_find(data, "sanitized-mbpp.json")) if row.get("task_id") in _MBPP_TEST]


FUNCTION_SETS: dict[str, Callable[[Path], Rows]] = {
    "human_eval_plus": _human_eval_plus,
    "mbpp_plus": _mbpp_plus,
    "human_eval": _human_eval,
    "mbpp": _mbpp,
    "mbpp_sanitized": _mbpp_sanitized,
}
