"""Episodes -> TokenBatches: rows of one or several whole episodes, grouped by length. Host side, NumPy arrays.

Nothing is decoded or tokenized here: a row is its episodes' ids exactly as they were prompted and sampled, and tokens
of one see nothing of another (`segment_ids`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlef_jax.ppo import values
from rlef_jax.ppo.rows import rows_by_bucket
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.reward import has_weight, turn_rewards
from rlef_jax.types import Episode

PADDING = -1
"""Marks a place of `index` that holds no episode."""


def pack(
    episodes: Sequence[Episode],
    *,
    buckets: tuple[int, ...],
    rows: int,
    max_turns: int,
    row_episodes: int = 1,
    invalid_penalty: float = -0.2,
    value_kind: str = "turn",
) -> tuple[list[TokenBatch], list[np.ndarray]]:
    """Lay episodes out in batches of exactly `rows` rows, each batch as long as one of the `buckets`.

    Each row goes to the smallest bucket that holds it. What is left of a bucket after its full batches moves up to the
    next one where that costs no further batch there. Several episodes share a row only where that takes fewer token
    slots in all than a row for each. The order is a function of the arguments alone.

    Args:
      episodes: finished episodes.
      buckets: row lengths T in tokens; each one used means one compilation.
      rows: B, rows a batch; unused ones are padding with weight 0.
      max_turns: turns an episode.
      row_episodes: E, episodes that may share a row: each longest first into the fullest row with room for it. Those
        that don't count share none with those that do.
      invalid_penalty: reward of a turn that isn't the last and holds no valid code.
      value_kind: of what a value is, see `ppo/values.py`.

    Returns:
      (batches, index): `index[i][b]` are the positions in `episodes` of what row b of batch i holds, `PADDING` for
      none: int32 [B, E]. A row has N = E * max_turns turns; its segments are numbered 1, 2, ... in order. old_logp,
      ref_logp, advantages, returns and old_values are zero until `prepare_iteration` fills them.

    Raises:
      ValueError: an episode is longer than the largest bucket, has more than `max_turns` turns, or has a turn
        without sampled tokens; an unknown `value_kind`.
    """
    if rows < 1 or row_episodes < 1 or not buckets:
        raise ValueError(f"need a row, an episode in it and a bucket: {rows=}, {row_episodes=}, {buckets=}")
    batches, index = [], []
    lengths, counts = [len(episode.token_ids) for episode in episodes], [has_weight(episode) for episode in episodes]
    for bucket, members in rows_by_bucket(lengths, counts, sorted(set(buckets)), rows, row_episodes):
        for first in range(0, len(members), rows):
            chosen = members[first : first + rows]
            arrays = empty_arrays(rows, bucket, max_turns * row_episodes, value_kind)
            places = np.full((rows, row_episodes), PADDING, np.int32)
            for row, numbers in enumerate(chosen):
                places[row, : len(numbers)] = numbers
                _fill_row(arrays, row, [episodes[n] for n in numbers], max_turns, invalid_penalty)
            batches.append(TokenBatch(**arrays))
            index.append(places)
    return batches, index


def empty_arrays(rows: int, length: int, turns: int, value_kind: str = "turn") -> dict[str, Any]:
    """The fields of a TokenBatch that holds nothing but padding: `[rows, length]`, `[rows, turns]` and `[rows]`."""
    tokens, per_turn, per_value = (rows, length), (rows, turns), values.shape(value_kind, rows, length, turns)
    return {
        "tokens": np.zeros(tokens, np.int32),
        "positions": np.zeros(tokens, np.int32),
        "segment_ids": np.zeros(tokens, np.int32),
        "action_mask": np.zeros(tokens, np.float32),
        "turn_index": np.zeros(tokens, np.int32),
        "behavior_logp": np.zeros(tokens, np.float32),
        "old_logp": np.zeros(tokens, np.float32),
        "ref_logp": np.zeros(tokens, np.float32),
        "advantages": np.zeros(tokens, np.float32),
        "turn_positions": np.zeros(per_turn, np.int32),
        "turn_mask": np.zeros(per_turn, np.float32),
        "turn_rewards": np.zeros(per_turn, np.float32),
        "turn_episode": np.zeros(per_turn, np.int32),
        "episode_index": np.zeros(per_turn, np.int32),
        "returns": np.zeros(per_value, np.float32),
        "old_values": np.zeros(per_value, np.float32),
        "weight": np.zeros((rows,), np.float32),
        "value_kind": value_kind,
    }


def _fill_row(
    arrays: dict[str, Any], row: int, episodes: Sequence[Episode], max_turns: int, invalid_penalty: float
) -> None:
    """Write episodes into one row, one behind the other. Each of their stretches is a segment."""
    start, first_turn, segment = 0, 0, 1
    for number, episode in enumerate(episodes, start=1):
        if len(episode.turns) > max_turns:
            raise ValueError(f"episode {episode.index} has {len(episode.turns)} turns, more than max_turns={max_turns}")
        _fill_episode(arrays, row, episode, start, first_turn)
        for length in episode.stretches:
            arrays["segment_ids"][row, start : start + length] = segment
            arrays["positions"][row, start : start + length] = np.arange(length)
            start, segment = start + length, segment + 1
        its_turns = slice(first_turn, first_turn + len(episode.turns))
        arrays["turn_rewards"][row, its_turns] = turn_rewards(episode, invalid_penalty=invalid_penalty)
        arrays["turn_episode"][row, its_turns] = number
        arrays["episode_index"][row, its_turns] = episode.index
        first_turn = its_turns.stop
    arrays["weight"][row] = 1.0 if has_weight(episodes[0]) else 0.0


def _fill_episode(arrays: dict[str, Any], row: int, episode: Episode, at: int, first_turn: int) -> None:
    """Write an episode's tokens from token `at` of a row on, and its turns from turn `first_turn` on."""
    length = len(episode.token_ids)
    arrays["tokens"][row, at : at + length] = episode.token_ids
    start = at
    for number, turn in enumerate(episode.turns):
        start += len(turn.prompt_delta_ids)
        end = start + len(turn.response_ids)
        if end == start or start == at:
            raise ValueError(f"episode {episode.index}, turn {number + 1}: a turn needs a prompt and a sampled token")
        arrays["action_mask"][row, start:end] = 1.0
        arrays["turn_index"][row, start:end] = first_turn + number
        arrays["behavior_logp"][row, start:end] = turn.behavior_logp
        # The state that the value sees is everything up to, and nothing after, the turn's prompt.
        arrays["turn_positions"][row, first_turn + number] = start - 1
        arrays["turn_mask"][row, first_turn + number] = 1.0
        start = end
