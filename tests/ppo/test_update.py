"""The update on the production functions: split = whole, where gradients go, which rows count, meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlef_jax.model.logp import token_logp
from rlef_jax.model.parameters import init_params
from rlef_jax.ppo import values
from rlef_jax.ppo.objective import ForwardSettings, objective
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.ratio_quantiles import QUANTILES
from rlef_jax.ppo.settings import LossSettings, OptimizerSettings, TargetSettings
from rlef_jax.ppo.update import Learner, make_optimizer, prepare_iteration, split_updates
from tests.helpers.eight_devices import told_by

pytestmark = pytest.mark.long


def leaves_close(one, other, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


def moved(params, seed=9, scale=0.05):
    """The parameters a little further on, so that ratios differ from 1 and clipping is met."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.PRNGKey(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


LOSS = LossSettings(value_coef=0.7)  # of all learners: a gradient's program is compiled once


@pytest.fixture(scope="module")
def learners(tiny_model):
    """One learner with a critic of its own and one with a shared trunk, both with plain SGD."""
    return {
        separate: Learner(tiny_model, optax.sgd(0.1), loss=LOSS, separate_critic=separate) for separate in (True, False)
    }


@pytest.fixture(scope="module")
def policy(tiny_model):
    return init_params(jax.random.PRNGKey(1), tiny_model)


def prepared(learner, params, policy, episodes, rows, buckets=(20,), row_episodes=1, **options):
    batches, _ = pack(episodes, buckets=buckets, rows=rows, max_turns=3, row_episodes=row_episodes)
    [filled], metrics = prepare_iteration(learner, params, moved(policy, seed=5), [batches], TargetSettings(**options))
    return filled, metrics


SPLITS = {  # rows a micro-batch, row lengths, episodes that may share a row
    "whole": (12, (20,), 1),
    "rows of one": (1, (20,), 1),
    "uneven": (5, (20,), 1),
    "by length": (4, (7, 20), 1),
    "packed": (6, (40,), 4),
    "packed and split": (2, (24, 40), 4),
}


# Each way with one of the two learners; with both in `make test-slow`.
FEW = {True: ["whole", "packed and split"], False: ["whole", "rows of one"]}


@pytest.mark.parametrize(
    "separate, ways",
    [
        *(pytest.param(separate, ways, id=f"{separate}-few") for separate, ways in FEW.items()),
        *(pytest.param(s, list(SPLITS), id=f"{s}-all", marks=pytest.mark.slow) for s in (True, False)),
    ],
)
def test_packing_and_splitting_change_nothing(learners, policy, make_episodes, separate, ways):
    # Eight: a power of two, so that micro-batches of one row are one group, which is compiled once.
    learner, episodes = learners[separate], make_episodes(8, seed=2)
    key = jax.random.PRNGKey(0)
    params = learner.init(key, policy).params
    results = {}
    for name in ways:
        rows, buckets, row_episodes = SPLITS[name]
        filled, scores = prepared(learner, params, policy, episodes, rows, buckets, row_episodes)
        assert row_episodes == 1 or max(int(b.segment_ids.max()) for b in filled) > 1
        gradients = learner.gradients(moved(params), filled)
        state, metrics = learner.update(learner.init(key, policy).with_params(moved(params)), filled)
        shapes = {"padding_fraction", "rows"}  # these alone tell of the layout
        told = metrics | {k: v for k, v in scores.items() if k not in shapes}
        results[name] = (jax.device_get(gradients), jax.device_get(state.params), told)
    gradients, after, metrics = results["whole"]
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(gradients)) > 1e-2
    assert metrics["clip_fraction"] > 0 and metrics["truncated_fraction"] > 0
    for name, found in results.items():
        leaves_close(gradients, found[0])
        leaves_close(after, found[1])
        for key, value in metrics.items():
            np.testing.assert_allclose(found[2][key], value, atol=1e-5, rtol=1e-5, err_msg=f"{name}: {key}")


