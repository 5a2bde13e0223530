"""What an update reads: rows of packed episodes as arrays."""

from __future__ import annotations

import flax.struct
import jax


@flax.struct.dataclass
class TokenBatch:
    """Rows for the update: B rows of T tokens and N turns each (padded).

    Per-token arrays are aligned to the *predicted* token: entry [b, t] belongs to `tokens[b, t]`, whose distribution is
    computed at position t - 1. Turn positions point at the last token of each turn's prompt: the position whose next
    token is the turn's first sampled one.
    """

    tokens: jax.Array  # [B, T] int32
    positions: jax.Array  # [B, T] int32
    segment_ids: jax.Array  # [B, T] int32, 0 = padding: tokens see those of their own segment
    action_mask: jax.Array  # [B, T] float32, 1 where tokens[b, t] was sampled
    turn_index: jax.Array  # [B, T] int32, the turn that a sampled token belongs to (0 elsewhere)
    behavior_logp: jax.Array  # [B, T] float32
    old_logp: jax.Array  # [B, T] float32
    ref_logp: jax.Array  # [B, T] float32
    advantages: jax.Array  # [B, T] float32
    turn_positions: jax.Array  # [B, N] int32
    turn_mask: jax.Array  # [B, N] float32
    turn_rewards: jax.Array  # [B, N] float32, r_t without the KL term
    turn_episode: jax.Array  # [B, N] int32, which of its row's episodes a turn belongs to: 1, 2, ..., 0 where absent
    episode_index: jax.Array  # [B, N] int32, that episode's `Episode.index`, 0 where absent
    returns: jax.Array  # [B, N] float32, what each value has to predict; [B, T] by "token"
    old_values: jax.Array  # as returns
    weight: jax.Array  # [B] float32, 0 for rows that must not count (infra errors, padding rows)
    below: jax.Array | None = None  # [B, T, D], states behind the layers below adapters; None where they are run again
    value_kind: str = flax.struct.field(pytree_node=False, default="turn")  # of what a value is: `ppo/values.py`
