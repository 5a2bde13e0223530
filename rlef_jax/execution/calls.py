# mypy: allow-untyped-defs
"""Encodes calls of a program's functions, and their results, as bytes. Runs under the judge's Python and under ours.

The program's process encodes results by their exact type. The judge decodes plain data and types of the standard
library (`standard`), so that comparing them runs none of the program's code. A value of any other type is decoded as an
`Opaque`, which equals nothing. The bytes may come from a hostile program: the time to decode a value and to compare it
is bounded by their number.
"""

import itertools
import struct

from rlef_jax.execution.pieces import CodecError, fit_int64, index_code, pack_indices, pack_mixed, unpack_mixed
from rlef_jax.execution.standard import LONG_BITS, Iterated, Opaque, decompose, name_of, rebuild

MAX_DEPTH = 200
ROW_WIDTH, ROWS = 8, 4096  # smallest width of rows (equal-length tuples or lists) encoded as blocks; rows per block
_SIZE = struct.Struct("!I")
_DOUBLE = struct.Struct("!d")
MIN_REPEATED = 64  # smallest number of items of several types that is checked for repeated objects
_LEAVES = {type(None), bool, int, float, complex, bytes}
_SEQUENCES = {"L": list, "U": tuple, "E": set, "Z": frozenset}
_PLAIN = frozenset([*_LEAVES, str, list, tuple, set, frozenset, dict])
_MOST_ITERATED, _ITERATED_SHARE = 1 << 17, 16  # an iterator may be endless: most items, and its part of the byte limit
_MOST_COLLISIONS = 100  # keys with equal hashes: building a dict of n of them takes time n squared


def encode(value, limit):
    """Bytes of plain data: None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict.

    Values of subclasses are encoded as their base type, except the types that `standard` knows. Raises CodecError
    beyond `limit` bytes or `MAX_DEPTH` levels.
    """
    out = _Writer(limit)
    _encode(value, out, 0)
    return bytes(out.data)


class _Writer:
    """The bytes written so far and the strings among them: each string is written once, then referred to by number."""

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
    elif kind not in _PLAIN and _put_standard(value, out, depth):
        pass
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
                piece = _pack(items, out)
                if piece:
                    return out.put(b"P" + tag.encode() + piece)
                width = _row_width(items)
                if width:
                    return _put_rows(tag, items, width, out, depth)
                out.put(tag.encode() + _SIZE.pack(len(items)))
                for item in items:
                    _encode(item, out, depth + 1)
                return
        _put_other(value, out, depth)


def _put_standard(value, out, depth):
    """Writes a value of the standard library's types. Returns False for other values, without writing."""
    parts = decompose(value)
    if parts is not None:
        out.put(b"W" + parts[0].encode())
        _encode(parts[1], out, depth + 1)
    return parts is not None


def _put_other(value, out, depth):
    """Writes an iterator's name and first items, up to a limit; for a value of any other type only the type's name."""
    kind = type(value)
    name = value.name if kind in (Opaque, Iterated) else name_of(kind)
    iterates = hasattr(kind, "__next__") and hasattr(kind, "__iter__")
    _put(out, "G" if iterates else "O", name.encode("utf-8", "replace")[:200])
    if not iterates:
        return
    end_bytes = len(out.data) + (out.limit - len(out.data)) // _ITERATED_SHARE
    end = b"\0"
    for number, item in enumerate(value.items if kind is Iterated else value):
        if number == _MOST_ITERATED or len(out.data) > end_bytes:
            end = b"\2"
            break
        out.put(b"\1")
        _encode(item, out, depth + 1)
    out.put(b"\2" if kind is Iterated and not value.complete else end)


def _put(out, tag, body):
    out.put(tag.encode() + (_SIZE.pack(len(body)) if tag in "ISBOG" else b"") + body)


def _pack(items, out):
    """Items of one type as one piece, for speed: a plus test may return millions. b"" for other items.

    Layout: type, count, then 64-bit integers or doubles; for strings, those not written before, then a number per item.
    """
    count = len(items)
    if count < 2:
        return b""
    if type(items[0]) is str:
        try:
            return _pack_strings(items, out) if set(map(type, set(items))) == {str} else b""
        except TypeError:  # an unhashable item
            return b""
    kinds = set(map(type, items))
    if kinds == {float}:
        return b"D" + _SIZE.pack(count) + struct.pack(f"!{count}d", *items)
    if kinds == {int} and fit_int64(items):
        return b"I" + _SIZE.pack(count) + struct.pack(f"!{count}q", *items)
    few = _pack_repeated(items, out) if count >= MIN_REPEATED and kinds <= _LEAVES else b""
    return few or (pack_mixed(items) if kinds == {int, float} else b"")