def test_ratio_quantiles_are_of_the_tokens_that_count(learners, policy, make_episodes):
    learner, episodes, key = learners[True], make_episodes(10, seed=4), jax.random.PRNGKey(0)
    params = learner.init(key, policy).params
    filled, _ = prepared(learner, params, policy, episodes, 12)
    logs = np.concatenate([
        (np.asarray(learner.score(moved(params), b)[0]) - b.old_logp)[values.token_mask(b) > 0] for b in filled
    ])  # fmt: skip
    state, first = learner.update(learner.init(key, policy), filled)
    _, metrics = learner.update(state.with_params(moved(params)), filled)
    for name, share in QUANTILES.items():
        assert first[f"ratio_{name}"] == pytest.approx(1.0, abs=1e-4)  # nothing has moved
        # Of few tokens, neighbours may be far apart: between those on either side, and an eighth.
        low, high = np.quantile(logs, share, method="lower"), np.quantile(logs, share, method="higher")
        assert low - 0.13 * abs(low) - 1e-5 <= np.log(metrics[f"ratio_{name}"]) <= high + 0.13 * abs(high) + 1e-5
    assert metrics["ratio_q99"] > 1.05 > 0.95 > metrics["ratio_q01"]


def test_infra_rows_and_padding_change_nothing(learners, policy, make_episodes):
    learner, episodes = learners[True], make_episodes(10, seed=4)
    params = learner.init(jax.random.PRNGKey(0), policy).params
    good = [e for e in episodes if e.end != "infra"]
    assert len(good) == 8
    outcomes = []
    for chosen in (episodes, good):
        filled, metrics = prepared(learner, params, policy, chosen, 12)
        gradients = learner.gradients(moved(params), filled)
        outcomes.append((gradients, {k: v for k, v in metrics.items() if k != "padding_fraction"}))
    leaves_close(outcomes[0][0], outcomes[1][0])
    for name, value in outcomes[1][1].items():
        np.testing.assert_allclose(value, outcomes[0][1][name], atol=1e-5, rtol=1e-5, err_msg=name)


def test_prepared_fields_follow_the_method(learners, policy, make_episodes):
    learner, episodes = learners[True], make_episodes(10, seed=6)
    params = learner.init(jax.random.PRNGKey(0), policy).params
    [batch], metrics = prepared(learner, params, policy, episodes, 12, kl_beta=0.5)
    # Advantages: G - V_old over the turns that count, shifted and scaled together, the same for a turn's tokens.
    raw = (batch.returns - batch.old_values).astype(np.float64)
    valid = (batch.turn_mask * batch.weight[:, None]) > 0
    scaled = (raw - raw[valid].mean()) / raw[valid].std()
    for row, t in np.ndindex(batch.tokens.shape):
        counted = batch.action_mask[row, t] > 0 and batch.weight[row] > 0
        expected = scaled[row, batch.turn_index[row, t]] if counted else 0.0
        np.testing.assert_allclose(batch.advantages[row, t], expected, atol=1e-5)
    # The penalty enters the last turn's return as beta times the mean log-ratio of its tokens.
    row = int(np.flatnonzero(batch.weight)[0])
    last = int(batch.turn_mask[row].sum()) - 1
    tokens = (batch.action_mask[row] > 0) & (batch.turn_index[row] == last)
    kl = (batch.old_logp[row] - batch.ref_logp[row])[tokens].mean()
    np.testing.assert_allclose(batch.returns[row, last], batch.turn_rewards[row, last] - 0.5 * kl, atol=1e-5)
    assert abs(kl) > 1e-3 and metrics["rows"] == 8
    [unscaled], _ = prepared(learner, params, policy, episodes, 12, kl_beta=0.5, normalize_advantages=False)
    at = np.argmax(tokens)
    np.testing.assert_allclose(unscaled.advantages[row, at], raw[row, last], atol=1e-5)


