"""Attention of one query a row over keys and values that lie in pages: a kernel for GPUs, and the slow reference.

A cache [P, K, S, H] is P pages of S slots each; a row's table names its pages in the order of its tokens, so that token
t of row b lies in page tables[b, t // S] at slot t % S. The kernel reads the pages where they are, and of each row no
more pages than its tokens fill. Its programs are a row's key/value head and a part of its pages each (split keys, as in
flash decoding): every one keeps a running maximum m, the sum l of exp(score - m) and the sum of exp(score - m) * value,
and `merge` puts the parts together, with others that were computed elsewhere.

Letters in shapes: B rows, K key/value heads, Q query heads per key/value head, H head width, P pages, S slots of a
page, N pages of a table.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

# The smallest matrix that a tensor core multiplies: fewer queries of a group are padded.
_LEAST_QUERIES = 16
# Programs that keep a large card busy (an H100 has 132 multiprocessors), and most parts of a row.
_PROGRAMS, _MOST_PARTS = 512, 16
# Below every score, but finite: -inf minus itself is NaN.
_LOWEST = -1e30


class Partial(NamedTuple):
    """Softmax attention over a part of the keys, before it is divided: all float32.

    mixed [..., H] is the sum of exp(score - largest) * value, total [...] the sum of exp(score - largest), and
    largest [...] the largest score, or a very small number where the part is empty.
    """

    mixed: jax.Array
    total: jax.Array
    largest: jax.Array


def merge(parts: Sequence[Partial]) -> jax.Array:
    """The attention [..., H], float32, over all parts at once. One of them must not be empty."""
    largest = functools.reduce(jnp.maximum, [part.largest for part in parts])
    shares = [jnp.exp(part.largest - largest) for part in parts]
    total = sum(part.total * share for part, share in zip(parts, shares, strict=True))
    mixed = sum(part.mixed * share[..., None] for part, share in zip(parts, shares, strict=True))
    return jnp.asarray(mixed) / jnp.asarray(total)[..., None]


def kernel_fits(width: int, slots: int) -> bool:
    """Whether the kernel can be used for heads of `width` in pages of `slots`: powers of two from 16 on."""
    return all(n >= 16 and n & (n - 1) == 0 for n in (width, slots))


def parts_of(rows: int, heads: int) -> int:
    """Into how many parts the kernel splits a row's pages: enough programs for a large card, 4 to 16."""
    return min(max(-(-_PROGRAMS // (rows * heads)), 4), _MOST_PARTS)


def paged_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    tables: jax.Array,
    starts: jax.Array,
    lengths: jax.Array,
    *,
    interpret: bool = False,
) -> Partial:
    """The kernel: queries [B, K, Q, H] (scaled) over a row's tokens from `starts` up to `lengths` -> Partial [B, K, Q].

    Args:
      keys, values: [P, K, S, H], in the queries' dtype.
      tables: int32 [B, N], page numbers in range for all tokens that are looked at.
      starts, lengths: int32 [B].
      interpret: on a machine without a GPU, slowly.
    Raises ValueError for a cache of more elements than the kernel's 32-bit offsets reach.
    """
    b, k, q, h = queries.shape
    pages, _, slots, _ = keys.shape
    if keys.size >= 2**31:
        raise ValueError(f"{keys.size} elements of one layer's keys on a device; the kernel reaches fewer than 2^31")
    padded, parts = max(_LEAST_QUERIES, pl.next_power_of_2(q)), parts_of(b, k)
    queries = jnp.pad(queries, ((0, 0), (0, 0), (0, padded - q), (0, 0)))
    whole = pl.BlockSpec((pages, None, slots, h), lambda row, head, part: (0, head, 0, 0))
    one = pl.BlockSpec((None,), lambda row, head, part: (row,))
    mixed, total, largest = pl.pallas_call(
        functools.partial(_kernel, slots=slots, parts=parts),
        grid=(b, k, parts),
        in_specs=[
            pl.BlockSpec((None, None, padded, h), lambda row, head, part: (row, head, 0, 0)),
            whole,
            whole,
            pl.BlockSpec((None, tables.shape[1]), lambda row, head, part: (row, 0)),
            one,
            one,
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, padded, h), lambda row, head, part: (row, head, part, 0, 0)),
            pl.BlockSpec((None, None, None, padded), lambda row, head, part: (row, head, part, 0)),
            pl.BlockSpec((None, None, None, padded), lambda row, head, part: (row, head, part, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((b, k, parts, padded, h), jnp.float32),
            jax.ShapeDtypeStruct((b, k, parts, padded), jnp.float32),
            jax.ShapeDtypeStruct((b, k, parts, padded), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="paged_attention",
    )(queries, keys, values, tables, starts, lengths)
    mixed, total, largest = mixed[:, :, :, :q], total[:, :, :, :q], largest[:, :, :, :q]
    most = jnp.max(largest, axis=2)
    shares = jnp.exp(largest - most[:, :, None])
    return Partial(jnp.sum(mixed * shares[..., None], axis=2), jnp.sum(total * shares, axis=2), most)


def _kernel(
    q_ref: jax.Ref,  # [Q, H]
    k_ref: jax.Ref,  # [P, S, H]
    v_ref: jax.Ref,  # [P, S, H]
    table_ref: jax.Ref,  # [N]
    start_ref: jax.Ref,  # []
    length_ref: jax.Ref,  # []
    mixed_ref: jax.Ref,  # [Q, H]
    total_ref: jax.Ref,  # [Q]
    largest_ref: jax.Ref,  # [Q]
    *,
    slots: int,
    parts: int,
) -> None:
    queries, start, length = q_ref[...], start_ref[...], length_ref[...]
    count, width = queries.shape
    tf32 = False if queries.dtype == jnp.float32 else None  # not by tensor cores' 10 bits
    first, end = start // slots, (length + slots - 1) // slots
    share = (jnp.maximum(end - first, 0) + parts - 1) // parts
    begin = first + pl.program_id(2) * share

    def add_page(index: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        mixed, total, largest = carry
        page = table_ref[index]
        scores = triton.dot(queries, k_ref[page], trans_b=True, allow_tf32=tf32)
        at = index * slots + jnp.arange(slots)
        seen = jnp.broadcast_to(((at >= start) & (at < length))[None], (count, slots))
        scores = jnp.where(seen, scores, _LOWEST)
        most = jnp.maximum(largest, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - most[:, None]), 0.0)
        old = jnp.exp(largest - most)
        values = v_ref[page]
        mixed = mixed * old[:, None] + triton.dot(weights.astype(values.dtype), values, allow_tf32=tf32)
        return mixed, total * old + jnp.sum(weights, axis=1), most

    empty = (jnp.zeros((count, width)), jnp.zeros((count,)), jnp.full((count,), _LOWEST))
    mixed, total, largest = jax.lax.fori_loop(begin, jnp.minimum(begin + share, end), add_page, empty)
    mixed_ref[...], total_ref[...], largest_ref[...] = mixed, total, largest


def slow_paged_attention(
    queries: jax.Array, keys: jax.Array, values: jax.Array, tables: jax.Array, starts: jax.Array, lengths: jax.Array
) -> Partial:
    """What `paged_attention` computes, from a contiguous copy of all pages of the tables."""
    b, k, q, h = queries.shape
    gathered = [jnp.moveaxis(pool[tables], 2, 1).reshape(b, k, -1, h).astype(jnp.float32) for pool in (keys, values)]
    at = jnp.arange(gathered[0].shape[2])[None]
    seen = (at >= starts[:, None]) & (at < lengths[:, None])
    scores = jnp.einsum("bkqh,bksh->bkqs", queries.astype(jnp.float32), gathered[0])
    scores = jnp.where(seen[:, None, None], scores, _LOWEST)
    largest = jnp.max(scores, axis=-1)
    weights = jnp.where(seen[:, None, None], jnp.exp(scores - largest[..., None]), 0.0)
    return Partial(jnp.einsum("bkqs,bksh->bkqh", weights, gathered[1]), jnp.sum(weights, axis=-1), largest)
