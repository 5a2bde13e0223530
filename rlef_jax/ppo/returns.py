"""KL-penalised turn rewards, returns and normalized advantages (RLEF, section 2.2). Host side, NumPy.

With N turns, response tokens a_t1..a_tJ of turn t, old policy pi and reference rho (the initial policy):

    R_t = r_t - beta * mean_j(log pi(a_tj) - log rho(a_tj))
    G_t = R_t + G_{t+1},   G_{N+1} = 0                        (no discount)
    A_t = G_t - V_old(c_t),   then   A_t <- (A_t - mean) / std   over the iteration's valid turns

The mean over a response's tokens is the logarithm of the geometric mean of their probabilities: a sum would reward
short answers, above all in turns that aren't the last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

VARIANCE_FLOOR = 1e-8
"""Added to the variance, so that an iteration whose advantages are all equal isn't scaled up from rounding noise."""


def turn_means(per_token: ArrayLike, action_mask: ArrayLike, turn_index: ArrayLike, turns: int) -> np.ndarray:
    """Mean of a per-token quantity over each turn's sampled tokens.

    Args:
      per_token: [B, T] float.
      action_mask: [B, T], 1 where the token was sampled.
      turn_index: [B, T] int, the turn that each sampled token belongs to.
      turns: N.

    Returns:
      [B, N] float64, 0 for a turn without sampled tokens.
    """
    belongs = (np.asarray(turn_index)[:, :, None] == np.arange(turns)) * np.asarray(action_mask, np.float64)[:, :, None]
    sums = np.einsum("bt,btn->bn", np.asarray(per_token, np.float64), belongs)
    return sums / np.maximum(belongs.sum(axis=1), 1.0)


def penalised_rewards(rewards: ArrayLike, kl: ArrayLike, beta: float, turn_mask: ArrayLike) -> np.ndarray:
    """R_t = r_t - beta * kl_t, all [B, N]; 0 where `turn_mask` is 0."""
    return (np.asarray(rewards, np.float64) - beta * np.asarray(kl, np.float64)) * np.asarray(turn_mask, np.float64)


def returns_to_go(rewards: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """G_t = sum of R_i over i >= t of the same `episode`, both [B, N]. Rewards of absent turns must be 0."""
    returns = np.array(rewards, np.float64)
    for turn in range(returns.shape[1] - 2, -1, -1):
        returns[:, turn] += np.where(episode[:, turn] == episode[:, turn + 1], returns[:, turn + 1], 0.0)
    return returns


def normalized(advantages: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Shift and scale all arrays together to mean 0 and standard deviation 1 over the entries whose mask is 1.

    Args:
      advantages: arrays [B, N], one per batch of the iteration.
      masks: same shapes; 1 for a valid turn of an episode that counts.

    Returns:
      float64 arrays of the same shapes, 0 where the mask is 0.
    """
    keep = [np.asarray(mask, bool) for mask in masks]
    valid = np.concatenate([a[k] for a, k in zip(advantages, keep, strict=True)] or [np.zeros(0)])
    if not valid.size:
        return [np.zeros_like(a, np.float64) for a in advantages]
    mean, scale = valid.mean(), np.sqrt(valid.var() + VARIANCE_FLOOR)
    return [np.where(k, (a - mean) / scale, 0.0) for a, k in zip(advantages, keep, strict=True)]


def to_tokens(per_turn: np.ndarray, turn_index: ArrayLike, action_mask: ArrayLike) -> np.ndarray:
    """Give every sampled token its turn's number: [B, N] -> [B, T], 0 on tokens that weren't sampled."""
    return np.take_along_axis(per_turn, np.asarray(turn_index), axis=1) * np.asarray(action_mask)
