"""A two-armed bandit must be learned by the whole pipeline: reward, packing, returns, losses, AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.parameters import init_params
from rlef_jax.model.transformer import ModelConfig, forward, unembed
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import OptimizerSettings, TargetSettings
from rlef_jax.ppo.update import Learner, make_optimizer, prepare_iteration, split_updates
from rlef_jax.types import Status

CFG = ModelConfig(vocab_size=4, d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, d_head=4, d_ff=16)
PROMPT, GOOD, BAD = 1, 2, 3


@jax.jit
def next_logp(policy, tokens):
    """Log-probabilities [V] of the token after a prompt [1, T]."""
    hidden = forward(policy, CFG, tokens, jnp.arange(tokens.shape[1])[None, :], jnp.ones_like(tokens))
    return jax.nn.log_softmax(unembed(policy, CFG, hidden)[0, -1])


@pytest.mark.parametrize("separate", [True, False])
def test_the_paid_arm_is_learned(make_episode, separate):
    learner = Learner(
        CFG, make_optimizer(CFG, OptimizerSettings(3e-2, warmup_steps=1, weight_decay=0.0)), separate_critic=separate
    )
    policy = init_params(jax.random.PRNGKey(3), CFG)
    state, reference = learner.init(jax.random.PRNGKey(4), policy), learner.place_policy(policy)
    rng, prompt = np.random.default_rng(0), jnp.array([[PROMPT]])
    start = float(jnp.exp(next_logp(policy, prompt)[GOOD]))
    assert 0.05 < start < 0.6
    for step in range(12):
        logp = np.asarray(next_logp(state.params["policy"], prompt), np.float64)
        arms = rng.choice(4, size=16, p=np.exp(logp) / np.exp(logp).sum())
        episodes = [
            make_episode(
                [([PROMPT], [int(arm)], Status.PASSED if arm == GOOD else Status.WRONG_ANSWER)],
                index=i,
                behavior=[[logp[arm]]],
            )
            for i, arm in enumerate(arms)
        ]
        parts = [
            pack(part, buckets=(4,), rows=8, max_turns=1)[0] for part in split_updates(episodes, 2, seed=0, step=step)
        ]
        filled, metrics = prepare_iteration(learner, state.params, reference, parts, TargetSettings(kl_beta=0.01))
        assert metrics["mismatch_max"] < 1e-4
        for microbatches in filled:
            state, _ = learner.update(state, microbatches)
    assert float(jnp.exp(next_logp(state.params["policy"], prompt)[GOOD])) > 0.9
    assert metrics["kl_to_ref"] > 0.1
