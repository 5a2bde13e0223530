"""The key/value cache of a fixed number of rows: chunks of prompts go in, decoding steps read it.

The token at position p of a row lies in slot p of the row. Decoding doesn't write there: the steps of one dispatch keep
their keys and values in a small *tail*, step i of every row in slot i, so that each step writes one slice in place and
what lies in the cache stays as it is while they run; `flush` moves the tail behind the rows' ends afterwards. Slots at
and behind a row's end are never looked at, so padding may be written there. What a row reads depends on nothing but
its own tokens.

`params` have their layers apart here (`unstack`): decoding reads each layer's weights where they are.

Shapes: B rows of the cache, S its slots, T slots of the tail, R rows of a chunk, C its tokens, K key/value heads, Q
query heads per key/value head, H head width, D model width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rlef_jax.model import transformer
from rlef_jax.model.attention import Attention
from rlef_jax.model.parameters import Parameter, describe
from rlef_jax.model.transformer import LayerKind, ModelConfig, OutputMajor, Params

Pair = tuple[jax.Array, jax.Array]
# Keys and values [B, K, S, H], and which of the S may be seen: bool, broadcastable to [B, K, Q, C, S].
Part = tuple[jax.Array, jax.Array, jax.Array]


@flax.struct.dataclass
class KVCache:
    """One (keys, values) pair of [B, K, S, H] per layer, in separate arrays: a stack would be copied each step."""

    layers: tuple[Pair, ...]

    @property
    def capacity(self) -> int:
        """Slots of a row (S)."""
        return self.layers[0][0].shape[2]


def init_cache(cfg: ModelConfig, rows: int, capacity: int, dtype: Any = jnp.float32) -> KVCache:
    """An empty cache: zeros, since a masked slot must still be finite."""
    shape = (rows, cfg.n_kv_heads, capacity, cfg.d_head)
    return KVCache(tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(cfg.n_layers)))


def unstack(params: Params, cfg: ModelConfig) -> Params:
    """The same parameters with a tuple of layers in place of the stack, and their matrices with outputs first."""

    def turned(p: Parameter, array: jax.Array) -> jax.Array | OutputMajor:
        return OutputMajor(jnp.moveaxis(array, range(p.inputs), range(-p.inputs, 0))) if p.inputs else array

    layers = describe(cfg)["layers"]
    return {
        **params,
        "layers": tuple(
            jax.tree.map(turned, layers, transformer.layer_params(params, index)) for index in range(cfg.n_layers)
        ),
    }


def unstacked_shardings(shardings: Params, cfg: ModelConfig) -> Params:
    """Where `unstack`'s results lie, for stacked parameters that lie as `shardings` (a NamedSharding each) say."""

    def turned(p: Parameter, sharding: NamedSharding) -> NamedSharding | OutputMajor:
        axes = (*sharding.spec, *[None] * len(p.shape))[1 : len(p.shape)]
        spec = NamedSharding(sharding.mesh, PartitionSpec(*axes[p.inputs :], *axes[: p.inputs]))
        return OutputMajor(spec) if p.inputs else spec  # type: ignore[arg-type]

    layer = jax.tree.map(turned, describe(cfg)["layers"], shardings["layers"])
    return {**shardings, "layers": (layer,) * cfg.n_layers}


def first_slots(cache: KVCache, capacity: int) -> KVCache:
    """The cache's first `capacity` slots; the cache itself, not copied, where it has no more."""
    if capacity >= cache.capacity:
        return cache
    return KVCache(jax.tree.map(lambda slots: slots[:, :, :capacity], cache.layers))


def write(cache: KVCache, new: Sequence[Pair], rows: jax.Array, starts: jax.Array) -> KVCache:
    """Write new [R, K, C, H] into the cache's rows [R] from slots starts [R] on.

    What doesn't fit, starts + C > S or a row that the cache hasn't got, is left out whole. Rows must differ.
    """
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 2, 3), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0, 2)
    )
    where = jnp.stack([rows, starts], axis=1)

    def put(slots: jax.Array, piece: jax.Array) -> jax.Array:
        return jax.lax.scatter(
            slots, where, piece, numbers, mode=jax.lax.GatherScatterMode.FILL_OR_DROP, unique_indices=True
        )

    return KVCache(
        tuple((put(k, a), put(v, b)) for (k, v), (a, b) in zip(cache.layers, new, strict=True)),
    )


def flush(cache: KVCache, tail: KVCache, lengths: jax.Array) -> KVCache:
    """Move the tail behind each row's `lengths` [B] tokens. A row needs lengths + T <= S, or nothing is moved."""
    return write(cache, tail.layers, jnp.arange(lengths.shape[0]), lengths)


# Up to so many queries of a group XLA's CPU backend takes less time for one after the other (docs/lab/sampler.md).
_FEW_QUERIES = 4


