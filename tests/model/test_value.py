"""The value head reads the hidden state at the given positions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.transformer import ModelConfig
from rlef_jax.model.value import FIRST_SIZE, init_value_head, values

CFG = ModelConfig(vocab_size=5, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, d_head=8, d_ff=8)


def test_value_is_linear_in_the_hidden_state_at_its_position():
    hidden = jnp.arange(12.0)[None, :, None] * jnp.array([1.0, 10.0])[:, None, None] * jnp.ones((1, 1, 8))
    head = {"w": jnp.full(8, 0.125), "b": jnp.float32(0.5)}
    result = values(head, hidden, jnp.array([[0, 3, 11], [2, 2, 7]]))
    np.testing.assert_allclose(result, [[0.5, 3.5, 11.5], [20.5, 20.5, 70.5]])


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("size", [0.5, 1.0, 30.0])
def test_first_values_are_small_whatever_the_final_norm(size, plus_one):
    """Over heads, and over hidden states as a model with this norm has them."""
    cfg = dataclasses.replace(CFG, d_model=64, norm_plus_one=plus_one)
    rng = np.random.default_rng(0)
    multiplied = size * rng.uniform(0.5, 1.5, 64)
    x = rng.normal(size=(1, 200, 64))
    hidden = x / np.sqrt((x**2).mean(-1, keepdims=True)) * multiplied
    positions, norm = jnp.arange(200)[None], jnp.asarray(multiplied - plus_one, jnp.float32)
    heads = [init_value_head(jax.random.PRNGKey(i), cfg, norm) for i in range(20)]
    first = np.stack([values(head, jnp.asarray(hidden, jnp.float32), positions) for head in heads])
    assert 0.8 * FIRST_SIZE < first.std() < 1.25 * FIRST_SIZE and abs(first).max() < 6 * FIRST_SIZE
    assert not np.allclose(heads[0]["w"], heads[1]["w"]) and all(head["b"] == 0 for head in heads)
