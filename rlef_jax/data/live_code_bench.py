"""LiveCodeBench (Jain et al., 2024): problems from the JSON lines of its code generation sets (test.jsonl, ...).

A question's tests read standard input, or call a method of the class `Solution` with one JSON value a line. Programs
run in the frame that LiveCodeBench's own runner gives them: common imports in front.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import pickle
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.data import foreign
from rlef_jax.errors import ConfigError
from rlef_jax.types import FunctionTest, Problem, Test, TestCase

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")
_CENTURY = 946_684_800, 4_102_444_800  # 2000 to 2100, in seconds since 1970
_TAGS = {"title": "question_title", "platform": "platform", "difficulty": "difficulty", "contest_id": "contest_id"}
_FAULTS = (ValueError, LookupError, TypeError, AttributeError, OverflowError, OSError, RecursionError)
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

    Raises ConfigError for dates of another form, or none between them, and for lines of another form.
    """
    for name, date in (("since", since), ("until", until)):
        if date and not _DATE.fullmatch(date):
            raise ConfigError(f"--{name}: a date such as 2024-10 or 2024-10-31, not {date!r}")
    found: dict[str, Problem] = {}
    dates: list[str] = []
    for where, row in (place_and_row for path in paths for place_and_row in foreign.json_lines(path)):
        try:
            date = contest_day(row["contest_date"])
            dates.append(date)
            if (since and date[: len(since)] < since) or (until and date[: len(until)] > until):
                continue
            if row["question_id"] not in found:
                found[row["question_id"]] = problem(row)
        except _FAULTS as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"{where}: {type(error).__name__}: {line}") from error
        if len(found) == count:
            break
    if not found:
        span = f"; theirs are {min(dates)} to {max(dates)}" if dates else ""
        raise ConfigError(f"--since={since} --until={until}: no question of these dates{span}")
    return list(found.values())


def problem(row: Mapping[str, Any]) -> Problem:
    """A question. Raises one of _FAULTS for a line of another form."""
    function = (_json(row["metadata"], dict) or {}).get("func_name") or ""
    public, private = (
        tuple(_test(test, function) for test in tests)
        for tests in (_json(row["public_test_cases"], list) or [], private_tests(row["private_test_cases"]))
    )
    name, description = (_text(row, key) for key in ("question_id", "question_content"))
    if not name or not description:
        raise ValueError("no question_id, or no question_content")
    if function:
        description += f"\n\nComplete this starter code:\n\n{_text(row, 'starter_code').rstrip()}"
    tags = {name: _text(row, key) for name, key in _TAGS.items()} | {"contest_date": contest_day(row["contest_date"])}
    # Under this name the judge finds the method; no name of a program's own can be in its way.
    after = f"\n\nglobals()['{_entry_point(function)}'] = {_entry_point(function)}\n" if function else ""
    style = "function" if function else "contest"
    return Problem(name, description, public, private, tags=tags, style=style, frame=(IMPORTS, after))


def contest_day(date: Any) -> str:
    """The day of a contest date, as YYYY-MM-DD: of text that begins with it, or of a number, in which `datasets` and
    pandas write milliseconds since 1970 (or seconds, or fractions of them: a year of this century tells). Raises
    ValueError."""
    if isinstance(date, str):
        return datetime.date.fromisoformat(date.strip()[:10]).isoformat()
    for unit in (1, 10**3, 10**6, 10**9):
        if isinstance(date, int | float) and _CENTURY[0] <= date / unit < _CENTURY[1]:
            return f"{datetime.datetime.fromtimestamp(date / unit, datetime.UTC):%Y-%m-%d}"
    raise ValueError(f"contest_date {date!r:.40} is no date")


def _text(row: Mapping[str, Any], key: str) -> str:
    """A text field; empty where nothing is there, as others write it: None, NaN, no field. Numbers become text."""
    value = row.get(key)
    if value is None or value != value:
        return ""
    if not isinstance(value, str | int):
        raise TypeError(f"{key} is {value!r:.40}, no text")
    return str(value)


def _json(value: Any, kind: type) -> Any:
    """What a field holds: JSON text, or already its value; None for nothing, which `datasets` may write as either."""
    missing = value is None or value != value or (isinstance(value, str) and not value.strip())
    found = None if missing else json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, kind | None):
        raise TypeError(f"a {type(found).__name__}, not a {kind.__name__}: {value!r:.60}")
    return found


def _test(test: Mapping[str, Any], function: str) -> Test:
    kind, given, output = test["testtype"], test["input"], test["output"]
    if not isinstance(given, str) or not isinstance(output, str):
        raise TypeError(f"a test whose input or output is no text: {given!r:.40}, {output!r:.40}")
    if kind == "stdin" and not function:
        return TestCase(given, output)
    if kind == "functional" and function:
        arguments = tuple(json.loads(line) for line in given.split("\n") if line.strip())
        return FunctionTest(_entry_point(function), (arguments,), (json.loads(output),), compare="sequence")
    raise ValueError(f"a test of type {kind!r} for {f'the function {function!r}' if function else 'no function'}")


def _entry_point(function: str) -> str:
    if not function.isidentifier():
        raise ValueError(f"func_name {function!r} is no name")
    return f"Solution().{function}"


def private_tests(value: Any) -> list[Any]:
    """The tests in `private_test_cases`: a list, JSON text of one, or base64 of zlib of a pickled str of JSON text.

    The pickle may hold a str and nothing else: it is data from outside, and unpickling could run anything. Raises
    ValueError or TypeError for anything else.
    """
    if not isinstance(value, str) or not value.strip() or value.lstrip().startswith("["):
        return _json(value, list) or []
    try:
        text = _StrUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(value, validate=True)))).load()
    except Exception as error:  # there is no end of what bytes of another kind make a decoder raise
        raise ValueError(f"private tests that can't be read: {error}") from error
    if not isinstance(text, str):
        raise ValueError(f"private tests are a pickled {type(text).__name__}, not a str")
    return _json(text, list) or []


class _StrUnpickler(pickle.Unpickler):
    """Builds no object of any class: pickled text needs none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
