"""Group baselines against loops written from their definitions, and what is left out of a group."""

import dataclasses
import statistics

import numpy as np
import pytest

from rlef_jax.ppo import values
from rlef_jax.ppo.groups import compared, group_advantages
from rlef_jax.ppo.metrics import iteration_metrics
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import TargetSettings
from rlef_jax.ppo.targets import Scores, compute_targets
from tests.ppo.test_targets import made_up, turns_of

BASELINES = ["rloo", "grpo", "dr_grpo"]


def loop_compared(outcomes, groups, baseline):
    found = []
    for k, (outcome, group) in enumerate(zip(outcomes, groups, strict=True)):
        others = [o for i, (o, g) in enumerate(zip(outcomes, groups, strict=True)) if g == group and i != k]
        members = [*others, outcome]
        if not others:
            found.append(0.0)
        elif baseline == "rloo":
            found.append(outcome - statistics.fmean(others))
        else:
            scale = statistics.stdev(members) + 1e-4 if baseline == "grpo" else 1.0
            found.append((outcome - statistics.fmean(members)) / scale)
    return found


@pytest.mark.parametrize("baseline", BASELINES)
def test_advantages_within_groups_match_the_loop(baseline):
    rng = np.random.default_rng(0)
    outcomes, groups = rng.normal(size=23), rng.integers(0, 7, size=23) * 5
    groups[3] = 99  # alone
    found = compared(outcomes, groups, baseline)
    np.testing.assert_allclose(found, loop_compared(outcomes.tolist(), groups.tolist(), baseline), rtol=1e-10)
    assert found[3] == 0.0


def test_by_hand():
    """Three of four solved: +1, +1, +1, -1."""
    outcomes, group = np.array([1.0, 1.0, 1.0, -1.0]), np.zeros(4, int)
    np.testing.assert_allclose(compared(outcomes, group, "dr_grpo"), [0.5, 0.5, 0.5, -1.5])
    np.testing.assert_allclose(compared(outcomes, group, "rloo"), [2 / 3, 2 / 3, 2 / 3, -2])
    np.testing.assert_allclose(compared(outcomes, group, "grpo"), [0.5, 0.5, 0.5, -1.5], rtol=2e-4)  # std is 1
    for baseline in BASELINES:
        assert not compared(np.ones(3), np.zeros(3), baseline).any()
        assert compared(np.zeros(0), np.zeros(0, int), baseline).shape == (0,)
    with pytest.raises(ValueError, match="no group baseline 'mean'"):
        compared(outcomes, group, "mean")


LAYOUTS = {"plain": ((20,), 4, 1), "by length": ((7, 20), 2, 1), "packed": ((40,), 3, 4)}


def targets(episodes, layout, settings):
    """(filled batches, scores, positions of each row's episodes); a token's scores depend on itself alone."""
    buckets, rows, row_episodes = LAYOUTS[layout]
    options = dict(max_turns=3, row_episodes=row_episodes, value_kind="none")
    batches, index = pack(episodes, buckets=buckets, rows=rows, **options)
    scores = [Scores(s.logp, None, s.ref_logp) for s in made_up(batches)]
    return compute_targets(batches, scores, settings), scores, index


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_an_episodes_tokens_have_the_advantage_of_its_whole_return(make_episodes, baseline, layout, gamma):
    settings = TargetSettings(0.5, gamma=gamma, baseline=baseline, group_size=3, normalize_advantages=False)
    episodes = make_episodes(12, seed=3)
    filled, scores, index = targets(episodes, layout, settings)
    outcomes, tokens_of = {}, {}  # by episode
    for b, (batch, score) in enumerate(zip(filled, scores, strict=True)):
        for row, numbers in enumerate(index[b]):
            for turn, tokens, _ in reversed(turns_of(batch, row)):
                number = int(numbers[batch.turn_episode[row, turn] - 1])
                kl = np.mean([float(score.logp[row, t]) - float(score.ref_logp[row, t]) for t in tokens])
                later = gamma * outcomes.get(number, 0.0)
                outcomes[number] = float(batch.turn_rewards[row, turn]) - 0.5 * kl + later
                np.testing.assert_allclose(batch.returns[row, turn], outcomes[number], atol=1e-5)
                tokens_of.setdefault(number, []).extend((b, row, t) for t in tokens)
    order = sorted(outcomes)
    assert order == [n for n, e in enumerate(episodes) if e.end != "infra"]
    expected = loop_compared([outcomes[n] for n in order], [n // 3 for n in order], baseline)
    advantages = [np.zeros_like(b.advantages) for b in filled]
    for number, advantage in zip(order, expected, strict=True):
        for b, row, t in tokens_of[number]:
            advantages[b][row, t] = advantage
    for batch, found in zip(filled, advantages, strict=True):
        np.testing.assert_allclose(batch.advantages, found, atol=2e-5)


def test_an_episode_that_the_judge_broke_on_is_in_no_group(make_episodes):
    """Whatever its scores are; and whoever is left alone by it learns nothing."""
    settings = TargetSettings(baseline="rloo", group_size=2, normalize_advantages=False)
    good = [dataclasses.replace(e, end="turn_limit") for e in make_episodes(6, seed=1)]
    broken = [dataclasses.replace(e, end="infra") if e.index == 1 else e for e in good]
    [found], _, [index] = targets(broken, "packed", settings)
    at = {int(n): (row, place + 1) for row, ns in enumerate(index) for place, n in enumerate(ns) if n >= 0}
    for number in (0, 1):
        row, place = at[number]
        turns = np.flatnonzero(found.turn_episode[row] == place)
        assert not found.advantages[row][np.isin(found.turn_index[row], turns) & (found.action_mask[row] > 0)].any()
    assert np.abs(found.advantages).max() > 0.1


def test_metrics_and_counts_tell_of_no_values(make_episodes):
    settings = TargetSettings(baseline="grpo", group_size=3, normalize_advantages=False)
    filled, _, _ = targets(make_episodes(12, seed=3), "plain", settings)
    assert values.count(filled)[values.VALUES] == 0 < values.count(filled)[values.TOKENS]
    metrics = iteration_metrics(filled)
    assert "explained_variance" not in metrics
    per_turn = [b.advantages[row, tokens[0]] for b in filled for row in range(4) for _, tokens, _ in turns_of(b, row)]
    assert metrics["advantage_std"] == pytest.approx(np.std(per_turn), rel=1e-5) and metrics["turns"] == len(per_turn)


@pytest.mark.parametrize(
    "kind, baseline, scored", [("turn", "rloo", False), ("none", "critic", True), ("none", "rloo", True)]
)
def test_values_and_baseline_must_go_together(make_episodes, kind, baseline, scored):
    batches, _ = pack(make_episodes(2), buckets=(20,), rows=2, max_turns=3, value_kind=kind)
    scores = [s if scored else Scores(s.logp, None, s.ref_logp) for s in made_up(batches)]
    settings = TargetSettings(baseline=baseline, group_size=2, normalize_advantages=False)
    with pytest.raises(ValueError, match=f"the baseline '{baseline}' doesn't go with values of kind '{kind}'"):
        compute_targets(batches, scores, settings)
    assert group_advantages([], [], baseline="rloo", group_size=2) == []
