"""What `rlef_jax.evaluate --benchmark` can name: a problem source's split, or a set of function problems from files.

| benchmark | files looked for in `--data`, or in a folder within it |
| --- | --- |
| `human_eval_plus` | HumanEvalPlus-OriginFmt.jsonl.gz and HumanEvalPlus.jsonl.gz (EvalPlus) |
| `mbpp_plus` | MbppPlus-OriginFmt.jsonl.gz (EvalPlus) |
| `human_eval` | HumanEval.jsonl.gz |
| `mbpp` | mbpp.jsonl: its test part, task ids 11 to 510 |
| `mbpp_sanitized` | sanitized-mbpp.json: those of the same ids |
| `livecodebench` | test.jsonl, test2.jsonl, ... (livecodebench/code_generation_lite), all that are there |
| `code_contests/SPLIT` | what python -m rlef_jax.data.code_contests has built; or `config.data.dir` |
| `mini_contests/SPLIT` | none |
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.data import evalplus, live_code_bench
from rlef_jax.data.sources import Source, evaluation_problems
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem

_MBPP_TEST = range(11, 511)
_NO_CALLS = frozenset({367})  # MBPP's test of trees calls with objects of a class of its own


LIVE_CODE_BENCH = "livecodebench"


def load(
    name: str,
    data: Path | None = None,
    count: int = 0,
    source: Source | None = None,
    *,
    since: str = "",
    until: str = "",
) -> Sequence[Problem]:
    """The problems of a benchmark, the first `count` of them (0 = all). Reading some runs reference solutions.

    `source` is where SOURCE/SPLIT leads; without it, the source of that name, in `data`, without rules. `since` and
    `until` are the first and last date of LiveCodeBench's questions (`live_code_bench.problems`).

    Raises ConfigError for one that there isn't, or whose files aren't in `data` or aren't what they should be.
    """
    if (since or until) and name != LIVE_CODE_BENCH:
        raise ConfigError(f"--{'since' if since else 'until'}: only {LIVE_CODE_BENCH} has dates, {name} has none")
    source_name, slash, split = name.partition("/")
    if slash:
        return evaluation_problems(source or Source(source_name, dir=str(data or "")), split, count)
    if name not in FUNCTION_SETS and name != LIVE_CODE_BENCH:
        known = ", ".join((*FUNCTION_SETS, LIVE_CODE_BENCH, "SOURCE/SPLIT (such as mini_contests/test_500)"))
        raise ConfigError(f"--benchmark: no {name!r}; there is {known}")
    if data is None or not data.is_dir():
        raise ConfigError(
            f"--benchmark={name} needs --data=FOLDER, where its published files are"
            + (f"; there is no folder {data}" if data is not None else "")
        )
    try:
        if name == LIVE_CODE_BENCH:
            return live_code_bench.problems(_live_code_bench_files(data), since=since, until=until, count=count)
        return FUNCTION_SETS[name](data, count)
    except (ValueError, KeyError, TypeError, EOFError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--data={data}: not the files of {name}: {type(error).__name__}: {error}") from error


def _find(data: Path, *names: str) -> Path:
    for name in names:
        for path in (data / name, *sorted(data.glob(f"*/{name}"))):
            if path.is_file():
                return path
    raise ConfigError(f"--data={data}: no {' or '.join(names)} in it")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a `.json` list or of JSON lines, gzipped or not."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    if path.name.removesuffix(".gz").endswith(".json"):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _live_code_bench_files(data: Path) -> list[Path]:
    """test.jsonl, test2.jsonl, ... in the order of their releases."""
    for folder in (data, *sorted(path for path in data.glob("*") if path.is_dir())):
        numbered = {path: re.fullmatch(r"test(\d*)\.jsonl", path.name) for path in folder.glob("test*.jsonl")}
        found = {path: int(match[1] or 1) for path, match in numbered.items() if match}
        if found:
            return sorted(found, key=lambda path: found[path])
    raise ConfigError(f"--data={data}: no test.jsonl, test2.jsonl, ... in it")


def _first(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return rows[:count] if count else rows


def _human_eval_plus(data: Path, count: int) -> list[Problem]:
    plus = _find(data, "HumanEvalPlus-OriginFmt.jsonl.gz", "HumanEvalPlus-OriginFmt.jsonl")
    base = _find(data, "HumanEvalPlus.jsonl.gz", "HumanEvalPlus.jsonl", "HumanEval.jsonl.gz", "HumanEval.jsonl")
    shown = {row["task_id"]: row for row in read_rows(base)}
    return [evalplus.problem(row, shown[row["task_id"]]) for row in _first(read_rows(plus), count)]


def _mbpp_plus(data: Path, count: int) -> list[Problem]:
    path = _find(data, "MbppPlus-OriginFmt.jsonl.gz", "MbppPlus-OriginFmt.jsonl")
    return [evalplus.problem(row) for row in _first(read_rows(path), count)]


def _human_eval(data: Path, count: int) -> list[Problem]:
    path = _find(data, "HumanEval.jsonl.gz", "HumanEval.jsonl")
    return [evalplus.problem(row) for row in _first(read_rows(path), count)]


def _mbpp(data: Path, count: int) -> list[Problem]:
    return _mbpp_of(_find(data, "mbpp.jsonl"), count)


def _mbpp_sanitized(data: Path, count: int) -> list[Problem]:
    return _mbpp_of(_find(data, "sanitized-mbpp.json"), count)


def _mbpp_of(path: Path, count: int) -> list[Problem]:
    rows = [row for row in read_rows(path) if row["task_id"] in _MBPP_TEST and row["task_id"] not in _NO_CALLS]
    return [evalplus.problem(row) for row in _first(rows, count)]


FUNCTION_SETS: dict[str, Callable[[Path, int], list[Problem]]] = {
    "human_eval_plus": _human_eval_plus,
    "mbpp_plus": _mbpp_plus,
    "human_eval": _human_eval,
    "mbpp": _mbpp,
    "mbpp_sanitized": _mbpp_sanitized,
}
