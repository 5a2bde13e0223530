"""The description of the trained parameters, what weight decay leaves alone, and what is frozen."""

import dataclasses
import tarfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.model.parameters import describe, init_params, leaf_at
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import OptimizerSettings
from rlef_jax.ppo.train_state import (
    combine,
    describe_params,
    first_params,
    learning_rates,
    make_optimizer,
    partition,
    trained_by_default,
)
from rlef_jax.ppo.update import Learner, prepare_iteration
from rlef_jax.training.checkpoint import Checkpoints, content_hash
from rlef_jax.training.workdir import CHECKPOINTS, FROZEN, Progress, frozen_names, items_of, resume, saved_policy

GOLDEN = Path(__file__).parents[1] / "golden"
KEY = jax.random.PRNGKey(0)


@pytest.mark.parametrize("separate", [True, False])
def test_the_description_is_the_tree_of_the_parameters(tiny_model, separate):
    policy = init_params(jax.random.PRNGKey(0), tiny_model)
    params = first_params(jax.random.PRNGKey(1), policy, tiny_model, separate)
    described = jax.tree.map(lambda p: (p.shape, p.dtype), describe_params(tiny_model, separate))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == described


@pytest.mark.parametrize("names", [("policy", "critic"), ("policy",), ("critic",)])
def test_decay_leaves_qkv_biases_alone(tiny_model, names):
    """Without a gradient a step only decays: of the whole of the parameters, or of one part."""
    cfg = dataclasses.replace(tiny_model, qkv_bias=True)
    params = first_params(jax.random.PRNGKey(1), init_params(jax.random.PRNGKey(0), cfg), cfg, True)
    params = jax.tree.map(jnp.ones_like, {name: params[name] for name in names})
    optimizer = make_optimizer(cfg, OptimizerSettings(0.5, warmup_steps=1, weight_decay=0.1))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    kept = 0
    for path, after in jax.tree_util.tree_leaves_with_path(optax.apply_updates(params, updates)):
        is_bias = path[-1].key == "qkv_bias"
        np.testing.assert_allclose(after, 1.0 if is_bias else 0.95, rtol=1e-6)
        kept += is_bias
    assert kept == len(names)


