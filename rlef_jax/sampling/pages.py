"""Which dialogue has which pages of a worker's cache, and what is moved to the host when there are none left.

Pages are given as a dialogue grows, and taken back when it ends. A dialogue that waits, for its judge or for a row,
keeps its pages as long as nobody needs them more; then its keys and values are copied to the host, and put back bit for
bit into any pages. Nothing here decides who needs them more: see `worker.py`.
"""

from __future__ import annotations

import numpy as np

from rlef_jax.sampling.programs import Programs
from rlef_jax.sampling.request import Dialogue


class Pages:
    """A worker's cache, its pages and their owners. One thread's own.

    Attributes:
      cache: the keys and values, which every program that changes them replaces.
      free: numbers of the pages of each shard that nobody has.
      moved_out: how often a dialogue was moved to the host.
    """

    def __init__(self, programs: Programs) -> None:
        self._programs, self._slots = programs, programs.shapes.page_slots
        self.cache = programs.new_cache()
        self.free = [list(range(programs.pages))[::-1] for _ in range(programs.shards)]
        self.moved_out = 0

    def lacks(self, dialogue: Dialogue, tokens: int) -> int:
        """How many more pages the dialogue needs to hold so many tokens."""
        return max(-(-tokens // self._slots) - len(dialogue.pages), 0)

    def give(self, dialogue: Dialogue, tokens: int) -> None:
        """Gives a dialogue the pages that it lacks to hold so many tokens. There must be as many."""
        free = self.free[dialogue.shard]
        dialogue.pages += [free.pop() for _ in range(self.lacks(dialogue, tokens))]

    def release(self, dialogue: Dialogue) -> None:
        """Takes back all pages; what they hold is lost."""
        self.free[dialogue.shard] += dialogue.pages
        dialogue.pages = []

    def move_out(self, dialogue: Dialogue) -> None:
        """Takes back all pages; the host holds what is in them."""
        dialogue.saved = self.copy(dialogue)
        self.release(dialogue)
        self.moved_out += 1

    def copy(self, dialogue: Dialogue) -> np.ndarray:
        """A dialogue's keys and values [L, 2, M, K, S, H] on the host, M pages of them."""
        held = -(-dialogue.length // self._slots)
        return self._programs.take(self.cache, dialogue.shard, dialogue.pages[:held])

    def move_in(self, dialogue: Dialogue, contents: np.ndarray) -> None:
        """Puts keys and values into a dialogue's first pages, which it must have been given."""
        pages = dialogue.pages[: contents.shape[2]]
        self.cache = self._programs.put(self.cache, dialogue.shard, pages, contents)
        dialogue.saved = None

    def table(self, dialogue: Dialogue) -> np.ndarray:
        """The dialogue's table [N], int32."""
        found = np.full(self._programs.shapes.row_pages, self._programs.pages, np.int32)
        found[: len(dialogue.pages)] = dialogue.pages
        return found