def _products(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Inner products [B, K, N, S] of queries [B, K, N, H] and keys [B, K, S, H].

    On CPUs a product of matrices packs and turns all of the keys first, one of a matrix and a vector reads them as they
    lie. A GPU wants few, large products.
    """

    def together(queries: jax.Array, keys: jax.Array) -> jax.Array:
        return jnp.einsum("bknh,bksh->bkns", queries, keys)

    def one_by_one(queries: jax.Array, keys: jax.Array) -> jax.Array:
        count = queries.shape[2]
        return jnp.stack([jnp.einsum("bkh,bksh->bks", queries[:, :, n], keys) for n in range(count)], axis=2)

    if queries.shape[2] > _FEW_QUERIES:
        return together(queries, keys)
    return jax.lax.platform_dependent(queries, keys, cpu=one_by_one, default=together)


def attend(queries: jax.Array, parts: Sequence[Part]) -> jax.Array:
    """Attention of queries [B, C, K, Q, H] over several parts at once -> [B, C, K, Q, H].

    One softmax over all parts, whose keys and values stay apart. Each query must see something.
    """
    b, c, k, q, h = queries.shape
    # One plain batched product per part: with five-dimensional operands XLA's CPU backend takes twice as long.
    flat = jnp.transpose(queries, (0, 2, 3, 1, 4)).reshape(b, k, q * c, h)

    def scores(keys: jax.Array, seen: jax.Array) -> jax.Array:
        found = _products(flat, keys).astype(jnp.float32)
        return jnp.where(seen, found.reshape(b, k, q, c, -1), -jnp.inf)

    found = [scores(keys, seen) for keys, _, seen in parts]
    largest = functools.reduce(jnp.maximum, [jnp.max(s, axis=-1, keepdims=True) for s in found])
    shares = [jnp.exp(s - largest).reshape(b, k, q * c, -1) for s in found]
    total = functools.reduce(jnp.add, [jnp.sum(e, axis=-1, keepdims=True) for e in shares])
    mixed = functools.reduce(
        jnp.add,
        [
            jnp.einsum("bkrs,bksh->bkrh", e.astype(values.dtype), values).astype(jnp.float32)
            for e, (_, values, _) in zip(shares, parts, strict=True)
        ],
    )
    return jnp.transpose((mixed / total).reshape(b, k, q, c, h), (0, 3, 1, 2, 4)).astype(queries.dtype)


def prefill(
    params: Params,
    cfg: ModelConfig,
    cache: KVCache,
    rows: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    *,
    capacity: int,
) -> KVCache:
    """Put tokens [R, C] into the cache's rows [R], at positions starts [R] and after.

    `capacity`: slots of the cache that are looked at, at least the largest of starts. Chunks may be padded at the
    right, and a chunk of a row that the cache hasn't got (B or more) is dropped. Needs starts + C <= S.
    """
    count, width = tokens.shape
    positions = starts[:, None] + jnp.arange(width)[None, :]
    before = (jnp.arange(capacity)[None, :] < starts[:, None])[:, None, None, None, :]
    causal = jnp.tril(jnp.ones((width, width), bool))[None, None, None]

    def masks(window: int) -> tuple[jax.Array, jax.Array]:
        """Which tokens of the chunk, and which slots before it, a chunk's tokens see."""
        if not window:
            return causal, before
        recent = jnp.arange(capacity)[None, None, :] > positions[:, :, None] - window
        return jnp.triu(causal, 1 - window), before & recent[:, None, None]

    def attend_chunk(kind: LayerKind, old: Pair) -> Attention:
        see_chunk, see_before = masks(kind.window)

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Pair]:
            k, v = jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
            parts: list[Part] = [(k, v, see_chunk)]
            if capacity:
                keys, values = (jnp.take(slots, rows, axis=0, mode="clip")[:, :, :capacity] for slots in old)
                parts.append((keys, values, see_before))
            return attend(q, parts), (k, v)

        return attention

    dtype = cache.layers[0][0].dtype
    _, new = transformer.run_model(params, cfg, tokens, positions, attend_chunk, cache.layers, dtype=dtype)
    return write(cache, new, rows, starts)


def decode_step(
    params: Params,
    cfg: ModelConfig,
    seen: KVCache,
    tail: KVCache,
    tokens: jax.Array,
    lengths: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """Run one token a row: tokens [B] at positions lengths + step, whose keys and values go to slot `step` of the tail.

    `seen` holds the `lengths` [B] tokens before this dispatch, slots 0 to step - 1 of the tail those of its steps so
    far. Returns (hidden [B, D] after the final norm, tail).
    """
    see_seen = (jnp.arange(seen.capacity)[None, :] < lengths[:, None])[:, None, None, None, :]
    see_tail = (jnp.arange(tail.capacity) <= step)[None, None, None, None, :]

    def masks(window: int) -> tuple[jax.Array, jax.Array]:
        """Which slots of the cache and of the tail the step's tokens see."""
        if not window:
            return see_seen, see_tail
        last = (lengths + step - window)[:, None, None, None, None]
        in_tail = jnp.arange(tail.capacity)[None, None, None, None, :] > step - window
        return see_seen & (jnp.arange(seen.capacity)[None, None, None, None, :] > last), see_tail & in_tail

    def attend_step(kind: LayerKind, memory: tuple[Pair, Pair]) -> Attention:
        old, recent = memory
        in_seen, in_tail = masks(kind.window)

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Pair]:
            place = (0, 0, step, 0)
            k, v = (
                jax.lax.dynamic_update_slice(slots, jnp.moveaxis(one, 1, 2), place)
                for slots, one in zip(recent, (k, v), strict=True)
            )
            return attend(q, [(*old, in_seen), (k, v, in_tail)]), (k, v)

        return attention

    positions, memory = (lengths + step)[:, None], tuple(zip(seen.layers, tail.layers, strict=True))
    dtype = tail.layers[0][0].dtype
    hidden, pairs = transformer.run_model(params, cfg, tokens[:, None], positions, attend_step, memory, dtype=dtype)
    return hidden[:, 0], KVCache(pairs)
