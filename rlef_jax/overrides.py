"""Values of the configuration on a command line, read alike by every command that takes them.

    --config.KEY=VALUE   --config.KEY VALUE   --config.KEY (true)   --noconfig.KEY (false)

The type that a key has in `base_config` says what its text means, not the text itself:

    text     as it stands, without quotes: 3.10 and 2024 are texts too
    bool     true or false, in any case, or 1 or 0
    int      a whole number
    float    a number, whole ones too
    tuple    1280,2560 or (1280, 2560) or [1280, 2560]; 1280 is a tuple of one, () and [] are empty; of texts: a,b

Of a key that is given twice the last value holds. No key is optional, so None is none of any key's values.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from rlef_jax.config import TEXT_TUPLES, base_config, flat, nearest_key
from rlef_jax.errors import ConfigError

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)
_TRUE, _FALSE = ("true", "t", "1"), ("false", "f", "0")


def extract(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """({dotted key: value} of the overrides, the other arguments). What follows `--` is left alone.

    Raises ConfigError, in one line, for a key that there isn't or a value that doesn't fit it.
    """
    defaults = _defaults()
    values: dict[str, Any] = {}
    rest: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if argument == "--":
            return values, [*rest, argument, *remaining]
        match = _OVERRIDE.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        negated, key, text = match.groups()
        default = _default_of(key, defaults)
        if text is None and _takes_next(default, negated, remaining):
            text = remaining.pop(0)
        values[key] = _negated(key, default, text) if negated else value_of(key, default, text)
    return values, rest


@functools.cache
def _defaults() -> dict[str, Any]:
    return flat(base_config())


def _default_of(key: str, defaults: dict[str, Any]) -> Any:
    if key in defaults:
        return defaults[key]
    if any(known.startswith(f"{key}.") for known in defaults):
        raise ConfigError(f"{key!r} is a section; set one of its keys, as --config.{key}.KEY=VALUE")
    raise ConfigError(f"unknown key {key!r}; did you mean --config.{nearest_key(key, base_config())}?")


def _takes_next(default: Any, negated: str | None, remaining: Sequence[str]) -> bool:
    """Whether the value of an argument without `=` is the one after it. That of a bool may be left out."""
    if negated or not remaining:
        return False
    return remaining[0].lower() in _TRUE + _FALSE if type(default) is bool else not remaining[0].startswith("--")


def _negated(key: str, default: Any, text: str | None) -> bool:
    if type(default) is not bool or text is not None:
        raise ConfigError(f"--noconfig.{key}: only for a key that is true or false, and without a value")
    return False


def value_of(key: str, default: Any, text: str | None) -> Any:
    """The value that a text means for a key with this default. Raises ConfigError, which shows the right spelling."""
    kind, example, read = _reader(key, default)
    if text is None:
        if type(default) is bool:
            return True
        raise ConfigError(f"config.{key} takes {kind}; write --config.{key}={example}")
    try:
        if text == "None":
            raise ValueError(text)
        return read(text)
    except ValueError as error:
        raise ConfigError(
            f"config.{key} takes {kind}, not {text!r:.80}; write --config.{key}={example}, for instance"
        ) from error


def _reader(key: str, default: Any) -> tuple[str, str, Callable[[str], Any]]:
    """What a key takes, in words; a value as it is written; and how a text is read."""
    if type(default) is bool:
        return "true or false", str(not default).lower(), _bool
    if type(default) is int:
        return "a whole number", str(default), _int
    if type(default) is float:
        return "a number", f"{default:g}", float
    if type(default) is str:
        return "text", default, str
    if key in TEXT_TUPLES:
        return "texts, separated by commas", "a,b", lambda text: tuple(_unquoted(part) for part in _parts(text))
    example = ",".join(map(str, default or (1, 2)))
    return "numbers, separated by commas", example, lambda text: tuple(map(_int_or_float, _parts(text)))


def _bool(text: str) -> bool:
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise ValueError(text)


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(text, 0)  # 0x10


def _int_or_float(text: str) -> int | float:
    try:
        return _int(text)
    except ValueError:
        return float(text)


def _parts(text: str) -> list[str]:
    """The elements of a tuple: with or without brackets, and with or without a comma after the last."""
    inner = text.strip()
    if len(inner) > 1 and inner[0] + inner[-1] in ("()", "[]"):
        inner = inner[1:-1].strip()
    parts = [part.strip() for part in inner.removesuffix(",").split(",")] if inner else []
    if not all(parts):
        raise ValueError(text)
    return parts


def _unquoted(part: str) -> str:
    """An element without the quotes that Python would write around it."""
    unquoted = part[1:-1] if len(part) > 1 and part[0] == part[-1] and part[0] in "'\"" else part
    if not unquoted or set(unquoted) & set("()[]'\""):
        raise ValueError(part)
    return unquoted
