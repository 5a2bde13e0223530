"""The update of adapters beside a frozen base: what is trained, what is shared, what a checkpoint holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.model.lora import LoraConfig, merge, split
from rlef_jax.model.parameters import init_params, leaf_at, with_adapters
from rlef_jax.ppo.objective import ForwardSettings, objective
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import LossSettings, OptimizerSettings
from rlef_jax.ppo.train_state import combine, kept_once, make_optimizer, partition, with_shared
from rlef_jax.ppo.update import Learner, prepare_iteration
from rlef_jax.ppo.values import count
from rlef_jax.training.checkpoint import Checkpoints, content_hash
from rlef_jax.training.workdir import CHECKPOINTS, FROZEN, Progress, frozen_names, items_of, resume, saved_policy

KEY = jax.random.PRNGKey(0)
DEEP = ForwardSettings(unroll=False, remat="full")  # a scan whose gradients are added in place


@pytest.fixture(scope="module")
def cfg(tiny_model):
    """Adapters in the second of two layers."""
    return dataclasses.replace(tiny_model, lora=LoraConfig(2, 4.0, ("q_proj", "v_proj", "o_proj", "up_proj"), 1))


@pytest.fixture(scope="module")
def learner(cfg):
    return Learner(cfg, make_optimizer(cfg, OptimizerSettings(1e-2, warmup_steps=1, weight_decay=0.5)),
                   forward_settings=DEEP)  # fmt: skip


@pytest.fixture(scope="module")
def policy(cfg):
    """Adapters that add something, as `model.lora_init` would give them."""
    params = init_params(jax.random.PRNGKey(1), cfg)
    return with_adapters(params, {name: a + 0.2 for name, a in split(params["layers"])[1].items()})


@pytest.fixture(scope="module")
def filled(learner, policy, make_episodes):
    batches, _ = pack(make_episodes(6, seed=2), buckets=(20,), rows=3, max_turns=3)
    params = learner.init(KEY, policy).params
    [filled], _ = prepare_iteration(learner, moved(params, learner), learner.place_policy(policy), [batches])
    return filled


def moved(params, learner):
    """With other trained parameters, so that policy, critic and reference differ."""
    trained, frozen = partition(params, learner.trainable)
    keys = iter(jax.random.split(jax.random.PRNGKey(4), 99))
    return combine(jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(keys), a.shape), trained), frozen)


def leaf_names(tree):
    return {"/".join(step.key for step in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def test_adapters_and_heads_are_trained_beside_one_base(learner, policy, cfg, filled):
    state = learner.init(KEY, policy)
    names = {f"layers/{name}" for name in split(policy["layers"])[1]}
    trunk = {f"critic/trunk/{name}" for name in names}
    assert leaf_names(state.trainable) == {f"policy/{n}" for n in names} | trunk | {"critic/head/w", "critic/head/b"}
    base, reference = state.frozen["policy"], learner.place_policy(state.params["policy"])
    jax.tree.map(lambda a, b: pytest.fail("a copy") if a is not b else None, base, state.frozen["critic"]["trunk"])
    for name, array in jax.tree_util.tree_leaves_with_path(partition({"policy": reference}, learner.trainable)[1]):
        own = leaf_at({"policy": base}, [step.key for step in name])
        assert own.unsafe_buffer_pointer() == array.unsafe_buffer_pointer()
    before = jax.tree.map(np.array, state.params)  # copies: a view of an array would keep it from being donated
    trained = state.trainable["policy"]["layers"]["q_proj_a"]
    for _ in range(2):
        state, metrics = learner.update(state, filled)
        assert metrics["applied"] and metrics["grad_norm"] > 1e-2
    assert trained.is_deleted()  # donated, and neither base nor reference with it
    after = jax.device_get(state.params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(after):
        then = leaf_at(before, [step.key for step in path])
        assert np.array_equal(leaf, then) is ("/".join(s.key for s in path) not in leaf_names(state.trainable)), path
    assert not np.allclose(after["policy"]["layers"]["q_proj_b"], after["critic"]["trunk"]["layers"]["q_proj_b"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(reference), jax.device_get(policy))


def test_shared_weights_are_kept_once_and_put_back(learner, policy):
    params = learner.init(KEY, policy).params
    once = kept_once(params, learner.trainable)
    assert leaf_names(once["critic"]) == {n for n in leaf_names(params["critic"]) if "_proj_" in n or "head" in n}
    back = with_shared(once, learner.trainable)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True))
    for part in ({"policy": params["policy"]}, {"critic": params["critic"]}):
        assert kept_once(part, learner.trainable) is part


@pytest.mark.parametrize("separate", [True, False])
def test_gradients_are_those_of_the_merged_models(cfg, policy, learner, filled, separate):
    """Of the update's own loss, differentiated through the merge: layers as straight code, and added in place."""
    ours = learner if separate else Learner(cfg, optax.sgd(0.1), separate_critic=False, forward_settings=DEEP)
    params = moved(ours.init(KEY, policy).params, ours)
    found = ours.gradients(params, filled)
    trained, frozen = partition(params, ours.trainable)
    counts = {name: jnp.float32(n) for name, n in count(filled).items()}

    def loss(trained):
        whole = combine(trained, frozen)
        plain = {"policy": merge(whole["policy"], cfg.lora), "critic": {"head": whole["critic"]["head"]}}
        if separate:
            plain["critic"]["trunk"] = merge(whole["critic"]["trunk"], cfg.lora)
        return sum(objective(plain, b, counts, cfg.base, LossSettings(), ForwardSettings())[0] for b in filled)

    expected = jax.jit(jax.grad(loss))(trained)
    assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(expected["policy"])) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("separate, unroll", [(False, False), pytest.param(True, True, marks=pytest.mark.slow)])
