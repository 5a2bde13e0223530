"""Attention over several parts of keys and values that stay apart: what lies in a cache, and what is new.

Letters in shapes: B rows, C queries of a row, K key/value heads, Q query heads per key/value head, H head width, S
keys.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlef_jax.model.paged_attention import Partial

# Keys and values [B, K, S, H], and which of the S may be seen: bool, broadcastable to [B, K, Q, C, S].
Part = tuple[jax.Array, jax.Array, jax.Array]

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


def attend_part(queries: jax.Array, keys: jax.Array, values: jax.Array, seen: jax.Array) -> Partial:
    """Attention of queries [B, K, Q, H] over one part alone, to be merged with others."""
    scores = jnp.einsum("bkqh,bksh->bkqs", queries, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[:, :, :, 0], scores, -jnp.inf)
    largest = jnp.max(scores, axis=-1)
    weights = jnp.exp(scores - largest[..., None])
    mixed = jnp.einsum("bkqs,bksh->bkqh", weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return Partial(mixed, jnp.sum(weights, axis=-1), largest)


def attend_by_cudnn(queries: jax.Array, parts: Sequence[Part], window: int) -> jax.Array:
    """The same as `attend` by cuDNN, for the chunks of `prefill`; the first of the parts is the chunk itself."""
    b, c, k, q, h = queries.shape
    keys, values = (jnp.concatenate([part[i] for part in parts], axis=2) for i in (0, 1))
    given: dict[str, Any] = dict(is_causal=True, local_window_size=(window - 1, 0) if window else None)
    if len(parts) > 1:
        masks = [jnp.broadcast_to(seen[:, 0, 0], (b, c, keys.shape[2])) for keys, _, seen in parts]
        given = dict(mask=jnp.concatenate(masks, axis=2)[:, None])
    attended = jax.nn.dot_product_attention(
        queries.reshape(b, c, k * q, h), jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2), scale=1.0,
        implementation="cudnn", **given,
    )  # fmt: skip
    return attended.reshape(queries.shape)
