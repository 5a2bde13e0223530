"""Prefill and decode through the cache give what one pass over the whole row gives."""

import jax
import numpy as np

from rlef_jax.model import kv_cache
from rlef_jax.model.transformer import ModelConfig, forward, init_params, layer_params

CFG = ModelConfig(vocab_size=19, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_ff=20)


def test_two_prefills_and_two_decodes_equal_one_pass():
    """Rows of different lengths; the first turn's tail is flushed between; stale slots hold garbage on purpose."""
    params = jax.jit(lambda: jax.tree.map(lambda a: a * 4.0, init_params(jax.random.PRNGKey(0), CFG)))()
    tokens = np.random.default_rng(0).integers(0, 19, (2, 20)).astype(np.int32)
    positions = np.broadcast_to(np.arange(20), (2, 20))
    expected = jax.jit(forward, static_argnums=1)(params, CFG, tokens, positions, np.ones_like(tokens))
    cache = kv_cache.init_cache(CFG, 2, 24, 3)
    cache = jax.tree.map(lambda a: np.full(a.shape, 9.0, np.float32), cache)
    prefill, decode_step = (jax.jit(f, static_argnames="cfg") for f in (kv_cache.prefill, kv_cache.decode_step))
    flush = jax.jit(kv_cache.flush_tail)
    layers = [layer_params(params, i) for i in range(CFG.n_layers)]
    lengths = np.zeros(2, np.int32)
    rows = np.arange(2)
    for counts, decoded in [((5, 2), 3), ((1, 4), 2)]:
        ends = lengths + np.array(counts, np.int32)
        padded = np.stack([np.pad(tokens[r, lengths[r] : ends[r]], (0, 5 - counts[r])) for r in rows])
        hidden, cache = prefill(params, cfg=CFG, cache=cache, tokens=padded, lengths=lengths)
        for r in rows:
            np.testing.assert_allclose(hidden[r, : counts[r]], expected[r, lengths[r] : ends[r]], atol=2e-4)
        lengths = ends
        for step in range(decoded):
            fed = tokens[rows, ends + step]
            hidden, cache = decode_step(
                params, layers, cfg=CFG, cache=cache, tokens=fed, lengths=lengths, step=np.int32(step)
            )
            np.testing.assert_allclose(hidden, expected[rows, ends + step], atol=2e-4)
        cache = flush(cache, lengths)
        lengths = lengths + decoded
