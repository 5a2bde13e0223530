"""The distribution that tokens are drawn from: temperature, top-k, top-p, and an exact inverse-CDF draw.

Pure functions of one row's logits, settings and uniform number, so that a draw depends on nothing else in its batch.
Probabilities are kept as weights that needn't sum to one: a vocabulary is read as rarely as possible.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def weights(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Weights [B, V], float32, in proportion to the probabilities at temperature [B] (above 0) of logits [B, V]."""
    logits = logits.astype(jnp.float32)
    return jnp.exp((logits - jnp.max(logits, axis=-1, keepdims=True)) / temperature[:, None])


def modified_weights(logits: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Weights [B, V] after temperature, then top-k, then top-p; each row has settings of its own ([B]).

    top_k keeps the k likeliest tokens (0: all); top_p keeps the smallest set of likeliest tokens whose share of what
    is left reaches top_p (1: all). Tokens tied with the least likely one kept are kept too. Temperature 0 puts
    everything on the first likeliest token. Rows that cut nothing get `weights`, bit for bit.
    """
    greedy = temperature == 0.0
    likeliest = jnp.argmax(logits, axis=-1)
    found = weights(logits, jnp.where(greedy, 1.0, temperature))
    found = _keep_likeliest(found, jnp.ones_like(found), top_k.astype(jnp.float32), top_k > 0)
    found = _keep_likeliest(found, found, top_p * jnp.sum(found, axis=-1), top_p < 1.0)
    only = jnp.arange(logits.shape[-1])[None, :] == likeliest[:, None]
    return jnp.where(greedy[:, None], only.astype(found.dtype), found)


def _keep_likeliest(found: jax.Array, measure: jax.Array, target: jax.Array, rows: jax.Array) -> jax.Array:
    """Zero, in the given rows [B] (bool), all but the likeliest tokens whose summed measure [B, V] reaches target [B].

    Bisects on the bits of the threshold: floats that are not negative are ordered as their bits are. That takes 31
    sums where sorting the vocabulary would take much longer on CPU.
    """
    bits = jax.lax.bitcast_convert_type(found, jnp.int32)

    def narrow(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # a threshold of `low` reaches the target, one of `high` doesn't
        middle = low + (high - low) // 2
        reached = jnp.sum(jnp.where(bits >= middle[:, None], measure, 0.0), axis=-1) >= target
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    low = jnp.zeros(target.shape, jnp.int32)
    high = jnp.max(bits, axis=-1) + 1
    low, _ = jax.lax.fori_loop(0, 31, narrow, (low, high))
    return jnp.where((bits >= low[:, None]) | ~rows[:, None], found, 0.0)


def inverse_cdf(found: jax.Array, uniforms: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One token per row, int32 [B]: the first whose cumulative share of weights [B, V] exceeds uniforms [B] in [0, 1);
    and the sum of each row's weights [B].

    Searches sums of about sqrt(V) tokens, then the tokens of one such chunk. Never returns a token of weight 0,
    whatever the rounding.
    """
    rows, vocabulary = found.shape
    width = _chunk_width(vocabulary)
    chunks = jnp.pad(found, ((0, 0), (0, -vocabulary % width))).reshape(rows, -1, width)
    sums = jnp.sum(chunks, axis=-1)
    total = jnp.sum(sums, axis=-1)
    chunk, below = _first_above(sums, uniforms * total)
    inside = jnp.take_along_axis(chunks, chunk[:, None, None], axis=1)[:, 0]
    offset, _ = _first_above(inside, below)
    return chunk * width + offset, total


def _chunk_width(vocabulary: int) -> int:
    """A divisor of the vocabulary near its root, so that it needn't be padded; the root itself where there is none."""
    root = max(1, math.isqrt(vocabulary))
    divisors = [n for n in range(max(1, root // 4), 4 * root + 1) if vocabulary % n == 0]
    return min(divisors, key=lambda n: max(n / root, root / n), default=root)


def _first_above(found: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First index [B] with positive weight at which the running sum of weights [B, n] exceeds target [B] (else the
    last positive one), and what of the target is left there."""
    running = jnp.cumsum(found, axis=-1)
    positive = found > 0
    above = positive & (running > target[:, None])
    last = found.shape[-1] - 1 - jnp.argmax(positive[:, ::-1], axis=-1)
    index = jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), last).astype(jnp.int32)
    at = jnp.arange(found.shape[-1])[None, :] < index[:, None]
    return index, jnp.maximum(target - jnp.sum(jnp.where(at, found, 0.0), axis=-1), 0.0)
