"""The key/value cache: pages that dialogues are given as they grow. Chunks of prompts go in, decoding steps read it.

A page is S slots of one dialogue, or free. A row's *table* names its dialogue's pages in the order of its tokens: the
token at position p of a row lies in page table[p // S] at slot p % S. A number that no page has, such as P, stands for
a page that isn't there. Decoding doesn't write to pages: the steps of one dispatch keep their keys and values in a
small *tail*, step i of every row in slot i, so that each step writes one slice in place and what lies in the cache
stays as it is while they run; `write` moves the tail behind the rows' ends afterwards. Slots at and behind a row's end
are never looked at, so padding may be written there. What a row reads depends on nothing but its own tokens.

Nothing copies the cache. A GPU's kernel reads the pages where they are (`paged_attention.py`). Elsewhere a dispatch
begins with a contiguous copy of its rows' pages (`gather`), which costs less than reading single pages at each step.

On a mesh the pages are split over the axes of rows: each shard of rows has a pool of its own, and tables hold the
numbers that a page has in its shard. Key/value heads are split over `tensor`.

`params` have their layers apart here (`unstack`): decoding reads each layer's weights where they are.

Shapes: P pages of a shard, S slots of a page, B rows, N pages of a table, T slots of the tail, R rows of a chunk, C its
tokens, K key/value heads, Q query heads per key/value head, H head width, D model width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlef_jax.model import transformer
from rlef_jax.model.attention import Attention
from rlef_jax.model.cached_attention import Part, attend, attend_by_cudnn, attend_part
from rlef_jax.model.lora import split
from rlef_jax.model.paged_attention import kernel_fits, merge, paged_attention
from rlef_jax.model.parameters import Parameter, adapted_layers, describe
from rlef_jax.model.products import OutputMajor
from rlef_jax.model.sharding import ROWS
from rlef_jax.model.transformer import LayerKind, ModelConfig, Params

Pair = tuple[jax.Array, jax.Array]

# What is split over a mesh: [P or B, K, ...]; what `take` gives; [B, C, K, ...]; masks of rows, masks of all rows.
POOL = PartitionSpec(*ROWS, "tensor")
MOVED = PartitionSpec(*ROWS, None, None, None, "tensor")
_QUERIES = PartitionSpec(*ROWS, None, "tensor")
_SEEN, _SAME = ROWS, PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Where:
    """Where a cache lies, and how attention reaches it there.

    Attributes:
      mesh: None is one device.
      kernel: decoding reads pages by the kernel for GPUs; `interpret`: in Pallas' interpreter.
      cudnn: prompts are attended to by cuDNN.
    """

    mesh: Mesh | None = None
    kernel: bool = False
    interpret: bool = False
    cudnn: bool = False

    def on_shards(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """The function of each shard's own parts."""
        if self.mesh is None or self.mesh.size == 1:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def reached(mesh: Mesh, cfg: ModelConfig, slots: int, dtype: Any) -> Where:
    """How a cache in pages of `slots` is best reached on a mesh's devices, which needn't be there."""
    gpu = mesh.devices.flat[0].platform in ("gpu", "cuda")
    half = jnp.dtype(dtype).itemsize == 2
    return Where(
        mesh,
        kernel=gpu and kernel_fits(cfg.d_head, slots),
        cudnn=gpu and half and cfg.d_head % 8 == 0 and cfg.d_head <= 128,
    )


@flax.struct.dataclass
class KVCache:
    """One (keys, values) pair of [P, K, S, H] per layer, in separate arrays: a stack would be copied each step."""

    layers: tuple[Pair, ...]

    @property
    def capacity(self) -> int:
        """Slots of a page (S)."""
        return self.layers[0][0].shape[2]


def init_cache(cfg: ModelConfig, pages: int, slots: int, dtype: Any = jnp.float32) -> KVCache:
    """An empty cache: zeros, since a masked slot must still be finite."""
    shape = (pages, cfg.n_kv_heads, slots, cfg.d_head)
    return KVCache(tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(cfg.n_layers)))


def turned_layer(layers: Params, index: int | jax.Array, cfg: ModelConfig, dtype: Any = None) -> Params:
    """The parameters at `index` of stacked `layers`, all or some, matrices with outputs first, in `dtype` (None: as
    they are)."""
    described = describe(cfg)["layers"]

    def turned(p: Parameter, stack: jax.Array) -> jax.Array | OutputMajor:
        array = jax.lax.dynamic_index_in_dim(stack, index, keepdims=False)
        array = array if dtype is None else array.astype(dtype)
        return OutputMajor(jnp.moveaxis(array, range(p.inputs), range(-p.inputs, 0))) if p.inputs else array

    return {name: turned(described[name], stack) for name, stack in layers.items()}


