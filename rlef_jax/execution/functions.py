"""Function problems (HumanEval+, MBPP+): encodes calls for the worker and compares the results, outside the worker.

Published asserts compare with `==`, plus tests with `==` or a tolerance. The comparison happens here because it needs
NumPy, which the judge's Python lacks, and the expected results, which no program's process may see.
"""

from __future__ import annotations

import collections
import dataclasses
import fractions
import math
import reprlib
import unittest
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rlef_jax.execution import calls, child
from rlef_jax.types import FunctionTest, Test

if TYPE_CHECKING:
    from rlef_jax.execution.supervisor import Outcome

_TEST_BYTES = 1 << 30
_ARGUMENT_BYTES = 64 << 20
ALWAYS_READ_BYTES = 64 << 20  # larger results are read only if the expected ones are of similar size
_END = object()
_DIFF_CHARS = 640  # longest diff that `unittest` shows
_SHORT_BYTES = 1 << 16  # values with a longer encoding count as long, without computing their text
_BRIEF = reprlib.Repr(maxlevel=4, maxlist=20, maxtuple=20, maxset=20, maxfrozenset=20, maxdict=20, maxstring=100)
_DEFAULT_ATOL = 1e-6  # of plus tests that expect floats and give no tolerance
_MAX_PARTS = 1000  # parts of a result searched for a type that can't be compared


def input_bytes(test: Test) -> bytes:
    """A test's input for the worker: standard input, or the encoded entry point and arguments.

    Raises ValueError (`calls.CodecError`) if arguments aren't plain data.
    """
    if isinstance(test, FunctionTest):
        return calls.encode([test.entry_point, [list(arguments) for arguments in test.calls]], _ARGUMENT_BYTES)
    try:
        return test.input.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that isn't an escaped byte; problem sources leave such tests out
        return test.input.encode("utf-8", "surrogatepass")


def encoded_test(test: FunctionTest) -> bytes:
    """All of a function's test, as episodes hold it. Raises ValueError (`calls.CodecError`) for what isn't plain data,
    or is nested too deeply."""
    return calls.encode([getattr(test, field.name) for field in dataclasses.fields(test)], _TEST_BYTES)


def function_failure(test: FunctionTest, outcome: Outcome) -> str | None:
    """The first wrong result of a clean run, as a `unittest` message; None if all are as expected."""
    if outcome.report == child.VALUES and _oversized(len(outcome.error), test.expected):
        return "No results: they are much longer than what is expected."
    try:
        results = _results(outcome, len(test.calls))  # one is held at a time
        for arguments, expected, result in zip(test.calls, test.expected, results, strict=True):
            if (failure := compare(result, expected, test, arguments)) is not None:
                return failure
    except _NoResultsError as exc:
        return str(exc)
    return None


def function_values(outcome: Outcome, count: int, longest: int) -> tuple[Any, ...] | str:
    """The results of a clean run's `count` calls, or a message why there are none.

    `longest`: larger results, in encoded bytes, aren't read.
    """
    if outcome.report == child.VALUES and len(outcome.error) > longest:
        return f"No results: they are longer than {longest >> 20} MB."
    try:
        return tuple(_results(outcome, count))
    except _NoResultsError as exc:
        return str(exc)


class _NoResultsError(ValueError):
    """Raised if results are missing; the message says why."""


def _results(outcome: Outcome, count: int) -> Iterator[Any]:
    if outcome.report != child.VALUES:
        raise _NoResultsError("The program ended before its function was called.")
    results = calls.decode_each(outcome.error)
    try:
        for _ in range(count):
            yield next(results)
        if next(results, _END) is not _END:
            raise _NoResultsError("No results: the program wrote them itself.")
    except calls.CodecError as exc:
        raise _NoResultsError(f"No results: {exc}.") from exc
    except StopIteration:
        raise _NoResultsError("The program ended before all of its results were there.") from None


