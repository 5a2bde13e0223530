"""KL-penalised turn rewards, returns and normalized advantages (RLEF, section 2.2). Host side, NumPy.

With N turns, response tokens a_t1..a_tJ of turn t, old policy pi and reference rho (the initial policy):

    R_t = r_t - beta * mean_j(log pi(a_tj) - log rho(a_tj))
    G_t = R_t + G_{t+1},   G_{N+1} = 0                        (no discount)
    A_t = G_t - V_old(c_t),   then   A_t <- (A_t - mean) / std   over the iteration's valid turns

The mean over a response's tokens is the logarithm of the geometric mean of their probabilities: a sum, that of their
product, would reward short answers, above all in turns that aren't the last. `turn_sums` is there to show it.

`lambda_returns` generalizes G to a discount and to bootstrapping by values; with a value for each token, V and A are
per token and G_t is the same for all tokens of turn t (B.6).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

VARIANCE_FLOOR = 1e-8
"""Added to the variance, so that an iteration whose advantages are all equal isn't scaled up from rounding noise."""


def turn_sums(per_token: ArrayLike, action_mask: ArrayLike, turn_index: ArrayLike, turns: int) -> np.ndarray:
    """Sum of a per-token quantity over each turn's sampled tokens; arguments and result as of `turn_means`."""
    return np.einsum("bt,btn->bn", np.asarray(per_token, np.float64), _belongs(action_mask, turn_index, turns))


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
    belongs = _belongs(action_mask, turn_index, turns)
    sums = np.einsum("bt,btn->bn", np.asarray(per_token, np.float64), belongs)
    return sums / np.maximum(belongs.sum(axis=1), 1.0)


def _belongs(action_mask: ArrayLike, turn_index: ArrayLike, turns: int) -> np.ndarray:
    """[B, T, N] float64: 1 where the sampled token t belongs to turn n."""
    return (np.asarray(turn_index)[:, :, None] == np.arange(turns)) * np.asarray(action_mask, np.float64)[:, :, None]


def penalised_rewards(rewards: ArrayLike, kl: ArrayLike, beta: float, turn_mask: ArrayLike) -> np.ndarray:
    """R_t = r_t - beta * kl_t, all [B, N]; 0 where `turn_mask` is 0."""
    return (np.asarray(rewards, np.float64) - beta * np.asarray(kl, np.float64)) * np.asarray(turn_mask, np.float64)


def returns_to_go(rewards: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """G_t = sum of R_i over i >= t of the same `episode`, both [B, N]. Rewards of absent turns must be 0."""
    returns = np.array(rewards, np.float64)
    for turn in range(returns.shape[1] - 2, -1, -1):
        returns[:, turn] += np.where(episode[:, turn] == episode[:, turn + 1], returns[:, turn + 1], 0.0)
    return returns


def lambda_returns(
    rewards: np.ndarray, values: np.ndarray, episode: np.ndarray, *, gamma: float = 1.0, gae_lambda: float = 1.0
) -> np.ndarray:
    """Discounted returns, bootstrapped by values (Sutton and Barto 2018, section 12.1). Of an episode's entries 1..M:

        G_n = R_n + gamma * ((1 - lambda) * V_{n+1} + lambda * G_{n+1}),   G_M = R_M

    G_n - V_n is generalized advantage estimation (Schulman et al. 2016, equation 16):

        d_n = R_n + gamma * V_{n+1} - V_n,   A_n = d_n + gamma * lambda * A_{n+1},   V_{M+1} = A_{M+1} = 0

    With lambda 1 the values don't matter, and with gamma 1 too G is `returns_to_go`.

    Args:
      rewards, values: [B, N] float. An entry is a turn, or a token of a response.
      episode: [B, N] int, which episode an entry belongs to; 0 for entries that are none, wherever they lie. An
        episode's entries stand in order, and no other's between them.
      gamma, gae_lambda: from 0 to 1.

    Returns:
      [B, N] float64, 0 for entries that are none.
    """
    returns = np.zeros(rewards.shape, np.float64)
    next_return, next_value, next_episode = np.zeros((3, len(rewards)))
    for n in reversed(range(rewards.shape[1])):
        ahead = gamma * ((1.0 - gae_lambda) * next_value + gae_lambda * next_return)
        found = rewards[:, n] + np.where(episode[:, n] == next_episode, ahead, 0.0)
        present = episode[:, n] > 0
        returns[:, n] = np.where(present, found, 0.0)
        next_return = np.where(present, found, next_return)
        next_value = np.where(present, values[:, n], next_value)
        next_episode = np.where(present, episode[:, n], next_episode)
    return returns


def normalized(advantages: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Shift and scale all arrays together to mean 0 and standard deviation 1 over the entries whose mask is 1.

    Args:
      advantages: arrays [B, N], one per batch of the iteration.
      masks: same shapes; 1 for a value of an episode that counts.

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
