"""Rotary position embeddings: each pair of channels turns with the position, at a frequency of its own.

Letters in shapes: B rows, T tokens, K key/value heads, R query heads per key/value head, H head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class RopeScaling(NamedTuple):
    """Llama 3.1's stretching of the slow rotary frequencies (`rope_type: llama3`), see `rope_frequencies`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: float


class LinearScaling(NamedTuple):
    """All frequencies divided by one number (`rope_type: linear`)."""

    factor: float


class YarnScaling(NamedTuple):
    """YaRN (Peng et al., 2023; `rope_type: yarn`), see `rope_frequencies`.

    `attention_factor` multiplies rotated queries and keys. `truncate`, 0 or 1: the bounds are rounded to whole pairs.
    """

    factor: float
    original_positions: float
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: float


Scaling = RopeScaling | LinearScaling | YarnScaling
Tables = tuple[jax.Array, jax.Array]


class LayerKind(NamedTuple):
    """What may differ between a model's layers. Layers of one kind run the same code.

    Whatever is added here reaches `block`'s caller and its attention in training, prefill and decoding. `window`: how
    many tokens a token sees, itself among them; 0 is all. `rotary`: queries and keys are rotated.
    """

    rope_theta: float
    rope_scaling: Scaling | None
    window: int = 0
    rotary: bool = True


def scaling_of(numbers: Sequence[float]) -> Scaling | None:
    """The scaling that `config.model.rope_scaling` writes as numbers: how many there are says which it is.

    Raises ValueError for numbers that no scaling has.
    """
    if not numbers:
        return None
    kinds = {len(kind._fields): kind for kind in (RopeScaling, LinearScaling, YarnScaling)}
    if len(numbers) not in kinds or not all(isinstance(n, int | float) and 0 <= n < math.inf for n in numbers):
        raise ValueError(f"rope_scaling={tuple(numbers)} must be 1 (linear), 4 (llama3) or 6 (yarn) numbers")
    scaling: Scaling = kinds[len(numbers)](*numbers)
    check_scaling(scaling)
    return scaling


def check_scaling(scaling: Scaling) -> None:
    """Raises ValueError where its numbers don't fit together."""
    if scaling.factor <= 0:
        raise ValueError(f"rope_scaling={tuple(scaling)}: factor must be above 0")
    if isinstance(scaling, RopeScaling) and not 0 < scaling.low_freq_factor < scaling.high_freq_factor:
        raise ValueError(f"rope_scaling={tuple(scaling)}: low_freq_factor must be below high_freq_factor")
    if isinstance(scaling, YarnScaling) and not 0 < scaling.beta_slow < scaling.beta_fast:
        raise ValueError(f"rope_scaling={tuple(scaling)}: beta_slow must be below beta_fast")
    if not isinstance(scaling, LinearScaling) and scaling.original_positions <= 0:
        raise ValueError(f"rope_scaling={tuple(scaling)}: original_positions must be above 0")


def rope_frequencies(kind: LayerKind, d_head: int) -> np.ndarray:
    """Radians a position of each pair of channels: float32 [H/2], theta^(-2i/H).

    Under Llama 3.1's scaling, wavelengths over original_positions / low_freq_factor are stretched by `factor`, those
    below original_positions / high_freq_factor are kept, and between them the share that is kept is linear in the
    frequency. Under YaRN it is linear in the pair's number i instead, between those that make `beta_fast` and
    `beta_slow` turns over original_positions.
    """
    half = d_head // 2
    frequencies = kind.rope_theta ** (-np.arange(half) / half)
    if isinstance(kind.rope_scaling, RopeScaling):
        factor, low, high, original = kind.rope_scaling
        turns = (
            original * frequencies / (2 * np.pi)
        )  # full turns over the positions that the model was first trained on
        kept_share = np.clip((turns - low) / (high - low), 0.0, 1.0)
        frequencies = frequencies * (kept_share + (1 - kept_share) / factor)
    elif isinstance(kind.rope_scaling, YarnScaling):
        kept_share = _kept_by_yarn(kind.rope_theta, kind.rope_scaling, half)
        frequencies = frequencies * (kept_share + (1 - kept_share) / kind.rope_scaling.factor)
    elif kind.rope_scaling is not None:
        frequencies = frequencies / kind.rope_scaling.factor
    return frequencies.astype(np.float32)


def _kept_by_yarn(theta: float, scaling: YarnScaling, half: int) -> np.ndarray:
    """The share of each pair's frequency that is kept: float64 [H/2]."""

    def pair(turns: float) -> float:
        """Which pair, a broken number, makes so many turns over the original positions."""
        return half * math.log(scaling.original_positions / (turns * 2 * math.pi)) / math.log(theta)

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    if first == last:
        last += 0.001
    return 1 - np.clip((np.arange(half) - first) / (last - first), 0.0, 1.0)


def rope_tables(kind: LayerKind, d_head: int, positions: jax.Array) -> Tables | None:
    """Cosines and sines [B, T, 1, 1, H/2] (float32) at positions [B, T]; None for layers that don't rotate."""
    if not kind.rotary:
        return None
    frequencies = rope_frequencies(kind, d_head)
    angles = positions.astype(jnp.float32)[:, :, None, None, None] * frequencies[None, None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if isinstance(kind.rope_scaling, YarnScaling):
        cos, sin = cos * kind.rope_scaling.attention_factor, sin * kind.rope_scaling.attention_factor
    return cos, sin


def apply_rope(x: jax.Array, rope: Tables) -> jax.Array:
    """Rotate x [B, T, K, R, H]: channel i is paired with i + H/2 (the convention of Hugging Face's weights)."""
    cos, sin = (table.astype(x.dtype) for table in rope)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
