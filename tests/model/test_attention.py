"""Attention by blocks of queries against the plain formula: values, gradients, segments, and JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.attention import row_attention

pytestmark = pytest.mark.usefixtures("quick_compilation")


def plain(queries, keys, values, segments, window=0):
    """Softmax over the whole square."""
    length = queries.shape[1]
    before = np.arange(length)[:, None] - np.arange(length)[None, :]
    allowed = (before >= 0) & (before < (window or length))
    visible = (segments[:, :, None] == segments[:, None, :]) & allowed[None]
    scores = jnp.einsum("btkrh,bskh->bkrts", queries, keys)
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, -jnp.inf))
    return jnp.einsum("bkrts,bskh->btkrh", weights, values)


def inputs(length):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((2, length, 2, 3, 4))
    keys, values = rng.standard_normal((2, 2, length, 2, 4))
    return [jnp.asarray(a, jnp.float32) for a in (queries, keys, values)]


@pytest.mark.parametrize("kind", ["blocks", "dot_product"])
@pytest.mark.parametrize("length, window", [(11, 0), (77, 0), (77, 40)])
def test_values_and_gradients_are_those_of_the_formula(kind, length, window):
    """In one block of queries, and in three of which the last is short; segments span blocks. A window of 40 reaches
    into the middle of a block."""
    arrays = inputs(length)
    segments = np.ones((2, length), np.int32)
    if kind == "blocks":
        of_eleven = np.array([[1] * 5 + [2] * 3 + [3] * 2 + [0], [1] * 9 + [0] * 2], np.int32)
        segments = np.repeat(of_eleven, length // 11, axis=1)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal(arrays[0].shape), jnp.float32)
    run = row_attention(jnp.asarray(segments), kind, window)
    results = []
    for attend in (lambda *a: run(*a)[0], lambda *a: plain(*a, segments, window)):

        def both(*arrays, attend=attend):
            out, back = jax.vjp(attend, *arrays)
            return [out, *back(weights)]

        results.append(jax.jit(both)(*arrays))
    for one, other in zip(*results, strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_half_precision_keeps_its_type_and_float32_sums():
    arrays = [a.astype(jnp.bfloat16) for a in inputs(9)]
    segments = jnp.ones((2, 9), jnp.int32)
    run = row_attention(segments)

    @jax.jit
    def both(*arrays):
        out, back = jax.vjp(lambda *a: run(*a)[0], *arrays)
        return out, back(jnp.ones_like(out))

    out, gradients = both(*arrays)
    assert out.dtype == jnp.bfloat16 and all(g.dtype == jnp.bfloat16 for g in gradients)
    exact = plain(*(a.astype(jnp.float32) for a in arrays), np.ones((2, 9), np.int32))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=3e-2)
