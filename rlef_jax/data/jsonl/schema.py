"""A problem as one line of JSON: what each key holds, and every fault of a line that holds something else.

The keys are the fields of `types.Problem`, and `split`. docs/own_problems.md has the table.
"""

from __future__ import annotations

import collections
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlef_jax.data.jsonl.values import from_json, to_json
from rlef_jax.data.missing_tests import well_formed
from rlef_jax.dialog.prompts import STYLES
from rlef_jax.execution.functions import COMPARISONS, encoded_test, input_bytes
from rlef_jax.types import FunctionTest, Problem, Test, TestCase

SPLITS = ("train", "valid", "test")
TESTS = ("public_tests", "private_tests", "generated_tests")
BOM = b"\xef\xbb\xbf"
MOST_SECONDS, MOST_BYTES = 86_400, 1 << 50  # limits of a test: the judge's clock and its request's fields hold no more
MOST_LEVELS = 100  # of lists and objects in tags

type Faults = list[str]
# From (value, key, faults) to what it stands for. Of a wrong value a fault is noted, and anything returned.
type Reading[T] = Callable[[Any, str, Faults], T]


def row_of(line: bytes, faults: Faults) -> dict[str, Any]:
    """The JSON object of a line; {} with a fault for any other line, and faults for keys that stand twice."""
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) < len(pairs):
            counts = collections.Counter(key for key, _ in pairs)
            repeated.extend(key for key in row if counts[key] > 1)
        return row

    try:
        text = line.removeprefix(BOM).decode("utf-8").strip()
        row = json.loads(text, object_pairs_hook=unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        faults.append(f"byte {error.start} of the line is no UTF-8 text")
        return {}
    except json.JSONDecodeError as error:
        faults.append(f"no JSON: {error.msg} at character {error.pos + 1}")
        return {}
    except (ValueError, RecursionError) as error:
        faults.append(f"no JSON: {' '.join(str(error).split())[:200]}")
        return {}
    faults += [f"{key}: stands twice in one object" for key in repeated]
    if isinstance(row, dict):
        return row
    faults.append(f"{_shown(row)}, where the JSON object of a problem is wanted")
    return {}


def _no_constant(name: str) -> Any:
    literal = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[name]
    raise ValueError(f'JSON has no {name} (in a value of a function test: {{"python": "{literal}"}})')


def problem_of(row: Mapping[str, Any], faults: Faults, *, complete: bool = True) -> tuple[Problem, str]:
    """(problem, split) of an object; each fault is noted by its key. With a fault the problem is of no use.

    Args:
      complete: a statement and a test are required, and text that UTF-8 can hold; else only a name.
    """
    before = len(faults)
    required = ("name", "description") if complete else ("name",)
    values = _read(row, "", _KEYS, required, faults)
    split = values.pop("split", "")
    values.setdefault("description", "")
    for kind in TESTS:
        values.setdefault(kind, ())
    tests = [test for kind in TESTS for test in values[kind]]
    values.setdefault("style", default_style(tests))
    problem = Problem(**values) if "name" in values else Problem("", "", (), ())
    if len(faults) == before:
        _check_names(problem, faults)
        if complete:
            _check_complete(problem, faults)
    return problem, split


def default_style(tests: Iterable[Test]) -> str:
    """The style of a problem that names none."""
    return "function" if any(isinstance(test, FunctionTest) for test in tests) else "contest"


def line_of(problem: Problem, split: str = "") -> str:
    """A problem's line, in ASCII and without its end; keys at their defaults are left out.

    `problem_of` gives the same problem back; lists in `tags` come back as tuples. Raises ValueError or TypeError for
    what JSON can't say.
    """
    row: dict[str, Any] = {"name": problem.name, "description": problem.description}
    row |= {"split": split} if split else {}
    row |= {kind: [_test_row(test) for test in getattr(problem, kind)] for kind in TESTS if getattr(problem, kind)}
    default = Problem("", "", (), (), style=default_style(problem.tests))
    for key in _KEYS:
        if key not in row and key not in ("split", *TESTS) and getattr(problem, key) != getattr(default, key):
            row[key] = getattr(problem, key)
    row |= {"tags": dict(row["tags"])} if "tags" in row else {}
    return json.dumps(row, allow_nan=False)


def _test_row(test: Test) -> dict[str, Any]:
    if isinstance(test, TestCase):
        return {"input": test.input, "output": test.output}
    row: dict[str, Any] = {"entry_point": test.entry_point, "calls": [list(map(to_json, c)) for c in test.calls]}
    row |= {"expected": list(map(to_json, test.expected))} if test.expected else {}
    row |= {"atol": test.atol} if test.atol else {}
    row |= {"compare": test.compare} if test.compare != "equal" else {}
    row |= {"text": test.text} if test.text else {}
    return row | ({"check": list(test.check)} if test.check else {})


def _read(
    row: Mapping[str, Any], at: str, keys: Mapping[str, Reading[Any]], required: Sequence[str], faults: Faults
) -> dict[str, Any]:
    """The values of an object's keys, those with null left out."""
    values = {}
    for key, value in row.items():
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1, cutoff=0.5)
            known = f'did you mean "{near[0]}"?' if near else f"there is {', '.join(keys)}"
            faults.append(f"{at}{key}: unknown key; {known}")
        elif value is not None:
            values[key] = keys[key](value, f"{at}{key}", faults)
    faults += [f"{at}{key}: missing, and required" for key in required if row.get(key) is None]
    return values


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _wrong(wanted: str, value: Any, key: str, faults: Faults) -> None:
    faults.append(f"{key}: {_shown(value)}, where {wanted} is wanted")


