"""Output matching by the rules of the paper's judge (CodeContests; Li et al., 2022). Pure."""

from __future__ import annotations

import re

_SEPARATORS = re.compile(r"[ \n\t\r\v]+")  # without form feed
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_TOLERANCE = 1e-5
_INTEGER = re.compile(r"[+-]?[0-9]+")
# What `absl::SimpleAtod` accepts, after lower-casing: no hexadecimal, no underscores, no digits outside ASCII.
_NUMBER = re.compile(
    r"\f*(?P<value>[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?|inf(?:inity)?|nan(?:\([a-z0-9_]*\))?))\f*"
)


def outputs_match(expected: str, observed: str, *, exact_integers: bool = False) -> bool:
    """Whether a program's standard output counts as the expected one.

    Both are split on space, newline, tab, carriage return and vertical tab, and lower-cased in ASCII. Equal token
    lists match. Otherwise the counts must agree, and each pair must be two numbers closer than 1e-5 (absolute, as
    doubles) or two equal strings. As in the original, `inf` against `inf` fails once any other token differs.

    `exact_integers` (ours): two tokens that are both integers match if they are the same number. As doubles,
    neighbours above 2**53 are equal.
    """
    a, b = _tokens(expected), _tokens(observed)
    if a == b:
        return True
    return len(a) == len(b) and all(_tokens_match(x, y, exact_integers) for x, y in zip(a, b))


def _tokens(text: str) -> list[str]:
    return [t for t in _SEPARATORS.split(text.translate(_ASCII_LOWER)) if t]


def _tokens_match(a: str, b: str, exact_integers: bool) -> bool:
    # A shortcut for most tokens (not for inf and nan, which match nothing)
    if a == b and len(a) < 300 and a.isdecimal():
        return True
    if exact_integers and _INTEGER.fullmatch(a) and _INTEGER.fullmatch(b):
        return _digits(a) == _digits(b)
    x, y = _number(a), _number(b)
    if x is None or y is None:
        return a == b
    return abs(x - y) < _TOLERANCE  # false for nan, hence for inf - inf


def _digits(integer: str) -> str:
    """An integer's shortest text. Not an `int`, which refuses more than some thousand digits."""
    magnitude = integer.lstrip("+-").lstrip("0")
    return ("-" if integer[0] == "-" and magnitude else "") + magnitude


def _number(token: str) -> float | None:
    match = _NUMBER.fullmatch(token)
    if match is None:
        return None
    value = match["value"]
    return float("nan") if "nan" in value else float(value)