@pytest.mark.parametrize("separate", [True, False])
def test_prompt_and_feedback_tokens_carry_no_policy_gradient(
    learners, tiny_model, policy, make_episodes, monkeypatch, separate
):
    """The gradient with respect to a token's log-probability is exactly 0 unless it was sampled and counts."""
    from rlef_jax.ppo import objective as where

    learner = learners[separate]
    params = learner.init(jax.random.PRNGKey(0), policy).params
    [batch], _ = prepared(learner, params, policy, make_episodes(10, seed=7), 12)
    # An advantage on every token, of rows that don't count too: the loss's own masks must decide.
    batch = batch.replace(advantages=np.ones_like(batch.advantages))

    def loss(nudge):
        # Every token's log-probability is computed here: what the loss leaves out, it leaves out itself.
        monkeypatch.setattr(where, "token_logp", lambda *model, **_: token_logp(*model[:4]) + nudge)
        counts = {"tokens": jnp.float32(7.0), "values": jnp.float32(3.0)}
        return objective(moved(params), batch, counts, tiny_model, LossSettings(), ForwardSettings())[0]

    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.zeros(batch.tokens.shape)))
    acts = batch.action_mask * batch.weight[:, None] > 0
    assert not gradient[~acts].any()
    assert np.abs(gradient[acts]).mean() > 1e-3


@pytest.mark.parametrize("separate", [True, False])
def test_value_is_read_at_the_last_token_of_the_turns_prompt(learners, tiny_model, policy, make_episode, separate):
    """A hand-made model: its layers add nothing and token i's embedding is i in channel 0, so its value is its token.

    Tokens that count up make that the position; the value must be that of the position before the first sampled one.
    """
    from rlef_jax.types import Status

    hand = jax.tree.map(jnp.zeros_like, policy)
    # RMSNorm divides by the row's length, so the position is kept in the direction: (cos, sin) of an angle.
    angles = jnp.arange(tiny_model.vocab_size) * 0.1
    embed = hand["embed"].at[:, 0].set(jnp.cos(angles)).at[:, 1].set(jnp.sin(angles))
    hand = {**hand, "embed": embed, "final_norm": jnp.ones_like(policy["final_norm"])}
    learner = learners[separate]
    state = learner.init(jax.random.PRNGKey(0), hand)
    readings = []
    for channel in (0, 1):
        head = {"w": jnp.zeros(tiny_model.d_model).at[channel].set(1.0), "b": jnp.zeros(())}
        params = {**state.params, "critic": {**state.params["critic"], "head": head}}
        episode = make_episode(
            [([0, 1, 2], [3, 4], Status.WRONG_ANSWER), ([5, 6], [7], Status.WRONG_ANSWER), ([8], [9], Status.PASSED)]
        )
        [batch], _ = pack([episode], buckets=(20,), rows=12, max_turns=3)
        readings.append(np.asarray(learner.score(params, batch)[1])[0])
    positions = np.arctan2(readings[1], readings[0]) / 0.1
    np.testing.assert_allclose(positions, [2, 6, 8], atol=1e-3)


def test_donated_buffers_leave_the_callers_weights_alone(learners, policy, make_episodes):
    learner = learners[True]
    policy = learner.place_policy(policy)  # where the state's own arrays will lie: nothing else would force a copy
    before = jax.device_get(jax.tree.map(jnp.copy, policy))  # a view of its own buffers would forbid their donation
    state = learner.init(jax.random.PRNGKey(0), policy)
    filled, _ = prepared(learner, state.params, policy, make_episodes(6), 12)
    after, _ = learner.update(state, filled)
    assert jax.tree.leaves(state.params)[0].is_deleted()
    assert int(after.step) == 1
    leaves_close(before, policy, 0.0)


def test_split_updates_is_disjoint_deterministic_and_moves_with_the_step(make_episodes):
    episodes = make_episodes(12)
    parts = split_updates(episodes, 3, seed=1, step=4)
    assert [len(p) for p in parts] == [4, 4, 4]
    assert sorted(e.index for p in parts for e in p) == list(range(12))
    assert parts == split_updates(episodes, 3, seed=1, step=4)
    assert parts != split_updates(episodes, 3, seed=1, step=5) != split_updates(episodes, 3, seed=2, step=5)
    with pytest.raises(ValueError, match="12 rollouts can't be split into 5"):
        split_updates(episodes, 5, seed=0, step=0)


