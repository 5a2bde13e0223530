# mypy: allow-untyped-defs
"""Evaluates a published assert on recorded results of a function's calls, without the function.

This file's text runs as a program in a worker, under the judge's Python (3.8+), in a process that never runs a
candidate. `verdict` replaces the function by recorded results, `record` records the calls of the reference solution.
`data.asserts` has replaced the asserts by calls of the claims `equal`, `compared`, `true` and `false` below.
"""

import copy
import operator
import reprlib

_SHOWN_CALLS = 3  # number of calls shown in a failure's message, the last ones
_LONG_BITS = 4096  # longer integers aren't shown: converting one to text takes time quadratic in its length
_CHARS = 10_000
_CLAIMS = {  # operator: (function, unittest's words for a failure)
    "<": (operator.lt, "not less than"),
    "<=": (operator.le, "not less than or equal to"),
    ">": (operator.gt, "not greater than"),
    ">=": (operator.ge, "not greater than or equal to"),
    "!=": (operator.ne, "=="),
    "is": (operator.is_, "is not"),
    "is not": (operator.is_not, "is"),
    "in": (lambda a, b: a in b, "not found in"),
    "not in": (lambda a, b: a not in b, "unexpectedly found in"),
}


class Stop(BaseException):
    """Raised to end the assert's code."""


class ShortRepr(reprlib.Repr):
    """`repr` with bounded length."""

    def __init__(self):
        reprlib.Repr.__init__(self)
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, 100, 100, 100
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = 20

    def repr_int(self, x, level):
        """An integer's text, or its size if it is long."""
        if x.bit_length() > _LONG_BITS:
            return f"<integer of {x.bit_length()} bits>"
        return reprlib.Repr.repr_int(self, x, level)


class Calls:
    """Stands in for the function: returns recorded results and keeps the calls made.

    `recorded` has [arguments, named arguments, result] of each known call, `history` the calls made so far.
    """

    def __init__(self, entry_point, recorded):
        self.entry_point, self.recorded = entry_point, recorded
        self.history, self.claim_start, self.answer, self.text_of = [], 0, None, ShortRepr().repr
        self.function = self.missing  # the assert's own object of that name, if any

    def __call__(self, *arguments, **keywords):
        at = len(self.history)
        if at == len(self.recorded) or not same_call([list(arguments), keywords], list(self.recorded[at][:2])):
            self.stop(["call", at, list(arguments), keywords])
        self.history.append((arguments, keywords, self.recorded[at][2]))
        return self.recorded[at][2]

    def missing(self, *arguments, **keywords):
        """Called instead of a function that isn't defined."""
        raise NameError(f"name {self.entry_point!r} is not defined")

    def stop(self, answer):
        """Ends the assert with an answer of `verdict`; an earlier answer takes precedence."""
        self.answer = self.answer or answer
        raise Stop

    def note(self):
        """Text of the current claim's calls and their results; of all calls if it made none."""
        texts = []
        for arguments, keywords, result in (self.history[self.claim_start :] or self.history)[-_SHOWN_CALLS:]:
            texts_of_arguments = [self.text_of(a) for a in arguments] + [
                f"{k}={self.text_of(v)}" for k, v in keywords.items()
            ]
            texts.append(f"{self.entry_point}({', '.join(texts_of_arguments)}) returned {self.text_of(result)}")
        return ", ".join(texts)

    def fail(self, text):
        """Ends the assert as failed, with a message."""
        note = self.note()
        self.stop(["failed", f"AssertionError: {text}{' : ' * bool(note)}{note}"[:_CHARS]])

    def equal(self, one, other):
        """The claim of `assert one == other`."""
        if not one == other:
            self.stop(["unequal", one, other, self.note()[:_CHARS]])
        self.claim_start = len(self.history)

    def compared(self, sign, one, other):
        """The claim of `assert one < other` and of other comparisons (`_CLAIMS`)."""
        holds, words = _CLAIMS[sign]
        if not holds(one, other):
            self.fail(f"{self.text_of(one)} {words} {self.text_of(other)}")
        self.claim_start = len(self.history)

    def true(self, value):
        """The claim of any other assert."""
        if not value:
            self.fail(f"{self.text_of(value)} is not true")
        self.claim_start = len(self.history)

    def false(self, value):
        """The claim of `assert not value`."""
        if value:
            self.fail(f"{self.text_of(value)} is not false")
        self.claim_start = len(self.history)


class Recorder(Calls):
    """Calls the reference solution's function and records its calls in `history`."""

    def __init__(self, entry_point):
        Calls.__init__(self, entry_point, [])
        self.raised, self.inside = None, False

    def __call__(self, *arguments, **keywords):
        if self.inside:  # a recursive call
            return self.function(*arguments, **keywords)
        arguments_before = copy.deepcopy([list(arguments), keywords])
        self.inside = True
        try:
            result = self.function(*arguments, **keywords)
        except Exception as exc:
            self.raised = exc
            raise
        finally:
            self.inside = False
        result, again = two_copies(result)
        self.history.append((arguments_before[0], arguments_before[1], again))
        return result


def two_copies(value):
    """A value and a copy of it: the assert may change the value or exhaust an iterator."""
    if hasattr(type(value), "__next__"):
        import itertools

        return itertools.tee(value)
    try:
        return value, copy.deepcopy(value)
    except TypeError:  # a dict view can't be copied
        return value, value


def same_call(one, other):
    """Whether two calls have the same arguments; those that don't equal themselves (NaN) are compared as text."""
    try:
        return one == other or repr(one) == repr(other)
    except Exception:
        return False


def exception_line(exc):
    """The last line of an exception's stack trace."""
    text = str(exc)[:_CHARS]
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def run(check, calls):
    """Runs the sources of an assert's names, then the assert itself (the last source), with a fixed random seed."""
    space, (*names, code) = {"__name__": "check"}, check
    draws = any("random" in source for source in check)
    if draws:
        import random

        random.seed(0)
    for source in names:
        exec(compile(source, "names.py", "exec", dont_inherit=True), space)
    if draws:
        random.seed(0)
    calls.function = space.get(calls.entry_point, calls.missing)
    space[calls.entry_point] = calls
    space.update(_equal_=calls.equal, _compared_=calls.compared, _true_=calls.true, _false_=calls.false)
    exec(compile(code, "assert.py", "exec", dont_inherit=True), space)


def verdict(check, entry_point, recorded):
    """Evaluates the assert on recorded calls: [arguments, named arguments, result] of each.

    Returns ["passed"]; ["failed", text]; ["unequal", one, other, note] if `==` is false; or ["call", number of recorded
    calls that were used, arguments, named arguments] for the first call that isn't recorded.
    """
    calls = Calls(entry_point, recorded)
    try:
        run(check, calls)
    except Stop:
        pass
    except MemoryError:
        raise
    except Exception as exc:
        calls.answer = calls.answer or ["failed", exception_line(exc)]
    return calls.answer or ["passed"]


def record(check, entry_point):
    """Records the assert's calls of the reference solution's function, which the sources in `check` define.

    Returns ["recorded", calls]; ["failed", text] if the assert fails on it; ["raised", text] if the function raised an
    exception that the assert doesn't catch; ["other", text] if the assert can't be run or expects an exception.
    """
    calls = Recorder(entry_point)
    try:
        run(check, calls)
    except Stop:
        return ["failed", calls.note()]
    except AssertionError as exc:
        return ["failed", str(exc)]
    except Exception as exc:
        return ["raised" if exc is calls.raised else "other", exception_line(exc)]
    if calls.raised is not None:
        return ["other", "it expects an exception"]
    return ["recorded", [list(call) for call in calls.history]]
