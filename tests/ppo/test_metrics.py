"""Metrics against numbers worked out by hand."""

import numpy as np
import pytest

from rlef_jax.ppo.metrics import episode_metrics, error_kinds, explained_variance, iteration_metrics
from rlef_jax.ppo.pack import pack
from rlef_jax.types import Status


def test_explained_variance():
    returns = np.array([[1.0, -1.0], [1.0, 50.0]])
    mask = np.array([[1, 1], [1, 0]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(returns, returns + 3.0, mask) == pytest.approx(1.0)  # a constant offset is no variance
    assert explained_variance(returns, np.zeros_like(returns), mask) == pytest.approx(0.0)
    assert explained_variance(returns, -returns, mask) == pytest.approx(-3.0)
    assert explained_variance(np.ones((1, 2)), np.zeros((1, 2)), np.ones((1, 2))) is None
    hardly = np.array([[-1.0, -1.0001]])  # all failed: only the KL penalty's noise is left
    assert explained_variance(hardly, np.array([[0.5, -0.5]]), np.ones((1, 2))) is None


def test_iteration_metrics_leave_rows_of_weight_zero_out(make_batch):
    batch = make_batch(
        2,
        4,
        2,
        segment_ids=np.ones((2, 4), np.int32),
        action_mask=np.array([[0, 1, 1, 1], [0, 1, 1, 1]], np.float32),
        turn_index=np.array([[0, 0, 1, 1]] * 2, np.int32),
        behavior_logp=np.array([[0, -1, -1, -1], [0, 9, 9, 9]], np.float32),
        old_logp=np.array([[0, -1, -1.5, -1], [0, 0, 0, 0]], np.float32),
        ref_logp=np.array([[0, -2, -1.5, -3], [0, 9, 9, 9]], np.float32),
        turn_mask=np.ones((2, 2), np.float32),
        turn_rewards=np.array([[-0.2, 1.0], [0, 0]], np.float32),
        turn_episode=np.ones((2, 2), np.int32),
        returns=np.array([[0.8, 1.0], [9, 9]], np.float32),
        weight=np.array([1, 0], np.float32),
    )
    metrics = iteration_metrics([batch])
    assert metrics["kl_to_ref"] == pytest.approx(1.0)  # turns: 1 and (0 + 2) / 2
    assert metrics["kl_to_ref_token"] == pytest.approx(1.0)
    assert [metrics[f"kl_to_ref_{q}"] for q in ("q50", "q95", "max")] == pytest.approx([1.0] * 3)
    assert metrics["behavior_entropy"] == pytest.approx(1.0)
    assert metrics["mismatch_mean"] == pytest.approx(0.5 / 3)
    assert metrics["mismatch_max"] == pytest.approx(0.5)
    assert metrics["entropy"] == pytest.approx(3.5 / 3)
    assert metrics["return_mean"] == pytest.approx(0.9)
    assert metrics["reward_mean"] == pytest.approx(0.8)
    assert (metrics["action_tokens"], metrics["turns"], metrics["rows"]) == (3, 2, 1)
    assert metrics["padding_fraction"] == 0.0


def test_episode_metrics(make_episode):
    wrong, none, passed = Status.WRONG_ANSWER, Status.NO_CODE, Status.PASSED
    episodes = [
        make_episode([([1], [2, 3], passed)], end="public_passed"),
        make_episode([([1], [2], wrong), ([1], [2], passed)], end="public_passed"),
        make_episode([([1], [2], none), ([1], [2], wrong), ([1], [2], wrong)]),
        make_episode([([1], [2] * 50, Status.INFRA_ERROR)], end="infra"),
    ]
    metrics = episode_metrics(episodes)
    assert metrics["solved_turn1"] == pytest.approx(1 / 3)
    assert metrics["solved"] == pytest.approx(2 / 3)
    assert metrics["reward"] == pytest.approx((1 + 1 - 1.2) / 3)
    assert metrics["turns_per_episode"] == 2.0
    assert metrics["response_tokens"] == pytest.approx(7 / 6)
    assert metrics["valid_fraction"] == pytest.approx(5 / 6)
    assert metrics["infra_episodes"] == 1
    assert metrics["turn1/NO_CODE"] == pytest.approx(1 / 3)
    assert metrics["turn2/WRONG_ANSWER"] == 0.5
    assert (metrics["turn1/invalid"], metrics["turn2/invalid"]) == (pytest.approx(1 / 3), 0.0)
    assert error_kinds(episodes[:3])[2] == {wrong: 1.0}


def test_a_mean_over_nothing_is_left_out(make_episode, make_batch):
    """Nothing at all, an iteration that the judge broke on, and batches of padding."""
    assert iteration_metrics([]) == {}
    assert episode_metrics([]) == {"infra_episodes": 0.0}
    broken = [make_episode([([1], [2, 3], Status.INFRA_ERROR)], end="infra", index=i) for i in range(3)]
    assert episode_metrics(broken) == {"infra_episodes": 3.0}
    batches, _ = pack(broken, buckets=(8,), rows=4, max_turns=3)
    totals = {"action_tokens": 0.0, "turns": 0.0, "episodes": 0.0, "rows": 0.0}
    assert iteration_metrics(batches) == totals | {"padding_fraction": 1 - 9 / 32}
    assert iteration_metrics([make_batch(2, 4, 2)]) == totals | {"padding_fraction": 1.0}
