"""Values of function tests in JSON: what JSON has as it is, other plain data of Python as a literal.

`{"python": "(1, 2)"}`, an object with this one key, stands for the tuple. A value that holds a tuple, set, bytes,
complex number, infinity, NaN or a dict with other keys than text is written so as a whole: inside of a value there is
no such object.
"""

from __future__ import annotations

import ast
import math
import warnings
from typing import Any

from rlef_jax.data import literals
from rlef_jax.data.missing_tests import well_formed

PYTHON = "python"


def from_json(value: Any) -> Any:
    """The value that JSON stands for. Raises ValueError for a literal that isn't one, or that stands inside a value."""
    if _is_literal(value):
        return _literal(value[PYTHON])
    if _holds_literal(value):
        raise ValueError(f'{{"{PYTHON}": ...}} stands inside a value: write the whole value as one literal')
    return value


def to_json(value: Any) -> Any:
    """JSON from which `from_json` makes an equal value. Raises ValueError where there is none."""
    if _is_json(value) and not _holds_literal(value):
        return value
    text = repr(value)
    _literal(text)  # what can't be read is no value of a test
    return {PYTHON: text}


def _is_literal(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {PYTHON}


def _holds_literal(value: Any) -> bool:
    """Whether a value of JSON is, or has in it, an object that looks like a literal."""
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return _is_literal(value) or any(map(_holds_literal, inner))


def _literal(text: Any) -> Any:
    if not isinstance(text, str):
        raise ValueError(f'"{PYTHON}" must be the text of a literal, not {text!r:.40}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # an invalid escape sequence stands for itself
            return literals.value(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f'"{PYTHON}" must be the text of a literal, not {text!r:.40}') from error


def _is_json(value: Any) -> bool:
    """Whether JSON gives the value back: of these exact types, without half characters, which it would join."""
    kind = type(value)
    if value is None or kind in (bool, int):
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is str:
        return well_formed(value) == value
    if kind is list:
        return all(map(_is_json, value))
    return kind is dict and all(type(key) is str and _is_json(key) and _is_json(value[key]) for key in value)