def test_the_learning_rate_rises_and_falls_by_equal_steps():
    def rates(*steps):
        return [float(learning_rates(2.0, *steps)(count)) for count in range(8)]

    np.testing.assert_allclose(rates(4), [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(rates(2, 6), [1.0, 2.0, 1.6, 1.2, 0.8, 0.4, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(rates(1, 1), [2.0] * 8)
    np.testing.assert_allclose(rates(9, 4)[:4], 2 / 9 * np.arange(1, 5), rtol=1e-6)  # a run that ends before its peak


def embeddings_frozen(path):
    return path[-1] != "embed"


def test_partition_and_combine_are_inverse():
    tree = {"policy": {"embed": 1, "layers": {"qkv": 2}}, "critic": {"head": {"w": 3}, "trunk": {"embed": 4}}}
    trainable, frozen = partition(tree, embeddings_frozen)
    assert trainable == {"policy": {"layers": {"qkv": 2}}, "critic": {"head": {"w": 3}}}
    assert frozen == {"policy": {"embed": 1}, "critic": {"trunk": {"embed": 4}}}
    assert combine(trainable, frozen) == tree
    assert partition(tree, lambda path: True) == (tree, {"policy": {}, "critic": {}})
    assert combine(*partition(tree, lambda path: False)) == tree


def test_all_parameters_are_trained_unless_their_record_says_otherwise(tiny_model, monkeypatch):
    trainable, frozen = partition(describe_params(tiny_model, True), trained_by_default(tiny_model))
    assert trainable == describe_params(tiny_model, True) and not jax.tree.leaves(frozen)

    def without_norms(cfg, dtype=jnp.float32):
        norm = dataclasses.replace(describe(cfg, dtype)["final_norm"], trainable=False)
        return describe(cfg, dtype) | {"final_norm": norm}

    monkeypatch.setattr("rlef_jax.ppo.train_state.describe", without_norms)
    _, frozen = partition(describe_params(tiny_model, True), trained_by_default(tiny_model))
    assert frozen.keys() == {"policy", "critic"}
    assert frozen["policy"].keys() == frozen["critic"]["trunk"].keys() == {"final_norm"}


def paths_of(tree):
    return {tuple(str(getattr(k, "key", k)) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_what_is_frozen_has_no_gradient_no_moment_and_no_place_in_a_checkpoint(tiny_model, make_episodes, tmp_path):
    """The embedding, in the policy and in the critic's trunk, as an adapter's base would be."""
    policy = init_params(jax.random.PRNGKey(1), tiny_model)
    optimizer = make_optimizer(tiny_model, OptimizerSettings(1e-2, warmup_steps=1, weight_decay=0.5))
    learner = Learner(tiny_model, optimizer, trainable=embeddings_frozen)
    whole = Learner(tiny_model, optimizer)
    batches, _ = pack(make_episodes(6, seed=2), buckets=(20,), rows=4, max_turns=3)
    state = learner.init(KEY, policy)
    before = jax.device_get(state.params)
    [filled], _ = prepare_iteration(learner, state.params, learner.place_policy(policy), [batches])

    gradients = learner.gradients(state.params, filled)
    expected, _ = partition(whole.gradients(state.params, filled), embeddings_frozen)
    assert paths_of(gradients) == paths_of(state.trainable) and not any("embed" in p for p in paths_of(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients, expected)
    assert not any("embed" in path for path in paths_of(state.opt_state))

    held = jax.tree.leaves(state.frozen)
    after, metrics = learner.update(state, filled)
    assert not any(leaf.is_deleted() for leaf in held)  # the next state has the very same arrays
    assert all(a is b for a, b in zip(jax.tree.leaves(after.frozen), held, strict=True))
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(gradients)), rel=1e-5)
    for path, leaf in jax.tree_util.tree_leaves_with_path(after.params):
        moved = not np.array_equal(leaf, leaf_at(before, [k.key for k in path]))
        assert moved is (path[-1].key != "embed"), path

    items = items_of(after)
    assert not any("embed" in path for path in paths_of(items))
    assert frozen_names(after) == ["critic/trunk/embed", "policy/embed"]
    progress = dataclasses.asdict(Progress(iteration=1, reference=None))
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        checkpoints.save(1, items, progress | {FROZEN: frozen_names(after)})
        resumed, _ = resume(
            tmp_path, checkpoints, learner.init(KEY, policy), Progress(0, None), checkpoint_every=1, tell=print
        )
        jax.tree.map(np.testing.assert_array_equal, resumed, after)
        with pytest.raises(ConfigError, match=r"policy\['embed'\] is absent there, float32\[11,8\] in this config"):
            resume(tmp_path, checkpoints, whole.init(KEY, policy), Progress(0, None), checkpoint_every=1, tell=print)
    found = saved_policy(tmp_path, "last", policy, lambda: policy)
    jax.tree.map(np.testing.assert_array_equal, found, after.params["policy"])
    jax.tree.map(np.testing.assert_array_equal, learner.update(resumed, filled)[0], learner.update(after, filled)[0])


def test_a_checkpoint_from_before_the_partition_is_read(tmp_path):
    """It was written by the code of d265a23, which knew no frozen parameters, after two updates of AdamW."""
    cfg = ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, d_head=4, d_ff=16)
    with tarfile.open(GOLDEN / "checkpoint_of_d265a23.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    policy = init_params(jax.random.PRNGKey(1), cfg)
    learner = Learner(cfg, make_optimizer(cfg, OptimizerSettings(1e-2, warmup_steps=3)))
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        told = checkpoints.metadata(1)
        start = Progress(0, told["reference"])
        state, progress = resume(
            tmp_path, checkpoints, learner.init(KEY, policy), start, checkpoint_every=1, tell=print
        )
    assert {name: content_hash(item) for name, item in items_of(state).items()} == told["hashes"]
    assert progress == Progress(1, start.reference, skipped_updates=3) and int(state.step) == 2
    found = saved_policy(tmp_path, "last", policy, pytest.fail)
    jax.tree.map(np.testing.assert_array_equal, found, state.params["policy"])