def _pack_repeated(items, out):
    """Many references to at most 256 different objects, as one piece: the objects, then a byte per item; else b"".

    Only for leaves: decoding would share the objects, and nested lists that share items can take exponential time to
    compare.
    """
    different = {id(item): item for item in items}
    if len(different) > 1 << 8:
        return b""
    values = _Writer(out.limit)
    for value in different.values():
        _encode(value, values, MAX_DEPTH)
    numbers = dict(zip(different, range(len(different))))
    sizes = _SIZE.pack(len(items)) + _SIZE.pack(len(different))
    return b"V" + sizes + values.data + bytes(map(numbers.__getitem__, map(id, items)))


def _pack_strings(items, out):
    """Strings as one piece: count, number of strings not written before, these strings, then a number per item."""
    new_strings, old_count, number_of = b"", len(out.strings), out.strings.__getitem__
    try:
        numbers = pack_indices(map(number_of, items), len(items), old_count)
    except KeyError:
        for text in dict.fromkeys(items):
            if text not in out.strings:
                body = text.encode("utf-8", "surrogatepass")
                new_strings += _SIZE.pack(len(body)) + body
                out.strings[text] = len(out.strings)
        numbers = pack_indices(map(number_of, items), len(items), len(out.strings))
    return b"S" + _SIZE.pack(len(items)) + _SIZE.pack(len(out.strings) - old_count) + new_strings + numbers


def _row_width(items):
    """The width of rows: the common length of tuples or lists that are long enough; 0 for other items."""
    if len(items) < 2 or type(items[0]) not in (tuple, list) or len(set(map(type, items))) != 1:
        return 0
    widths = set(map(len, items))
    return max(widths) if len(widths) == 1 and min(widths) >= ROW_WIDTH else 0


def _put_rows(tag, rows, width, out, depth):
    """Writes rows: count and width, then blocks of ROWS rows, each as one piece or (X) item by item."""
    inner = "U" if type(rows[0]) is tuple else "L"
    out.put(b"R" + (tag + inner).encode() + _SIZE.pack(len(rows)) + _SIZE.pack(width))
    for start in range(0, len(rows), ROWS):
        items = list(itertools.chain.from_iterable(rows[start : start + ROWS]))
        piece = _pack(items, out)
        out.put(piece or b"X" + _SIZE.pack(len(items)))
        if not piece:
            for item in items:
                _encode(item, out, depth + 2)


def decode(data):
    """The value that `encode` wrote. Raises CodecError for other bytes."""
    value, end = _first(memoryview(data), 0)
    if end != len(data):
        raise CodecError("something follows the value")
    return value


def decode_each(data):
    """Yields the values of concatenated `encode` bytes, decoding each lazily. Raises CodecError as `decode` does."""
    view, at = memoryview(data), 0
    while at < len(view):
        value, at = _first(view, at)
        yield value


def _first(view, at):
    """(value that begins at `at`, its end)."""
    try:
        return _decode(view, at, 0, _Reader())
    except (struct.error, LookupError, ValueError, TypeError) as exc:  # TypeError: an unhashable key
        raise exc if isinstance(exc, CodecError) else CodecError(f"not a value: {exc}") from None


class _Reader:
    """The strings decoded so far, and whether there were decimal numbers or very long integers.

    Comparing a Decimal with such an integer takes too long.
    """

    def __init__(self):
        self.strings, self.decimal, self.long = [], False, False

    def note(self, decimal=False, long=False):
        """Records a decimal number or a long integer. Raises CodecError once there are both."""
        self.decimal, self.long = self.decimal or decimal, self.long or long
        if self.decimal and self.long:
            raise CodecError("decimal numbers beside integers of too many digits")


def _decode(data, at, depth, reader):
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
        items, end = _unpack(data, at + 1, reader)
        return _sequence(chr(data[at]), items), end
    if tag == "R":
        return _decode_rows(data, at, depth, reader)
    if tag == "W":
        return _decode_standard(data, at, depth, reader)
    (size,), at = _SIZE.unpack_from(data, at), at + _SIZE.size
    if tag in "ISBOG":
        body = bytes(data[at : at + size])
        if len(body) != size:
            raise CodecError("the value is cut short")
        at += size
        return (
            _decode_iterated(data, at, depth, reader, _leaf("S", body, reader))
            if tag == "G"
            else (_leaf(tag, body, reader), at)
        )
    items = []
    for _ in range(2 * size if tag == "M" else size):
        item, at = _decode(data, at, depth + 1, reader)
        items.append(item)
    if tag == "M":
        _check_hashes(items[::2])
        return dict(zip(items[::2], items[1::2])), at
    return _sequence(tag, items), at


def _sequence(tag, items):
    if tag not in _SEQUENCES:
        raise CodecError(f"no kind of value: {tag!r}")
    return _SEQUENCES[tag](_check_hashes(list(items)) if tag in "EZ" else items)


