"""A gradient that would destroy the weights is not applied, is kept, and can be looked at again."""

import jax
import numpy as np
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.model.parameters import init_params
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import OptimizerSettings
from rlef_jax.ppo.update import Learner, make_optimizer, prepare_iteration
from rlef_jax.training.bad_update import describe, load_bad_update, save_bad_update, saved_updates
from tests.ppo.conftest import random_episodes

CFG = ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, d_head=4, d_ff=16)


def make(**kwargs):
    learner = Learner(
        CFG, make_optimizer(CFG, OptimizerSettings(1e-2, warmup_steps=1)), separate_critic=False, **kwargs
    )
    policy = init_params(jax.random.PRNGKey(0), CFG)
    state, reference = learner.init(jax.random.PRNGKey(1), policy), learner.place_policy(policy)
    batches = pack(random_episodes(6), buckets=(20,), rows=4, max_turns=3)[0]
    [filled], _ = prepare_iteration(learner, state.params, reference, [batches])
    return learner, state, filled


@pytest.fixture(scope="module")
def made(quick_compilation):
    return make()


def spoil(batches, value):
    advantages = np.array(batches[0].advantages)
    advantages[np.asarray(batches[0].action_mask) > 0] = value
    return [batches[0].replace(advantages=advantages), *batches[1:]]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_and_moments_stay_and_the_update_is_counted(made, value):
    learner, _, batches = made
    state = make()[1]
    before = jax.device_get((state.params, state.opt_state))
    after, metrics = learner.update(state, spoil(batches, value))
    assert metrics["applied"] == 0.0 and not np.isfinite(metrics["grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get((after.params, after.opt_state)), before)
    assert int(after.step) == 1
    after, metrics = learner.update(after, batches)
    assert metrics["applied"] == 1.0 and int(after.step) == 2
    assert np.isfinite(metrics["loss"])
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(before[0])))


def test_a_large_gradient_is_bad_only_where_a_limit_says_so(made):
    _, _, batches = made
    large = spoil(batches, 1e6)
    for limit, applied in ((0.0, 1.0), (1e3, 0.0)):
        learner, state, _ = make(max_grad_norm=limit)
        assert learner.update(state, large)[1]["applied"] == applied


def test_what_is_kept_is_what_was_there_and_tells_where_it_broke(made, tmp_path):
    learner, state, batches = made
    params = jax.device_get(state.params)
    folder = save_bad_update(tmp_path, 7, params, spoil(batches, np.nan), {"grad_norm": float("nan"), "loss": 1.5})
    assert saved_updates(tmp_path) == [7] and folder.name == "000007"
    loaded, microbatches, metrics = load_bad_update(tmp_path, 7, state.params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    jax.tree.map(np.testing.assert_array_equal, microbatches, spoil(batches, np.nan))
    assert (metrics["grad_norm"], metrics["loss"]) == ("nan", 1.5)
    lines = describe(learner, state, microbatches)
    assert lines[0] == "weights: all finite"
    assert "not finite in the batch: advantages" in lines[1] and "not finite in the batch: nothing" in lines[2]
    assert any(line.startswith("gradient of ['policy']['embed']") and line.endswith("nan") for line in lines)
    with pytest.raises(ConfigError, match=r"no bad update 8 in .*\[7\]"):
        load_bad_update(tmp_path, 8, state.params)