def _text(value: Any, key: str, faults: Faults) -> str:
    if not isinstance(value, str):
        _wrong("a text", value, key, faults)
        return ""
    return value


def _filled(value: Any, key: str, faults: Faults) -> str:
    if not isinstance(value, str) or not value.strip():
        _wrong("a text that isn't empty", value, key, faults)
        return ""
    return value


def _one_of(choices: Sequence[str]) -> Reading[str]:
    def read(value: Any, key: str, faults: Faults) -> str:
        if not isinstance(value, str) or value not in choices:
            _wrong(f"one of {', '.join(choices)}", value, key, faults)
        return str(value)

    return read


def _seconds(value: Any, key: str, faults: Faults) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        _wrong("a number above 0", value, key, faults)
    elif value > MOST_SECONDS:
        _wrong(f"a number up to {MOST_SECONDS}, a day,", value, key, faults)
    else:
        return float(value)
    return 1.0


def _from_0(value: Any, key: str, faults: Faults) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        _wrong("a number, 0 or more,", value, key, faults)
        return 0.0
    try:
        return float(value)
    except OverflowError:  # a whole number of more digits than a float's 308
        _wrong("a number up to 1e308", value, key, faults)
        return 0.0


def _bytes(value: Any, key: str, faults: Faults) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        _wrong("a whole number above 0", value, key, faults)
    elif value > MOST_BYTES:
        _wrong(f"a whole number up to {MOST_BYTES}, a pebibyte,", value, key, faults)
    else:
        return value
    return 1


def _list[T](item: Reading[T]) -> Reading[tuple[T, ...]]:
    def read(value: Any, key: str, faults: Faults) -> tuple[T, ...]:
        if not isinstance(value, list):
            _wrong("a list", value, key, faults)
            return ()
        return tuple(item(one, f"{key}[{i}]", faults) for i, one in enumerate(value))

    return read


def _frame(value: Any, key: str, faults: Faults) -> tuple[str, ...]:
    texts = _list(_text)(value, key, faults)
    if len(texts) not in (0, 2):
        _wrong("a list of two texts (before and after the program)", value, key, faults)
    return texts


def _tags(value: Any, key: str, faults: Faults) -> dict[str, Any]:
    if not isinstance(value, dict):
        _wrong("an object", value, key, faults)
        return {}
    return {name: _frozen(item, f"{key}.{name}", faults) for name, item in value.items()}


def _frozen(value: Any, key: str, faults: Faults, level: int = 1) -> Any:
    """Lists as tuples. `key` is of the tag; its depth is bounded since JSON is written by recursion."""
    if isinstance(value, float) and not math.isfinite(value):
        _wrong("a finite number", value, key, faults)
    if not isinstance(value, list | dict):
        return value
    if level > MOST_LEVELS:
        faults.append(f"{key}: a value nested too deeply, where one of up to {MOST_LEVELS} levels is wanted")
        return None
    if isinstance(value, list):
        return tuple(_frozen(item, key, faults, level + 1) for item in value)
    return {name: _frozen(item, key, faults, level + 1) for name, item in value.items()}


