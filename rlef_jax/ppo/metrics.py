"""Numbers that people watch during training. Pure functions over NumPy TokenBatches and over episodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike

from rlef_jax.ppo import values
from rlef_jax.ppo.returns import turn_means
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.reward import has_weight, turn_rewards
from rlef_jax.types import Episode, Status

LEAST_RETURN_STD = 1e-2  # rewards differ by 0.2 or more: what varies less is the KL penalty's noise


def explained_variance(returns: np.ndarray, values: np.ndarray, mask: np.ndarray) -> float | None:
    """1 - Var(G - V) / Var(G) over the entries whose mask is 1, one at least.

    None, undefined, where the returns hardly vary (`LEAST_RETURN_STD`): there is nothing to explain.
    """
    keep = np.asarray(mask, bool)
    target, error = np.asarray(returns, np.float64)[keep], np.asarray(returns - values, np.float64)[keep]
    variance = float(target.var())
    return 1.0 - float(error.var()) / variance if variance >= LEAST_RETURN_STD**2 else None


def iteration_metrics(batches: Sequence[TokenBatch]) -> dict[str, float]:
    """Metrics of an iteration's filled batches; rows of weight 0 don't enter. Where nothing counts, only the totals.

    Returns:
      kl_to_ref: mean over turns of mean_j(log pi_old - log rho), the penalty's own measure.
      kl_to_ref_q50, kl_to_ref_q95, kl_to_ref_max: the same over turns, median, 95 % quantile and largest.
      kl_to_ref_token: the same, mean over tokens.
      mismatch_mean, mismatch_max: |log pi_b - log pi_old| over tokens: sampler against trainer. Off-policy samples
        and a sampling temperature other than 1 enter too.
      explained_variance: of the returns by the old values; left out without a critic and where it is undefined.
      entropy: estimated by the mean of -log pi_old over sampled tokens.
      behavior_entropy: the mean of -log pi_b over them, an unbiased estimate for the distribution they were drawn from.
      return_mean (over turns), advantage_std (over values, before normalization; over turns without a critic),
        reward_mean (r_t summed over an episode).
      action_tokens, turns, episodes, rows: totals of the iteration, of what counts.
      padding_fraction: of all token slots, what packing wastes.
    """
    if not batches:
        return {}
    token_mask = _flat([values.token_mask(b) for b in batches]) > 0
    turn_mask = _flat([b.turn_mask * b.weight[:, None] for b in batches]) > 0
    old, ref = _flat([b.old_logp for b in batches])[token_mask], _flat([b.ref_logp for b in batches])[token_mask]
    gap = np.abs(_flat([b.behavior_logp for b in batches])[token_mask] - old)
    returns = _flat([values.by_turn(b.returns, b) for b in batches])
    kl = [turn_means(b.old_logp - b.ref_logp, b.action_mask, b.turn_index, b.turn_mask.shape[1]) for b in batches]
    weights = np.concatenate([b.weight for b in batches])
    rewards = sum(float(((b.turn_rewards * b.turn_mask).sum(1) * b.weight).sum()) for b in batches)
    episodes = sum(float((np.asarray(b.turn_episode).max(axis=1) * b.weight).sum()) for b in batches)
    used = float(sum((b.segment_ids > 0).sum() for b in batches))
    totals = {
        "action_tokens": float(token_mask.sum()),
        "turns": float(turn_mask.sum()),
        "episodes": episodes,
        "rows": float((weights > 0).sum()),
        "padding_fraction": 1.0 - used / float(sum(b.tokens.size for b in batches)),
    }
    if not token_mask.any():
        return totals
    turn_kl, behavior = _flat(kl)[turn_mask], _flat([b.behavior_logp for b in batches])[token_mask]
    return totals | {
        "kl_to_ref": _mean(turn_kl),
        "kl_to_ref_q50": float(np.quantile(turn_kl, 0.5)),
        "kl_to_ref_q95": float(np.quantile(turn_kl, 0.95)),
        "kl_to_ref_max": float(turn_kl.max()),
        "kl_to_ref_token": _mean(old - ref),
        "mismatch_mean": _mean(gap),
        "mismatch_max": float(gap.max()),
        "entropy": _mean(-old),
        "behavior_entropy": _mean(-behavior),
        "return_mean": _mean(returns[turn_mask]),
        "reward_mean": rewards / episodes,
        **_advantage_metrics(batches),
    }


def _advantage_metrics(batches: Sequence[TokenBatch]) -> dict[str, float]:
    """`advantage_std`, and with a critic, where it is defined, `explained_variance`."""
    mask = _flat([values.mask(b) for b in batches]) > 0
    if batches[0].value_kind == "none":  # then advantages are those of the loss, one for all tokens of a turn
        first = [np.take_along_axis(np.asarray(b.advantages), np.asarray(b.turn_positions) + 1, 1) for b in batches]
        return {"advantage_std": float(_flat(first)[mask].std())}
    returns, predicted = _flat([b.returns for b in batches]), _flat([b.old_values for b in batches])
    explained = explained_variance(returns, predicted, mask)
    return {
        **({} if explained is None else {"explained_variance": explained}),
        "advantage_std": float((returns - predicted)[mask].std()),
    }


def episode_metrics(episodes: Sequence[Episode], *, invalid_penalty: float = -0.2) -> dict[str, float]:
    """Metrics of finished episodes, from their verdicts alone; episodes that the judge broke are only counted.

    A mean over nothing is left out: where no episode was judged, only `infra_episodes` is there.

    Returns:
      solved_turn1, solved: share of episodes whose first / last response passed all tests.
      reward: mean over episodes of the sum of r_t.
      turns_per_episode, response_tokens (per response), episode_tokens: means.
      cut_fraction: responses that ended by length.
      valid_fraction: responses with code that parses.
      infra_episodes: how many episodes have weight zero.
      turnK/STATUS for each turn K and status on the public tests met there: share of the episodes that reached it.
      turnK/invalid: share of them whose response has no code that parses.
    """
    good = [e for e in episodes if has_weight(e)]
    turns = [turn for e in good for turn in e.turns]
    verdicts = [t.verdict for t in turns if t.verdict is not None]
    over: dict[str, Sequence[float]] = {
        "solved_turn1": [bool(e.turns[0].verdict and e.turns[0].verdict.passed) for e in good],
        "solved": [e.solved for e in good],
        "reward": [sum(turn_rewards(e, invalid_penalty=invalid_penalty)) for e in good],
        "turns_per_episode": [len(e.turns) for e in good],
        "response_tokens": [len(t.response_ids) for t in turns],
        "episode_tokens": [len(e.token_ids) for e in good],
        "cut_fraction": [t.finish_reason == "length" for t in turns],
        "valid_fraction": [v.valid for v in verdicts],
    }
    metrics = {name: _mean(numbers) for name, numbers in over.items() if numbers}
    metrics["infra_episodes"] = float(len(episodes) - len(good))
    for number, shares in enumerate(error_kinds(good), start=1):
        metrics.update({f"turn{number}/{status.value}": share for status, share in shares.items()})
        missing = (Status.NO_CODE, Status.SYNTAX_ERROR)
        metrics[f"turn{number}/invalid"] = sum(shares.get(status, 0.0) for status in missing)
    return metrics


def error_kinds(episodes: Sequence[Episode]) -> list[dict[Status, float]]:
    """For each turn, the share of each status on the public tests among the episodes that reached it; in `Status`'s
    order."""
    tallies: list[Counter[Status]] = []
    for episode in episodes:
        for number, turn in enumerate(episode.turns):
            if number == len(tallies):
                tallies.append(Counter())
            if turn.verdict is not None:
                tallies[number][turn.verdict.public_status] += 1
    return [{s: tally[s] / tally.total() for s in Status if tally[s]} for tally in tallies]


def _flat(arrays: Sequence[ArrayLike]) -> np.ndarray:
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])


def _mean(numbers: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(numbers))
