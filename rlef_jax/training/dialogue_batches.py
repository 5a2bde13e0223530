"""Batches of generated dialogues for supervised training, written in a process beside it.

`rlef_jax.sft` is the program; what its helper process runs is here, since that doesn't import the program.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from typing import Any

import numpy as np

from rlef_jax.data.dialogues import Dialogue, dialogues
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.load import load_chat
from rlef_jax.training.interrupt import helper_process

CHUNK_PROBLEMS, PER_PROBLEM = 128, 4  # 512 dialogues a chunk
_BUCKET = 32  # row lengths are multiples of it

Batch = dict[str, np.ndarray]


def rows(examples: list[Dialogue], length: int) -> Batch:
    """Padded int32 arrays [B, length] of dialogues: tokens, segments (0 = padding), 1 where the loss counts."""
    batch = {name: np.zeros((len(examples), length), np.int32) for name in ("tokens", "segments", "mask")}
    for i, dialogue in enumerate(examples):
        n = len(dialogue.ids)
        batch["tokens"][i, :n] = dialogue.ids
        batch["segments"][i, :n] = 1
        batch["mask"][i, :n] = dialogue.action_mask
    return batch


def batches(examples: list[Dialogue], batch_rows: int, rng: np.random.Generator) -> list[Batch]:
    """Full batches of dialogues of similar length, in random order; a last short batch is left out."""
    by_length = sorted(examples, key=lambda d: len(d.ids))
    groups = [by_length[i : i + batch_rows] for i in range(0, len(by_length) - batch_rows + 1, batch_rows)]
    padded = [rows(g, -(-len(g[-1].ids) // _BUCKET) * _BUCKET) for g in groups]
    return [padded[i] for i in rng.permutation(len(padded))]


def _chunk(
    tokenizer: tuple[str, str, str], seed: int, chunk: int, settings: dict[str, Any], batch_rows: int
) -> list[Batch]:
    """One chunk's batches; runs in the second process."""
    chat = _chat(*tokenizer)
    examples = dialogues(seed, chunk, chat, problems=CHUNK_PROBLEMS, per_problem=PER_PROBLEM, **settings)
    return batches(examples, batch_rows, np.random.default_rng([seed, chunk, 1]))


@functools.cache
def _chat(tokenizer: str, template: str, options: str) -> ChatFormat:
    return load_chat(tokenizer, template, options)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run stands: `step` steps done, next is batch number `batch` of chunk `chunk`; both count from 0."""

    step: int = 0
    chunk: int = 0
    batch: int = 0


def stream(
    tokenizer: tuple[str, str, str],
    seed: int,
    chunks: int,
    settings: dict[str, Any],
    batch_rows: int,
    start: Place,
    ahead: int = 6,
) -> Generator[tuple[Place, Batch]]:
    """All batches from `start` on, in order, and where the run stands after each.

    The next chunks are generated while one is trained on. `tokenizer`: see `load_chat`.
    """
    place = start
    with helper_process() as pool:
        make = functools.partial(_chunk, tokenizer, seed, settings=settings, batch_rows=batch_rows)
        futures = [pool.submit(make, chunk) for chunk in range(start.chunk, min(start.chunk + ahead, chunks))]
        try:
            for chunk in range(start.chunk, chunks):
                made = futures.pop(0).result()
                if chunk + ahead < chunks:
                    futures.append(pool.submit(make, chunk + ahead))
                for batch in range(place.batch if chunk == place.chunk else 0, len(made)):
                    place = Place(place.step + 1, chunk, batch + 1)
                    yield place, made[batch]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
