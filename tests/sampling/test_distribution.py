"""Temperature, top-k and top-p against a sorting reference; draws against the exact distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlef_jax.sampling.distribution import inverse_cdf, modified_weights, weights

V = 7


def reference_probs(logits, temperature, top_k, top_p):
    """Probabilities of one row in float64, by sorting."""
    scaled = np.asarray(logits, np.float64) / temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    kept_tokens = order[: top_k or V]
    shares = np.cumsum(probs[kept_tokens]) / probs[kept_tokens].sum()
    kept_tokens = kept_tokens[
        : next(i for i, share in enumerate(shares) if share >= top_p or i == len(kept_tokens) - 1) + 1
    ]
    out = np.zeros(V)
    out[kept_tokens] = probs[kept_tokens]
    return out / out.sum()


def rows_of(*values):
    return tuple(
        jnp.asarray([v], dtype) for v, dtype in zip(values, (jnp.float32, jnp.int32, jnp.float32), strict=True)
    )


modified = jax.jit(modified_weights)


@settings(max_examples=60)
@given(
    order=st.permutations(range(V)),
    gap=st.floats(0.05, 2.0),
    temperature=st.sampled_from([0.2, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 3, V, V + 5]),
    top_p=st.sampled_from([0.013, 0.437, 0.951, 1.0]),
)
def test_modified_weights_are_the_references(order, gap, temperature, top_k, top_p):
    logits = gap * np.array(order, np.float32)
    result = modified(jnp.asarray(logits)[None], *rows_of(temperature, top_k, top_p))[0]
    np.testing.assert_allclose(result / result.sum(), reference_probs(logits, temperature, top_k, top_p), atol=2e-5)


def test_temperature_zero_is_greedy_and_ties_are_kept():
    logits = jnp.array([[0.0, 2.0, 1.0, 2.0, -1.0, 0.0, 0.0]])
    np.testing.assert_array_equal(modified(logits, *rows_of(0.0, 0, 1.0)), [[0, 1, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(modified(logits, *rows_of(1.0, 1, 1.0)), [[0, 1, 0, 1, 0, 0, 0]], rtol=1e-6)


def test_each_row_has_settings_of_its_own():
    """A row's weights equal those it gets alone; without top-k and top-p they equal the plain ones bit for bit."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, V)), jnp.float32) * 2
    temperature, top_k, top_p = jnp.array([1.0, 0.5, 0.0, 1.3, 1.0]), jnp.array([0, 2, 0, 0, 4]), jnp.ones(5) * 0.9
    top_p = top_p.at[0].set(1.0)
    together = modified(logits, temperature, top_k, top_p)
    for row in range(5):
        alone = modified(*(a[row : row + 1] for a in (logits, temperature, top_k, top_p)))
        np.testing.assert_allclose(together[row], alone[0], atol=1e-6)
    np.testing.assert_array_equal(together[0], jax.jit(weights)(logits, temperature + (temperature == 0))[0])


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 16, 50])
def test_inverse_cdf_is_the_first_token_above_the_uniform(vocabulary):
    rng = np.random.default_rng(vocabulary)
    probs = rng.exponential(size=(200, vocabulary)) * (rng.random((200, vocabulary)) < 0.6)
    probs[:, rng.integers(vocabulary)] += 0.1
    probs /= probs.sum(-1, keepdims=True)
    uniforms = rng.random(200)
    ids, totals = inverse_cdf(jnp.asarray(7.5 * probs, jnp.float32), jnp.asarray(uniforms, jnp.float32))
    result = np.asarray(ids)
    np.testing.assert_allclose(totals, 7.5, rtol=1e-5)
    running = np.cumsum(probs, axis=-1)
    near = (np.abs(running - uniforms[:, None]).min(-1) < 1e-5) & (vocabulary > 1)
    expected = (running <= uniforms[:, None]).sum(-1)
    assert near.sum() < 5
    np.testing.assert_array_equal(result[~near], expected[~near])


def test_no_token_of_probability_zero_is_drawn_at_the_edges():
    probs = jnp.array([[0.0, 0.3, 0.0, 0.7, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    assert inverse_cdf(probs, jnp.zeros(3))[0].tolist() == [1, 4, 0]
    assert inverse_cdf(probs, jnp.full(3, np.nextafter(1, 0, dtype=np.float32)))[0].tolist() == [3, 4, 0]


def test_draws_follow_the_distribution():
    """Chi-square of 20,000 draws over 7 tokens: 22.46 is its 0.1 % point at 6 degrees of freedom."""
    probs = np.array([0.3, 0.05, 0.2, 0.15, 0.1, 0.18, 0.02])
    draws = 20_000
    uniforms = jax.random.uniform(jax.random.PRNGKey(0), (draws,))
    ids, _ = inverse_cdf(jnp.tile(jnp.asarray(probs, jnp.float32)[None], (draws, 1)), uniforms)
    counts = np.bincount(ids, minlength=V)
    assert ((counts - draws * probs) ** 2 / (draws * probs)).sum() < 22.46


def test_draws_follow_the_distribution_at_a_large_vocabulary():
    """Chi-square of 400,000 draws at 49,152 tokens; tokens expected fewer than 20 times are combined.

    The bound for n classes is n + 4 sqrt(2 n), four standard deviations above the mean.
    """
    vocabulary, rows, repeats = 49152, 200, 2000
    logits = np.random.default_rng(0).normal(size=vocabulary) * 3.0
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    row_weights = jnp.tile(weights(jnp.asarray(logits, jnp.float32)[None], jnp.ones(1)), (rows, 1))
    draw = jax.jit(lambda key: inverse_cdf(row_weights, jax.random.uniform(key, (rows,)))[0])
    keys = jax.random.split(jax.random.PRNGKey(1), repeats)
    counts = np.bincount(np.concatenate([np.asarray(draw(key)) for key in keys]), minlength=vocabulary)
    expected = rows * repeats * probs
    often = expected >= 20
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    assert often.sum() > 1000
    assert ((observed - wanted) ** 2 / wanted).sum() < len(observed) + 4 * np.sqrt(2 * len(observed))
