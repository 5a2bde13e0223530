"""The matching rules of the paper's judge, by cases and against an independent implementation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlef_jax.execution.judge import outputs_match

SAME = [
    ("7\n", "7"),
    ("1 2 3", "1\n2\t3\r\n\v"),
    ("YES", "yes"),
    ("1.0", "1"),
    ("0.333333", "0.33333333"),
    ("1e3", "1000"),
    ("", " \n"),
    ("nan x", "nan x"),
    ("inf", "inf"),
    ("+5", "5"),
    (".5", "5e-1"),
    ("7.", "7"),
    ("1\f", "1.0"),
    ("1e999", "1e999"),
    ("a 1.000001", "A 1"),
]
DIFFERENT = [
    ("7", "8"),
    ("1 2", "1 2 3"),
    ("12", "1 2"),
    ("1.00001", "1.00002001"),
    ("0.00001", "0"),  # the tolerance is strict
    ("nan 1", "nan 1.0"),  # not equal as lists, and nan is near nothing
    ("inf 1", "inf 1.0"),
    ("1_0", "10"),  # Python's float() accepts these, a C++ judge doesn't
    ("١", "1"),
    ("0x10", "16"),
    ("+-5", "-5"),
    ("1e", "1"),
    ("Ä", "ä"),  # lower-cased in ASCII only
    ("a\fb", "a b"),  # form feed separates nothing
    ("yes", "no"),
    ("x1", "x1.0"),
]


@pytest.mark.parametrize(("expected", "observed"), SAME)
def test_matches(expected, observed):
    assert outputs_match(expected, observed)
    assert outputs_match(observed, expected)


@pytest.mark.parametrize(("expected", "observed"), DIFFERENT)
def test_differs(expected, observed):
    assert not outputs_match(expected, observed)
    assert not outputs_match(observed, expected)


tokens = st.one_of(
    st.integers(-50, 50).map(str),
    st.floats(-3, 3).map(lambda x: f"{x:.6f}"),
    st.text(alphabet="abAB", min_size=1, max_size=2),
)
separators = st.text(alphabet=" \n\t\r\v", min_size=1, max_size=3)


@given(st.lists(tokens), st.data())
def test_separators_and_case_do_not_matter(words, data):
    shown = "".join(w + data.draw(separators) for w in words)
    assert outputs_match(" ".join(words), shown.swapcase())


@given(st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, min_size=1, max_size=4))
def test_agrees_with_a_token_by_token_statement(a, b):
    def alike(x, y):
        try:
            return abs(float(x) - float(y)) < 1e-5
        except ValueError:
            return x.lower() == y.lower()

    expected = len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    assert outputs_match(" ".join(a), " ".join(b)) == expected


@given(st.floats(-100, 100), st.floats(-3e-5, 3e-5))
def test_tolerance_is_absolute_and_strict(x, delta):
    y = x + delta
    assert outputs_match(f"z {x!r}", f"Z {y!r}") == (abs(x - y) < 1e-5 or math.isclose(x, y, rel_tol=0, abs_tol=0))
