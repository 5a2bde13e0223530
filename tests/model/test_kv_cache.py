"""Prefill and decode through the cache give what one pass over the whole row gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model import kv_cache
from rlef_jax.model.kv_cache import Where
from rlef_jax.model.parameters import init_params
from rlef_jax.model.transformer import ModelConfig, forward
from tests.model.test_transformer import FirstApart

pytestmark = pytest.mark.usefixtures("quick_compilation")

CFG = ModelConfig(vocab_size=19, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_ff=20)
ROWS, SLOTS, TAIL = 3, 26, 3
CPU = Where()
KERNEL = Where(kernel=True, interpret=True)


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: jax.tree.map(lambda a: a * 4.0, init_params(jax.random.PRNGKey(0), CFG)))()


def full_of_garbage(pages, slots):
    cache = kv_cache.init_cache(CFG, pages, slots)
    return jax.tree.map(lambda a: np.full(a.shape, 9.0, np.float32), cache)


def scattered_tables(slots):
    """(tables of all rows, number of pages): each row's pages in no order, with others between them."""
    each = -(-SLOTS // slots)
    pages = np.random.default_rng(1).permutation(ROWS * each + 2)[: ROWS * each]
    return pages.reshape(ROWS, each).astype(np.int32), ROWS * each + 2


@pytest.mark.parametrize(
    "slots, capacity, kind, where",
    [
        (SLOTS, 15, ModelConfig, CPU),
        (SLOTS, SLOTS, ModelConfig, CPU),
        (4, 15, ModelConfig, CPU),
        (4, 15, FirstApart, CPU),
        (4, 15, ModelConfig, KERNEL),
        (8, 15, FirstApart, KERNEL),
    ],
)
def test_chunks_and_steps_equal_one_pass(params, slots, capacity, kind, where):
    """Rows of different lengths, prefilled in two chunks each by another order of rows; stale slots hold garbage."""
    cfg = kind(**CFG.__dict__)
    tokens = np.random.default_rng(0).integers(0, 19, (ROWS, 20)).astype(np.int32)
    positions = np.broadcast_to(np.arange(20), (ROWS, 20))
    expected = jax.jit(forward, static_argnums=1)(params, cfg, tokens, positions, np.ones_like(tokens))
    prefill = jax.jit(kv_cache.prefill, static_argnames=("cfg", "capacity", "where"))
    decode_step = jax.jit(kv_cache.decode_step, static_argnames=("cfg", "where"))
    write = jax.jit(kv_cache.write, static_argnames="where")
    tables, pages = scattered_tables(slots)
    apart, cache = kv_cache.unstack(params, cfg), full_of_garbage(pages, slots)
    lengths = np.zeros(ROWS, np.int32)
    for counts, looked_at in [((5, 2, 3), 0), ((1, 4, 0), 5)]:
        order = np.array([2, 0, 1], np.int32)
        chunk = np.stack([np.pad(tokens[r, lengths[r] : lengths[r] + counts[r]], (0, 5 - counts[r])) for r in order])
        cache = prefill(apart, cfg, cache, tables[order], chunk, lengths[order], capacity=looked_at, where=CPU)
        lengths = lengths + np.array(counts, np.int32)
    for _ in range(2):
        seen, tail = kv_cache.gather(cache, tables, capacity, CPU), full_of_garbage(ROWS, TAIL)
        paged = {"tables": tables, "where": where} if where.kernel else {}
        for step in range(TAIL):
            at, now = lengths + step, np.int32(step)
            fed, read = tokens[np.arange(ROWS), at], cache if paged else seen
            hidden, tail = decode_step(apart, cfg, read, tail, fed, lengths, now, **paged)
            np.testing.assert_allclose(hidden, expected[np.arange(ROWS), at], atol=3e-4)
        cache, lengths = write(cache, tail.layers, tables, lengths, where=CPU), lengths + TAIL


def test_what_has_no_page_is_left_out():
    """Three tokens of two rows: a row whose second page isn't there, and one whose table ends."""
    cache = full_of_garbage(4, 2)
    piece = [(np.ones((2, 2, 3, 4), np.float32),) * 2] * CFG.n_layers
    written = kv_cache.write(cache, piece, np.array([[2, 4], [0, 3]]), np.array([1, 2]), CPU)
    for slots in jax.tree.leaves(written):
        ones = {(int(page), int(slot)) for page, _, slot, _ in np.argwhere(np.asarray(slots) == 1)}
        assert ones == {(2, 1), (3, 0), (3, 1)}


def test_pages_are_moved_bit_for_bit():
    rng = np.random.default_rng(0)
    cache = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), kv_cache.init_cache(CFG, 5, 2))
    taken = kv_cache.take(cache, np.array([[3, 1, 5]]), CPU)  # of page 5, which isn't there, anything
    moved = kv_cache.put(jax.device_put(full_of_garbage(5, 2)), np.array([[0, 4, 5]]), taken, CPU)
    for before, after in zip(jax.tree.leaves(cache), jax.tree.leaves(moved), strict=True):
        np.testing.assert_array_equal(np.asarray(after)[[0, 4]], np.asarray(before)[[3, 1]])
        assert (np.asarray(after)[[1, 2, 3]] == 9).all()
