"""The update with token values and without a critic: split = whole, gradients, a hand-made model, checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.model.parameters import init_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.ppo import values
from rlef_jax.ppo.losses import value_loss
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import LossSettings, OptimizerSettings, TargetSettings
from rlef_jax.ppo.update import Learner, make_optimizer, prepare_iteration
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.workdir import CHECKPOINTS, Progress, items_of, resume
from rlef_jax.types import Status
from tests.ppo.test_update import SPLITS, leaves_close, moved

KEY = jax.random.PRNGKey(0)
GROUPS = TargetSettings(kl="product", baseline="rloo", group_size=2, normalize_advantages=False)
SETTINGS = {"token": TargetSettings(kl="product", gamma=0.9, gae_lambda=0.8), "none": GROUPS}


@pytest.fixture(scope="module")
def policy(tiny_model):
    return init_params(jax.random.PRNGKey(1), tiny_model)


@pytest.fixture(scope="module")
def learners(tiny_model):
    """By kind of value, with AdamW."""
    optimizer = make_optimizer(tiny_model, OptimizerSettings(1e-2, warmup_steps=3))
    return {kind: Learner(tiny_model, optimizer, critic=kind != "none") for kind in SETTINGS}


def prepared(learner, kind, policy, episodes, split):
    rows, buckets, row_episodes = SPLITS[split]
    batches, _ = pack(episodes, buckets=buckets, rows=rows, max_turns=3, row_episodes=row_episodes, value_kind=kind)
    params, reference = learner.init(KEY, policy).params, moved(policy, seed=5)
    [filled], metrics = prepare_iteration(learner, params, reference, [batches], SETTINGS[kind])
    return filled, metrics


@pytest.mark.parametrize("kind, way", [("token", "packed"), pytest.param("none", "uneven", marks=pytest.mark.slow)])
def test_packing_and_splitting_change_nothing(learners, policy, make_episodes, kind, way):
    learner, episodes, found = learners[kind], make_episodes(8, seed=2), {}
    params = moved(learner.init(KEY, policy).params)
    for split in ("whole", way):
        filled, _ = prepared(learner, kind, policy, episodes, split)
        found[split] = jax.device_get(learner.gradients(params, filled))
    assert max(float(np.abs(x).max()) for x in jax.tree.leaves(found["whole"])) > 1e-2
    leaves_close(*found.values())


def test_token_values_are_read_one_token_before(learners, tiny_model, policy, make_episode):
    """A hand-made model whose hidden state tells of the token: the value of a token tells of the one before it."""
    hand = jax.tree.map(jnp.zeros_like, policy)
    angles = jnp.arange(tiny_model.vocab_size) * 0.1
    embed = hand["embed"].at[:, 0].set(jnp.cos(angles)).at[:, 1].set(jnp.sin(angles))
    hand = {**hand, "embed": embed, "final_norm": jnp.ones_like(policy["final_norm"])}
    learner = learners["token"]
    params, readings = learner.init(KEY, hand).params, []
    episode = make_episode([([0, 1, 2], [3, 4], Status.WRONG_ANSWER), ([5, 6], [7], Status.PASSED)])
    [batch], _ = pack([episode], buckets=(20,), rows=12, max_turns=3, value_kind="token")
    for channel in (0, 1):
        head = {"w": jnp.zeros(tiny_model.d_model).at[channel].set(1.0), "b": jnp.zeros(())}
        readings.append(
            np.asarray(learner.score({**params, "critic": {**params["critic"], "head": head}}, batch)[1])[0]
        )
    sampled = batch.action_mask[0] > 0
    np.testing.assert_allclose((np.arctan2(readings[1], readings[0]) / 0.1)[sampled], [2, 3, 6], atol=1e-3)


def test_the_token_values_gradient_is_the_difference_quotient(tiny_model, make_batch):
    """Of the value loss through the head, in float64, inside of the clip range; two tokens of five count."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 6, tiny_model.d_model)), jnp.float32)
    batch, mask = make_batch(2, 6, 1, value_kind="token"), jnp.asarray(rng.random((2, 6)) < 0.4)
    with jax.enable_x64(True):
        old, targets, point = (jnp.asarray(rng.normal(size=n)) for n in ((2, 6), (2, 6), tiny_model.d_model + 1))

        @jax.jit
        def loss(x):
            read = values.read({"w": x[1:], "b": x[0]}, hidden, batch)
            return value_loss(read, old, targets, mask, LossSettings(value_clip=9.0))[0]

        steps = 1e-6 * jnp.eye(len(point))
        expected = [float(loss(point + s) - loss(point - s)) / 2e-6 for s in steps]
        found = jax.grad(loss)(point)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).min() > 1e-4


def test_without_a_critic_nothing_is_said_of_values_and_a_checkpoint_goes_on(learners, policy, make_episodes, tmp_path):
    learner = learners["none"]
    filled, told = prepared(learner, "none", policy, make_episodes(8, seed=2), "whole")
    state = learner.init(KEY, policy)
    assert state.params.keys() == {"policy"} and "explained_variance" not in told
    after, metrics = learner.update(state, filled)
    assert metrics["applied"] == 1.0 and metrics["loss"] == pytest.approx(metrics["policy_loss"])
    assert not [name for name in metrics if name.startswith("value_")] and metrics["values"] == 0
    with Checkpoints(tmp_path / CHECKPOINTS) as checkpoints:
        start = Progress(0, None)
        metadata = {"iteration": 1, "reference": None, "frozen": []}
        checkpoints.save(1, items_of(after), metadata)
        options = dict(checkpoint_every=1, tell=print)
        resumed, _ = resume(tmp_path, checkpoints, learner.init(KEY, policy), start, **options)
        jax.tree.map(np.testing.assert_array_equal, resumed, after)
        with pytest.raises(ConfigError, match="critic"):
            resume(tmp_path, checkpoints, learners["token"].init(KEY, policy), start, **options)
    again, expected = learner.update(resumed, filled)[0], learner.update(after, filled)[0]
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_a_mesh_for_no_critic_is_refused(tiny_model):
    other = make_mesh(devices=jax.devices()).__class__(np.array(jax.devices()).reshape(1, 1, -1), ("a", "b", "c"))
    with pytest.raises(ValueError, match="there is no critic"):
        Learner(tiny_model, optax.sgd(0.1), critic=False, critic_mesh=other)
