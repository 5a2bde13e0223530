"""Targets of token values, of other discounts and of the product's penalty, written as loops from the definitions."""

import numpy as np
import pytest

from rlef_jax.ppo import returns, values
from rlef_jax.ppo.metrics import explained_variance, iteration_metrics
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import TargetSettings
from rlef_jax.ppo.targets import Scores, compute_targets
from tests.ppo.test_targets import made_up, turns_of

PLAIN = TargetSettings(0.5, normalize_advantages=False)


def loop_advantages(rewards, old, gamma, lam):
    """GAE of one episode's entries by its definition, a sum of discounted errors (Schulman et al. 2016, eq. 16)."""
    after = [*old[1:], 0.0]
    errors = [r + gamma * v_next - v for r, v, v_next in zip(rewards, old, after, strict=True)]
    return [
        sum((gamma * lam) ** (i - n) * errors[i] for i in range(n, len(errors))) for n in range(len(errors))
    ]  # fmt: skip


def loop_targets(batch, score, kind, settings):
    """{(row, entry): (return, advantage)} of what counts; an entry is a turn or the position of a sampled token."""
    found = {}
    for row in range(len(batch.weight)):
        by_episode = {}
        for turn, tokens, _ in turns_of(batch, row):
            ratios = [float(score.logp[row, t]) - float(score.ref_logp[row, t]) for t in tokens]
            kl = sum(ratios) / (len(ratios) if settings.kl == "mean" else 1)
            reward = float(batch.turn_rewards[row, turn]) - settings.kl_beta * kl
            entries = [(turn, reward)] if kind == "turn" else [*((t, 0.0) for t in tokens[:-1]), (tokens[-1], reward)]
            by_episode.setdefault(int(batch.turn_episode[row, turn]), []).extend(entries)
        for entries in by_episode.values():
            old = [float(score.values[row, at]) for at, _ in entries]
            advantages = loop_advantages([r for _, r in entries], old, settings.gamma, settings.gae_lambda)
            for (at, _), v, a in zip(entries, old, advantages, strict=True):
                found[row, at] = (a + v, a)
    return found


@pytest.mark.parametrize(
    "layout", [((20,), 4, 1), ((7, 20), 2, 1), ((40,), 3, 4)], ids=["plain", "by length", "packed"]
)
@pytest.mark.parametrize("kind", ["turn", "token"])
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        TargetSettings(0.5, kl="product", normalize_advantages=False),
        TargetSettings(0.5, gamma=0.9, gae_lambda=0.7, normalize_advantages=False),
        TargetSettings(0.5, gamma=0.9, kl="product", normalize_advantages=False),
        TargetSettings(0.5, gae_lambda=0.0, normalize_advantages=False),
    ],
    ids=["plain", "product", "gae", "gamma", "one step"],
)
def test_targets_match_the_loop(make_episodes, settings, kind, layout):
    buckets, rows, row_episodes = layout
    batches, _ = pack(
        make_episodes(11, seed=3, restarts=True), buckets=buckets, rows=rows, max_turns=3, row_episodes=row_episodes,
        value_kind=kind,
    )  # fmt: skip
    scores = made_up(batches)
    for batch, score in zip(compute_targets(batches, scores, settings), scores, strict=True):
        expected, targets = loop_targets(batch, score, kind, settings), np.zeros_like(batch.returns)
        advantages = np.zeros_like(batch.advantages)
        for (row, at), (target, advantage) in expected.items():
            targets[row, at] = target
            tokens = [at] if kind == "token" else next(ts for n, ts, _ in turns_of(batch, row) if n == at)
            advantages[row, tokens] = advantage
        np.testing.assert_allclose(batch.returns, targets, atol=1e-5)
        np.testing.assert_allclose(batch.advantages, advantages, atol=1e-5)
        assert values.count([batch])[values.VALUES] == len(expected)


def test_the_recursion_without_discount_is_the_plain_sum():
    """At the defaults, to the last bit: `compute_targets` takes the plain sum."""
    rng = np.random.default_rng(0)
    rewards, old = rng.normal(size=(2, 6, 9))
    episode = np.sort(rng.integers(1, 4, size=(6, 9)), axis=1)
    found = returns.lambda_returns(rewards, old, episode)
    np.testing.assert_array_equal(found, returns.returns_to_go(rewards, episode))


def test_all_tokens_of_a_turn_have_its_return_and_each_its_own_advantage(make_episodes):
    """B.6, against the turns' own returns; normalized over tokens."""
    episodes, settings = make_episodes(11, seed=3), TargetSettings(0.5)
    packed = {k: pack(episodes, buckets=(20,), rows=4, max_turns=3, value_kind=k)[0] for k in ("turn", "token")}
    scores = made_up(packed["token"])
    by_turn = [Scores(s.logp, np.zeros_like(b.old_values), s.ref_logp) for s, b in zip(scores, packed["turn"])]
    tokens, turns = (
        compute_targets(packed["token"], scores, settings),
        compute_targets(packed["turn"], by_turn, settings),
    )
    inside = [values.token_mask(b) > 0 for b in tokens]
    for one, other, acts in zip(tokens, turns, inside, strict=True):
        np.testing.assert_array_equal(one.returns, np.take_along_axis(other.returns, other.turn_index, 1) * acts)
    raw = np.concatenate([(b.returns - b.old_values)[acts] for b, acts in zip(tokens, inside)]).astype(np.float64)
    found = np.concatenate([b.advantages[acts] for b, acts in zip(tokens, inside)])
    np.testing.assert_allclose(found, (raw - raw.mean()) / raw.std(), atol=1e-5)
    metrics = iteration_metrics(tokens)
    assert metrics["return_mean"] == pytest.approx(iteration_metrics(turns)["return_mean"], rel=1e-6)
    assert metrics["advantage_std"] == pytest.approx(raw.std(), rel=1e-5)
    flat = [np.concatenate([x.ravel() for x in xs]) for xs in zip(*((b.returns, b.old_values) for b in tokens))]
    expected = explained_variance(*flat, np.concatenate([acts.ravel() for acts in inside]))
    assert metrics["explained_variance"] == pytest.approx(expected)


def test_the_product_grows_with_a_responses_length_and_the_mean_does_not(make_episode):
    from rlef_jax.types import Status

    episodes = [make_episode([([1], [2] * n, Status.PASSED)], end="public_passed", index=n) for n in (1, 4)]
    [batch], _ = pack(episodes, buckets=(8,), rows=2, max_turns=1)
    score = Scores(-0.5 * batch.action_mask, np.zeros_like(batch.old_values), -0.75 * batch.action_mask)
    found = {
        kl: compute_targets([batch], [score], TargetSettings(1.0, kl=kl))[0].returns.ravel()
        for kl in ("mean", "product")
    }
    np.testing.assert_allclose(found["mean"], [0.75, 0.75])
    np.testing.assert_allclose(found["product"], [0.75, 0.0])


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="a value is of a turn or token or none, not of a 'word'"):
        pack([], buckets=(8,), rows=2, max_turns=1, value_kind="word") and values.shape("word", 1, 1, 1)
    assert values.shape("token", 2, 9, 3) == (2, 9) and values.shape("none", 2, 9, 3) == (2, 3)
