"""The key/value cache of a group of rows, and attention over it.

Each layer's keys and values have two regions. The *tail*, slots 0 to G - 1, holds the turn being decoded: slot i is the
row's i-th response token, the same slot in every row, so that each step writes one slice in place. The *store* behind
it holds the token at position p of its row in slot G + p. Writing there goes row by row, so it is done once a turn.
What a row's slots hold thus depends on nothing but its own tokens.

Shapes: B rows, G slots of the tail, S of the store, K key/value heads, R query heads per key/value head, H head width,
P tokens of a prompt delta.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from rlef_jax.model import transformer
from rlef_jax.model.transformer import Attention, ModelConfig, Params

Write = Callable[[jax.Array, jax.Array], jax.Array]


@flax.struct.dataclass
class KVCache:
    """One (keys, values) pair of [B, K, G + S, H] per layer, in separate arrays: a stack would be copied each step."""

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    tail: int = flax.struct.field(pytree_node=False)  # G

    @property
    def capacity(self) -> int:
        """Slots of the store (S)."""
        return self.layers[0][0].shape[2] - self.tail


def init_cache(cfg: ModelConfig, rows: int, capacity: int, tail: int, dtype: Any = jnp.float32) -> KVCache:
    """An empty cache: zeros, since a masked slot must still be finite."""
    shape = (rows, cfg.n_kv_heads, tail + capacity, cfg.d_head)
    return KVCache(
        layers=tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(cfg.n_layers)), tail=tail
    )


def grow(cache: KVCache, capacity: int) -> KVCache:
    """The same cache with at least `capacity` slots in its store."""
    padding = ((0, 0), (0, 0), (0, max(capacity - cache.capacity, 0)), (0, 0))
    return dataclasses.replace(cache, layers=jax.tree.map(lambda a: jnp.pad(a, padding), cache.layers))


def write_rows(slots: jax.Array, new: jax.Array, starts: jax.Array) -> jax.Array:
    """Write new [B, K, P, H] into slots [B, K, n, H] at starts[b], starts[b] + 1, ...

    Needs starts + P <= n in every row: XLA would otherwise move the slice onto slots that are in use.
    """
    return jax.vmap(lambda row, piece, at: jax.lax.dynamic_update_slice(row, piece, (0, at, 0)))(slots, new, starts)


def flush_tail(cache: KVCache, lengths: jax.Array) -> KVCache:
    """Copy the tail into the store behind each row's `lengths` [B] tokens. Needs lengths + G <= S."""
    g = cache.tail
    moved = jax.tree.map(lambda slots: write_rows(slots, slots[:, :, :g], g + lengths), cache.layers)
    return dataclasses.replace(cache, layers=moved)


def cached_attention(pair: tuple[jax.Array, jax.Array], write: Write, mask: jax.Array) -> Attention:
    """Attention over a layer's slots after `write(slots, new [B, K, T, H])` has put the new keys and values there.

    mask [B, T, G + S] bool: may query t look at a slot? What the attention keeps is the layer's new pair.
    """

    def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, Any]:
        keys, values = (write(slots, jnp.moveaxis(new, 1, 2)) for slots, new in zip(pair, (keys, values), strict=True))
        scores = jnp.einsum("btkrh,bksh->bkrts", queries, keys).astype(jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -jnp.inf), axis=-1).astype(values.dtype)
        return jnp.einsum("bkrts,bksh->btkrh", weights, values), (keys, values)

    return attention


def _run(
    params: Params,
    layers: Sequence[Params],
    cfg: ModelConfig,
    cache: KVCache,
    tokens: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    write: Write,
) -> tuple[jax.Array, KVCache]:
    """Hidden states of tokens [B, T] at positions [B, T], and the cache after them."""
    rope = transformer.rope_tables(cfg, positions)
    x = transformer.embed(params, tokens, cache.layers[0][0].dtype)
    pairs = []
    for layer, pair in zip(layers, cache.layers, strict=True):
        x, pair = transformer.block(layer, cfg, x, rope, cached_attention(pair, write, mask))
        pairs.append(pair)
    hidden = transformer.rms_norm(x, params["final_norm"], cfg.norm_eps)
    return hidden, dataclasses.replace(cache, layers=tuple(pairs))


def prefill(
    params: Params, cfg: ModelConfig, cache: KVCache, tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, KVCache]:
    """Run tokens [B, P] behind the `lengths` [B] tokens in the store: (hidden [B, P, D], cache with them in it).

    Rows may be padded at the right: what is written there lies behind the row's end, unseen until it is overwritten.
    The tail isn't looked at. Needs lengths + P <= S.
    """
    positions = lengths[:, None] + jnp.arange(tokens.shape[1])[None, :]
    place = (jnp.arange(cache.tail + cache.capacity) - cache.tail)[None, None, :]
    mask = (place >= 0) & (place <= positions[:, :, None])
    layers = [transformer.layer_params(params, index) for index in range(cfg.n_layers)]
    starts = cache.tail + lengths
    return _run(params, layers, cfg, cache, tokens, positions, mask, lambda slots, new: write_rows(slots, new, starts))


def decode_step(
    params: Params,
    layers: Sequence[Params],
    cfg: ModelConfig,
    cache: KVCache,
    tokens: jax.Array,
    lengths: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """Run one token a row: tokens [B] go to slot `step` of the tail, at position lengths + step.

    `layers` are the layers of params, unstacked once outside the loop over steps. Returns (hidden [B, D], cache).
    """
    slot = jnp.arange(cache.tail + cache.capacity)[None, None, :]
    mask = (slot <= step) | ((slot >= cache.tail) & (slot < cache.tail + lengths[:, None, None]))

    def write(slots: jax.Array, new: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(slots, new, (0, 0, step, 0))

    positions = (lengths + step)[:, None]
    hidden, cache = _run(params, layers, cfg, cache, tokens[:, None], positions, mask, write)
    return hidden[:, 0], cache
