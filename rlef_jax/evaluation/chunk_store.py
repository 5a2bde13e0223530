"""An evaluation's folder: what it is, and the rollouts that it has made so far, chunk by chunk.

    settings.json            what the numbers depend on: an evaluation goes on only where it is the same
    chunks/000000.jsonl.gz   the episodes of some problems, written whole or not at all
    inputs.json              the files and programs behind them (`training.inputs`)
    results.json             the numbers, once all chunks are there

A chunk that was under way when the evaluation was stopped leaves nothing behind and is made again, so that no rollout
is counted twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.errors import ConfigError
from rlef_jax.training.episode_io import read_episodes, write_episodes
from rlef_jax.types import Episode

SETTINGS, RESULTS, CHUNKS = "settings.json", "results.json", "chunks"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Short name of what an evaluation is."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Makes the folder, or goes on in it. Raises ConfigError where it holds another evaluation, or can't be written."""
    path = folder / SETTINGS
    try:
        (folder / CHUNKS).mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write(path, settings)
    except OSError as error:
        raise ConfigError(f"--out={folder}: cannot be written: {error}") from error
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        other = sorted(key for key in {*there, *settings} if there.get(key) != settings.get(key))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--out={folder}: {SETTINGS} cannot be read ({error}); give another folder") from error
    if other:
        key = other[0]
        raise ConfigError(
            f"--out={folder} holds another evaluation: its {key} is {there.get(key)!r:.60}, asked for is"
            f" {settings.get(key)!r:.60}; give another folder"
        )


def all_chunks(
    folder: Path, sizes: Sequence[int], make: Callable[[int, int], list[Episode]], tell: Callable[[int, int], None]
) -> list[Episode]:
    """The episodes of all chunks, in order, each made by `make(first index, size)` unless it is there already.

    `tell(done, total)` hears how many rollouts there are. Raises ConfigError for a chunk that isn't what it should be.
    """
    episodes: list[Episode] = []
    for number, size in enumerate(sizes):
        first, path = len(episodes), folder / CHUNKS / f"{number:06d}.jsonl.gz"
        if path.exists():
            found = read_episodes(path)
            if [e.index for e in found] != list(range(first, first + size)) or not all(e.end for e in found):
                raise ConfigError(f"{path} doesn't hold rollouts {first} to {first + size - 1}: remove it")
        else:
            found = make(first, size)
            write_episodes(path, found)
        episodes += found
        tell(len(episodes), sum(sizes))
    return episodes


def write_results(folder: Path, found: Mapping[str, Any]) -> None:
    """Writes results.json, whole."""
    _write(folder / RESULTS, found)


def _write(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)
