"""Evaluates Python literals in published test code without running it, in bounded time."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

_NAMES = {"inf": math.inf, "nan": math.nan}
_SETS: dict[str, Callable[..., Any]] = {"set": set, "frozenset": frozenset}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip
_MOST_BITS, _MOST_POWER = 4096, 64  # bounds on operands, so that evaluation stays cheap


class NoLiteralError(ValueError):
    """Raised for an expression that isn't a literal."""


def value(node: ast.expr) -> Any:
    """A literal's value: as `ast.literal_eval`, and also `inf`, `nan`, `set(...)`, `frozenset(...)` and arithmetic.

    Raises NoLiteralError for anything else.
    """
    try:
        return _value(node)
    except (TypeError, ArithmeticError, KeyError, RecursionError) as error:  # an unhashable item, 1 / 0, ...
        raise NoLiteralError(f"no literal: {error}") from error


def _value(node: ast.expr) -> Any:
    kind = type(node)
    if isinstance(node, ast.Constant) and node.value is not ...:
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        items = [item.value if type(item) is ast.Constant else _value(item) for item in node.elts]
        return items if kind is ast.List else tuple(items)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _SIGNS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.Set):
        return set(map(_value, node.elts))
    if isinstance(node, ast.Dict) and None not in node.keys:
        return dict(zip(map(_value, filter(None, node.keys)), map(_value, node.values), strict=True))
    if isinstance(node, ast.BinOp):
        return _arithmetic(_ARITHMETIC[type(node.op)], _value(node.left), _value(node.right))
    if isinstance(node, ast.Name):
        return _NAMES[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        return _SETS[node.func.id](*map(_value, node.args))
    raise NoLiteralError(f"no literal: {kind.__name__}")


_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


def _arithmetic(function: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    for number in (left, right):
        if not isinstance(number, int | float | complex) or (
            isinstance(number, int) and number.bit_length() > _MOST_BITS
        ):
            raise NoLiteralError("no literal: arithmetic with more than numbers")
    if function is operator.pow and not (isinstance(right, int) and abs(right) <= _MOST_POWER):
        raise NoLiteralError("no literal: a power")
    return function(left, right)
