"""Function problems (HumanEval+, MBPP+): calls as bytes for the worker, results compared here, outside.

Published asserts compare with `==`, plus tests so or within a tolerance. That needs numpy, which the judge's Python
lacks, and the expected results, which no program's process may hold.
"""

from __future__ import annotations

import collections
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

_ARGUMENT_BYTES = 64 << 20
ALWAYS_READ_BYTES = 64 << 20  # of results; of more, it is asked first whether so much is expected
_END = object()
_DIFF_CHARS = 640  # the longest diff that `unittest` shows
_SHORT_BYTES = 1 << 16  # what takes more, as `calls` writes it, isn't even asked how long its text is
_BRIEF = reprlib.Repr(maxlevel=4, maxlist=20, maxtuple=20, maxset=20, maxfrozenset=20, maxdict=20, maxstring=100)
_DEFAULT_ATOL = 1e-6  # of the plus tests, where floats are expected and no tolerance is given
_MAX_PARTS = 1000  # parts of a result, to find one that nothing can be said of


def input_bytes(test: Test) -> bytes:
    """What the worker is sent of a test: standard input, or entry point and arguments.

    ValueError (`calls.CodecError`) if these aren't plain data.
    """
    if isinstance(test, FunctionTest):
        return calls.encode([test.entry_point, [list(arguments) for arguments in test.calls]], _ARGUMENT_BYTES)
    try:
        return test.input.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte; problem sources leave such tests out
        return test.input.encode("utf-8", "surrogatepass")


def function_failure(test: FunctionTest, outcome: Outcome) -> str | None:
    """What is wrong with a clean run's results: the first failure as `unittest` prints it. None if nothing is."""
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
    """The results of a clean run's `count` calls, or why there are none; `longest`: bytes that are worth reading."""
    if outcome.report == child.VALUES and len(outcome.error) > longest:
        return f"No results: they are longer than {longest >> 20} MB."
    try:
        return tuple(_results(outcome, count))
    except _NoResultsError as exc:
        return str(exc)


class _NoResultsError(ValueError):
    """The message says what there is in the place of results."""


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
    """Whether results of so many bytes are twice what is expected or more: not worth the memory of reading them."""
    if size <= ALWAYS_READ_BYTES:
        return False
    try:
        calls.encode(expected, size // 2)
    except calls.CodecError:
        return False
    return True


def compare(result: Any, expected: Any, test: FunctionTest, arguments: tuple[Any, ...]) -> str | None:
    """None if a result counts as the expected one, else the message of `unittest`'s assertion, with both values."""
    try:
        equal = _COMPARISONS[test.compare](result, expected, test.atol, arguments)
    except Exception:  # values of other types and shapes than the comparison was made for
        equal = False
    return None if equal else inequality(result, expected)


def inequality(result: Any, expected: Any, note: str = "") -> str:
    """The message of `unittest`'s assertion that two values are equal, with both, and with a note behind it.

    A result that equals nothing because it is of a type that isn't compared is named so in the note.
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
    """The name of the first type in a result that `calls` knows no more of; empty if there is none."""
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
    """Whether `unittest` would leave out its diff, after making it: of two lists of 400 pairs in 25 s."""
    try:
        calls.encode(value, _SHORT_BYTES)
        return len(repr(value)) > _DIFF_CHARS
    except ValueError:  # more bytes than that, or an integer of too many digits to be shown
        return True


def _difference(result: Any, expected: Any) -> str:
    """What `unittest` says of two values before their diff."""
    text = f"{_shown(result)} != {_shown(expected)}"
    if type(result) is not type(expected) or not isinstance(result, (list, tuple)):
        return text
    text = f"{'Lists' if isinstance(result, list) else 'Tuples'} differ: {text}"
    at = next((i for i, (a, b) in enumerate(zip(result, expected)) if a != b), None)
    if at is not None:
        return f"{text}\n\nFirst differing element {at}:\n{_shown(result[at])}\n{_shown(expected[at])}"
    return f"{text}\n\n{len(result)} elements instead of {len(expected)}."


def _shown(value: Any) -> str:
    """A value's text, in so many characters as a reader wants of it."""
    try:
        return _BRIEF.repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _equal(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """What `==` says: of numbers to the last bit, and a tuple is no list."""
    return bool(result == expected)


def _sequence(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """LiveCodeBench's runner: what `==` says, but that a tuple counts as the list that JSON has in its place."""
    return bool((list(result) if isinstance(result, tuple) else result) == expected)


def _plus(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """The plus tests' `assertion`: equal, or all close (relative 1e-7) where floats are expected or `atol` is given."""
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
    """A result of numbers in lists and tuples, fractions as floats. TypeError for anything else, in which there may be
    a range that is longer than there is memory for."""
    if isinstance(value, (list, tuple)):
        return list(map(_numbers, value))
    if not isinstance(value, (int, float, complex, fractions.Fraction)):
        raise TypeError(f"a {type(value).__name__} is no number")
    return float(value) if isinstance(value, fractions.Fraction) else value


def _same_set(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """Order and repetition don't matter."""
    expected = set(expected)
    if isinstance(result, range) and len(result) != len(expected):
        return False
    return set(result) == expected


def _presence(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """The function says yes by True or by any other value but None."""
    return bool((result if isinstance(result, bool) else result is not None) == expected)


def _truth(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """`assert f(x)`, `assert not f(x)`: what Python takes the result for."""
    return bool(result) == expected


def _root(result: Any, expected: Any, atol: float, arguments: tuple[Any, ...]) -> bool:
    """Any root of the polynomial with the coefficients given (HumanEval/32) counts, and so does the reference's own."""
    if _plus(result, expected, 0.0, arguments):
        return True
    value = math.fsum(c * math.pow(result, i) for i, c in enumerate(arguments[0]))
    return abs(value) <= atol


_COMPARISONS: dict[str, Callable[[Any, Any, float, tuple[Any, ...]], bool]] = {
    "equal": _equal,
    "sequence": _sequence,
    "plus": _plus,
    "set": _same_set,
    "presence": _presence,
    "truth": _truth,
    "root": _root,
}
