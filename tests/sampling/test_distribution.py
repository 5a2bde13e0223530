"""Temperature, top-k and top-p against a sorting reference; draws against the exact distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlef_jax.sampling.distribution import inverse_cdf, modified_probs

V = 7


def reference_probs(logits, temperature, top_k, top_p):
    """One row in float64, by sorting."""
    scaled = np.asarray(logits, np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    kept = order[: top_k or V]
    shares = np.cumsum(probs[kept]) / probs[kept].sum()
    kept = kept[: next(i for i, share in enumerate(shares) if share >= top_p or i == len(kept) - 1) + 1]
    out = np.zeros(V)
    out[kept] = probs[kept]
    return out / out.sum()


@settings(max_examples=60)
@given(
    order=st.permutations(range(V)),
    gap=st.floats(0.05, 2.0),
    temperature=st.sampled_from([0.2, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, V, V + 5]),
    top_p=st.sampled_from([0.013, 0.437, 0.951, 1.0]),
)
def test_modified_probs_are_the_references(order, gap, temperature, top_k, top_p):
    logits = gap * np.array(order, np.float32)
    result = modified_probs(jnp.asarray(logits)[None], temperature, top_k, top_p)[0]
    np.testing.assert_allclose(result, reference_probs(logits, temperature, top_k, top_p), atol=2e-5)


def test_temperature_zero_is_greedy_and_ties_are_kept():
    logits = jnp.array([[0.0, 2.0, 1.0, 2.0, -1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(modified_probs(logits, 0.0, 0, 1.0), [[0, 1, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(modified_probs(logits, 1.0, 1, 1.0), [[0, 0.5, 0, 0.5, 0, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 16, 50])
def test_inverse_cdf_is_the_first_token_above_the_uniform(vocabulary):
    rng = np.random.default_rng(vocabulary)
    probs = rng.exponential(size=(200, vocabulary)) * (rng.random((200, vocabulary)) < 0.6)
    probs[:, rng.integers(vocabulary)] += 0.1
    probs /= probs.sum(-1, keepdims=True)
    uniforms = rng.random(200)
    result = np.asarray(inverse_cdf(jnp.asarray(probs, jnp.float32), jnp.asarray(uniforms, jnp.float32)))
    running = np.cumsum(probs, axis=-1)
    near = (np.abs(running - uniforms[:, None]).min(-1) < 1e-5) & (vocabulary > 1)
    expected = (running <= uniforms[:, None]).sum(-1)
    assert near.sum() < 5
    np.testing.assert_array_equal(result[~near], expected[~near])


def test_no_token_of_probability_zero_is_drawn_at_the_edges():
    probs = jnp.array([[0.0, 0.3, 0.0, 0.7, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    assert inverse_cdf(probs, jnp.zeros(3)).tolist() == [1, 4, 0]
    assert inverse_cdf(probs, jnp.full(3, np.nextafter(1, 0, dtype=np.float32))).tolist() == [3, 4, 0]


def test_draws_follow_the_distribution():
    """Chi-square of 20,000 draws over 7 tokens: 22.46 is its 0.1 % point at 6 degrees of freedom."""
    probs = np.array([0.3, 0.05, 0.2, 0.15, 0.1, 0.18, 0.02])
    draws = 20_000
    uniforms = jax.random.uniform(jax.random.PRNGKey(0), (draws,))
    ids = inverse_cdf(jnp.tile(jnp.asarray(probs, jnp.float32)[None], (draws, 1)), uniforms)
    counts = np.bincount(ids, minlength=V)
    assert ((counts - draws * probs) ** 2 / (draws * probs)).sum() < 22.46