def unstack(params: Params, cfg: ModelConfig) -> Params:
    """The same parameters with a tuple of layers in place of the stack, and their matrices with outputs first."""
    base, adapters = split(params["layers"])
    layers = [turned_layer(base, index, cfg) for index in range(cfg.n_layers)]
    first = cfg.n_layers - adapted_layers(cfg)
    for index in range(first, cfg.n_layers):
        layers[index] |= turned_layer(adapters, index - first, cfg)
    return {**params, "layers": tuple(layers)}


def unstacked_shardings(shardings: Params, cfg: ModelConfig) -> Params:
    """Where `unstack`'s results lie, for stacked parameters that lie as `shardings` (a NamedSharding each) say."""
    described = describe(cfg)["layers"]

    def turned(p: Parameter, sharding: NamedSharding) -> NamedSharding | OutputMajor:
        axes = (*sharding.spec, *[None] * len(p.shape))[1 : len(p.shape)]
        spec = NamedSharding(sharding.mesh, PartitionSpec(*axes[p.inputs :], *axes[: p.inputs]))
        return OutputMajor(spec) if p.inputs else spec  # type: ignore[arg-type]

    layer = {name: turned(described[name], sharding) for name, sharding in shardings["layers"].items()}
    adapted = adapted_layers(cfg)
    return {**shardings, "layers": (split(layer)[0],) * (cfg.n_layers - adapted) + (layer,) * adapted}


def gather(cache: KVCache, tables: jax.Array, capacity: int, where: Where) -> KVCache:
    """A contiguous copy [B, K, capacity, H] of the first slots of the rows whose pages are in tables [B, N].

    What lies in pages that a table hasn't got is some finite number.
    """
    slots = cache.capacity
    count = -(-capacity // slots)

    def one(pool: jax.Array, tables: jax.Array) -> jax.Array:
        b, (_, k, _, h) = len(tables), pool.shape
        numbers = jax.lax.GatherDimensionNumbers(offset_dims=(1, 3, 4), collapsed_slice_dims=(0,), start_index_map=(0,))
        pages = jax.lax.gather(
            pool, tables[:, :count, None], numbers, (1, k, slots, h), mode=jax.lax.GatherScatterMode.CLIP
        )
        return pages.reshape(b, k, count * slots, h)[:, :, :capacity]

    on_shards = where.on_shards(one, (POOL, ROWS), POOL)
    return KVCache(jax.tree.map(lambda pool: on_shards(pool, tables), cache.layers))


def write(cache: KVCache, new: Sequence[Pair], tables: jax.Array, starts: jax.Array, where: Where) -> KVCache:
    """Write new [R, K, C, H] into the pages of rows with tables [R, N], from their slots starts [R] on, in place.

    A token whose page the table hasn't got is left out. Rows must not share pages.
    """
    slots, names = cache.capacity, tables.shape[1]
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1, 3), inserted_window_dims=(0, 2), scatter_dims_to_operand_dims=(0, 2)
    )

    def put(pool: jax.Array, piece: jax.Array, tables: jax.Array, starts: jax.Array) -> jax.Array:
        at = starts[:, None] + jnp.arange(piece.shape[2])[None, :]
        number = at // slots
        page = jnp.take_along_axis(tables, jnp.minimum(number, names - 1), axis=1)
        place = jnp.stack([jnp.where(number < names, page, len(pool)), at % slots], axis=-1)
        return jax.lax.scatter(
            pool, place, piece, numbers, mode=jax.lax.GatherScatterMode.FILL_OR_DROP, unique_indices=True
        )

    on_shards = where.on_shards(put, (POOL, POOL, ROWS, ROWS), POOL)
    return KVCache(
        tuple(
            (on_shards(k, a, tables, starts), on_shards(v, b, tables, starts))
            for (k, v), (a, b) in zip(cache.layers, new, strict=True)
        )
    )


def take(cache: KVCache, pages: jax.Array, where: Where) -> jax.Array:
    """The contents [D, L, 2, M, K, S, H] of the pages [D, M] of each of the D shards of rows."""

    def one(layers: tuple[Pair, ...], pages: jax.Array) -> jax.Array:
        found = [jnp.stack([jnp.take(pool, pages[0], axis=0, mode="clip") for pool in pair]) for pair in layers]
        return jnp.stack(found)[None]

    return where.on_shards(one, (POOL, ROWS), MOVED)(cache.layers, pages)