def test_states_below_adapters_are_computed_once_and_change_nothing(cfg, policy, make_episodes, separate, unroll):
    keeping = Learner(
        cfg, optax.sgd(0.1), separate_critic=separate, forward_settings=ForwardSettings(unroll=unroll, keep_below=True)
    )
    batches, _ = pack(make_episodes(6, seed=2), buckets=(20,), rows=3, max_turns=3)
    params = moved(keeping.init(KEY, policy).params, keeping)
    [kept], _ = prepare_iteration(keeping, params, keeping.place_policy(policy), [batches])
    assert all(b.below.shape == (3, 20, cfg.d_model) for b in kept)
    bare = [dataclasses.replace(b, below=None) for b in kept]
    for b, plain in zip(kept, bare, strict=True):
        logp, values = keeping.score(params, plain)
        for one, other in ((logp, b.old_logp), (values, b.old_values), (keeping.ref_logp(policy, plain), b.ref_logp)):
            np.testing.assert_allclose(one, other, atol=1e-5)
    expected = keeping.gradients(params, bare)
    assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(expected["policy"])) > 1e-2
    # Of the layers below nothing is left to run: their weights may be anything.
    layers = {n: a if n in split(policy["layers"])[1] else a.at[0].set(jnp.nan) for n, a in policy["layers"].items()}
    base = partition(keeping.init(KEY, {**policy, "layers": layers}).params, keeping.trainable)[1]
    broken = combine(partition(params, keeping.trainable)[0], base)
    found = keeping.gradients(broken, kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_a_checkpoint_holds_no_base_and_knows_its_own(learner, policy, cfg, filled, tmp_path):
    state, _ = learner.update(learner.init(KEY, policy), filled)
    items = items_of(state)
    size, whole = (sum(a.size for a in jax.tree.leaves(tree)) for tree in (items["policy"], policy))
    assert size == sum(a.size for a in split(policy["layers"])[1].values()) < whole / 4
    assert not any(name.endswith(("embed", "qkv", "norm")) for name in leaf_names(items["policy"]))
    progress = dataclasses.asdict(Progress(iteration=1, reference=content_hash(policy)))
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        checkpoints.save(1, items, progress | {FROZEN: frozen_names(state)})
        resumed, _ = resume(
            tmp_path, checkpoints, learner.init(KEY, policy), Progress(0, content_hash(policy)), checkpoint_every=1,
            tell=print,
        )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    found = saved_policy(tmp_path, "last", policy, lambda: policy)
    jax.tree.map(np.testing.assert_array_equal, found, state.params["policy"])
    another = policy | {"embed": policy["embed"] + 1}
    with pytest.raises(ConfigError, match="checkpoint 1 in .* was trained beside other weights"):
        saved_policy(tmp_path, "last", policy, lambda: another)
