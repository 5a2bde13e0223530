"""LiveCodeBench (Jain et al., 2024): problems from the JSON lines of its code generation sets (test.jsonl, ...).

A question's tests read standard input, or call a method of the class `Solution` with one JSON value a line. Programs
run in the frame that LiveCodeBench's own runner gives them: common imports in front.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.errors import ConfigError
from rlef_jax.types import FunctionTest, Problem, Test, TestCase

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_STAR = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
    " builtins typing"
).split()
_MODULES = [name for name in _STAR if name not in ("builtins", "typing")]
# One line, so that line numbers in stack traces are off by no more than that. The order is the runner's: `builtins`
# after the modules that would hide `pow`, and each module's name after the star that may hide it.
IMPORTS = (
    "; ".join([*(f"from {name} import *" for name in _STAR), f"import {', '.join(_MODULES)}"])
    + "; sys.setrecursionlimit(50000)\n"
)


def problems(paths: Sequence[Path], *, since: str = "", until: str = "", count: int = 0) -> list[Problem]:
    """The questions in some files, each id once, in their order; the first `count` of them (0 = all).

    Args: since, until: first and last contest date, as YYYY, YYYY-MM or YYYY-MM-DD, both included; "" sets no bound.

    Raises ConfigError for dates of another form, or none between them; ValueError for lines of another form.
    """
    for name, date in (("since", since), ("until", until)):
        if date and not _DATE.fullmatch(date):
            raise ConfigError(f"--{name}: a date such as 2024-10 or 2024-10-31, not {date!r}")
    found: dict[str, Problem] = {}
    dates: list[str] = []
    for where, row in _rows(paths):
        try:
            date = row["contest_date"][:10]
            dates.append(date)
            if (since and date[: len(since)] < since) or (until and date[: len(until)] > until):
                continue
            if row["question_id"] not in found:
                found[row["question_id"]] = problem(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
        if len(found) == count:
            break
    if not found:
        span = f"; theirs are {min(dates)} to {max(dates)}" if dates else ""
        raise ConfigError(f"--since={since} --until={until}: no question of these dates{span}")
    return list(found.values())


def _rows(paths: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's object and its place. A line at a time: the files have gigabytes."""
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path.name}, line {number}", json.loads(line)


def problem(row: Mapping[str, Any]) -> Problem:
    """A question. Raises ValueError, KeyError or TypeError for a line of another form."""
    function = json.loads(row["metadata"] or "{}").get("func_name", "")
    public, private = (
        tuple(_test(test, function) for test in tests)
        for tests in (json.loads(row["public_test_cases"]), private_tests(row["private_test_cases"]))
    )
    if not public:
        raise ValueError(f"{row['question_id']} lacks public tests")
    description, starter = row["question_content"], row["starter_code"]
    if function:
        description += f"\n\nComplete this starter code:\n\n{starter.rstrip()}"
    tags = {
        "title": row["question_title"],
        "platform": row["platform"],
        "difficulty": row["difficulty"],
        "contest_id": row["contest_id"],
        "contest_date": row["contest_date"][:10],
    }
    # Under this name the judge finds the method; no name of a program's own can be in its way.
    after = f"\n\nglobals()['{_entry_point(function)}'] = {_entry_point(function)}\n" if function else ""
    style = "function" if function else "contest"
    frame = IMPORTS, after
    return Problem(row["question_id"], description, public, private or public, tags=tags, style=style, frame=frame)


def _test(test: Mapping[str, Any], function: str) -> Test:
    kind = test["testtype"]
    if kind == "stdin" and not function:
        return TestCase(test["input"], test["output"])
    if kind == "functional" and function:
        arguments = tuple(json.loads(line) for line in test["input"].split("\n"))
        return FunctionTest(_entry_point(function), (arguments,), (json.loads(test["output"]),))
    raise ValueError(f"a test of type {kind!r} for {f'the function {function!r}' if function else 'no function'}")


def _entry_point(function: str) -> str:
    if not function.isidentifier():
        raise ValueError(f"func_name {function!r} is no name")
    return f"Solution().{function}"


def private_tests(text: str) -> list[dict[str, Any]]:
    """The tests in `private_test_cases`: JSON, or base64 of zlib of a pickled str of JSON.

    The pickle may hold a str and nothing else: it is data from outside, and unpickling could run anything. Raises
    ValueError for anything else.
    """
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        value = _StrUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(text, validate=True)))).load()
    except (binascii.Error, zlib.error, pickle.UnpicklingError, EOFError, AttributeError, LookupError) as error:
        raise ValueError(f"private tests that can't be read: {error}") from error
    if not isinstance(value, str):
        raise ValueError(f"private tests are a pickled {type(value).__name__}, not a str")
    return json.loads(value)


class _StrUnpickler(pickle.Unpickler):
    """Builds no object of any class: pickled text needs none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
