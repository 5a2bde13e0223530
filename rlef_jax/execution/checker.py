# mypy: allow-untyped-defs
"""What a published assert says of a function's results, without the function. A program of the judge's own.

Its text runs in a worker, under the judge's Python (3.8+), in a process that never ran a candidate: `verdict` puts the
results of calls that were made elsewhere in the place of the function. `record` has the reference solution make them.
An assert comes as `data.asserts` has written it anew: in calls of the four claims below.
"""

import copy
import operator
import reprlib

_SHOWN_CALLS = 3  # of an assert that makes many, the last ones
_LONG_BITS = 4096  # of an integer: its text takes the square of its length
_CHARS = 10_000
_CLAIMS = {  # and unittest's words for what doesn't hold
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
    """Ends the assert's code."""


class ShortRepr(reprlib.Repr):
    """Texts of values, in so many characters as a reader wants of them."""

    def __init__(self):
        reprlib.Repr.__init__(self)
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 4, 100, 100, 100
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = 20

    def repr_int(self, x, level):
        """An integer's text, unless it is long."""
        if x.bit_length() > _LONG_BITS:
            return f"<integer of {x.bit_length()} bits>"
        return reprlib.Repr.repr_int(self, x, level)


class Calls:
    """The function's stand-in, and what it was called with."""

    def __init__(self, entry_point, recorded):
        self.entry_point, self.recorded = entry_point, recorded
        self.history, self.claim_start, self.answer, self.text_of = [], 0, None, ShortRepr().repr
        self.function = self.missing  # what has this name among the assert's names

    def __call__(self, *arguments, **named):
        at = len(self.history)
        if at == len(self.recorded) or not same_call([list(arguments), named], list(self.recorded[at][:2])):
            self.stop(["call", at, list(arguments), named])
        self.history.append((arguments, named, self.recorded[at][2]))
        return self.recorded[at][2]

    def missing(self, *arguments, **named):
        """In the place of a function that isn't there."""
        raise NameError(f"name {self.entry_point!r} is not defined")

    def stop(self, answer):
        """Ends the assert with a verdict."""
        self.answer = self.answer or answer
        raise Stop

    def note(self):
        """The calls that the assert at hand has made, or else those before it, with what they returned."""
        texts = []
        for arguments, named, result in (self.history[self.claim_start :] or self.history)[-_SHOWN_CALLS:]:
            texts_of_arguments = [self.text_of(a) for a in arguments] + [
                f"{k}={self.text_of(v)}" for k, v in named.items()
            ]
            texts.append(f"{self.entry_point}({', '.join(texts_of_arguments)}) returned {self.text_of(result)}")
        return ", ".join(texts)

    def fail(self, text):
        """Ends the assert: it doesn't hold."""
        note = self.note()
        self.stop(["failed", f"AssertionError: {text}{' : ' * bool(note)}{note}"[:_CHARS]])

    def equal(self, one, other):
        """The claim of `assert one == other`."""
        if not one == other:
            self.stop(["unequal", one, other, self.note()[:_CHARS]])
        self.claim_start = len(self.history)

    def compared(self, sign, one, other):
        """The claim of `assert one < other` and the like."""
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
    """The reference solution's function in the stand-in's place: `known` grows with its calls."""

    def __init__(self, entry_point):
        Calls.__init__(self, entry_point, [])
        self.raised, self.inside = None, False

    def __call__(self, *arguments, **named):
        if self.inside:  # it calls itself
            return self.function(*arguments, **named)
        arguments_before = copy.deepcopy([list(arguments), named])
        self.inside = True
        try:
            result = self.function(*arguments, **named)
        except Exception as exc:
            self.raised = exc
            raise
        finally:
            self.inside = False
        result, again = two_copies(result)
        self.history.append((arguments_before[0], arguments_before[1], again))
        return result


def two_copies(value):
    """A value twice: the assert may change the one, or use it up."""
    if hasattr(type(value), "__next__"):
        import itertools

        return itertools.tee(value)
    try:
        return value, copy.deepcopy(value)
    except TypeError:  # a dict's view
        return value, value


def same_call(one, other):
    """Whether the function was asked the same: what isn't equal to itself counts by its text."""
    try:
        return one == other or repr(one) == repr(other)
    except Exception:
        return False


def exception_line(exc):
    """An exception as the last line of its stack trace has it."""
    text = str(exc)[:_CHARS]
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def run(check, calls):
    """Runs the assert, the last of the sources, after those of its names; random numbers are the same every time."""
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
    """What the assert says where the function's calls are `known`: [arguments, named arguments, result] of each.

    Returns ["passed"]; ["failed", text]; ["unequal", one, other, note] where `==` says no; or ["call", how many of
    `known` were of use, arguments, named arguments] for the first call that isn't there.
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
    """The calls that the assert makes of the reference solution's function, which is among its names.

    Returns ["recorded", calls]; ["failed", text] where the assert doesn't hold for it; ["raised", text] where the function
    raised what the assert doesn't catch; ["other", text] where the assert itself can't be run, or expects an exception.
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
