"""Episodes to files and back, exactly: every token, log-probability, verdict and test.

One file an iteration, `episodes/000012.jsonl.gz`: one JSON object a line, in the order of the episodes.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import gzip
import json
import types
import typing
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from rlef_jax.errors import ConfigError, RunError
from rlef_jax.execution import calls
from rlef_jax.execution.functions import encoded_test
from rlef_jax.files import replacing
from rlef_jax.types import Episode, FunctionTest, Problem, Status, Test, TestCase, Turn


def episodes_path(workdir: Path, step: int) -> Path:
    """Where the episodes of an iteration lie."""
    return workdir / "episodes" / f"{step:06d}.jsonl.gz"


def saved_steps(workdir: Path) -> list[int]:
    """Iterations whose episodes are saved, in order."""
    return sorted(int(p.name.split(".")[0]) for p in (workdir / "episodes").glob("[0-9]*.jsonl.gz"))


def episode_files(path: Path) -> list[Path]:
    """The files of episodes behind a path: itself, or those of a run's or an evaluation's folder, in order.

    Raises ConfigError for a path without any.
    """
    if path.is_file():
        return [path]
    if files := sorted((path / "chunks").glob("*.jsonl.gz")) or [episodes_path(path, s) for s in saved_steps(path)]:
        return files
    raise ConfigError(
        f"{path} holds no episodes: give a file of episodes (such as RUN/episodes/000012.jsonl.gz), a run's --workdir,"
        " or an evaluation's folder"
    )


def write_episodes(path: Path, episodes: Iterable[Episode]) -> None:
    """Writes all episodes, or nothing if it is interrupted. Equal episodes make equal bytes.

    Raises RunError, and writes nothing, where an episode holds NaN or infinity: JSON has neither.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(path) as raw:
            _write_to(raw, episodes)
    except ValueError as error:
        raise RunError(f"{path} was not written: {error}") from error


def _write_to(raw: BinaryIO, episodes: Iterable[Episode]) -> None:
    with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=3) as file:
        problem, head = None, ""
        for episode in episodes:
            if episode.problem is not problem:  # rollouts of the same problem stand together
                problem, head = episode.problem, problem_json(episode.problem)
            rest = json.dumps(_fields(episode) | {"problem": None}, default=_plain, allow_nan=False)
            file.write(f'{{"problem": {head}, {rest.removeprefix(_NO_PROBLEM)}\n'.encode("ascii"))


def problem_json(problem: Problem) -> str:
    """A problem as one line of JSON, as episodes hold it. Raises ValueError where it holds NaN or infinity."""
    return json.dumps(_fields(problem), default=_plain, allow_nan=False)


def read_episodes(path: Path) -> list[Episode]:
    """The episodes that `write_episodes` wrote: equal in every field. Lists inside `tags` come back as tuples.

    Raises ConfigError for a file that it didn't write, or that has changed since; FileNotFoundError for none.
    """
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            return list(_decoded(lines))
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read as episodes: {type(error).__name__}: {error}") from error


_NO_PROBLEM = '{"problem": null, '  # how an episode without its problem begins


def _decoded(lines: Iterable[str]) -> Iterator[Episode]:
    """Episodes; those of the same problem that stand together share it."""
    known: tuple[Any, Any] = None, None
    for line in lines:
        row = json.loads(line)
        if not isinstance(row, dict) or "problem" not in row:
            raise ValueError("not the fields of Episode")
        if known[0] is None or row["problem"] != known[0]:
            known = row["problem"], decode(Problem, row["problem"])
        yield decode(Episode, row | {"problem": known[1]})


def _fields(item: Any) -> dict[str, Any]:
    """A dataclass's fields as they are, `_plain` goes into them; without those that say nothing."""
    fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return {name: value for name, value in fields.items() if value or name not in _LEFT_OUT.get(type(item), ())}


def _plain(value: Any) -> Any:
    """A dataclass's fields; NumPy numbers, which samplers hand out, as Python's own (a float32 is exact as a double).

    A function's test holds plain data of Python's, more than JSON has: it goes as the bytes that the judge sends.
    """
    if isinstance(value, FunctionTest):
        return {"function_test": base64.b64encode(encoded_test(value)).decode("ascii")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
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
        if kind is Problem and isinstance(value, Problem):
            return value
        hints = _hints(kind)
        if not isinstance(value, dict) or not set(hints) - set(_ADDED.get(kind, ())) <= set(value) <= set(hints):
            raise ValueError(f"not the fields of {kind.__name__}")
        return kind(**{name: decode(hint, value[name]) for name, hint in hints.items() if name in value})
    if kind == Test:
        return _function_test(value) if "function_test" in _instance(value, dict) else decode(TestCase, value)
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


# Fields that episodes of earlier versions lack; they have the defaults there.
_ADDED: dict[Any, tuple[str, ...]] = {Problem: ("style", "start", "shown_tests", "frame"), Turn: ("restart",)}
_LEFT_OUT: dict[Any, tuple[str, ...]] = {Turn: ("restart",)}  # where they have their defaults


def _function_test(value: dict[str, Any]) -> FunctionTest:
    return FunctionTest(*calls.decode(base64.b64decode(value["function_test"], validate=True)))


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
