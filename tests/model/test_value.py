"""The value head reads the hidden state at the given positions."""

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax.model.transformer import ModelConfig
from rlef_jax.model.value import init_value_head, values

CFG = ModelConfig(vocab_size=5, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, d_head=8, d_ff=8)


def test_value_is_linear_in_the_hidden_state_at_its_position():
    hidden = jnp.arange(12.0)[None, :, None] * jnp.array([1.0, 10.0])[:, None, None] * jnp.ones((1, 1, 8))
    head = {"w": jnp.full(8, 0.125), "b": jnp.float32(0.5)}
    result = values(head, hidden, jnp.array([[0, 3, 11], [2, 2, 7]]))
    np.testing.assert_allclose(result, [[0.5, 3.5, 11.5], [20.5, 20.5, 70.5]])


def test_heads_are_random_and_of_unit_scale():
    a, b = (init_value_head(jax.random.PRNGKey(i), CFG) for i in range(2))
    assert not np.allclose(a["w"], b["w"]) and a["b"] == 0
    assert 0.2 < np.linalg.norm(a["w"]) < 3
