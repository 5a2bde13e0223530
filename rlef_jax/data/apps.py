"""Rows of APPS (Hendrycks et al., 2021) and TACO (Li et al., 2023) to problems: both have the same fields.

`question` is the statement. `input_output` is JSON text of `inputs` and `outputs`, and of a function's name (`fn_name`)
where each input is a list of its arguments. `solutions` is JSON text of a list of programs; `starter_code` the
function's head. TACO adds limits as text ("2.0 seconds"). Text that is already parsed is taken as it is.

Tests are one list there. The first ones become public, which is mostly what the statement shows; the others are hidden.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from rlef_jax.data.live_code_bench import method_frame, method_name
from rlef_jax.types import FunctionTest, Problem, Test, TestCase

_CLASS = re.compile(r"^class\s+Solution\b", re.MULTILINE)
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.IGNORECASE)
_SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "ms": 1e-3, "millisecond": 1e-3}
_BYTES = {"byte": 1, "kb": 1 << 10, "kilobyte": 1 << 10, "mb": 1 << 20, "megabyte": 1 << 20, "gb": 1 << 30,
          "gigabyte": 1 << 30}  # fmt: skip
_TAGS = {"difficulty": "difficulty", "source": "source", "url": "url", "title": "name"}


class LeftOutError(ValueError):
    """A row that makes no problem; the message says which kind of row it is, in words that follow "rows"."""


def problem(row: Mapping[str, Any], name: str, *, public: int, solutions: int) -> tuple[Problem, list[str]]:
    """(problem, what of the row isn't kept) of a row.

    Args:
      public: how many of the first tests become public; one at least stays hidden.
      solutions: how many of the solutions are kept, the first ones.

    Raises LeftOutError.
    """
    question, starter = _text(row, "question"), _text(row, "starter_code")
    if not question.strip():
        raise LeftOutError("without a question")
    content = _parsed(row.get("input_output"), dict, "whose input_output is no JSON object")
    function = (content or {}).get("fn_name") or ""
    if not isinstance(function, str) or (function and not function.isidentifier()):
        raise LeftOutError("whose fn_name is no name")
    if not function and _CLASS.search(starter):
        raise LeftOutError("whose starter_code is a class Solution and that have no fn_name")
    entry_point = method_name(function) if function and _CLASS.search(starter) else function
    tests = _tests(content or {}, entry_point)
    shown = min(public, len(tests) - 1)
    notes: list[str] = []
    if function:
        question += f"\n\nComplete this starter code:\n\n{starter.rstrip()}" if starter.strip() else (
            f"\n\nWrite a function of the name `{function}`."
        )  # fmt: skip
    frame = _frame(function, is_method=entry_point != function) if function else ()
    made = Problem(
        name, question, tests[:shown], tests[shown:], solutions=_solutions(row, solutions, notes),
        time_limit_s=_limit(row, "time_limit", _SECONDS, notes),
        memory_limit_bytes=round(_limit(row, "memory_limit", _BYTES, notes) or 0) or None,
        tags={tag: text for tag, key in _TAGS.items() if (text := _text(row, key))},
        style="function" if function else "contest", frame=frame,
    )  # fmt: skip
    return made, notes


def _frame(function: str, *, is_method: bool) -> tuple[str, str]:
    """What stands around a program. A function of a plain name must come from the program, not from what is imported:
    there are ones called add and sum."""
    before, after = method_frame(function if is_method else "")
    return (before, after) if is_method else (f"{before.rstrip()}; globals().pop({function!r}, None)\n", after)


def _missing(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return value if isinstance(value, str) else ""


def _parsed(value: Any, kind: type, fault: str) -> Any:
    """The value of a field of JSON text, or of one already parsed; None if it is missing. Raises LeftOutError."""
    if _missing(value):
        return None
    try:
        content = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise LeftOutError(fault) from error
    if not isinstance(content, kind):
        raise LeftOutError(fault)
    return content


def _tests(content: Mapping[str, Any], entry_point: str) -> tuple[Test, ...]:
    inputs, outputs = content.get("inputs") or [], content.get("outputs") or []
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise LeftOutError("whose inputs or outputs are no list")
    if len(inputs) != len(outputs):
        raise LeftOutError("with another number of inputs than of outputs")
    if len(inputs) < 2:
        raise LeftOutError("with one test, where one must be public and another hidden" if inputs else "without tests")
    if entry_point:
        return tuple(_call(entry_point, *pair) for pair in zip(inputs, outputs, strict=True))
    return tuple(TestCase(_lines(i), _lines(o)) for i, o in zip(inputs, outputs, strict=True))


def _lines(value: Any) -> str:
    """Text as it is, a list of lines joined, as APPS's runner does it."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise LeftOutError("with an input or output that is no text")
    return value


def _call(entry_point: str, arguments: Any, expected: Any) -> FunctionTest:
    """A call by APPS's own rules: JSON has made text of a dict's whole numbers, and most results are lists of one."""
    if not isinstance(arguments, list):
        raise LeftOutError("with arguments that are no list")
    if len(arguments) == 1 and isinstance(arguments[0], dict):
        arguments = [_numbered(arguments[0])]
    if isinstance(expected, dict):
        expected = [_numbered(expected)]
    elif isinstance(expected, list) and len(expected) == 1 and isinstance(expected[0], dict):
        expected = [_numbered(expected[0])]
    return FunctionTest(entry_point, (tuple(arguments),), (expected,), compare="apps")


def _numbered(value: Mapping[str, Any]) -> dict[Any, Any]:
    try:
        return {int(key): item for key, item in value.items()}
    except ValueError:
        return dict(value)


def _solutions(row: Mapping[str, Any], most: int, notes: list[str]) -> tuple[str, ...]:
    try:
        programs = _parsed(row.get("solutions"), list, "") or []
    except LeftOutError:
        programs = [None]
    texts = [program for program in programs if isinstance(program, str) and program.strip()]
    if len(texts) < len(programs):
        notes.append("with solutions that are no JSON list of programs: those aren't kept")
    return tuple(texts[:most])


def _limit(row: Mapping[str, Any], key: str, units: Mapping[str, float], notes: list[str]) -> float | None:
    """A limit as text, in the units' unit; None for none, or for one that isn't understood, which is noted."""
    value = row.get(key)
    if _missing(value):
        return None
    match = _AMOUNT.fullmatch(value) if isinstance(value, str) else None
    unit = match[2].lower() if match else ""
    factor = units.get(unit) or units.get(unit.removesuffix("s"))
    if match is None or factor is None or not float(match[1]):
        notes.append(f"with a {key} in another form, such as {str(value)[:40]!r}: the judge's own holds")
        return None
    return float(match[1]) * factor
