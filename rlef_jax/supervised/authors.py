"""Examples of generated dialogues (`data/dialogues.py`), written in a process beside the one that trains on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator
from typing import Any

import numpy as np

from rlef_jax.data.dialogues import Dialogue, dialogues
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.load import load_chat
from rlef_jax.supervised.examples import Example, Place
from rlef_jax.training.interrupt import helper_process

CHUNK_PROBLEMS, PER_PROBLEM = 128, 4
CHUNK = CHUNK_PROBLEMS * PER_PROBLEM  # dialogues
_AHEAD = 6  # chunks that are written before they are needed


def example_of(dialogue: Dialogue) -> Example:
    """The dialogue's tokens, of which the author's are learned."""
    return Example(np.array(dialogue.ids, np.int32), np.array(dialogue.action_mask, bool))


def batches_of(examples: list[Example], batch: int, rng: np.random.Generator) -> list[list[Example]]:
    """Full batches of examples of similar length, which leaves less padding, in random order; a last short batch is
    left out."""
    by_length = sorted(examples, key=lambda e: len(e.ids))
    groups = [by_length[i : i + batch] for i in range(0, len(by_length) - batch + 1, batch)]
    return [groups[i] for i in rng.permutation(len(groups))]


def _chunk(
    tokenizer: tuple[str, str, str], seed: int, chunk: int, settings: dict[str, Any], batch: int
) -> list[list[Example]]:
    """One chunk's batches; runs in the second process."""
    chat = _chat(*tokenizer)
    written = dialogues(seed, chunk, chat, problems=CHUNK_PROBLEMS, per_problem=PER_PROBLEM, **settings)
    return batches_of([example_of(d) for d in written], batch, np.random.default_rng([seed, chunk, 1]))


@functools.cache
def _chat(tokenizer: str, template: str, options: str) -> ChatFormat:
    return load_chat(tokenizer, template, options)


@dataclasses.dataclass(frozen=True)
class Authors:
    """The dialogues of the simulated authors, each trained on once.

    Attributes:
      tokenizer: the names that `load_chat` takes.
      seed: with a chunk's number it makes the chunk's dialogues.
      dialogues: how many; whole chunks of them are written.
      settings: how, as `data.dialogues.dialogues` takes it.
    """

    tokenizer: tuple[str, str, str]
    seed: int
    dialogues: int
    settings: dict[str, Any]

    @property
    def chunks(self) -> int:
        """How many are written."""
        return self.dialogues // CHUNK

    def steps(self, batch: int) -> int:
        """Steps of `batch` dialogues that they give; what is left of a chunk isn't trained on."""
        return self.chunks * (CHUNK // batch)

    def batches(self, batch: int, start: Place) -> Generator[tuple[Place, list[Example]]]:
        """All batches from `start` on, in order, and where the run stands after each.

        The next chunks are written while one is trained on.
        """
        place = start
        with helper_process() as pool:
            make = functools.partial(_chunk, self.tokenizer, self.seed, settings=self.settings, batch=batch)
            futures = [pool.submit(make, n) for n in range(start.chunk, min(start.chunk + _AHEAD, self.chunks))]
            try:
                for chunk in range(start.chunk, self.chunks):
                    made = futures.pop(0).result()
                    if chunk + _AHEAD < self.chunks:
                        futures.append(pool.submit(make, chunk + _AHEAD))
                    for number in range(place.batch if chunk == place.chunk else 0, len(made)):
                        place = Place(place.step + 1, chunk, number + 1)
                        yield place, made[number]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