def put(cache: KVCache, pages: jax.Array, contents: jax.Array, where: Where) -> KVCache:
    """Puts what `take` gave into the pages [D, M], of which those that aren't there are left out, in place."""

    def one(layers: tuple[Pair, ...], pages: jax.Array, contents: jax.Array) -> tuple[Pair, ...]:
        return tuple(
            (
                keys.at[pages[0]].set(contents[0, layer, 0], mode="drop", unique_indices=True),
                values.at[pages[0]].set(contents[0, layer, 1], mode="drop", unique_indices=True),
            )
            for layer, (keys, values) in enumerate(layers)
        )

    return KVCache(where.on_shards(one, (POOL, ROWS, MOVED), POOL)(cache.layers, pages, contents))


def prefill(
    params: Params,
    cfg: ModelConfig,
    cache: KVCache,
    tables: jax.Array,
    tokens: jax.Array,
    starts: jax.Array,
    *,
    capacity: int,
    where: Where,
) -> KVCache:
    """Put tokens [R, C] into the rows with tables [R, N], at positions starts [R] and after.

    `capacity`: slots of the rows that are looked at, at least the largest of starts. Chunks may be padded at the
    right: what has no page is dropped, and so is all of a chunk whose table is empty.
    """
    width = tokens.shape[1]
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
                [(keys, values)] = gather(KVCache((old,)), tables, capacity, where).layers
                parts.append((keys, values, see_before))
            if not where.cudnn:
                return attend(q, parts), (k, v)
            by_cudnn = where.on_shards(
                lambda q, *parts: attend_by_cudnn(q, parts, kind.window),
                (_QUERIES, *[(POOL, POOL, _SEEN if part[2].shape[0] > 1 else _SAME) for part in parts]),
                _QUERIES,
            )
            return by_cudnn(q, *parts), (k, v)

        return attention

    dtype = cache.layers[0][0].dtype
    _, new = transformer.run_model(params, cfg, tokens, positions, attend_chunk, cache.layers, dtype=dtype)
    return write(cache, new, tables, starts, where)


def decode_step(
    params: Params,
    cfg: ModelConfig,
    seen: KVCache,
    tail: KVCache,
    tokens: jax.Array,
    lengths: jax.Array,
    step: jax.Array,
    *,
    tables: jax.Array | None = None,
    where: Where | None = None,
) -> tuple[jax.Array, KVCache]:
    """Run one token a row: tokens [B] at positions lengths + step, whose keys and values go to slot `step` of the tail.

    `seen` holds the `lengths` [B] tokens before this dispatch, slots 0 to step - 1 of the tail those of its steps so
    far. `seen` is a contiguous copy (`gather`); or with `tables` [B, N] and `where` the pages themselves, which a GPU's
    kernel reads. Returns (hidden [B, D] after the final norm, tail).
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

    def attend_pages(q: jax.Array, old: Pair, recent: Part, window: int) -> jax.Array:
        assert where is not None
        starts = jnp.maximum(lengths + step - window + 1, 0) if window else jnp.zeros_like(lengths)
        kernel = where.on_shards(
            functools.partial(paged_attention, interpret=where.interpret), (POOL, POOL, POOL, ROWS, ROWS, ROWS), POOL
        )
        queries = q[:, 0]
        found = merge([kernel(queries, *old, tables, starts, lengths), attend_part(queries, *recent)])
        return found[:, None].astype(q.dtype)

    def attend_step(kind: LayerKind, memory: tuple[Pair, Pair]) -> Attention:
        old, recent = memory
        in_seen, in_tail = masks(kind.window)

        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Pair]:
            place = (0, 0, step, 0)
            k, v = (
                jax.lax.dynamic_update_slice(slots, jnp.moveaxis(one, 1, 2), place)
                for slots, one in zip(recent, (k, v), strict=True)
            )
            if tables is not None:
                return attend_pages(q, old, (k, v, in_tail), kind.window), (k, v)
            return attend(q, [(*old, in_seen), (k, v, in_tail)]), (k, v)

        return attention

    positions, memory = (lengths + step)[:, None], tuple(zip(seen.layers, tail.layers, strict=True))
    dtype = tail.layers[0][0].dtype
    hidden, pairs = transformer.run_model(params, cfg, tokens[:, None], positions, attend_step, memory, dtype=dtype)
    return hidden[:, 0], KVCache(pairs)
