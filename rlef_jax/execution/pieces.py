# mypy: allow-untyped-defs
"""Packs numbers into bytes with few `struct` calls, for speed. Part of `calls`: runs under both Pythons."""

import struct

_SIZE = struct.Struct("!I")


class CodecError(ValueError):
    """Raised for bytes that `encode` didn't write, and for values too large or too deep to encode."""


def fit_int64(integers):
    """Whether all integers fit in 64 signed bits."""
    return min(integers) >= -(1 << 63) and max(integers) < 1 << 63


def pack_mixed(items):
    """Integers and floats as one piece: count, a byte per item (1 for a float), all integers, all floats."""
    integers = [item for item in items if type(item) is int]
    if not fit_int64(integers):
        return b""
    floats = [item for item in items if type(item) is float]
    is_float = bytes(type(item) is float for item in items)
    form = f"!{len(integers)}q{len(floats)}d"
    return b"N" + _SIZE.pack(len(items)) + is_float + struct.pack(form, *integers, *floats)


def unpack_mixed(data, at, count):
    """The items that `numbers_of_both_kinds` wrote, and their end."""
    is_float = bytes(data[at : at + count])
    floats = is_float.count(1)
    if len(is_float) != count or is_float.count(0) + floats != count:
        raise CodecError("not numbers of two kinds")
    form = f"!{count - floats}q{floats}d"
    numbers = struct.unpack_from(form, data, at + count)
    kinds = iter(numbers[: count - floats]), iter(numbers[count - floats :])
    return [next(kinds[kind]) for kind in is_float], at + count + struct.calcsize(form)


def pack_indices(numbers, count, strings):
    """Packs the indices of `count` items into `strings` different strings."""
    width = index_code(strings)
    return bytes(numbers) if width == "B" else struct.pack(f"!{count}{width}", *numbers)


def index_code(strings):
    """The `struct` format of an index into `strings` different strings."""
    return "B" if strings <= 1 << 8 else "H" if strings <= 1 << 16 else "I"