def _oversized(size: int, expected: tuple[Any, ...]) -> bool:
    """Whether results of `size` bytes are at least twice as long as expected, and so not worth reading."""
    if size <= ALWAYS_READ_BYTES:
        return False
    try:
        calls.encode(expected, size // 2)
    except calls.CodecError:
        return False
    return True


def compare(result: Any, expected: Any, test: FunctionTest, arguments: tuple[Any, ...]) -> str | None:
    """None if a result counts as the expected one, else `unittest`'s assertion message with both values."""
    try:
        equal = _COMPARISONS[test.compare](result, expected, test.atol, arguments)
    except Exception:  # the comparison doesn't support these types or shapes
        equal = False
    return None if equal else inequality(result, expected)


def inequality(result: Any, expected: Any, note: str = "") -> str:
    """`unittest`'s message for two values that aren't equal, followed by a note.

    Without a note, one is added for a result whose type can't be compared and so equals nothing.
    """
    if (name := unknown_type(result)) and not note:
        note = f"a value of type {name} equals nothing here: numbers, text and the standard containers are compared"
    suffix = f" : {note}" if note else ""
    if _is_long(result) or _is_long(expected):
        return f"AssertionError: {_difference(result, expected)}{suffix}"
    case = unittest.TestCase()
    case.maxDiff = _DIFF_CHARS
    try:
        if isinstance(expected, bool):
            (case.assertTrue if expected else case.assertFalse)(result)
        case.assertEqual(result, expected)
    except AssertionError as exc:
        return f"AssertionError: {exc}{suffix}"
    except Exception:  # a result that can't be shown
        pass
    return f"AssertionError: {_shown(result)} != {_shown(expected)}{suffix}"


def unknown_type(value: Any) -> str:
    """The name of a type in a result that can't be compared (`calls.Opaque`, `Iterated`); "" if there is none."""
    visited, pending = 0, [value]
    while pending and visited < _MAX_PARTS:
        part, visited = pending.pop(), visited + 1
        if isinstance(part, (calls.Opaque, calls.Iterated)):
            return part.name
        if isinstance(part, dict):
            pending += [*part.keys(), *part.values()][:_MAX_PARTS]
        elif isinstance(part, (list, tuple, set, frozenset)):
            pending += list(part)[:_MAX_PARTS]
    return ""


def _is_long(value: Any) -> bool:
    """Whether a value's text is longer than the diffs that `unittest` shows.

    `unittest` would compute the diff before it leaves it out: for two lists of 400 pairs this takes 25 s.
    """
    try:
        calls.encode(value, _SHORT_BYTES)
        return len(repr(value)) > _DIFF_CHARS
    except ValueError:  # too many bytes, or an integer with too many digits for `repr`
        return True


def _difference(result: Any, expected: Any) -> str:
    """The part of `unittest`'s message that precedes the diff."""
    text = f"{_shown(result)} != {_shown(expected)}"
    if type(result) is not type(expected) or not isinstance(result, (list, tuple)):
        return text
    text = f"{'Lists' if isinstance(result, list) else 'Tuples'} differ: {text}"
    at = next((i for i, (a, b) in enumerate(zip(result, expected)) if a != b), None)
    if at is not None:
        return f"{text}\n\nFirst differing element {at}:\n{_shown(result[at])}\n{_shown(expected[at])}"
    return f"{text}\n\n{len(result)} elements instead of {len(expected)}."


def _shown(value: Any) -> str:
    """A value's text, of bounded length."""
    try:
        return _BRIEF.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _equal(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """`==`: numbers must be equal to the last bit, and a tuple doesn't equal a list."""
    return bool(result == expected)


def _sequence(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """LiveCodeBench's comparison: `==`, but a tuple counts as a list, since JSON has only lists."""
    return bool((list(result) if isinstance(result, tuple) else result) == expected)


def _apps(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """The comparison of APPS's own runner (Hendrycks et al., 2021): as `_sequence`, or the same with the first item of
    an expected list, since most results are published as a list of one; tuples inside of that one count as lists too.
    """
    if _sequence(result, expected, atol, arguments):
        return True
    if not (isinstance(expected, list) and expected):
        return False
    if _sequence(result, expected[0], atol, arguments):
        return True
    pairs = isinstance(result, (list, tuple)) and bool(result) and isinstance(result[0], tuple)
    return pairs and [list(item) for item in result] == expected[0]


def _plus(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """The plus tests' `assertion`: equal; or close (relative 1e-7) if floats are expected or `atol` is given."""
    if bool(result == expected):
        return True
    if atol == 0 and _is_floats(expected):
        atol = _DEFAULT_ATOL
    if atol == 0:
        return False
    if isinstance(result, (range, collections.deque, collections.UserList)) and len(result) == len(expected):
        result = list(result)
    numbers = _numbers(result)
    if np.shape(numbers) != np.shape(expected):  # the original lets shapes broadcast
        return False
    return bool(np.allclose(numbers, expected, rtol=1e-07, atol=atol))


def _is_floats(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _numbers(value: Any) -> Any:
    """A result of numbers in nested lists and tuples, with fractions as floats.

    Raises TypeError for other types: a range, for example, may be longer than memory when converted.
    """
    if isinstance(value, (list, tuple)):
        return list(map(_numbers, value))
    if not isinstance(value, (int, float, complex, fractions.Fraction)):
        raise TypeError(f"a {type(value).__name__} is no number")
    return float(value) if isinstance(value, fractions.Fraction) else value


def _same_set(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """Equal as sets: order and repetition don't matter."""
    expected = set(expected)
    if isinstance(result, range) and len(result) != len(expected):
        return False
    return set(result) == expected


def _presence(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """A bool, or whether the result is not None, equals the expected bool."""
    return bool((result if isinstance(result, bool) else result is not None) == expected)


def _truth(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """`assert f(x)` or `assert not f(x)`: the result's truth value."""
    return bool(result) == expected


def _root(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """HumanEval/32: any root of the polynomial with the given coefficients counts, and the reference's result too."""
    if _plus(result, expected, 0.0, arguments):
        return True
    value = math.fsum(c * math.pow(result, i) for i, c in enumerate(arguments[0]))
    return abs(value) <= atol


_COMPARISONS: dict[str, Callable[[Any, Any, float, tuple[Any, ...]], bool]] = {
    "equal": _equal,
    "sequence": _sequence,
    "apps": _apps,
    "plus": _plus,
    "set": _same_set,
    "presence": _presence,
    "truth": _truth,
    "root": _root,
}
COMPARISONS = tuple(_COMPARISONS)
