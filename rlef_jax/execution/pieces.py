# mypy: allow-untyped-defs
"""Numbers as one piece of bytes, at the speed of C. Part of `calls`: runs on both sides."""

import struct

_SIZE = struct.Struct("!I")


class CodecError(ValueError):
    """Bytes that no `encode` made, or a value too large or too deep to send."""


def fit_int64(integers):
    """Whether all are numbers of 64 bits."""
    return min(integers) >= -(1 << 63) and max(integers) < 1 << 63


def pack_mixed(items):
    """Integers and floats as one piece: count, a byte for each that is 1 for a float, then the two kinds apart."""
    integers = [item for item in items if type(item) is int]
    if not fit_int64(integers):
        return b""
    floats = [item for item in items if type(item) is float]
    which = bytes(type(item) is float for item in items)
    form = f"!{len(integers)}q{len(floats)}d"
    return b"N" + _SIZE.pack(len(items)) + which + struct.pack(form, *integers, *floats)


def unpack_mixed(data, at, count):
    """The items that `numbers_of_both_kinds` wrote, and where they end."""
    which = bytes(data[at : at + count])
    floats = which.count(1)
    if len(which) != count or which.count(0) + floats != count:
        raise CodecError("not numbers of two kinds")
    form = f"!{count - floats}q{floats}d"
    numbers = struct.unpack_from(form, data, at + count)
    kinds = iter(numbers[: count - floats]), iter(numbers[count - floats :])
    return [next(kinds[kind]) for kind in which], at + count + struct.calcsize(form)


def pack_indices(numbers, count, strings):
    """The numbers of `count` strings, where there are `strings` different ones."""
    width = index_code(strings)
    return bytes(numbers) if width == "B" else struct.pack(f"!{count}{width}", *numbers)


def index_code(strings):
    """The format of a string's number, where there are so many."""
    return "B" if strings <= 1 << 8 else "H" if strings <= 1 << 16 else "I"
