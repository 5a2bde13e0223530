"""Where values lie and what an update counts: here alone it is said what a value belongs to.

`returns` and `old_values` have an entry for each value, [B, N]. `TokenBatch.value_kind` says of what:

    turn     a turn's is read at the last token of its prompt (RLEF, section 2.2): N turns
    token    a sampled token's is read at the token before it, whose next one it is (B.6): N = T
    none     no critic, no values: returns are of turns

A turn's reward is had at its last value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from rlef_jax.model.value import next_token_values
from rlef_jax.model.value import values as values_at
from rlef_jax.ppo import returns
from rlef_jax.ppo.token_batch import TokenBatch

KINDS = ("turn", "token", "none")
# What losses are divided by, counted over a whole update, and the metrics that tell of it.
TOKENS, VALUES = "tokens", "values"
METRICS = {TOKENS: "action_tokens", VALUES: "values"}


def shape(kind: str, rows: int, length: int, turns: int) -> tuple[int, int]:
    """[B, N] for rows of so many tokens and turns. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"a value is of a {' or '.join(KINDS)}, not of a {kind!r}")
    return rows, length if kind == "token" else turns


def read(head: dict[str, jax.Array], hidden: jax.Array, batch: TokenBatch) -> jax.Array:
    """Values [B, N], float32, from hidden [B, T, D]; any for absent ones."""
    if batch.value_kind == "token":
        return next_token_values(head, hidden)
    return values_at(head, hidden, batch.turn_positions)


def mask(batch: TokenBatch) -> Any:
    """[B, N] float32: 1 for values, or returns, of rows that count."""
    return token_mask(batch) if batch.value_kind == "token" else batch.turn_mask * batch.weight[:, None]


def token_mask(batch: TokenBatch) -> Any:
    """[B, T] float32: 1 for sampled tokens of rows that count."""
    return batch.action_mask * batch.weight[:, None]


def of_turns(per_turn: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """[B, turns] -> [B, N]: to each value its turn's number."""
    if batch.value_kind == "token":
        return returns.to_tokens(per_turn, batch.turn_index, batch.action_mask)
    return per_turn


def at_last(per_turn: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """[B, turns] -> [B, N]: to each turn's last value its number, 0 to others."""
    if batch.value_kind != "token":
        return per_turn
    sampled, turn = np.asarray(batch.action_mask) > 0, np.asarray(batch.turn_index)
    goes_on = np.zeros_like(sampled)
    goes_on[:, :-1] = sampled[:, 1:] & (turn[:, 1:] == turn[:, :-1])
    return np.where(goes_on, 0.0, of_turns(per_turn, batch))


def episodes(batch: TokenBatch) -> np.ndarray:
    """[B, N] int: which of its row's episodes a value belongs to: 1, 2, ..., 0 where absent."""
    return of_turns(np.asarray(batch.turn_episode), batch).astype(np.int32)


def to_tokens(per_value: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """[B, N] -> [B, T]: each sampled token's number is that of its value, 0 elsewhere."""
    if batch.value_kind == "token":
        return per_value * np.asarray(batch.action_mask)
    return returns.to_tokens(per_value, batch.turn_index, batch.action_mask)


def by_turn(per_value: ArrayLike, batch: TokenBatch) -> np.ndarray:
    """[B, N] -> [B, turns]: the mean over a turn's values."""
    if batch.value_kind == "token":
        return returns.turn_means(per_value, batch.action_mask, batch.turn_index, batch.turn_mask.shape[1])
    return np.asarray(per_value)


def count(microbatches: Sequence[TokenBatch]) -> dict[str, np.float32]:
    """{TOKENS, VALUES: how many of an update's count} over all of its micro-batches; 0 values without a critic."""
    tokens = sum(float((np.asarray(b.action_mask).sum(1) * np.asarray(b.weight)).sum()) for b in microbatches)
    predicted = [np.asarray(mask(b)) for b in microbatches if b.value_kind != "none"]
    return {TOKENS: np.float32(tokens), VALUES: np.float32(sum(float(m.sum()) for m in predicted))}


def metrics(counts: Mapping[str, np.float32]) -> dict[str, float]:
    """The counts under their metrics' names."""
    return {METRICS[name]: float(value) for name, value in counts.items()}
