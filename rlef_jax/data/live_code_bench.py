"""LiveCodeBench (Jain et al., 2024): problems from the JSON lines of its code generation sets (test.jsonl, ...).

A question's tests use standard input, or call a method of the class `Solution` with one JSON value per line. As in
LiveCodeBench's own runner, common imports are put in front of each program.
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
# One line, so that line numbers in stack traces shift by only one. The order is that of LiveCodeBench's runner:
# `builtins` after the modules that would hide `pow`, and module names after the star imports that may hide them.
IMPORTS = (
    "; ".join([*(f"from {name} import *" for name in _STAR), f"import {', '.join(_MODULES)}"])
    + "; sys.setrecursionlimit(50000)\n"
)


def problems(paths: Sequence[Path], *, since: str = "", until: str = "", count: int = 0) -> list[Problem]:
    """The first `count` questions (0 = all) in some files, in order, each id once.

    Args: since, until: first and last contest date, as YYYY, YYYY-MM or YYYY-MM-DD, both included; "" sets no bound.

    Raises ConfigError for dates or lines in another format, and if no question lies between the dates.
    """
    for name, date in (("since", since), ("until", until)):
        if date and not _DATE.fullmatch(date):
            raise ConfigError(f"--{name}: a date such as 2024-10 or 2024-10-31, not {date!r}")
    by_id: dict[str, Problem] = {}
    dates: list[str] = []
    for where, row in (place_and_row for path in paths for place_and_row in foreign.json_lines(path)):
        try:
            date = contest_day(row["contest_date"])
            dates.append(date)
            if (since and date[: len(since)] < since) or (until and date[: len(until)] > until):
                continue
            if row["question_id"] not in by_id:
                by_id[row["question_id"]] = problem(row)
        except _FAULTS as error:
            line = " ".join(str(error).split())
            raise ConfigError(f"{where}: {type(error).__name__}: {line}") from error
        if len(by_id) == count:
            break
    if not by_id:
        span = f"; theirs are {min(dates)} to {max(dates)}" if dates else ""
        raise ConfigError(f"--since={since} --until={until}: no question of these dates{span}")
    return list(by_id.values())


def problem(row: Mapping[str, Any]) -> Problem:
    """A question. Raises one of _FAULTS for a line in another format."""
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
    style = "function" if function else "contest"
    return Problem(name, description, public, private, tags=tags, style=style, frame=method_frame(function))


def contest_day(date: Any) -> str:
    """The day of a contest date as YYYY-MM-DD, from ISO text or a number (time since 1970).

    `datasets` and pandas write numbers in seconds, milliseconds, microseconds or nanoseconds: the unit is the one that
    gives a year of this century. Raises ValueError.
    """
    if isinstance(date, str):
        return datetime.date.fromisoformat(date.strip()[:10]).isoformat()
    for unit in (1, 10**3, 10**6, 10**9):
        if isinstance(date, int | float) and _CENTURY[0] <= date / unit < _CENTURY[1]:
            return f"{datetime.datetime.fromtimestamp(date / unit, datetime.UTC):%Y-%m-%d}"
    raise ValueError(f"contest_date {date!r:.40} is no date")


def _text(row: Mapping[str, Any], key: str) -> str:
    """A text field; "" for a missing one (None, NaN or no field). Numbers become text. Raises TypeError."""
    value = row.get(key)
    if value is None or value != value:
        return ""
    if not isinstance(value, str | int):
        raise TypeError(f"{key} is {value!r:.40}, no text")
    return str(value)


def _json(value: Any, kind: type) -> Any:
    """The value of a field of JSON text, or of one already parsed; None if it is missing, NaN or blank."""
    missing = value is None or value != value or (isinstance(value, str) and not value.strip())
    content = None if missing else json.loads(value) if isinstance(value, str) else value
    if not isinstance(content, kind | None):
        raise TypeError(f"a {type(content).__name__}, not a {kind.__name__}: {value!r:.60}")
    return content


def _test(test: Mapping[str, Any], function: str) -> Test:
    kind, text, output = test["testtype"], test["input"], test["output"]
    if not isinstance(text, str) or not isinstance(output, str):
        raise TypeError(f"a test whose input or output is no text: {text!r:.40}, {output!r:.40}")
    if kind == "stdin" and not function:
        return TestCase(text, output)
    if kind == "functional" and function:
        arguments = tuple(json.loads(line) for line in text.split("\n") if line.strip())
        return FunctionTest(method_name(function), (arguments,), (json.loads(output),), compare="sequence")
    raise ValueError(f"a test of type {kind!r} for {f'the function {function!r}' if function else 'no function'}")


def method_frame(function: str) -> tuple[str, str]:
    """What runs before and after a program: imports, and a name for a method of `Solution` ("" for no function).

    The judge looks the method up under this global name, which isn't an identifier: programs can't redefine it.
    """
    name = method_name(function) if function else ""
    return IMPORTS, f"\n\nglobals()['{name}'] = {name}\n" if name else ""


def method_name(function: str) -> str:
    """The entry point of a method of `Solution`. Raises ValueError for what is no name."""
    if not function.isidentifier():
        raise ValueError(f"func_name {function!r} is no name")
    return f"Solution().{function}"


def private_tests(value: Any) -> list[Any]:
    """The tests in `private_test_cases`: a list, JSON text of one, or base64 of zlib of a pickled str of JSON text.

    The pickle may hold only a str: it is data from outside, and unpickling objects could run any code. Raises
    ValueError or TypeError for anything else.
    """
    if not isinstance(value, str) or not value.strip() or value.lstrip().startswith("["):
        return _json(value, list) or []
    try:
        text = _StrUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(value, validate=True)))).load()
    except Exception as error:  # decoders of arbitrary bytes raise many types of error
        raise ValueError(f"private tests that can't be read: {error}") from error
    if not isinstance(text, str):
        raise ValueError(f"private tests are a pickled {type(text).__name__}, not a str")
    return _json(text, list) or []


class _StrUnpickler(pickle.Unpickler):
    """Refuses to build objects of any class: a pickled str needs none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
