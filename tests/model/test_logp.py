"""Chunked log-probabilities against all logits at once, and what memory they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.logp import token_logp
from rlef_jax.model.parameters import init_params
from rlef_jax.model.transformer import ModelConfig, unembed

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = dict(d_model=8, n_layers=1, n_heads=2, n_kv_heads=1, d_head=4, d_ff=8)


def reference(params, cfg, hidden, tokens):
    """From the logits of every position."""
    logp = jax.nn.log_softmax(unembed(params, cfg, hidden[:, :-1]))
    return jnp.pad(jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0], ((0, 0), (1, 0)))


@pytest.mark.parametrize("tie, chunk", [(True, 0), (False, 4), (True, 1), (False, 100)])
def test_values_and_gradients_are_those_of_all_logits(tie, chunk):
    cfg = ModelConfig(vocab_size=13, tie_embeddings=tie, **SIZES)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: 3.0 * a, init_params(jax.random.PRNGKey(0), cfg))
    hidden = jnp.asarray(rng.standard_normal((3, 11, 8)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, 13, (3, 11)))
    wanted = rng.random((3, 11)) < [[0.7], [0.2], [0.0]]  # rows end at different chunks; one wants nothing
    weights = jnp.asarray(rng.standard_normal((3, 11)), jnp.float32)

    def result(params, hidden):
        return token_logp(params, cfg, hidden, tokens, jnp.asarray(wanted, jnp.float32), chunk=chunk)

    def expected(params, hidden):
        return jnp.where(wanted, reference(params, cfg, hidden, tokens), 0.0)

    @jax.jit
    def both(params, hidden):
        pairs = [jax.vjp(f, params, hidden) for f in (result, expected)]
        return [(out, *back(weights)) for out, back in pairs]

    found, correct = both(params, hidden)
    assert np.abs(correct[2]).max() > 0.1
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(correct), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # What isn't wanted has exactly no gradient, whatever comes down to it.
    before = np.pad(wanted[:, 1:], ((0, 0), (0, 1)))
    assert not np.asarray(found[2])[~before].any()


def compiled_bytes(rows, length, vocab):
    """Temporary memory of the gradient of all tokens' log-probabilities, as compiled."""
    cfg = ModelConfig(vocab_size=vocab, **SIZES)

    def total(params, hidden, tokens):
        return jnp.sum(token_logp(params, cfg, hidden, tokens, chunk=16))

    params = jax.eval_shape(lambda: init_params(jax.random.PRNGKey(0), cfg))
    hidden = jax.ShapeDtypeStruct((rows, length, 8), jnp.float32)
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(params, hidden, tokens).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_no_memory_grows_as_rows_times_length_times_vocabulary():
    """B * T * V float32 would be 33 MB at the start and 67 MB after each doubling."""
    base = compiled_bytes(4, 512, 4096)
    assert base < 0.25 * 4 * 512 * 4096 * 4
    # Twice the vocabulary: chunks and the weights' gradient, nothing per token.
    assert compiled_bytes(4, 512, 8192) < 2.1 * base
    # Twice the length: hidden states [B, T, D] only.
    assert compiled_bytes(4, 1024, 4096) - base < 4 * 512 * (8 + 16) * 4 * 4
