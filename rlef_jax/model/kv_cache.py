"""The key/value cache of a group of rows, and attention over it.

The cache has two parts. In the *store*, slot s holds the token at position s of its row: a row's content depends on
nothing but its own tokens. Writing there goes row by row, so it is done once a turn. The *tail* holds the turn being
decoded: slot i is the row's i-th response token, the same slot in every row, so that each step writes one slice in
place. Shapes: B rows, S slots of the store, G slots of the tail, K key/value heads, R query heads per key/value
head, H head width, P tokens of a prompt delta.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from rlef_jax.model import transformer
from rlef_jax.model.transformer import ModelConfig, Params

KeysValues = tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class KVCache:
    """One (keys, values) pair per layer, in separate arrays: a stack would be copied at each step."""

    store: tuple[KeysValues, ...]  # L pairs of [B, K, S, H]
    tail: tuple[KeysValues, ...]  # L pairs of [B, K, G, H]

    @property
    def capacity(self) -> int:
        """Slots of the store (S)."""
        return self.store[0][0].shape[2]


def init_cache(cfg: ModelConfig, rows: int, capacity: int, tail: int, dtype: Any = jnp.float32) -> KVCache:
    """An empty cache: zeros, since a masked slot must still be finite."""

    def pairs(slots: int) -> tuple[KeysValues, ...]:
        shape = (rows, cfg.n_kv_heads, slots, cfg.d_head)
        return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(cfg.n_layers))

    return KVCache(store=pairs(capacity), tail=pairs(tail))


def grow(cache: KVCache, capacity: int) -> KVCache:
    """The same cache with at least `capacity` slots in its store."""
    extra = max(capacity - cache.capacity, 0)
    return cache.replace(store=jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, extra), (0, 0))), cache.store))


def write_rows(store: jax.Array, new: jax.Array, starts: jax.Array) -> jax.Array:
    """Write new [B, K, P, H] into store [B, K, S, H] at slots starts[b], starts[b] + 1, ...

    Needs starts + P <= S in every row: XLA would otherwise move the slice onto slots that are in use.
    """
    return jax.vmap(lambda row, piece, at: jax.lax.dynamic_update_slice(row, piece, (0, at, 0)))(store, new, starts)


def flush_tail(cache: KVCache, lengths: jax.Array) -> KVCache:
    """Move the tail into the store behind each row's `lengths` [B] tokens. Needs lengths + G <= S."""
    moved = jax.tree.map(lambda store, tail: write_rows(store, tail, lengths), cache.store, cache.tail)
    return cache.replace(store=moved)


def _attend(queries: jax.Array, parts: Sequence[tuple[jax.Array, jax.Array, jax.Array]]) -> jax.Array:
    """Softmax attention of queries [B, T, K, R, H] over several (keys, values [B, K, s, H], mask [B, T, s]) parts."""
    scores = [
        jnp.where(mask[:, None, None], jnp.einsum("btkrh,bksh->bkrts", queries, keys).astype(jnp.float32), -jnp.inf)
        for keys, _, mask in parts
    ]
    highest = jnp.max(jnp.concatenate([s.max(axis=-1, keepdims=True) for s in scores], axis=-1), -1, keepdims=True)
    weights = [jnp.exp(s - highest) for s in scores]
    total = sum(w.sum(axis=-1) for w in weights)
    mixed = sum(
        jnp.einsum("bkrts,bksh->bkrth", w.astype(values.dtype), values)
        for w, (_, values, _) in zip(weights, parts, strict=True)
    )
    return jnp.moveaxis(mixed / total[..., None].astype(mixed.dtype), 3, 1)


def prefill(
    params: Params, cfg: ModelConfig, cache: KVCache, tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, KVCache]:
    """Run tokens [B, P] behind the `lengths` [B] tokens in the store: (hidden [B, P, D], cache with them in it).

    Rows may be padded at the right: what is written there lies behind the row's end and is overwritten later.
    Needs lengths + P <= S. The tail must be empty (flushed).
    """
    positions = lengths[:, None] + jnp.arange(tokens.shape[1])[None, :]
    seen = jnp.arange(cache.capacity)[None, None, :] <= positions[:, :, None]
    rope = transformer.rope_tables(cfg, positions)
    x = transformer.embed(params, tokens, cache.store[0][0].dtype)
    stores = []
    for index, (keys, values) in enumerate(cache.store):

        def attention(q: jax.Array, k: jax.Array, v: jax.Array, keys=keys, values=values) -> tuple[jax.Array, Any]:
            stored = (
                write_rows(keys, jnp.moveaxis(k, 1, 2), lengths),
                write_rows(values, jnp.moveaxis(v, 1, 2), lengths),
            )
            return _attend(q, [(*stored, seen)]), stored

        x, stored = transformer.block(transformer.layer_params(params, index), cfg, x, rope, attention)
        stores.append(stored)
    return transformer.rms_norm(x, params["final_norm"], cfg.norm_eps), cache.replace(store=tuple(stores))


def decode_step(
    params: Params, layers: Sequence[Params], cfg: ModelConfig, cache: KVCache, tokens: jax.Array,
    lengths: jax.Array, step: jax.Array,
) -> tuple[jax.Array, KVCache]:  # fmt: skip
    """Run one token a row: tokens [B] go to slot `step` of the tail, at position lengths + step.

    `layers` are the layers of params, unstacked once outside the loop. Returns (hidden [B, D], cache).
    """
    rows = tokens.shape[0]
    slots = cache.tail[0][0].shape[2]
    in_store = jnp.arange(cache.capacity)[None, None, :] < lengths[:, None, None]
    in_tail = jnp.broadcast_to(jnp.arange(slots)[None, None, :] <= step, (rows, 1, slots))
    rope = transformer.rope_tables(cfg, (lengths + step)[:, None])
    x = transformer.embed(params, tokens[:, None], cache.store[0][0].dtype)
    tails = []
    for layer, store, tail in zip(layers, cache.store, cache.tail, strict=True):

        def attention(q: jax.Array, k: jax.Array, v: jax.Array, store=store, tail=tail) -> tuple[jax.Array, Any]:
            at = (0, 0, step, 0)
            written = (
                jax.lax.dynamic_update_slice(tail[0], jnp.moveaxis(k, 1, 2), at),
                jax.lax.dynamic_update_slice(tail[1], jnp.moveaxis(v, 1, 2), at),
            )
            return _attend(q, [(*store, in_store), (*written, in_tail)]), written

        x, written = transformer.block(layer, cfg, x, rope, attention)
        tails.append(written)
    hidden = transformer.rms_norm(x, params["final_norm"], cfg.norm_eps)
    return hidden[:, 0], cache.replace(tail=tuple(tails))