@pytest.mark.parametrize("separate", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_adding_gradients_in_place_changes_nothing(learners, tiny_model, policy, make_episodes, separate):
    """What deep models run (a loop over the layers, everything made again) against what small ones do."""
    learner, episodes = learners[separate], make_episodes(8, seed=2)
    settings = ForwardSettings(unroll=False, remat="full")
    other = Learner(tiny_model, optax.sgd(0.1), loss=LOSS, separate_critic=separate, forward_settings=settings)
    params = learner.init(jax.random.PRNGKey(0), policy).params
    filled, _ = prepared(learner, params, policy, episodes, *SPLITS["by length"])
    assert len({batch.tokens.shape for batch in filled}) == 2
    expected = learner.update(learner.init(jax.random.PRNGKey(0), policy).with_params(moved(params)), filled)
    updated = other.update(other.init(jax.random.PRNGKey(0), policy).with_params(moved(params)), filled)
    for one, another in zip(jax.tree.leaves(expected[0].params), jax.tree.leaves(updated[0].params), strict=True):
        np.testing.assert_allclose(one, another, atol=1e-6)
    assert expected[1].keys() == updated[1].keys()
    for name, value in expected[1].items():
        assert updated[1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("which, count", [("one", 2), pytest.param("all", 22, marks=pytest.mark.slow)])
def test_any_mesh_equals_one_device(which, count):
    """Loss, gradients and weights after an SGD step, on (forced) host devices in one subprocess."""
    result = told_by("tests.ppo.mesh_script", which)
    assert result["devices"] == 8 and len(result["gaps"]) == count  # of other models, values and adapters too
    assert result["rows_per_device"]["(2, 2, 2)"] == 1 / 4
    assert which == "one" or result["rows_per_device"]["(1, 1, 8)"] == 1
    assert result["gradient_size"] > 1e-2
    for case, gaps in result["gaps"].items():
        assert max(gaps) < 1e-5, (case, gaps)


@pytest.fixture(scope="module")
def adamw(tiny_model):
    return Learner(
        tiny_model,
        make_optimizer(tiny_model, OptimizerSettings(1e-2, warmup_steps=3, weight_decay=0.5)),
        loss=LOSS,
        separate_critic=True,
    )


def broken(episodes):
    """The same episodes, on all of which the judge broke."""
    return [dataclasses.replace(e, end="infra") for e in episodes]


@pytest.mark.parametrize("what", ["all infra", "padding", "no micro-batch"])
def test_an_update_without_a_counted_token_changes_nothing(adamw, policy, make_episodes, what):
    """Neither weights nor moments nor the warm-up's count, and what comes after is as if it had never been."""
    learner, reference = adamw, adamw.place_policy(policy)
    episodes = [e for e in make_episodes(12, seed=2) if e.end != "infra"]
    started = learner.init(jax.random.PRNGKey(0), policy)
    whole, _ = prepared(learner, started.params, reference, episodes, 12)
    nothing, _ = prepared(learner, started.params, reference, broken(episodes), 12)
    nothing = {
        "all infra": nothing,
        "padding": [jax.tree.map(np.zeros_like, whole[0])],
        "no micro-batch": [],
    }[what]
    first, _ = learner.update(started, whole)
    before = jax.device_get((first.params, first.opt_state))
    second, metrics = learner.update(first, nothing)
    assert metrics == {"applied": 0.0, "action_tokens": 0.0, "values": 0.0}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get((second.params, second.opt_state)), before)
    assert int(second.step) == 2
    third, metrics = learner.update(second, whole)
    assert metrics["applied"] == 1.0 and int(third.step) == 3
    other, _ = learner.update(learner.update(learner.init(jax.random.PRNGKey(0), policy), whole)[0], whole)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(third.params), jax.device_get(other.params))


def test_gradients_of_nothing_are_an_error(adamw, policy, make_episodes):
    params = adamw.init(jax.random.PRNGKey(0), policy).params
    batches, _ = pack(broken(make_episodes(4)), buckets=(20,), rows=4, max_turns=3)
    with pytest.raises(ValueError, match="needs a token that counts"):
        adamw.gradients(params, batches)


def test_an_iteration_in_which_nothing_counts_has_finite_targets(adamw, policy, make_episodes):
    params = adamw.init(jax.random.PRNGKey(0), policy).params
    filled, metrics = prepared(adamw, params, policy, broken(make_episodes(6)), 12)
    assert metrics["episodes"] == 0.0 and "reward_mean" not in metrics and "explained_variance" not in metrics
    for batch in filled:
        for leaf in jax.tree.leaves(batch):
            assert np.isfinite(leaf).all()
        assert not batch.advantages.any() and not batch.returns.any()
