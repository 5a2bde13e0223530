"""Attention of a row to itself, for training: blocks of queries with a backward pass of their own, or a library's.

Letters in shapes: B rows, T tokens, K key/value heads, R query heads per key/value head, H head width, Q queries of a
block, S keys that a block may see.

With probabilities P = exp(S - L), L the logsumexp of a query's scores, and o = P v, the gradients for do are

    dv = P^T do,   dS = P * (do v^T - rowsum(do * o)),   dq = dS k,   dk = dS^T q

so that o and L are all that the forward pass must keep (Dao et al., 2022): P is made again, a block at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

ATTENTION = ("blocks", "dot_product")
# Kinds of attention by `jax.nn.dot_product_attention`, and its implementations.
_LIBRARY: dict[str, Literal["xla", "cudnn"]] = {"dot_product": "xla", "cudnn": "cudnn"}
KEPT = "attention"  # the name under which rematerialisation policies find what the forward pass keeps

# A block of queries attends only to the keys up to its own end: with four blocks to a row five eighths of the causal
# square are computed. The shortest block and the longest:
_QUERY_BLOCKS = (32, 128)

Attention = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


def row_attention(segment_ids: jax.Array, kind: str = "blocks", window: int = 0) -> Attention:
    """The attention of rows [B, T] whose tokens see the earlier ones of their own segment, and themselves.

    Args:
      segment_ids: int32 [B, T].
      kind: "blocks" knows segments. "dot_product" is `jax.nn.dot_product_attention` as XLA compiles it, "cudnn" is
        cuDNN's kernel for the same, on GPUs alone. They know no segments: a row may hold one, from its first token on,
        and padding behind it.
      window: a token sees no more than so many, itself among them; 0 is all.

    Returns:
      (queries [B, T, K, R, H] divided by sqrt(H), keys [B, T, K, H], values [B, T, K, H]) -> ([B, T, K, R, H], None).
    """
    if kind in _LIBRARY:
        return functools.partial(_library_attention, _LIBRARY[kind], window)

    def attention(queries: jax.Array, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, None]:
        # Heads in front of tokens: the products are then batches of plain matrices.
        heads = jnp.moveaxis(queries, 1, 3), jnp.moveaxis(keys, 1, 2), jnp.moveaxis(values, 1, 2)
        return jnp.moveaxis(_by_blocks(*heads, segment_ids, window), 3, 1), None

    return attention


def _library_attention(
    implementation: Literal["xla", "cudnn"], window: int, queries: jax.Array, keys: jax.Array, values: jax.Array
) -> tuple[jax.Array, None]:
    b, t, k, r, h = queries.shape
    attended = jax.nn.dot_product_attention(
        queries.reshape(b, t, k * r, h), keys, values, scale=1.0, is_causal=True,
        local_window_size=(window - 1, 0) if window else None,
        implementation=implementation,
    )  # fmt: skip
    return attended.reshape(queries.shape), None


def _blocks(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """(first key, first query, end of both) of each block: without a window the first key is 0."""
    least, most = _QUERY_BLOCKS
    block = min(max(length // 64 * 16, least), most)
    for start in range(0, length, block):
        yield max(start - window + 1, 0) if window else 0, start, min(start + block, length)


def _scores(
    q: jax.Array, k: jax.Array, segments: jax.Array, window: int, first: int, start: int, end: int
) -> jax.Array:
    """Scores [B, K, R, Q, S] (float32) of queries start to end for keys first to end; -inf where one may not look."""
    b, heads, r, _, h = q.shape
    block = q[:, :, :, start:end].reshape(b, heads, r * (end - start), h)
    scores = jnp.einsum("bkqh,bksh->bkqs", block, k[:, :, first:end], preferred_element_type=jnp.float32)
    same = segments[:, start:end, None] == segments[:, None, first:end]
    causal = jnp.arange(start, end)[:, None] >= jnp.arange(first, end)[None, :]
    if window:
        causal &= jnp.arange(start, end)[:, None] - jnp.arange(first, end)[None, :] < window
    seen = (same & causal[None])[:, None, None]
    return jnp.where(seen, scores.reshape(b, heads, r, end - start, end - first), -jnp.inf)


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """(o [B, K, R, T, H], logsumexps [B, K, R, T])."""
    b, heads, r, length, h = q.shape
    outputs, normalizers = [], []
    for first, start, end in _blocks(length, window):
        scores = _scores(q, k, segments, window, first, start, end)
        largest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        flat = weights.astype(v.dtype).reshape(b, heads, -1, end - first)
        mixed = jnp.einsum("bkqs,bksh->bkqh", flat, v[:, :, first:end], preferred_element_type=jnp.float32)
        outputs.append((mixed.reshape(b, heads, r, -1, h) / total).astype(v.dtype))
        normalizers.append((largest + jnp.log(total))[..., 0])
    return jnp.concatenate(outputs, axis=3), jnp.concatenate(normalizers, axis=3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _by_blocks(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int) -> jax.Array:
    """o [B, K, R, T, H] of q [B, K, R, T, H], k and v [B, K, T, H], segments [B, T]."""
    return _forward(q, k, v, segments, window)[0]


def _keep(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, window: int
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    out, normalizers = (checkpoint_name(kept, KEPT) for kept in _forward(q, k, v, segments, window))
    return out, (q, k, v, segments, out, normalizers)


def _backward(
    window: int, kept: tuple[jax.Array, ...], d_out: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    q, k, v, segments, out, normalizers = kept
    b, heads, r, length, h = q.shape
    inner = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    d_q = []
    # Transposed: on a CPU the products that fill these are four times as fast so.
    d_k, d_v = (jnp.zeros((b, heads, h, length), jnp.float32) for _ in range(2))
    for first, start, end in _blocks(length, window):
        size = r * (end - start)
        scores = _scores(q, k, segments, window, first, start, end)
        weights = jnp.exp(scores - normalizers[:, :, :, start:end, None]).reshape(b, heads, size, end - first)
        d_block, q_block = (a[:, :, :, start:end].reshape(b, heads, size, h) for a in (d_out, q))
        d_weights = jnp.einsum("bkqh,bksh->bkqs", d_block, v[:, :, first:end], preferred_element_type=jnp.float32)
        d_scores = weights * (d_weights - inner[:, :, :, start:end].reshape(b, heads, size, 1))
        weights, d_scores = weights.astype(v.dtype), d_scores.astype(v.dtype)
        d_q.append(jnp.einsum("bkqs,bksh->bkqh", d_scores, k[:, :, first:end]).reshape(b, heads, r, -1, h))
        d_v = d_v.at[..., first:end].add(jnp.einsum("bkqs,bkqh->bkhs", weights, d_block))
        d_k = d_k.at[..., first:end].add(jnp.einsum("bkqs,bkqh->bkhs", d_scores, q_block))
    d_k, d_v = (jnp.swapaxes(d, 2, 3).astype(v.dtype) for d in (d_k, d_v))
    return jnp.concatenate(d_q, axis=3), d_k, d_v, None


_by_blocks.defvjp(_keep, _backward)
