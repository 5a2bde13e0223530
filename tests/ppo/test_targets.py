"""Targets against the method written as loops, from arrays alone."""

import copy

import jax
import numpy as np
import pytest

from rlef_jax.ppo import values
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import TargetSettings
from rlef_jax.ppo.targets import Scores, compute_targets


def made_up(batches, seed=0):
    """Scores of batches, any numbers."""
    rng = np.random.default_rng(seed)

    def numbers(like):
        return rng.standard_normal(like.shape).astype(np.float32)

    return [Scores(-abs(numbers(b.old_logp)), numbers(b.old_values), -abs(numbers(b.ref_logp))) for b in batches]


def turns_of(batch, row):
    """[(turn, its sampled tokens, its episode)] of a row that counts."""
    found = []
    for turn in range(batch.turn_mask.shape[1]):
        if batch.turn_mask[row, turn] and batch.weight[row]:
            tokens = [
                t for t in range(batch.tokens.shape[1])
                if batch.action_mask[row, t] and batch.turn_index[row, t] == turn
            ]  # fmt: skip
            found.append((turn, tokens, int(batch.segment_ids[row, tokens[0]])))
    return found


@pytest.mark.parametrize("settings", [TargetSettings(), TargetSettings(0.5, normalize_advantages=False)])
@pytest.mark.parametrize(
    "layout", [((20,), 4, 1), ((7, 20), 2, 1), ((40,), 3, 4)], ids=["plain", "by length", "packed"]
)
def test_targets_are_the_methods(make_episodes, settings, layout):
    buckets, rows, row_episodes = layout
    batches, _ = pack(make_episodes(11, seed=3), buckets=buckets, rows=rows, max_turns=3, row_episodes=row_episodes)
    scores = made_up(batches)
    before = copy.deepcopy(batches)
    filled = compute_targets(batches, scores, settings)
    jax.tree.map(np.testing.assert_array_equal, batches, before)  # nothing is changed in place

    expected = []  # (batch, row, turn, its tokens, return, advantage)
    for b, (batch, score) in enumerate(zip(batches, scores, strict=True)):
        for row in range(len(batch.weight)):
            to_go: dict[int, float] = {}
            for turn, tokens, episode in reversed(turns_of(batch, row)):
                kl = np.mean([float(score.logp[row, t]) - float(score.ref_logp[row, t]) for t in tokens])
                to_go[episode] = to_go.get(episode, 0.0) + batch.turn_rewards[row, turn] - settings.kl_beta * kl
                advantage = to_go[episode] - score.values[row, turn]
                expected.append((b, row, turn, tokens, to_go[episode], advantage))
    assert len(expected) > 12
    if settings.normalize_advantages:
        raw = np.array([e[-1] for e in expected])
        expected = [(*e[:-1], (e[-1] - raw.mean()) / raw.std()) for e in expected]
    returns = [np.zeros_like(b.returns) for b in batches]
    advantages = [np.zeros_like(b.advantages) for b in batches]
    for b, row, turn, tokens, target, advantage in expected:
        returns[b][row, turn] = target
        advantages[b][row, tokens] = advantage
    for b, (batch, score) in enumerate(zip(filled, scores, strict=True)):
        np.testing.assert_allclose(batch.returns, returns[b], atol=1e-5)
        np.testing.assert_allclose(batch.advantages, advantages[b], atol=1e-5)
        for name, kept in (("old_logp", score.logp), ("old_values", score.values), ("ref_logp", score.ref_logp)):
            np.testing.assert_array_equal(getattr(batch, name), kept)


def test_counts_are_of_what_counts(make_episodes):
    episodes = make_episodes(10, seed=4)
    batches, _ = pack(episodes, buckets=(20,), rows=4, max_turns=3)
    good = [turn for e in episodes if e.end != "infra" for turn in e.turns]
    assert len(good) < sum(len(e.turns) for e in episodes)
    counts = values.count(batches)
    assert counts == {values.TOKENS: sum(len(t.response_ids) for t in good), values.VALUES: len(good)}
    assert values.metrics(counts) == {"action_tokens": counts[values.TOKENS], "values": counts[values.VALUES]}
    assert sum(values.mask(b).sum() for b in batches) == len(good)
    assert sum(values.token_mask(b).sum() for b in batches) == counts[values.TOKENS]
