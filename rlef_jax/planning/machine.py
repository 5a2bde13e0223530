"""This machine as a `Card`: how fast it multiplies matrices of a model's sizes, and how fast it moves their results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlef_jax.model.transformer import ModelConfig
from rlef_jax.planning.costs import Card


def measure(cfg: ModelConfig, tokens: int, repeats: int = 5) -> Card:
    """The first device's speeds, float32, each the best of `repeats`.

    Products: those of a feed-forward layer in training, x [tokens, D] times W [D, F] and its two gradients, together.
    Memory: a sum of two arrays [tokens, F] into a third. There are no links: it stands for a single device.
    Arrays have at most 16 MiB: malloc hands those out again instead of asking the system for new pages.
    """
    tokens = min(tokens, 2**22 // cfg.d_ff)
    x, y = jnp.ones((tokens, cfg.d_model)), jnp.ones((tokens, cfg.d_ff))
    weights = jnp.ones((cfg.d_model, cfg.d_ff))

    def products(x: jax.Array, weights: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
        return x @ weights, y @ weights.T, x.T @ y

    multiplied = 3 * 2.0 * tokens * cfg.d_model * cfg.d_ff / _seconds(jax.jit(products), x, weights, y, repeats=repeats)
    added = 3 * y.nbytes / _seconds(jax.jit(jnp.add), y, y + 1, repeats=repeats)
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Card(multiplied, memory, added, float("inf"), float("inf"))


def _seconds(function: Callable[..., Any], *arguments: jax.Array, repeats: int) -> float:
    """Of one call, the best; the first, which compiles and touches new memory, isn't counted."""
    jax.block_until_ready(function(*arguments))
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - began)
    return best
