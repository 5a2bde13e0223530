"""Prefill and decode through the cache give what one pass over the whole row gives."""

import jax
import numpy as np
import pytest

from rlef_jax.model import kv_cache
from rlef_jax.model.parameters import init_params
from rlef_jax.model.transformer import ModelConfig, forward
from tests.model.test_transformer import FirstApart

pytestmark = pytest.mark.usefixtures("quick_compilation")

CFG = ModelConfig(vocab_size=19, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_ff=20)
ROWS, SLOTS, TAIL = 3, 26, 3


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: jax.tree.map(lambda a: a * 4.0, init_params(jax.random.PRNGKey(0), CFG)))()


def full_of_garbage(capacity):
    cache = kv_cache.init_cache(CFG, ROWS, capacity)
    return jax.tree.map(lambda a: np.full(a.shape, 9.0, np.float32), cache)


@pytest.mark.parametrize("capacity, kind", [(15, ModelConfig), (SLOTS, ModelConfig), (15, FirstApart)])
def test_chunks_and_steps_equal_one_pass(params, capacity, kind):
    """Rows of different lengths, prefilled in two chunks each by another order of rows; stale slots hold garbage."""
    cfg = kind(**CFG.__dict__)
    tokens = np.random.default_rng(0).integers(0, 19, (ROWS, 20)).astype(np.int32)
    positions = np.broadcast_to(np.arange(20), (ROWS, 20))
    expected = jax.jit(forward, static_argnums=1)(params, cfg, tokens, positions, np.ones_like(tokens))
    prefill = jax.jit(kv_cache.prefill, static_argnames=("cfg", "capacity"))
    decode_step, flush = jax.jit(kv_cache.decode_step, static_argnames="cfg"), jax.jit(kv_cache.flush)
    apart, cache = kv_cache.unstack(params, cfg), full_of_garbage(SLOTS)
    lengths = np.zeros(ROWS, np.int32)
    for counts, looked_at in [((5, 2, 3), 0), ((1, 4, 0), 5)]:
        order = np.array([2, 0, 1], np.int32)
        chunk = np.stack([np.pad(tokens[r, lengths[r] : lengths[r] + counts[r]], (0, 5 - counts[r])) for r in order])
        cache = prefill(apart, cfg, cache, order, chunk, lengths[order], capacity=looked_at)
        lengths = lengths + np.array(counts, np.int32)
    for _ in range(2):
        seen, tail = kv_cache.first_slots(cache, capacity), full_of_garbage(TAIL)
        for step in range(TAIL):
            at = lengths + step
            hidden, tail = decode_step(apart, cfg, seen, tail, tokens[np.arange(ROWS), at], lengths, np.int32(step))
            np.testing.assert_allclose(hidden, expected[np.arange(ROWS), at], atol=3e-4)
        cache, lengths = flush(cache, tail, lengths), lengths + TAIL


def test_what_does_not_fit_is_left_out_whole():
    cache = full_of_garbage(6)
    piece = [(np.ones((2, 2, 4, 4), np.float32), np.ones((2, 2, 4, 4), np.float32))] * CFG.n_layers
    written = kv_cache.write(cache, piece, np.array([1, ROWS]), np.array([2, 0]))
    for keys, values in written.layers:
        for slots in (keys, values):
            assert (np.asarray(slots)[1, :, 2:] == 1).all() and (np.asarray(slots)[1, :, :2] == 9).all()
            assert (np.asarray(slots)[[0, 2]] == 9).all()
    beyond = kv_cache.write(cache, piece, np.array([0, 1]), np.array([3, 5]))
    assert all((np.asarray(slots) == 9).all() for slots in jax.tree.leaves(beyond))
