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
    parts: list[bytes] = []
    _encode(value, parts, [limit], 0)
    return b"".join(parts)


def _encode(value, parts, left, depth):
    if depth > MAX_DEPTH:
        raise CodecError("the value is nested too deeply")
    kind = type(value)
    if value is None or value is True or value is False:
        _put(parts, left, "N" if value is None else "T" if value else "F", b"")
    elif issubclass(kind, int):
        _put(parts, left, "I", int.to_bytes(value, int.bit_length(value) // 8 + 1, "big", signed=True))
    elif issubclass(kind, float):
        _put(parts, left, "D", _DOUBLE.pack(float.__float__(value)))
    elif issubclass(kind, complex):
        _put(parts, left, "C", _DOUBLE.pack(value.real) + _DOUBLE.pack(value.imag))
    elif issubclass(kind, str):
        _put(parts, left, "S", str.encode(value, "utf-8", "surrogatepass"))
    elif issubclass(kind, (bytes, bytearray)):
        _put(parts, left, "B", bytes(value))
    elif issubclass(kind, dict):
        _put(parts, left, "M", _SIZE.pack(dict.__len__(value)))
        for key in dict.__iter__(value):
            _encode(key, parts, left, depth + 1)
            _encode(dict.__getitem__(value, key), parts, left, depth + 1)
    else:
        for tag, base in _SEQUENCES.items():
            if issubclass(kind, base):
                _put(parts, left, tag, _SIZE.pack(base.__len__(value)))
                for item in base.__iter__(value):
                    _encode(item, parts, left, depth + 1)
                return
        _put(parts, left, "O", str(type.__dict__["__name__"].__get__(kind)).encode("utf-8", "replace")[:200])


def _put(parts, left, tag, body):
    data = tag.encode() + (_SIZE.pack(len(body)) if tag in "ISBO" else b"") + body
    left[0] -= len(data)
    if left[0] < 0:
        raise CodecError("the value is too large")
    parts.append(data)


def decode(data):
    """The value that `encode` made bytes of. Raises CodecError for anything else."""
    try:
        value, end = _decode(memoryview(data), 0, 0)
    except (struct.error, IndexError, UnicodeDecodeError, TypeError) as exc:  # TypeError: an unhashable key
        raise CodecError(f"not a value: {exc}") from None
    if end != len(data):
        raise CodecError("something follows the value")
    return value


def _decode(data, at, depth):
    if depth > MAX_DEPTH:
        raise CodecError("the value is nested too deeply")
    tag, at = chr(data[at]), at + 1
    if tag in "NTF":
        return {"N": None, "T": True, "F": False}[tag], at
    if tag == "D":
        return _DOUBLE.unpack_from(data, at)[0], at + 8
    if tag == "C":
        return complex(_DOUBLE.unpack_from(data, at)[0], _DOUBLE.unpack_from(data, at + 8)[0]), at + 16
    (size,), at = _SIZE.unpack_from(data, at), at + _SIZE.size
    if tag in "ISBO":
        body = bytes(data[at : at + size])
        if len(body) != size:
            raise CodecError("the value is cut short")
        return _leaf(tag, body), at + size
    if tag == "M":
        result = {}
        for _ in range(size):
            key, at = _decode(data, at, depth + 1)
            result[key], at = _decode(data, at, depth + 1)
        return result, at
    if tag not in _SEQUENCES:
        raise CodecError(f"no kind of value: {tag!r}")
    items = []
    for _ in range(size):
        item, at = _decode(data, at, depth + 1)
        items.append(item)
    return _SEQUENCES[tag](items), at


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
