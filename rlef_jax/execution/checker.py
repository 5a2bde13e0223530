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


class Brief(reprlib.Repr):
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

    def __init__(self, entry_point, known):
        self.entry_point, self.known = entry_point, known
        self.made, self.before, self.said, self.shown = [], 0, None, Brief().repr
        self.function = self.missing  # what has this name among the assert's names

    def __call__(self, *arguments, **named):
        at = len(self.made)
        if at == len(self.known) or not same([list(arguments), named], list(self.known[at][:2])):
            self.stop(["call", at, list(arguments), named])
        self.made.append((arguments, named, self.known[at][2]))
        return self.known[at][2]

    def missing(self, *arguments, **named):
        """In the place of a function that isn't there."""
        raise NameError(f"name {self.entry_point!r} is not defined")

    def stop(self, said):
        """Ends the assert with a verdict."""
        self.said = self.said or said
        raise Stop

    def note(self):
        """The calls that the assert at hand has made, or else those before it, with what they returned."""
        texts = []
        for arguments, named, result in (self.made[self.before :] or self.made)[-_SHOWN_CALLS:]:
            given = [self.shown(a) for a in arguments] + [f"{k}={self.shown(v)}" for k, v in named.items()]
            texts.append(f"{self.entry_point}({', '.join(given)}) returned {self.shown(result)}")
        return ", ".join(texts)

    def fail(self, text):
        """Ends the assert: it doesn't hold."""
        note = self.note()
        self.stop(["failed", f"AssertionError: {text}{' : ' * bool(note)}{note}"[:_CHARS]])

    def equal(self, one, other):
        """The claim of `assert one == other`."""
        if not one == other:
            self.stop(["unequal", one, other, self.note()[:_CHARS]])
        self.before = len(self.made)

    def compared(self, sign, one, other):
        """The claim of `assert one < other` and the like."""
        holds, words = _CLAIMS[sign]
        if not holds(one, other):
            self.fail(f"{self.shown(one)} {words} {self.shown(other)}")
        self.before = len(self.made)

    def true(self, value):
        """The claim of any other assert."""
        if not value:
            self.fail(f"{self.shown(value)} is not true")
        self.before = len(self.made)

    def false(self, value):
        """The claim of `assert not value`."""
        if value:
            self.fail(f"{self.shown(value)} is not false")
        self.before = len(self.made)


class Recorder(Calls):
    """The reference solution's function in the stand-in's place: `known` grows with its calls."""

    def __init__(self, entry_point):
        Calls.__init__(self, entry_point, [])
        self.raised, self.inside = None, False

    def __call__(self, *arguments, **named):
        if self.inside:  # it calls itself
            return self.function(*arguments, **named)
        given = copy.deepcopy([list(arguments), named])
        self.inside = True
        try:
            result = self.function(*arguments, **named)
        except Exception as exc:
            self.raised = exc
            raise
        finally:
            self.inside = False
        result, again = doubled(result)
        self.made.append((given[0], given[1], again))
        return result


def doubled(value):
    """A value twice: the assert may change the one, or use it up."""
    if hasattr(type(value), "__next__"):
        import itertools

        return itertools.tee(value)
    try:
        return value, copy.deepcopy(value)
    except TypeError:  # a dict's view
        return value, value


def same(one, other):
    """Whether the function was asked the same: what isn't equal to itself counts by its text."""
    try:
        return one == other or repr(one) == repr(other)
    except Exception:
        return False


def told(exc):
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


def verdict(check, entry_point, known):
    """What the assert says where the function's calls are `known`: [arguments, named arguments, result] of each.

    Returns ["passed"]; ["failed", text]; ["unequal", one, other, note] where `==` says no; or ["call", how many of
    `known` were of use, arguments, named arguments] for the first call that isn't there.
    """
    calls = Calls(entry_point, known)
    try:
        run(check, calls)
    except Stop:
        pass
    except MemoryError:
        raise
    except Exception as exc:
        calls.said = calls.said or ["failed", told(exc)]
    return calls.said or ["passed"]


def record(check, entry_point):
    """The calls that the assert makes of the reference solution's function, which is among its names.

    Returns ["made", calls]; ["failed", text] where the assert doesn't hold for it; ["raised", text] where the function
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
        return ["raised" if exc is calls.raised else "other", told(exc)]
    if calls.raised is not None:
        return ["other", "it expects an exception"]
    return ["made", [list(call) for call in calls.made]]
