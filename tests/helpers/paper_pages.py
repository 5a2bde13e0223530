"""A sampler's programs without a model: they keep in every slot whose token it holds, and check it at each dispatch."""

from __future__ import annotations

import numpy as np

from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.sampling.decode import Drawn
from rlef_jax.sampling.programs import Programs, Shapes

CFG = ModelConfig(vocab_size=8, d_model=2, n_layers=1, n_heads=1, n_kv_heads=1, d_head=2, d_ff=2)


class PaperPrograms(Programs):
    """Dialogue e's prompts must be made of the token e + 1, and name it as their episode. A slot holds e + 1 and the
    token's position. Responses are as long as `lengths[episode, turn]` says, or until there is no room. Rows and pages
    are split over `shards`, as over the devices of a mesh."""

    def __init__(self, shapes: Shapes, lengths: np.ndarray, shards: int = 1) -> None:
        super().__init__(CFG, shapes, make_mesh())
        self.shards, self.pages = shards, shapes.pages or shapes.rows // shards * shapes.row_pages
        self._slots, self._lengths = shapes.page_slots, lengths
        self.pool = np.zeros((shards, self.pages, shapes.page_slots, 2), np.int32)
        self._of_dialogue: dict[int, np.ndarray] = {}

    def new_cache(self):
        return None

    def compile(self, *args, **kwargs):
        pass

    def _expected(self, name: int) -> np.ndarray:
        """What the slots of dialogue `name` hold, in order."""
        if name not in self._of_dialogue:
            at = np.arange(self.shapes.max_len, dtype=np.int32)
            self._of_dialogue[name] = np.stack([np.full_like(at, name + 1), at], axis=1)
        return self._of_dialogue[name]

    def _shards(self, count: int) -> np.ndarray:
        """The shard of each of `count` rows or places."""
        return np.repeat(np.arange(self.shards), count // self.shards)

    def _put_tokens(self, shard: int, table: np.ndarray, start: int, tokens: np.ndarray) -> None:
        at = start + np.arange(len(tokens))
        held = at // self._slots < len(table)
        at, tokens = at[held], tokens[held]
        pages = table[at // self._slots]
        there = pages < self.pages
        self.pool[shard, pages[there], at[there] % self._slots] = np.stack([tokens, at], axis=1)[there]

    def prefill(self, weights, cache, tables, tokens, starts):
        for shard, table, row, start in zip(self._shards(len(tables)), tables, tokens, starts, strict=True):
            self._put_tokens(shard, table, int(start), row)

    def decode(self, weights, cache, rows):
        steps, count = self.shapes.decode_steps, len(rows.room)
        shards = self._shards(count)
        owned = (shards[:, None] * self.pages + rows.tables)[rows.tables < self.pages]
        assert np.bincount(owned).max(initial=0) <= 1  # no page has two owners
        made, stopped = np.zeros(count, np.int32), rows.room == 0
        for row in np.flatnonzero(rows.room):
            name, length = int(rows.episode[row]), int(rows.lengths[row])
            pages = rows.tables[row][: -(-length // self._slots)]
            held = self.pool[shards[row], pages].reshape(-1, 2)[:length]
            assert (held == self._expected(name)[:length]).all(), (name, length)
            left = int(self._lengths[name, rows.turn[row]]) - int(rows.drawn[row])
            assert left > 0
            made[row] = min(steps, int(rows.room[row]), left)
            stopped[row] = made[row] == left
            self._put_tokens(shards[row], rows.tables[row], length, np.full(made[row], name + 1))
            last = length + made[row] - 1
            assert rows.tables[row][last // self._slots] < self.pages  # there was a page for each token
        ids = np.repeat((rows.episode + 1)[:, None], steps, axis=1).astype(np.int32)
        zeros = np.zeros((count, steps), np.float32)
        return None, Drawn(ids, zeros, zeros, made, stopped, np.int32(steps))

    def take(self, cache, shard, pages):
        return self.pool[shard, list(pages)].copy()[None, None]

    def put(self, cache, shard, pages, taken):
        self.pool[shard, list(pages)] = taken[0, 0]
