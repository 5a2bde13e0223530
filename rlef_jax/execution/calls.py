# mypy: allow-untyped-defs
"""Calls of a program's functions, and their results, as bytes. Runs on both sides, under the judge's Python and ours.

A result is written by exact type, by the program's own process: what arrives outside is plain data, whose comparison
runs no code of the program's. A type that isn't plain data arrives as an `Opaque`, which equals nothing.
"""

import struct

MAX_DEPTH = 200
_SIZE = struct.Struct("!I")
_DOUBLE = struct.Struct("!d")
_SEQUENCES = {"L": list, "U": tuple, "E": set, "Z": frozenset}
_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1


class CodecError(ValueError):
    """Bytes that no `encode` made, or a value too large or too deep to send."""


class Opaque:
    """A value of a type that isn't plain data: its type's name. Equal to nothing, not even to itself."""

    def __init__(self, name):
        self.name = name

    def __eq__(self, other):
        return False

    def __hash__(self):
        return id(self)

    def __repr__(self):
        return f"<{self.name} object>"


def encode(value, limit):
    """Bytes of plain data: None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict.

    Subclasses of these count as their base. Raises CodecError beyond `limit` bytes or `MAX_DEPTH` levels.
    """
    out = _Output(limit)
    _encode(value, out, 0)
    return bytes(out.data)


class _Output:
    """Bytes so far, and the strings that stand in them: each is written once."""

    def __init__(self, limit):
        self.data = bytearray()
        self.limit = limit
        self.strings = {}

    def put(self, data):
        if len(self.data) + len(data) > self.limit:
            raise CodecError("the value is too large")
        self.data += data


