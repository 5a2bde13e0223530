"""What stays fixed for an iteration: returns, advantages, and the scores that they are made of. Pure, host side, NumPy.

`returns` has the formulas.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlef_jax.ppo import returns as turn_returns
from rlef_jax.ppo import values
from rlef_jax.ppo.settings import TargetSettings
from rlef_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the policy, its critic and the reference policy say of a batch as the iteration starts.

    Attributes:
      logp, ref_logp: [B, T] float32 log-probabilities of sampled tokens, 0 for others.
      values: [B, N] float32, see `ppo/values.py`.
    """

    logp: np.ndarray
    values: np.ndarray
    ref_logp: np.ndarray


def compute_targets(
    batches: Sequence[TokenBatch], scores: Sequence[Scores], settings: TargetSettings
) -> list[TokenBatch]:
    """The batches of an iteration with `old_logp`, `ref_logp`, `old_values`, `returns` and `advantages`.

    Args:
      batches: packed, of all of the iteration's updates: advantages are normalized over them together.
      scores: of each batch.
      settings: weight of the KL penalty, and whether to normalize.
    """
    filled, raw, masks = [], [], []
    for batch, score in zip(batches, scores, strict=True):
        turns = batch.turn_mask * batch.weight[:, None]
        kl = turn_returns.turn_means(score.logp - score.ref_logp, batch.action_mask, batch.turn_index, turns.shape[1])
        rewards = turn_returns.penalised_rewards(batch.turn_rewards, kl, settings.kl_beta, turns)
        to_go = turn_returns.returns_to_go(rewards, np.asarray(batch.turn_episode))
        targets, mask = values.of_turns(to_go, batch), values.mask(batch)
        filled.append(
            _with(batch, old_logp=score.logp, ref_logp=score.ref_logp, old_values=score.values, returns=targets * mask)
        )
        raw.append((targets - score.values) * mask)
        masks.append(mask)
    scaled = turn_returns.normalized(raw, masks) if settings.normalize_advantages else raw
    return [_with(b, advantages=values.to_tokens(a, b)) for b, a in zip(filled, scaled, strict=True)]


def _with(batch: TokenBatch, **arrays: Any) -> TokenBatch:
    """The batch with some of its float fields replaced, as float32."""
    fields: dict[str, Any] = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
    return dataclasses.replace(batch, **fields)
