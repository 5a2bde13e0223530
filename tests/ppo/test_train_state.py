"""The description of the trained parameters, and what weight decay leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlef_jax.model.parameters import init_params
from rlef_jax.ppo.train_state import describe_params, first_params, make_optimizer


@pytest.mark.parametrize("separate", [True, False])
def test_the_description_is_the_tree_of_the_parameters(tiny_model, separate):
    policy = init_params(jax.random.PRNGKey(0), tiny_model)
    params = first_params(jax.random.PRNGKey(1), policy, tiny_model, separate)
    described = jax.tree.map(lambda p: (p.shape, p.dtype), describe_params(tiny_model, separate))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == described


@pytest.mark.parametrize("names", [("policy", "critic"), ("policy",), ("critic",)])
def test_decay_leaves_qkv_biases_alone(tiny_model, names):
    """Without a gradient a step only decays: of the whole of the parameters, or of one side's part."""
    cfg = dataclasses.replace(tiny_model, qkv_bias=True)
    params = first_params(jax.random.PRNGKey(1), init_params(jax.random.PRNGKey(0), cfg), cfg, True)
    params = jax.tree.map(jnp.ones_like, {name: params[name] for name in names})
    optimizer = make_optimizer(cfg, 0.5, warmup_steps=1, weight_decay=0.1)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    kept = 0
    for path, after in jax.tree_util.tree_leaves_with_path(optax.apply_updates(params, updates)):
        is_bias = path[-1].key == "qkv_bias"
        np.testing.assert_allclose(after, 1.0 if is_bias else 0.95, rtol=1e-6)
        kept += is_bias
    assert kept == len(names)
