"""Episodes -> TokenBatches: one episode a row, rows grouped by length bucket. Host side, NumPy arrays.

Nothing is decoded or tokenized here: a row is the episode's ids exactly as they were prompted and sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlef_jax.reward import counts, turn_rewards
from rlef_jax.types import Episode, TokenBatch

PADDING = -1
"""Marks a row of `index` that holds no episode."""


def pack(
    episodes: Sequence[Episode],
    *,
    buckets: tuple[int, ...],
    rows: int,
    max_turns: int,
    invalid_penalty: float = -0.2,
) -> tuple[list[TokenBatch], list[np.ndarray]]:
    """Lay episodes out in batches of exactly `rows` rows, each batch as long as one of the `buckets`.

    Each episode goes to the smallest bucket that holds it. What is left of a bucket after its full batches moves up
    to the next one where that costs no further batch there. The order is a function of the arguments alone.

    Args:
      episodes: finished episodes.
      buckets: row lengths T in tokens; each one used means one compilation.
      rows: B, rows a batch; unused ones are padding with weight 0.
      max_turns: N, turns a row.
      invalid_penalty: reward of a turn that isn't the last and holds no valid code.

    Returns:
      (batches, index): `index[i][b]` is the position in `episodes` of row b of batch i, `PADDING` for none.
      old_logp, ref_logp, advantages, returns and old_values are zero until `prepare_iteration` fills them.

    Raises:
      ValueError: an episode is longer than the largest bucket, has more than `max_turns` turns, or has a turn
        without sampled tokens.
    """
    if rows < 1 or not buckets:
        raise ValueError(f"need at least one row and one bucket, got rows={rows} and buckets={buckets}")
    lengths = [len(episode.token_ids) for episode in episodes]
    batches, index = [], []
    for bucket, members in _assign(lengths, sorted(set(buckets)), rows):
        for first in range(0, len(members), rows):
            chosen = members[first : first + rows]
            arrays = empty_arrays(rows, bucket, max_turns)
            for row, number in enumerate(chosen):
                _fill_row(arrays, row, episodes[number], max_turns, invalid_penalty)
            batches.append(TokenBatch(**arrays))
            index.append(np.asarray(chosen + [PADDING] * (rows - len(chosen)), np.int32))
    return batches, index


def empty_arrays(rows: int, length: int, turns: int) -> dict[str, Any]:
    """The fields of a TokenBatch that holds nothing but padding: `[rows, length]`, `[rows, turns]` and `[rows]`."""
    tokens, per_turn = (rows, length), (rows, turns)
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
        "returns": np.zeros(per_turn, np.float32),
        "old_values": np.zeros(per_turn, np.float32),
        "weight": np.zeros((rows,), np.float32),
    }


def _assign(lengths: list[int], buckets: list[int], rows: int) -> list[tuple[int, list[int]]]:
    """Which episodes (by position) go to which bucket, buckets ascending, each one's episodes in order."""
    members: dict[int, list[int]] = {bucket: [] for bucket in buckets}
    for number, length in enumerate(lengths):
        bucket = next((b for b in buckets if length <= b), None)
        if bucket is None:
            raise ValueError(
                f"episode {number} has {length} tokens but the largest bucket holds {buckets[-1]}: add a larger "
                "bucket to ppo.buckets or lower episode.context"
            )
        members[bucket].append(number)
    for small, large in zip(buckets, buckets[1:], strict=False):
        left = len(members[small]) % rows
        room = -len(members[large]) % rows
        if 0 < left <= room:
            members[large] = sorted(members[large] + members[small][-left:])
            del members[small][-left:]
    return list(members.items())


def _fill_row(arrays: dict[str, Any], row: int, episode: Episode, max_turns: int, invalid_penalty: float) -> None:
    """Write one episode into one row."""
    if len(episode.turns) > max_turns:
        raise ValueError(f"episode {episode.index} has {len(episode.turns)} turns, more than max_turns={max_turns}")
    length = len(episode.token_ids)
    arrays["tokens"][row, :length] = episode.token_ids
    arrays["positions"][row, :length] = np.arange(length)
    arrays["segment_ids"][row, :length] = 1
    start = 0
    for number, turn in enumerate(episode.turns):
        start += len(turn.prompt_delta_ids)
        end = start + len(turn.response_ids)
        if end == start or start == 0:
            raise ValueError(f"episode {episode.index}, turn {number + 1}: a turn needs a prompt and a sampled token")
        arrays["action_mask"][row, start:end] = 1.0
        arrays["turn_index"][row, start:end] = number
        arrays["behavior_logp"][row, start:end] = turn.behavior_logp
        # The state that the value sees is everything up to, and nothing after, the turn's prompt.
        arrays["turn_positions"][row, number] = start - 1
        arrays["turn_mask"][row, number] = 1.0
        start = end
    arrays["turn_rewards"][row, : len(episode.turns)] = turn_rewards(episode, invalid_penalty=invalid_penalty)
    arrays["weight"][row] = 1.0 if counts(episode) else 0.0
