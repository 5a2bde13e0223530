"""Episodes to files and back, exactly: every token, log-probability, verdict and test.

One file an iteration, `episodes/000012.jsonl.gz`: one JSON object a line, in the order of the episodes.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import os
import types
import typing
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlef_jax.errors import ConfigError
from rlef_jax.types import Episode, Status


def episodes_path(workdir: Path, step: int) -> Path:
    """Where the episodes of an iteration lie."""
    return workdir / "episodes" / f"{step:06d}.jsonl.gz"


def saved_steps(workdir: Path) -> list[int]:
    """Iterations whose episodes are saved, in order."""
    return sorted(int(p.name.split(".")[0]) for p in (workdir / "episodes").glob("[0-9]*.jsonl.gz"))


def write_episodes(path: Path, episodes: Iterable[Episode]) -> None:
    """Writes all episodes, or nothing if it is interrupted. Equal episodes make equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=3) as file:
        for episode in episodes:
            file.write(json.dumps(dataclasses.asdict(episode), default=_plain).encode("ascii") + b"\n")
    os.replace(part, path)


def read_episodes(path: Path) -> list[Episode]:
    """The episodes that `write_episodes` wrote: equal in every field. Lists inside `tags` come back as tuples.

    Raises ConfigError for a file that it didn't write, or that has changed since; FileNotFoundError for none.
    """
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            return [decode(Episode, json.loads(line)) for line in lines]
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as episodes: {type(error).__name__}: {error}") from error


def _plain(value: Any) -> Any:
    """NumPy numbers, which samplers hand out, as Python's own (a float32 is exact as a double)."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"cannot save {type(value).__name__} in an episode")


def decode(kind: Any, value: Any) -> Any:
    """A value of type `kind` (a dataclass of `rlef_jax.types` or what its fields are made of) from its JSON form.

    Raises ValueError or TypeError where the JSON is of another kind.
    """
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            raise ValueError(f"not the fields of {kind.__name__}")
        return kind(**{name: decode(hint, value[name]) for name, hint in hints.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return tuple(decode(arguments[0], item) for item in _instance(value, list))
    if origin is types.UnionType:  # X | None
        return None if value is None else decode(arguments[0], value)
    if origin is Mapping:
        return {name: _frozen(item) for name, item in _instance(value, dict).items()}
    if kind is float:
        return _instance(value, int, float)
    return Status(value) if kind is Status else _instance(value, kind)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _instance(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise TypeError(f"{value!r:.40} is no {kinds[-1].__name__}")
    return value


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {k: _frozen(v) for k, v in value.items()} if isinstance(value, dict) else value
