"""Returns and advantages against loops written from the paper's formulas."""

import numpy as np
import pytest

from rlef_jax.ppo import returns
from rlef_jax.ppo.pack import pack

BETA = 0.3


def loop_returns(episode, old, ref, beta, rewards):
    """G_t by the definition: for each turn, the sum over later turns of the penalised reward."""
    penalised = []
    for turn, reward, o, r in zip(episode.turns, rewards, old, ref, strict=True):
        total = 0.0
        for j in range(len(turn.response_ids)):
            total += o[j] - r[j]
        penalised.append(reward - beta * total / len(turn.response_ids))
    out = []
    for t in range(len(penalised)):
        g = 0.0
        for i in range(t, len(penalised)):
            g += penalised[i]
        out.append(g)
    return out


@pytest.mark.parametrize("row_episodes", [1, 3])
def test_returns_match_the_loop(make_episodes, row_episodes):
    episodes = make_episodes(17, seed=3)
    rng = np.random.default_rng(0)
    [batch], [index] = pack(episodes, buckets=(20,), rows=20, max_turns=3, row_episodes=row_episodes)
    old, ref = (rng.normal(size=batch.tokens.shape) for _ in range(2))
    kl = returns.turn_means(old - ref, batch.action_mask, batch.turn_index, batch.turn_mask.shape[1])
    rewards = returns.penalised_rewards(batch.turn_rewards, kl, BETA, batch.turn_mask)
    to_go = returns.returns_to_go(rewards, np.asarray(batch.turn_episode))
    for row, numbers in enumerate(index):
        first = 0
        for number in numbers[numbers >= 0]:
            turns = slice(first, first := first + len(episodes[number].turns))
            spans = [
                (batch.action_mask[row] > 0) & (batch.turn_index[row] == n) for n in range(turns.start, turns.stop)
            ]
            parts = [[x[row][span] for span in spans] for x in (old, ref)]
            expected = loop_returns(episodes[number], *parts, BETA, batch.turn_rewards[row][turns])
            np.testing.assert_allclose(to_go[row, turns], expected, rtol=1e-6)
        assert not to_go[row, first:].any()


def test_penalty_is_a_mean_so_length_does_not_matter():
    short = returns.turn_means(np.full((1, 8), 0.5), np.eye(1, 8), np.zeros((1, 8), int), 1)
    long = returns.turn_means(np.full((1, 8), 0.5), np.ones((1, 8)), np.zeros((1, 8), int), 1)
    assert short == long == 0.5


def test_normalized_over_all_batches_together():
    rng = np.random.default_rng(1)
    raw = [rng.normal(3.0, 2.0, size=(4, 3)), rng.normal(size=(2, 3))]
    masks = [(rng.random(a.shape) < 0.6).astype(float) for a in raw]
    out = returns.normalized(raw, masks)
    kept = np.concatenate([o[m > 0] for o, m in zip(out, masks, strict=True)])
    flat = np.concatenate([a[m > 0] for a, m in zip(raw, masks, strict=True)])
    np.testing.assert_allclose(kept, (flat - flat.mean()) / flat.std(), rtol=1e-6)
    assert all(not o[m == 0].any() for o, m in zip(out, masks, strict=True))


@pytest.mark.parametrize("masks", [[np.zeros((2, 2))], [np.ones((2, 2))]])
def test_nothing_or_equal_advantages_stay_small(masks):
    [out] = returns.normalized([np.full((2, 2), 0.7)], masks)
    assert np.abs(out).max() < 1e-6


def test_tokens_get_their_own_turns_advantage():
    tokens = returns.to_tokens(np.array([[2.0, -3.0]]), np.array([[0, 0, 0, 1, 0]]), np.array([[0, 1, 1, 1, 0]]))
    assert tokens.tolist() == [[0, 2, 2, -3, 0]]
