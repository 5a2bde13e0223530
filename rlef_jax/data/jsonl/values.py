"""Values of function tests in JSON: what JSON has as it is, other plain data of Python as a literal.

`{"python": "(1, 2)"}`, an object with this one key, stands for the tuple. A value that holds a tuple, set, bytes,
complex number, infinity, NaN or a dict with other keys than text is written so as a whole; inside of a value the object
means itself.
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
    """The value that JSON stands for. Raises ValueError for a literal that isn't one."""
    return _literal(value[PYTHON]) if isinstance(value, dict) and value.keys() == {PYTHON} else value


def to_json(value: Any) -> Any:
    """JSON from which `from_json` makes an equal value. Raises ValueError where there is none."""
    if _is_json(value) and not (isinstance(value, dict) and value.keys() == {PYTHON}):
        return value
    text = repr(value)
    _literal(text)  # what can't be read is no value of a test
    return {PYTHON: text}


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
