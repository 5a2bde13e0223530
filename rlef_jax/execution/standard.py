# mypy: allow-untyped-defs
"""Values of the standard library's types (Decimal, deque, ...): decomposed into plain data for sending, and rebuilt.

Only exact types, no subclasses. The receiver rebuilds the same value, so that `==` gives the same result as in the
program's process (Decimal("0.5") == 0.5, {1: 2}.keys() == {1}, UserList([1]) == [1]) but runs none of the program's
code. Runs under the judge's Python and under ours.
"""

import sys

LONG_BITS = 1 << 15  # comparing a Decimal with longer integers is slow
_NATIVE = frozenset("bBhHiIlLqQnNfd?c")  # formats that `memoryview.cast` knows
_EMPTY: dict = {}
_KEYS, _ITEMS, _VALUES = type(_EMPTY.keys()), type(_EMPTY.items()), type(_EMPTY.values())  # also those of OrderedDict


class Opaque:
    """Replaces a value of any other type and keeps its type's name. Equals nothing, not even itself."""

    def __init__(self, name):
        self.name = name

    def __eq__(self, other):
        return False

    def __hash__(self):
        return id(self)

    def __repr__(self):
        return f"<{self.name} object>"


class Iterated:
    """The items of a generator or another iterator. Like an iterator, it equals only itself.

    If only the first items were taken (`complete` is False), iterating past them raises RuntimeError.
    """

    def __init__(self, name, items, complete):
        self.name, self.items, self.complete, self.at = name, items, complete, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.at < len(self.items):
            self.at += 1
            return self.items[self.at - 1]
        if not self.complete:
            raise RuntimeError(f"only the first {len(self.items)} items of this {self.name} were taken")
        raise StopIteration

    def __repr__(self):
        return f"<{self.name} object>"


def _rebuild_decimal(cls, text):
    try:
        return cls(_require_type(str, text))
    except ArithmeticError:  # decimal.InvalidOperation
        raise ValueError("no decimal number") from None


def _rebuild_fraction(cls, parts):
    numerator, denominator = parts
    if (
        _require_type(int, denominator) < 1
        or max(_require_type(int, numerator).bit_length(), denominator.bit_length()) > LONG_BITS
    ):
        raise ValueError("no fraction, or one of too many digits")
    fraction = object.__new__(cls)  # not reduced: computing a greatest common divisor may take very long
    fraction._numerator, fraction._denominator = numerator, denominator
    return fraction


def _require_type(kind, parts):
    if type(parts) is not kind:
        raise TypeError(f"not made of a {kind.__name__}")
    return parts


def _rebuild_mapping(cls, parts):
    return cls(_require_type(dict, parts))


# {letter: (module, name of the type, function to its parts, function from type and parts to the value)}.
_TYPES: dict = {
    "D": ("decimal", "Decimal", str, _rebuild_decimal),
    "F": ("fractions", "Fraction", lambda v: (v.numerator, v.denominator), _rebuild_fraction),
    "R": (
        "builtins",
        "range",
        lambda v: (v.start, v.stop, v.step),
        lambda cls, parts: cls(*_require_type(tuple, parts)),
    ),
    "O": ("collections", "OrderedDict", dict, _rebuild_mapping),
    "C": ("collections", "Counter", dict, _rebuild_mapping),
    "d": ("collections", "defaultdict", dict, lambda cls, parts: cls(None, _require_type(dict, parts))),
    "U": ("collections", "UserDict", dict, _rebuild_mapping),
    "c": ("collections", "ChainMap", dict, _rebuild_mapping),
    "P": ("types", "MappingProxyType", dict, _rebuild_mapping),
    "L": ("collections", "UserList", list, lambda cls, parts: cls(_require_type(list, parts))),
    "S": ("collections", "UserString", str, lambda cls, parts: cls(_require_type(str, parts))),
    "Q": (
        "collections",
        "deque",
        lambda v: (list(v), v.maxlen),
        lambda cls, parts: cls(_require_type(list, parts[0]), parts[1]),
    ),
    "m": ("builtins", "memoryview", lambda v: (v.format, v.tobytes()), lambda cls, parts: cls(parts[1]).cast(parts[0])),
    "k": ("collections.abc", "KeysView", dict.fromkeys, lambda cls, parts: _require_type(dict, parts).keys()),
    "i": ("collections.abc", "ItemsView", dict, lambda cls, parts: _require_type(dict, parts).items()),
    "v": (
        "collections.abc",
        "ValuesView",
        list,
        lambda cls, parts: dict(enumerate(_require_type(list, parts))).values(),
    ),
}
_LETTERS = {(module, name): letter for letter, (module, name, _, _) in _TYPES.items()}
_LETTERS["builtins", "mappingproxy"] = "P"


def decompose(value):
    """(letter of its type, plain parts) of a value; None for other types."""
    kind = type(value)
    letter = "k" if issubclass(kind, _KEYS) else "i" if issubclass(kind, _ITEMS) else None
    letter = letter or ("v" if issubclass(kind, _VALUES) else _LETTERS.get((_module_of(kind), name_of(kind))))
    if letter is None:
        return None
    module, name, apart, _ = _TYPES[letter]
    if letter not in "kiv" and getattr(sys.modules.get(module), name, None) is not kind:
        return None  # a program's own class with the same name
    if letter == "m" and (value.ndim != 1 or value.format not in _NATIVE):
        return None
    return letter, apart(value)


def rebuild(letter, parts):
    """The value with these parts. Raises KeyError, TypeError or ValueError for an unknown letter or invalid parts."""
    module, name, _, make = _TYPES[letter]
    return make(getattr(__import__(module, fromlist=[name]), name), parts)


def name_of(kind):
    """A class's real name, even if its metaclass overrides `__name__`."""
    return str(type.__dict__["__name__"].__get__(kind))


def _module_of(kind):
    try:
        return str(type.__dict__["__module__"].__get__(kind))
    except Exception:
        return ""
