"""Targets against the method written as loops, from arrays alone."""

import copy

import jax
import numpy as np
import optax
import pytest

from rlef_jax.model.parameters import init_params
from rlef_jax.ppo import values
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import TargetSettings
from rlef_jax.ppo.targets import Scores, compute_targets
from rlef_jax.ppo.update import Learner, prepare_iteration


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
    assert values.metrics(counts) == {"action_tokens": counts[values.TOKENS], "turns": counts[values.VALUES]}
    assert sum(values.mask(b).sum() for b in batches) == len(good)
    assert sum(values.token_mask(b).sum() for b in batches) == counts[values.TOKENS]


def test_values_of_another_kind_are_other_functions_of_one_module(make_episodes, tiny_model, monkeypatch):
    """One value for each sampled token (the paper's B.6), each with its turn's return as its target."""

    def positions(batch):
        return (batch.positions * 0 + np.arange(batch.tokens.shape[1])[None] - 1).clip(0)

    def of_turns(per_turn, batch):
        return np.take_along_axis(per_turn, batch.turn_index, axis=1)

    def count(batches):
        return dict.fromkeys(values.METRICS, np.float32(sum(values.token_mask(b).sum() for b in batches)))

    for name, function in {
        "shape": lambda rows, length, turns: (rows, length),
        "positions": positions,
        "mask": values.token_mask,
        "of_turns": of_turns,
        "to_tokens": lambda per_value, batch: per_value * batch.action_mask,
        "count": count,
    }.items():
        monkeypatch.setattr(values, name, function)
    policy = init_params(jax.random.PRNGKey(1), tiny_model)
    learner = Learner(tiny_model, optax.sgd(0.1))
    state = learner.init(jax.random.PRNGKey(0), policy)
    head = np.array(state.params["critic"]["head"]["w"])
    packed, _ = pack(make_episodes(6, seed=2), buckets=(20,), rows=3, max_turns=3)
    [batches], metrics = prepare_iteration(learner, state.params, learner.place_policy(policy), [packed])
    for batch in batches:
        inside = values.token_mask(batch) > 0
        assert batch.returns.shape == batch.old_values.shape == batch.tokens.shape
        for row, turn in {(int(r), int(batch.turn_index[r, t])) for r, t in np.argwhere(inside)}:
            tokens = inside[row] & (batch.turn_index[row] == turn)
            assert len(set(batch.returns[row, tokens])) == 1  # of the turn
        assert len(set(batch.old_values[inside])) > 3 and not batch.returns[~inside].any()
        raw = (batch.returns - batch.old_values)[inside]
        assert np.corrcoef(raw, batch.advantages[inside])[0, 1] > 0.999
    after, told = learner.update(state, batches)
    assert told["applied"] == 1.0 and told["turns"] == told["action_tokens"] == metrics["action_tokens"]
    assert not np.array_equal(after.params["critic"]["head"]["w"], head)
