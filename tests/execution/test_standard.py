"""Results of standard library types that may equal plain data (Decimal, dict views, ...), and hostile encodings."""

import collections
import itertools
import time
import types
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlef_jax.execution import calls
from rlef_jax.execution.functions import compare
from rlef_jax.types import FunctionTest, Limits, Status

LIMITS = Limits(wall_s=20.0, memory_bytes=256 << 20, output_bytes=64 << 20)


def sent(value, limit=1 << 20):
    return calls.decode(calls.encode(value, limit))


def in_order(values):
    """Whether a set comes back in its order when its elements are put into a new one: where hashes collide it may not,
    and two sets that are equal are shown differently."""
    return list(set(list(values))) == list(values)


keys = st.integers() | st.text() | st.fractions() | st.decimals(allow_nan=False)
VALUES = st.recursive(
    st.decimals(allow_nan=False) | st.fractions() | st.integers() | st.builds(range, st.integers(), st.integers()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(collections.UserList)
        | st.lists(inner, max_size=3).map(collections.deque)
        | st.sets(keys, max_size=3).filter(in_order)
        | st.dictionaries(keys, inner, max_size=3).map(collections.OrderedDict)
        | st.dictionaries(keys, inner, max_size=3).map(collections.UserDict)
        | st.dictionaries(keys, inner, max_size=3).map(collections.ChainMap)
        | st.dictionaries(keys, st.integers(), max_size=3).map(collections.Counter)
        | st.dictionaries(keys, inner, max_size=3).map(lambda d: collections.defaultdict(None, d))
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_they_arrive_as_what_they_are(value):
    assert sent(value) == value and repr(sent(value)) == repr(value)


def test_views_proxies_and_texts():
    for value in (
        {1: 2, Decimal("0.5"): 3}.keys(), {1: [2]}.items(), collections.OrderedDict(a=1).keys(),
        collections.UserDict(a=1).keys(), collections.UserDict(a=[1]).items(), types.MappingProxyType({1: 2}),
        collections.UserString("ab"), memoryview(b"ab"), collections.deque([1, 2], maxlen=2),
    ):  # fmt: skip
        assert sent(value) == value, value
    assert list(sent({1: 2, 3: 4}.values())) == [2, 4] and sent({}.values()) != []
    assert list(sent(map(str, [1, 2]))) == ["1", "2"] and list(sent([iter("ab")])[0]) == ["a", "b"]
    endless = sent(itertools.count())
    assert list(itertools.islice(endless, 3)) == [0, 1, 2] and endless != sent(itertools.count())
    with pytest.raises(RuntimeError, match="only the first"):
        list(endless)


class Odd(Decimal):
    def __eq__(self, other):
        return True

    __hash__ = Decimal.__hash__


def test_a_class_of_a_programs_own_stays_unknown():
    Decimals = type("Decimal", (Odd,), {"__module__": "decimal"})
    for value in (Odd(1), Decimals(1), type("Fraction", (), {"__module__": "fractions"})(), object(), int, len):
        assert isinstance(sent(value), calls.Opaque) and sent(value) != 1


RESULTS = [
    ("Decimal('0.5')", 0.5, True),
    ("Decimal('0.1')", 0.1, False),
    ("Fraction(1, 2)", 0.5, True),
    ("Fraction(1, 3)", 1 / 3, False),
    ("[Fraction(3), Decimal(4)]", [3, 4], True),
    ("{Decimal(1): Fraction(2)}", {1: 2}, True),
    ("{Fraction(1, 2)}", {0.5}, True),
    ("{1: 2}.keys()", {1}, True),
    ("{1: 2}.keys()", [1], False),
    ("{1: 2}.items()", {(1, 2)}, True),
    ("{1: 2}.values()", [2], False),
    ("UserList([1, (2,)])", [1, (2,)], True),
    ("UserDict(a=1)", {"a": 1}, True),
    ("UserString('ab')", "ab", True),
    ("MappingProxyType({1: 2})", {1: 2}, True),
    ("ChainMap({1: 2}, {3: 4})", {1: 2, 3: 4}, True),
    ("memoryview(b'ab')", b"ab", True),
    ("bytearray(b'ab')", b"ab", True),
    ("range(3)", [0, 1, 2], False),
    ("deque([1])", [1], False),
    ("Counter('aab')", {"a": 2, "b": 1}, True),
    ("Color.RED", 1, True),
    ("(i for i in [1])", [1], False),
    ("(Decimal(1), {'a': {2: 3}.keys()})", (1, {"a": {2}}), True),
]
IMPORTS = """
from collections import *
from decimal import *
from enum import *
from fractions import *
from types import *
Color = IntEnum("Color", "RED")
"""


def test_what_python_says_of_them_is_what_the_judge_says(pool):
    exec(IMPORTS, names := {})
    for text, expected, right in RESULTS:
        test = FunctionTest("f", ((),), (expected,))
        (result,) = pool.run(f"{IMPORTS}\nf = lambda: {text}", [test], LIMITS).result(60)
        assert (result.status is Status.PASSED) == right, (text, result)
        assert eval(f"({text}) == expected", names | {"expected": expected}) == right


def test_a_type_that_equals_nothing_is_named(pool):
    program = "class Point:\n    def __eq__(self, other): return True\nf = lambda: [1, Point()]"
    (result,) = pool.run(program, [FunctionTest("f", ((),), ([1, 2],))], LIMITS).result(60)
    assert result.status is Status.WRONG_ANSWER
    assert result.error.startswith("AssertionError: Lists differ: [1, <Point object>] != [1, 2]")
    assert result.error.endswith(" : a value of type Point equals nothing here: numbers, text and the standard"
                                 " containers are compared")  # fmt: skip
    (other,) = pool.run(
        "import decimal\nf = lambda: decimal.Decimal(1)", [FunctionTest("f", ((),), (2,))], LIMITS
    ).result(60)
    assert other.error == "AssertionError: Decimal('1') != 2"


LEAVES = (
    st.none() | st.integers() | st.text(max_size=3) | st.binary(max_size=3) | st.sampled_from(["1e" + "9" * 20, "sNaN"])
)
PARTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
)


@given(st.sampled_from("DFROCdUcPLSQmkivxG"), PARTS)
def test_parts_that_nothing_is_made_of_are_an_error(letter, parts):
    for data in (b"W" + letter.encode() + calls.encode(parts, 1000), b"G\0\0\0\1x\1" + calls.encode(parts, 1000)):
        try:
            value = calls.decode(data)
        except calls.CodecError:
            continue
        compare(value, 0.5, FunctionTest("f", ((),), (0.5,)), ())


def size(count):
    return count.to_bytes(4, "big")


def decimal(text):
    return b"WDS" + size(len(text)) + text.encode()


def collide(count, behind=b""):
    return b"".join(calls.encode(k * (2**61 - 1), 100) + behind for k in range(count))


READ = {
    "a huge exponent": decimal("1e999999999999999999"),
    "many of them": b"L" + size(20_000) + decimal("-1e-999999999999") * 20_000,
    "millions of digits": decimal("1." + "7" * 4_000_000),
    "ranges in ranges": b"L" + size(1000) + calls.encode(range(10**15), 1000) * 1000,
    "a long integer": calls.encode(1 << 80_000_000, 1 << 30),
}
LONG = calls.encode(1 << 80_000_000, 1 << 30)  # comparing it as a Decimal takes minutes
REFUSED = {
    "a fraction of millions of digits": b"WFU" + size(2) + LONG + LONG,
    "keys that share a hash": b"E" + size(40_000) + collide(40_000),
    "keys of a dict that share one": b"M" + size(40_000) + collide(40_000, b"N"),
    "a decimal beside a long integer": b"E" + size(2) + LONG + decimal(str((1 << 80_000_000) % (2**61 - 1))),
    "a decimal before a long integer": b"L" + size(2) + decimal("1") + LONG,
    "no number": decimal("1e9999999999999999999"),
    "no fraction": b"WF" + calls.encode((1, 0), 100),
}


@pytest.mark.parametrize("name", READ)
def test_hostile_values_are_compared_in_no_time(name):
    began, value = time.process_time(), calls.decode(READ[name])
    for comparison in ("equal", "plus", "set", "sequence", "truth", "presence", "root"):
        for expected in (0.5, [1.0, 2.0], {1, 2}, [[1.5] * 10] * 10, 10**400, {0.5: 1}):
            test = FunctionTest("f", ((),), (expected,), compare=comparison)
            assert len(compare(value, expected, test, ([1, 2],)) or "") < 100_000
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_bytes_are_refused_in_no_time(name):
    began = time.process_time()
    with pytest.raises(calls.CodecError):
        calls.decode(REFUSED[name])
    assert time.process_time() - began < 5