def _check_hashes(keys):
    """Returns the keys. Raises CodecError if so many have equal hashes that a set or dict of them would be slow."""
    if len(keys) > _MOST_COLLISIONS and len(keys) - len(set(map(hash, keys))) > _MOST_COLLISIONS:
        raise CodecError("too many keys share a hash")
    return keys


def _decode_standard(data, at, depth, reader):
    """(value that `_put_standard` wrote, its end)."""
    letter = chr(data[at])
    parts, at = _decode(data, at + 1, depth + 1, reader)
    reader.note(decimal=letter == "D")
    return rebuild(letter, parts), at


def _decode_iterated(data, at, depth, reader, name):
    """(iterator with the items that follow its name, their end)."""
    items = []
    while data[at] == 1:
        item, at = _decode(data, at + 1, depth + 1, reader)
        items.append(item)
    return Iterated(name, items, data[at] == 0), at + 1


def _unpack(data, at, reader):
    """(items that `_pack` wrote as one piece, their end)."""
    kind, (count,), at = chr(data[at]), _SIZE.unpack_from(data, at + 1), at + 1 + _SIZE.size
    if kind in "DI":
        return struct.unpack_from(f"!{count}{'d' if kind == 'D' else 'q'}", data, at), at + 8 * count
    if kind == "V":
        return _unpack_repeated(data, at, count, reader)
    if kind == "N":
        return unpack_mixed(data, at, count)
    if kind != "S":
        raise CodecError(f"no kind of items: {kind!r}")
    (new_count,), at = _SIZE.unpack_from(data, at), at + _SIZE.size
    for _ in range(new_count):
        (size,), at = _SIZE.unpack_from(data, at), at + _SIZE.size
        body = bytes(data[at : at + size])
        if len(body) != size:
            raise CodecError("the value is cut short")
        reader.strings.append(body.decode("utf-8", "surrogatepass"))
        at += size
    form = f"!{count}{index_code(len(reader.strings))}"
    end = at + struct.calcsize(form)
    if end > len(data):
        raise CodecError("the value is cut short")
    numbers = data[at:end] if form[-1] == "B" else struct.unpack_from(form, data, at)
    return map(reader.strings.__getitem__, numbers), end


def _unpack_repeated(data, at, count, reader):
    """(items that `_pack_repeated` wrote, their end)."""
    (different,), at = _SIZE.unpack_from(data, at), at + _SIZE.size
    values = []
    for _ in range(min(different, 1 << 8)):
        if chr(data[at]) not in "NTFIDCB":
            raise CodecError("not a leaf")
        value, at = _decode(data, at, MAX_DEPTH, reader)
        values.append(value)
    numbers = data[at : at + count]
    if len(numbers) != count:
        raise CodecError("the value is cut short")
    return map(values.__getitem__, numbers), at + count


def _decode_rows(data, at, depth, reader):
    """(rows that `_put_rows` wrote, their end)."""
    outer, inner = chr(data[at]), chr(data[at + 1])
    (count, width), at = struct.unpack_from("!II", data, at + 2), at + 2 + 2 * _SIZE.size
    if width < ROW_WIDTH or inner not in "UL":
        raise CodecError("no rows")
    rows: list = []
    while len(rows) < count:
        (size,) = _SIZE.unpack_from(data, at + 1)
        if not size or size % width or size > width * ROWS:
            raise CodecError("rows of another size")
        if data[at] == ord("X"):
            items, at = [], at + 1 + _SIZE.size
            for _ in range(size):
                item, at = _decode(data, at, depth + 2, reader)
                items.append(item)
        else:
            items, at = _unpack(data, at, reader)
        block = zip(*[iter(items)] * width)
        rows += block if inner == "U" else map(list, block)
    if len(rows) != count:
        raise CodecError("more rows than announced")
    return _sequence(outer, rows), at


def _leaf(tag, body, reader):
    if tag == "I":
        reader.note(long=len(body) > LONG_BITS // 8)
        return int.from_bytes(body, "big", signed=True)
    if tag == "S":
        return body.decode("utf-8", "surrogatepass")
    return body if tag == "B" else Opaque(body.decode("utf-8", "replace"))


def call_results(names, data, limit):
    """Makes the calls in `data` (an encoded `[entry point, [arguments, ...]]`) and yields each result's bytes.

    Arguments are a list of positional ones, or a tuple of that list and a dict of keyword arguments. Only one result is
    held at a time; `limit` bounds the bytes of all results together. `names` is the program's global namespace. Raises
    NameError if it lacks the entry point, and whatever the function raises.
    """
    entry_point, calls = decode(data)
    if entry_point not in names:
        raise NameError(f"name '{entry_point}' is not defined")
    function = names[entry_point]
    for call in calls:
        arguments, keywords = call if type(call) is tuple else (call, {})
        out = _Writer(limit)
        _encode(function(*arguments, **keywords), out, 0)
        limit -= len(out.data)
        yield out.data
