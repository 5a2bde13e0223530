"""Episodes to files and back, exactly: every token, log-probability, verdict and test.

One file an iteration, `episodes/000012.jsonl.gz`: one JSON object a line, in the order of the episodes.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict


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
    """The episodes that `write_episodes` wrote: equal in every field. Lists inside `tags` come back as tuples."""
    with gzip.open(path, "rt", encoding="ascii") as lines:
        return [_episode(json.loads(line)) for line in lines]


def _plain(value: Any) -> Any:
    """NumPy numbers, which samplers hand out, as Python's own (a float32 is exact as a double)."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"cannot save {type(value).__name__} in an episode")


def _episode(d: dict[str, Any]) -> Episode:
    return Episode(**{**d, "problem": _problem(d["problem"]), "turns": tuple(map(_turn, d["turns"]))})


def _problem(d: dict[str, Any]) -> Problem:
    tests = {k: tuple(TestCase(**t) for t in d[k]) for k in ("public_tests", "private_tests", "generated_tests")}
    programs = {k: tuple(d[k]) for k in ("solutions", "incorrect_solutions")}
    return Problem(**{**d, **tests, **programs, "tags": {k: _frozen(v) for k, v in d["tags"].items()}})


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {k: _frozen(v) for k, v in value.items()} if isinstance(value, dict) else value


def _turn(d: dict[str, Any]) -> Turn:
    ids = ("prompt_delta_ids", "response_ids", "behavior_logp", "policy_version")
    verdict = None if d["verdict"] is None else _verdict(d["verdict"])
    return Turn(**{**d, **{k: tuple(d[k]) for k in ids}, "verdict": verdict})


def _verdict(d: dict[str, Any]) -> Verdict:
    public, hidden = (tuple(map(_result, d[k])) for k in ("public", "hidden"))
    return Verdict(status=Status(d["status"]), public=public, hidden=hidden)


def _result(d: dict[str, Any]) -> TestResult:
    return TestResult(**{**d, "status": Status(d["status"])})
