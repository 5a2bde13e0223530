"""What stays fixed for an iteration: returns, advantages, and the scores that they are made of. Pure, host side, NumPy.

`returns` has the formulas, `groups` those without a critic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlef_jax.ppo import returns as turn_returns
from rlef_jax.ppo import values
from rlef_jax.ppo.groups import group_advantages
from rlef_jax.ppo.settings import CRITIC, TargetSettings
from rlef_jax.ppo.token_batch import TokenBatch


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the policy, its critic and the reference policy say of a batch as the iteration starts.

    Attributes:
      logp, ref_logp: [B, T] float32 log-probabilities of sampled tokens, 0 for others.
      values: [B, N] float32, see `ppo/values.py`; None without a critic.
    """

    logp: np.ndarray
    values: np.ndarray | None
    ref_logp: np.ndarray


def compute_targets(
    batches: Sequence[TokenBatch], scores: Sequence[Scores], settings: TargetSettings
) -> list[TokenBatch]:
    """The batches of an iteration with `old_logp`, `ref_logp`, `old_values`, `returns` and `advantages`.

    Args:
      batches: packed, of all of the iteration's updates: advantages are normalized over them together.
      scores: of each batch.
      settings: how they are made.

    Raises:
      ValueError: a baseline that needs values, and batches or scores without any, or the other way round.
    """
    filled, raw, masks, outcomes = [], [], [], []
    for batch, score in zip(batches, scores, strict=True):
        if {score.values is not None, batch.value_kind != "none"} != {settings.baseline == CRITIC}:
            raise ValueError(f"the baseline {settings.baseline!r} doesn't go with values of kind {batch.value_kind!r}")
        mask = values.mask(batch)
        old_values = np.zeros_like(mask) if score.values is None else score.values
        targets = _returns(_rewards(batch, score, settings), old_values, batch, settings)
        filled.append(
            _with(batch, old_logp=score.logp, ref_logp=score.ref_logp, old_values=old_values, returns=targets * mask)
        )
        outcomes.append(targets)
        raw.append((targets - old_values) * mask)
        masks.append(mask)
    if settings.baseline != CRITIC:
        raw = group_advantages(batches, outcomes, baseline=settings.baseline, group_size=settings.group_size)
    scaled = turn_returns.normalized(raw, masks) if settings.normalize_advantages else raw
    return [_with(b, advantages=values.to_tokens(a, b)) for b, a in zip(filled, scaled, strict=True)]


def _rewards(batch: TokenBatch, score: Scores, settings: TargetSettings) -> np.ndarray:
    """R_t [B, turns], 0 for absent turns and rows that don't count."""
    turns = batch.turn_mask * batch.weight[:, None]
    over_tokens = turn_returns.turn_means if settings.kl == "mean" else turn_returns.turn_sums
    kl = over_tokens(score.logp - score.ref_logp, batch.action_mask, batch.turn_index, turns.shape[1])
    return turn_returns.penalised_rewards(batch.turn_rewards, kl, settings.kl_beta, turns)


def _returns(rewards: np.ndarray, old_values: np.ndarray, batch: TokenBatch, settings: TargetSettings) -> np.ndarray:
    """Rewards [B, turns] and values [B, N] -> G [B, N]."""
    if settings.gamma == settings.gae_lambda == 1.0:  # all values of a turn have one target, and none enters it
        return values.of_turns(turn_returns.returns_to_go(rewards, np.asarray(batch.turn_episode)), batch)
    return turn_returns.lambda_returns(
        values.at_last(rewards, batch), old_values, values.episodes(batch),
        gamma=settings.gamma, gae_lambda=settings.gae_lambda,
    )  # fmt: skip


def _with(batch: TokenBatch, **arrays: Any) -> TokenBatch:
    """The batch with some of its float fields replaced, as float32."""
    fields: dict[str, Any] = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
    return dataclasses.replace(batch, **fields)
