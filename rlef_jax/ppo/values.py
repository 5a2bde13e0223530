"""Where values lie and what an update counts: here alone it is said that a value belongs to a turn.

`old_values` and `returns` have an entry for each value, [B, N]; the value of a turn is read at the last token of its
prompt. Values of another kind, such as one for each token, are other functions here and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlef_jax.ppo import returns
from rlef_jax.types import TokenBatch

# What losses are divided by, counted over a whole update, and the metrics that tell of it.
TOKENS, VALUES = "tokens", "turns"
METRICS = {TOKENS: "action_tokens", VALUES: "turns"}


def shape(rows: int, length: int, turns: int) -> tuple[int, int]:
    """[B, N] for rows of so many tokens and turns."""
    return rows, turns


def positions(batch: TokenBatch) -> Any:
    """[B, N] int32: the position whose hidden state a value is read from; any for absent values."""
    return batch.turn_positions


def mask(batch: TokenBatch) -> Any:
    """[B, N] float32: 1 for values of rows that count."""
    return batch.turn_mask * batch.weight[:, None]


def token_mask(batch: TokenBatch) -> Any:
    """[B, T] float32: 1 for sampled tokens of rows that count."""
    return batch.action_mask * batch.weight[:, None]


def of_turns(per_turn: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """[B, turns] -> [B, N]: what each value has to predict, its turn's number."""
    return per_turn


def to_tokens(per_value: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """[B, N] -> [B, T]: each sampled token's number is that of its value, 0 elsewhere."""
    return returns.to_tokens(per_value, batch.turn_index, batch.action_mask)


def count(microbatches: Sequence[TokenBatch]) -> dict[str, np.float32]:
    """{TOKENS, VALUES: how many of an update's count} over all of its micro-batches."""
    tokens = sum(float((np.asarray(b.action_mask).sum(1) * np.asarray(b.weight)).sum()) for b in microbatches)
    values = sum(float((np.asarray(b.turn_mask).sum(1) * np.asarray(b.weight)).sum()) for b in microbatches)
    return {TOKENS: np.float32(tokens), VALUES: np.float32(values)}


def metrics(counts: Mapping[str, np.float32]) -> dict[str, float]:
    """The counts under their metrics' names."""
    return {METRICS[name]: float(value) for name, value in counts.items()}
