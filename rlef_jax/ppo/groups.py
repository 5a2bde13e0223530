"""Advantages without a critic: each rollout of a problem against the others of its group. Host side, NumPy.

With the outcomes G_1..G_K of the K episodes of a group that count, an outcome being the whole episode's return:

    rloo       A_k = G_k - mean of the others' G                   (Ahmadian et al. 2024; Kool et al. 2019)
    grpo       A_k = (G_k - mean) / (std + 1e-4)                   (Shao et al. 2024, section 4.1.2)
    dr_grpo    A_k = G_k - mean                                    (Liu et al. 2025, "Dr. GRPO")

`std` is the sample standard deviation (K - 1 below), and 1e-4 is there for groups of equal outcomes, as in the
implementations of TRL. One A is for all turns and tokens of its episode (docs/method.md has the reasons). An episode
without another to compare it with has the advantage 0: it teaches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlef_jax.ppo.token_batch import TokenBatch

STD_FLOOR = 1e-4
"""Added to the standard deviation."""


def compared(outcomes: np.ndarray, groups: np.ndarray, baseline: str) -> np.ndarray:
    """Advantages of episodes that count.

    Args:
      outcomes: [K] float, an episode's return.
      groups: [K] int, equal for episodes of one group.
      baseline: "rloo", "grpo" or "dr_grpo".

    Returns:
      [K] float64.

    Raises:
      ValueError: an unknown baseline.
    """
    if baseline not in ("rloo", "grpo", "dr_grpo"):
        raise ValueError(f"no group baseline {baseline!r}")
    outcomes = np.asarray(outcomes, np.float64)
    _, group = np.unique(groups, return_inverse=True)
    size = np.bincount(group)[group]
    others = np.maximum(size - 1, 1)
    apart = np.where(size > 1, outcomes - (np.bincount(group, outcomes)[group] / size), 0.0)
    if baseline == "rloo":
        return apart * size / others
    if baseline == "grpo":
        return apart / (np.sqrt(np.bincount(group, apart**2)[group] / others) + STD_FLOOR)
    return apart


def group_advantages(
    batches: Sequence[TokenBatch], returns: Sequence[np.ndarray], *, baseline: str, group_size: int
) -> list[np.ndarray]:
    """The advantage of each turn's episode.

    A group is the episodes of an iteration whose indexes have the same quotient by `group_size`; those that don't count
    are in no statistic.

    Args:
      batches: packed, of all of an iteration's updates: a group's episodes may lie in any of them.
      returns: [B, turns] of each, returns to go; an episode's own is that of its first turn.
      baseline: see `compared`.
      group_size: as in the module's text.

    Returns:
      float64 arrays [B, turns], 0 for absent turns and rows that don't count.
    """
    firsts = [_first_turns(b) for b in batches]
    outcomes = [g[first] for g, first in zip(returns, firsts, strict=True)]
    groups = [np.asarray(b.episode_index)[first] // group_size for b, first in zip(batches, firsts, strict=True)]
    if not outcomes:
        return []
    found = compared(np.concatenate(outcomes), np.concatenate(groups), baseline)
    each = np.split(found, np.cumsum([len(o) for o in outcomes])[:-1])
    return [_over_episodes(a, first, b) for a, first, b in zip(each, firsts, batches, strict=True)]


def _first_turns(batch: TokenBatch) -> np.ndarray:
    """[B, turns] bool: the first turns of episodes that count."""
    episode = np.asarray(batch.turn_episode)
    before = np.concatenate([np.zeros_like(episode[:, :1]), episode[:, :-1]], axis=1)
    return (episode > 0) & (episode != before) & (np.asarray(batch.weight)[:, None] > 0)


def _over_episodes(advantages: np.ndarray, first: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """Advantages of the episodes whose first turns these are, in order -> [B, turns], that of each turn's episode."""
    episode, turns = np.asarray(batch.turn_episode), np.zeros(first.shape, np.float64)
    turns[first] = advantages
    for turn in range(1, turns.shape[1]):
        later = (episode[:, turn] > 0) & (episode[:, turn] == episode[:, turn - 1])
        turns[:, turn] = np.where(later, turns[:, turn - 1], turns[:, turn])
    return turns
