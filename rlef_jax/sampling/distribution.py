"""The distribution that tokens are drawn from: temperature, top-k, top-p, and an exact inverse-CDF draw.

Pure functions of one row's logits and one uniform number, so that a draw depends on nothing else in its batch.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def modified_probs(logits: jax.Array, temperature: float, top_k: int, top_p: float) -> jax.Array:
    """Probabilities [B, V] after temperature, then top-k, then top-p, as float32 that sums to one.

    top_k keeps the k likeliest tokens (0: all); top_p keeps the smallest set of likeliest tokens whose share of what
    is left reaches top_p (1: all). Tokens tied with the least likely one kept are kept too. Temperature 0 puts
    everything on the first likeliest token.
    """
    if temperature == 0.0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    probs = jax.nn.softmax(logits.astype(jnp.float32) / temperature, axis=-1)
    if 0 < top_k < logits.shape[-1]:
        probs = _keep_likeliest(probs, jnp.ones_like(probs), jnp.full(probs.shape[:-1], float(top_k)))
    if top_p < 1.0:
        probs = _keep_likeliest(probs, probs, top_p * jnp.sum(probs, axis=-1))
    return probs / jnp.sum(probs, axis=-1, keepdims=True)


def _keep_likeliest(probs: jax.Array, weight: jax.Array, target: jax.Array) -> jax.Array:
    """Zero all but the likeliest tokens of each row whose summed weight [B, V] just reaches target [B].

    Bisects on the bits of the threshold: floats that are not negative are ordered as their bits are. That takes 31
    sums where sorting the vocabulary would take much longer on CPU.
    """
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def narrow(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds  # a threshold of `low` reaches the target, one of `high` doesn't
        middle = low + (high - low) // 2
        reached = jnp.sum(jnp.where(bits >= middle[:, None], weight, 0.0), axis=-1) >= target
        return jnp.where(reached, middle, low), jnp.where(reached, high, middle)

    low = jnp.zeros(target.shape, jnp.int32)
    high = jnp.max(bits, axis=-1) + 1
    low, _ = jax.lax.fori_loop(0, 31, narrow, (low, high))
    return jnp.where(bits >= low[:, None], probs, 0.0)


def inverse_cdf(probs: jax.Array, uniforms: jax.Array) -> jax.Array:
    """One token per row, int32 [B]: the first whose cumulative share of probs [B, V] exceeds uniforms [B] in [0, 1).

    Searches sums of about sqrt(V) tokens, then the tokens of one such chunk. Never returns a token of probability 0,
    whatever the rounding.
    """
    rows, vocabulary = probs.shape
    width = max(1, math.isqrt(vocabulary))
    chunks = jnp.pad(probs, ((0, 0), (0, -vocabulary % width))).reshape(rows, -1, width)
    sums = jnp.sum(chunks, axis=-1)
    chunk, below = _first_above(sums, uniforms * jnp.sum(sums, axis=-1))
    inside = jnp.take_along_axis(chunks, chunk[:, None, None], axis=1)[:, 0]
    offset, _ = _first_above(inside, below)
    return chunk * width + offset


def _first_above(weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First index [B] with positive weight at which the running sum of weights [B, n] exceeds target [B] (else the
    last positive one), and what of the target is left there."""
    running = jnp.cumsum(weights, axis=-1)
    positive = weights > 0
    above = positive & (running > target[:, None])
    last = weights.shape[-1] - 1 - jnp.argmax(positive[:, ::-1], axis=-1)
    index = jnp.where(above.any(axis=-1), jnp.argmax(above, axis=-1), last).astype(jnp.int32)
    at = jnp.arange(weights.shape[-1])[None, :] < index[:, None]
    return index, jnp.maximum(target - jnp.sum(jnp.where(at, weights, 0.0), axis=-1), 0.0)
