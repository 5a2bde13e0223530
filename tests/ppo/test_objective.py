"""What a critic on the policy's trunk trains of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.parameters import init_params
from rlef_jax.ppo.objective import ForwardSettings, objective
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import LossSettings
from rlef_jax.ppo.train_state import first_params
from rlef_jax.ppo.values import count

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_detached_critic_trains_its_head_alone(tiny_model, make_episodes):
    """The policy's gradient is that of its own loss, the head's as if it weren't detached."""
    [batch], _ = pack(make_episodes(4, seed=2), buckets=(20,), rows=4, max_turns=3)
    batch = batch.replace(returns=batch.turn_mask * 0.7, advantages=batch.action_mask)
    params = first_params(jax.random.PRNGKey(1), init_params(jax.random.PRNGKey(0), tiny_model), tiny_model, False)
    counts = count([batch])

    @jax.jit
    def gradients(params, batch):
        def of(loss):
            return jax.grad(lambda p: objective(p, batch, counts, tiny_model, loss, ForwardSettings())[0])(params)

        losses = LossSettings(), LossSettings(detach_critic=True), LossSettings(value_coef=0.0)
        return [of(loss) for loss in losses]

    shared, detached, without = gradients(params, jax.tree.map(jnp.asarray, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), detached["policy"], without["policy"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), detached["critic"], shared["critic"])
    assert any(
        not np.allclose(a, b, atol=1e-4)
        for a, b in zip(jax.tree.leaves(shared["policy"]), jax.tree.leaves(without["policy"]), strict=True)
    )