def _encode(value, out, depth):
    if depth > MAX_DEPTH:
        raise CodecError("the value is nested too deeply")
    kind = type(value)
    if value is None or value is True or value is False:
        _put(out, "N" if value is None else "T" if value else "F", b"")
    elif issubclass(kind, int):
        _put(out, "I", int.to_bytes(value, int.bit_length(value) // 8 + 1, "big", signed=True))
    elif issubclass(kind, float):
        _put(out, "D", _DOUBLE.pack(float.__float__(value)))
    elif issubclass(kind, complex):
        _put(out, "C", _DOUBLE.pack(value.real) + _DOUBLE.pack(value.imag))
    elif issubclass(kind, str):
        _put(out, "S", str.encode(value, "utf-8", "surrogatepass"))
    elif issubclass(kind, (bytes, bytearray)):
        _put(out, "B", bytes(value))
    elif issubclass(kind, dict):
        _put(out, "M", _SIZE.pack(dict.__len__(value)))
        for key in dict.__iter__(value):
            _encode(key, out, depth + 1)
            _encode(dict.__getitem__(value, key), out, depth + 1)
    else:
        for tag, base in _SEQUENCES.items():
            if issubclass(kind, base):
                items = list(base.__iter__(value))
                packed = _packed(items, out)
                if packed:
                    return out.put(b"P" + tag.encode() + packed)
                out.put(tag.encode() + _SIZE.pack(len(items)))
                for item in items:
                    _encode(item, out, depth + 1)
                return
        _put(out, "O", str(type.__dict__["__name__"].__get__(kind)).encode("utf-8", "replace")[:200])


def _put(out, tag, body):
    out.put(tag.encode() + (_SIZE.pack(len(body)) if tag in "ISBO" else b"") + body)


def _packed(items, out):
    """Items of one kind as one piece, at the speed of C: a plus test may return millions. Empty where they aren't.

    Kind, count, then: 64-bit integers, doubles, or the numbers of strings, after the strings that are new here.
    """
    kinds = set(map(type, items))
    count = len(items)
    if count < 2 or len(kinds) != 1:
        return b""
    kind = kinds.pop()
    if kind is float:
        return b"D" + _SIZE.pack(count) + struct.pack(f"!{count}d", *items)
    if kind is int and min(items) >= _INT_MIN and max(items) <= _INT_MAX:
        return b"I" + _SIZE.pack(count) + struct.pack(f"!{count}q", *items)
    if kind is not str:
        return b""
    new, known = b"", len(out.strings)
    try:
        numbers = list(map(out.strings.__getitem__, items))
    except KeyError:
        for text in dict.fromkeys(items):
            if text not in out.strings:
                body = text.encode("utf-8", "surrogatepass")
                new += _SIZE.pack(len(body)) + body
                out.strings[text] = len(out.strings)
        numbers = list(map(out.strings.__getitem__, items))
    width = _width(len(out.strings))
    return (
        b"S"
        + _SIZE.pack(count)
        + _SIZE.pack(len(out.strings) - known)
        + new
        + struct.pack(f"!{count}{width}", *numbers)
    )


def _width(strings):
    """The format of a string's number, where there are so many."""
    return "B" if strings <= 1 << 8 else "H" if strings <= 1 << 16 else "I"


def decode(data):
    """The value that `encode` made bytes of. Raises CodecError for anything else."""
    try:
        value, end = _decode(memoryview(data), 0, 0, [])
    except (struct.error, IndexError, KeyError, UnicodeDecodeError, TypeError) as exc:  # TypeError: an unhashable key
        raise CodecError(f"not a value: {exc}") from None
    if end != len(data):
        raise CodecError("something follows the value")
    return value


def _decode(data, at, depth, strings):
    if depth > MAX_DEPTH:
        raise CodecError("the value is nested too deeply")
    tag, at = chr(data[at]), at + 1
    if tag in "NTF":
        return {"N": None, "T": True, "F": False}[tag], at
    if tag == "D":
        return _DOUBLE.unpack_from(data, at)[0], at + 8
    if tag == "C":
        return complex(_DOUBLE.unpack_from(data, at)[0], _DOUBLE.unpack_from(data, at + 8)[0]), at + 16
    if tag == "P":
        items, end = _unpacked(data, at + 1, strings)
        return _SEQUENCES[chr(data[at])](items), end
    (size,), at = _SIZE.unpack_from(data, at), at + _SIZE.size
    if tag in "ISBO":
        body = bytes(data[at : at + size])
        if len(body) != size:
            raise CodecError("the value is cut short")
        return _leaf(tag, body), at + size
    if tag == "M":
        result = {}
        for _ in range(size):
            key, at = _decode(data, at, depth + 1, strings)
            result[key], at = _decode(data, at, depth + 1, strings)
        return result, at
    if tag not in _SEQUENCES:
        raise CodecError(f"no kind of value: {tag!r}")
    items = []
    for _ in range(size):
        item, at = _decode(data, at, depth + 1, strings)
        items.append(item)
    return _SEQUENCES[tag](items), at


def _unpacked(data, at, strings):
    """The items that `_packed` made one piece of, and where they end."""
    kind, (count,), at = chr(data[at]), _SIZE.unpack_from(data, at + 1), at + 1 + _SIZE.size
    if kind in "DI":
        return struct.unpack_from(f"!{count}{'d' if kind == 'D' else 'q'}", data, at), at + 8 * count
    if kind != "S":
        raise CodecError(f"no kind of items: {kind!r}")
    (fresh,), at = _SIZE.unpack_from(data, at), at + _SIZE.size
    for _ in range(fresh):
        (size,), at = _SIZE.unpack_from(data, at), at + _SIZE.size
        body = bytes(data[at : at + size])
        if len(body) != size:
            raise CodecError("the value is cut short")
        strings.append(body.decode("utf-8", "surrogatepass"))
        at += size
    form = f"!{count}{_width(len(strings))}"
    return map(strings.__getitem__, struct.unpack_from(form, data, at)), at + struct.calcsize(form)


def _leaf(tag, body):
    if tag == "I":
        return int.from_bytes(body, "big", signed=True)
    if tag == "S":
        return body.decode("utf-8", "surrogatepass")
    return body if tag == "B" else Opaque(body.decode("utf-8", "replace"))


def answer(names, data, limit):
    """The results of the calls in `data` (`[entry point, [arguments, ...]]`), made with a program's names, as bytes."""
    entry_point, calls = decode(data)
    if entry_point not in names:
        raise NameError(f"name '{entry_point}' is not defined")
    function = names[entry_point]
    return encode([function(*arguments) for arguments in calls], limit)
