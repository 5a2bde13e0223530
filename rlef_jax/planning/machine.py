"""Measures this machine as a `Card`: speed of matrix products of a model's sizes, and memory bandwidth."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlef_jax.model.transformer import ModelConfig
from rlef_jax.planning.target import Card


def measure(cfg: ModelConfig, tokens: int, repeats: int = 5) -> Card:
    """The first device's speeds in float32, each the best of `repeats`.

    Products: a feed-forward layer in training, x [tokens, D] times W [D, F] and its two gradients, together. Memory:
    the sum of two arrays [tokens, F]. Links are infinitely fast, since there is only one device. Arrays have at most
    16 MiB, which malloc reuses instead of requesting new pages.
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
    """Seconds of the fastest of `repeats` calls, after a first one that compiles and touches new memory."""
    jax.block_until_ready(function(*arguments))
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - began)
    return best
