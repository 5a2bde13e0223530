"""The sampling distribution: temperature, top-k, top-p, and an exact inverse-CDF draw.

Each row's result depends only on its own logits, settings and uniform number, not on its batch. Probabilities are
represented by unnormalised weights, which saves passes over the vocabulary.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def weights(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Weights [B, V], float32, proportional to the probabilities of logits [B, V] at temperature [B] (above 0)."""
    logits = logits.astype(jnp.float32)
    return jnp.exp((logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature[:, None])


def modified_weights(logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Weights [B, V] after temperature, then top-k, then top-p; the settings are per row ([B]).

    top_k keeps the k likeliest tokens (0: all). top_p keeps the smallest set of likeliest tokens whose share of the
    remaining weight reaches top_p (1: all). Both also keep tokens tied with the least likely one kept. Temperature 0
    puts all weight on the first likeliest token. Rows without top-k and top-p equal `weights` bit for bit.
    """
    greedy = temperature == 0.0
    likeliest = jnp.argmax(logits, axis=-1)
    row_weights = weights(logits, jnp.where(greedy, 1.0, temperature))
    row_weights = _keep_likeliest(row_weights, jnp.ones_like(row_weights), top_k.astype(jnp.float32), top_k > 0)
    row_weights = _keep_likeliest(row_weights, row_weights, top_p * jnp.sum(row_weights, axis=-1), top_p < 1.0)
    is_likeliest = jnp.arange(logits.shape[-1])[None, :] == likeliest[:, None]
    return jnp.where(greedy[:, None], is_likeliest.astype(row_weights.dtype), row_weights)


def _keep_likeliest(row_weights: jax.Array, measure: jax.Array, target: jax.Array, rows: jax.Array) -> jax.Array:
    """Zeroes, in `rows` [B] (bool), all but the likeliest tokens whose summed measure [B, V] reaches target [B].

    Bisects on the bits of the weight threshold: non-negative floats have the same order as their bits. This takes 31
    sums; sorting the vocabulary takes much longer on CPU.
    """
    bits = jax.lax.bitcast_convert_type(row_weights, jnp.int32)

    def narrow(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # a threshold of `low` reaches the target, one of `high` doesn't
        middle = low + (high - low) // 2
        reached = jnp.sum(jnp.where(bits >= middle[:, None], measure, 0.0), axis=-1) >= target
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    low = jnp.zeros(target.shape, jnp.int32)
    high = jnp.max(bits, axis=-1) + 1
    low, _ = jax.lax.fori_loop(0, 31, narrow, (low, high))
    return jnp.where((bits >= low[:, None]) | ~rows[:, None], row_weights, 0.0)


def inverse_cdf(row_weights: jax.Array, uniforms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws one token per row. Returns (tokens, int32 [B]; sum of each row's weights, [B]).

    The token is the first whose cumulative share of row_weights [B, V] exceeds uniforms [B] in [0, 1). Searches the
    sums of chunks of about sqrt(V) tokens, then one chunk. Never returns a token of weight 0, even with rounding.
    """
    rows, vocabulary = row_weights.shape
    width = _chunk_width(vocabulary)
    chunks = jnp.pad(row_weights, ((0, 0), (0, -vocabulary % width))).reshape(rows, -1, width)
    sums = jnp.sum(chunks, axis=-1)
    total = jnp.sum(sums, axis=-1)
    chunk, target = _first_above(sums, uniforms * total)
    chunk_weights = jnp.take_along_axis(chunks, chunk[:, None, None], axis=1)[:, 0]
    offset, _ = _first_above(chunk_weights, target)
    return chunk * width + offset, total


def _chunk_width(vocabulary: int) -> int:
    """A divisor of the vocabulary near its square root, to avoid padding; the root itself if there is none."""
    root = max(1, math.isqrt(vocabulary))
    divisors = [n for n in range(max(1, root // 4), 4 * root + 1) if vocabulary % n == 0]
    return min(divisors, key=lambda n: max(n / root, root / n), default=root)


def _first_above(row_weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(first index [B] with positive weight at which the running sum of weights [B, n] exceeds target [B], else the
    last positive one; target [B] minus the sum of the weights before that index)."""
    running = jnp.cumsum(row_weights, axis=-1)
    positive = row_weights > 0
    above = positive & (running > target[:, None])
    last = row_weights.shape[-1] - 1 - jnp.argmax(positive[:, ::-1], axis=-1)
    index = jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), last).astype(jnp.int32)
    before = jnp.arange(row_weights.shape[-1])[None, :] < index[:, None]
    return index, jnp.maximum(target - jnp.sum(jnp.where(before, row_weights, 0.0), axis=-1), 0.0)