def _value(value: Any, key: str, faults: Faults) -> Any:
    try:
        return from_json(value)
    except ValueError as error:
        faults.append(f"{key}: {error}")
        return None


def _test(value: Any, key: str, faults: Faults) -> Test:
    if isinstance(value, dict) and len(value) == 2:  # files are mostly of these
        text, output = value.get("input"), value.get("output")
        if isinstance(text, str) and isinstance(output, str):
            return TestCase(text, output)
    if isinstance(value, dict) and not value.keys() & _CALL_KEYS.keys():
        texts = _read(value, f"{key}.", _STDIN_KEYS, tuple(_STDIN_KEYS), faults)
        return TestCase(texts.get("input", ""), texts.get("output", ""))
    if not isinstance(value, dict):
        _wrong('an object {"input": ..., "output": ...} or of a function\'s calls', value, key, faults)
        return TestCase("", "")
    before = len(faults)
    values = _read(value, f"{key}.", _CALL_KEYS, ("entry_point", "calls"), faults)
    test = FunctionTest(**{"entry_point": "", "calls": (), "expected": ()} | values)
    if len(faults) == before:
        _check_calls(test, key, faults)
    return test


_STDIN_KEYS: dict[str, Reading[Any]] = {"input": _text, "output": _text}
_CALL_KEYS: dict[str, Reading[Any]] = {
    "entry_point": _filled,
    "calls": _list(_list(_value)),
    "expected": _list(_value),
    "atol": _from_0,
    "compare": _one_of(COMPARISONS),
    "text": _text,
    "check": _list(_text),
}
_KEYS: dict[str, Reading[Any]] = {
    "name": _filled,
    "description": _filled,
    "split": _one_of(SPLITS),
    "public_tests": _list(_test),
    "private_tests": _list(_test),
    "generated_tests": _list(_test),
    "solutions": _list(_text),
    "incorrect_solutions": _list(_text),
    "time_limit_s": _seconds,
    "memory_limit_bytes": _bytes,
    "tags": _tags,
    "style": _one_of(STYLES),
    "start": _text,
    "shown_tests": _list(_text),
    "frame": _frame,
}


def _check_calls(test: FunctionTest, key: str, faults: Faults) -> None:
    """Calls and results that belong together, and that can be sent to a program."""
    wanted = 0 if test.check else len(test.calls)
    if not test.calls and not test.check:
        faults.append(f"{key}.calls: [], where a list of one or more calls is wanted")
    elif len(test.expected) != wanted:
        why = "none with a check, which decides" if test.check else f"as many as calls, {wanted},"
        faults.append(f"{key}.expected: {len(test.expected)} results, where {why} are wanted")
    try:
        input_bytes(test)
    except ValueError as error:
        faults.append(f"{key}.calls: can't be sent to a program: {error}")
        return
    try:
        encoded_test(test)
    except ValueError as error:
        faults.append(f"{key}.expected: can't be written to episodes: {error}")


def _check_names(problem: Problem, faults: Faults) -> None:
    """A function that isn't a plain name must be defined by the frame: the judge looks it up as a global name."""
    for key in TESTS:
        for number, test in enumerate(getattr(problem, key)):
            if isinstance(test, FunctionTest) and not test.entry_point.isidentifier() and not problem.frame:
                fault = f'"{test.entry_point}" is no name of a function, and no frame defines it as a global name'
                faults.append(f"{key}[{number}].entry_point: {fault}")


def _check_complete(problem: Problem, faults: Faults) -> None:
    """A test to judge by, and no half of a surrogate pair, which UTF-8 can't hold, in what is shown or read."""
    if not problem.tests:
        faults.append(f"{', '.join(TESTS)}: no test, where one or more are wanted")
    broken = [key for key in ("name", "description", "start") if _is_broken(getattr(problem, key))]
    broken += [f"shown_tests[{i}]" for i, text in enumerate(problem.shown_tests) if _is_broken(text)]
    for kind in TESTS:
        for i, test in enumerate(getattr(problem, kind)):
            fields = ("input", "output") if isinstance(test, TestCase) else ("text",)
            broken += [f"{kind}[{i}].{field}" for field in fields if _is_broken(getattr(test, field))]
    faults += [f"{key}: half of a surrogate pair, which UTF-8 can't hold" for key in broken]


def _is_broken(text: str) -> bool:
    return well_formed(text) != text
