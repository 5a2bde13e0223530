"""An evaluation's folder: its settings, and its rollouts so far in chunks.

    settings.json            the settings that results depend on: an evaluation resumes only if they are equal
    chunks/000000.jsonl.gz   the episodes of some problems, written atomically
    inputs.json              the files and programs that they depend on (`training.inputs`)
    results.json             the results, written once all chunks exist

A chunk that was unfinished when the evaluation stopped leaves no file and is sampled or judged again, so that no
rollout counts twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.errors import ConfigError
from rlef_jax.files import write_json
from rlef_jax.training.episode_io import read_episodes, write_episodes
from rlef_jax.types import Episode

SETTINGS, RESULTS, CHUNKS = "settings.json", "results.json", "chunks"


def settings_hash(settings: Mapping[str, Any]) -> str:
    """A short hash that identifies an evaluation's settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Creates the folder, or reopens it. Raises ConfigError if it holds another evaluation or can't be written."""
    path = folder / SETTINGS
    try:
        (folder / CHUNKS).mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_json(path, settings)
    except OSError as error:
        raise ConfigError(f"--out={folder}: cannot be written: {error}") from error
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(key for key in {*saved, *settings} if saved.get(key) != settings.get(key))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--out={folder}: {SETTINGS} cannot be read ({error}); give another folder") from error
    if changed:
        key = changed[0]
        raise ConfigError(
            f"--out={folder} holds another evaluation: its {key} is {saved.get(key)!r:.60}, asked for is"
            f" {settings.get(key)!r:.60}; give another folder"
        )


def all_chunks(
    folder: Path, sizes: Sequence[int], make: Callable[[int, int], list[Episode]], tell: Callable[[int, int], None]
) -> Iterator[list[Episode]]:
    """The episodes of each chunk, in order: one chunk is held at a time. `make(first index, size)` makes missing ones,
    which are saved.

    Args:
      folder: the evaluation's folder.
      sizes: rollouts of each chunk.
      make: makes the episodes of a chunk, with indices from `first index` on.
      tell: called with (rollouts done, all rollouts) after each chunk.

    Raises ConfigError for a saved chunk with other rollouts.
    """
    first = 0
    for path, size in zip(_paths(folder, len(sizes)), sizes, strict=True):
        if path.exists():
            rollouts = read_episodes(path)
            if [e.index for e in rollouts] != list(range(first, first + size)) or not all(e.end for e in rollouts):
                raise ConfigError(f"{path} doesn't hold rollouts {first} to {first + size - 1}: remove it")
        else:
            rollouts = make(first, size)
            write_episodes(path, rollouts)
        yield rollouts
        first += size
        tell(first, sum(sizes))


def saved_episodes(folder: Path) -> Iterator[Episode]:
    """The episodes of all chunks of an evaluation, in order; one chunk is held at a time."""
    for path in sorted((folder / CHUNKS).glob("*.jsonl.gz")):
        yield from read_episodes(path)


def _paths(folder: Path, count: int) -> list[Path]:
    return [folder / CHUNKS / f"{number:06d}.jsonl.gz" for number in range(count)]


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Writes results.json atomically."""
    write_json(folder / RESULTS, results)
