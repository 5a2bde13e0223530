"""The kernel for GPUs, in Pallas' interpreter, against the slow reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.cached_attention import attend_part
from rlef_jax.model.paged_attention import Partial, kernel_fits, merge, paged_attention, slow_paged_attention

B, K, H, S, N = 5, 2, 16, 8, 6


def inputs(queries, dtype=np.float32):
    """Rows of no, one, some and all tokens in scattered pages; one of them sees its last ten only."""
    rng = np.random.default_rng(queries)
    pools = [jnp.asarray(rng.normal(size=(B * N + 3, K, S, H)), dtype) for _ in range(2)]
    tables = rng.permutation(B * N + 3)[: B * N].reshape(B, N).astype(np.int32)
    lengths = np.array([0, 1, 17, N * S, 33], np.int32)
    starts = np.array([0, 0, 0, 0, 23], np.int32)
    q = jnp.asarray(rng.normal(size=(B, K, queries, H)), dtype)
    # What lies in a page that a row has no token in must not matter.
    tables[2, 3:] = 10**6
    return q, *pools, tables, starts, lengths


@pytest.mark.parametrize("queries", [1, 4, 17])
def test_kernel_equals_reference(queries):
    q, k, v, tables, starts, lengths = inputs(queries)
    found = jax.jit(lambda *a: paged_attention(*a, interpret=True))(q, k, v, tables, starts, lengths)
    expected = slow_paged_attention(q, k, v, np.where(tables > B * N + 2, 0, tables), starts, lengths)
    np.testing.assert_allclose(found.largest, expected.largest, rtol=1e-5)
    np.testing.assert_allclose(found.total, expected.total, rtol=1e-5)
    np.testing.assert_allclose(found.mixed, expected.mixed, rtol=1e-4, atol=1e-5)
    assert (np.asarray(found.total)[0] == 0).all()  # no tokens


def test_kernel_in_half_precision():
    q, k, v, tables, starts, lengths = inputs(4, jnp.bfloat16)
    found = paged_attention(q, k, v, tables, starts, lengths, interpret=True)
    expected = slow_paged_attention(q, k, v, np.where(tables > B * N + 2, 0, tables), starts, lengths)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.03, atol=0.03)


def test_parts_merge_to_attention_over_all():
    """The first 24 keys by the kernel's arithmetic, the next 6 as a tail, equal one softmax over 30."""
    q, k, v, tables, _, _ = inputs(3)
    tables = np.where(tables > B * N + 2, 0, tables)
    zeros, lengths = np.zeros(B, np.int32), np.full(B, 24, np.int32)
    keys, values = (np.moveaxis(np.asarray(a)[tables], 2, 1).reshape(B, K, -1, H)[:, :, 24:30] for a in (k, v))
    tail = attend_part(q, keys, values, np.ones((1, 1, 1, 1, 6), bool))
    whole = slow_paged_attention(q, k, v, tables, zeros, lengths + 6)
    found = merge([paged_attention(q, k, v, tables, zeros, lengths, interpret=True), tail])
    np.testing.assert_allclose(found, merge([whole]), rtol=1e-4, atol=1e-5)
    # A part that is empty adds nothing.
    nothing = Partial(jnp.zeros_like(whole.mixed), jnp.zeros_like(whole.total), jnp.full_like(whole.largest, -1e30))
    np.testing.assert_array_equal(merge([whole, nothing]), merge([whole]))


def test_what_the_kernel_cannot_do():
    assert kernel_fits(128, 64) and kernel_fits(16, 16)
    assert not kernel_fits(24, 64) and not kernel_fits(128, 48) and not kernel_fits(128, 8)
    pool = jax.ShapeDtypeStruct((2**17, 8, 16, 128), jnp.bfloat16)
    args = jax.ShapeDtypeStruct((1, 8, 4, 128), jnp.bfloat16), pool, pool
    ints = jax.ShapeDtypeStruct((1, 4), jnp.int32), *[jax.ShapeDtypeStruct((1,), jnp.int32)] * 2
    with pytest.raises(ValueError, match="reaches fewer than 2"):
        jax.eval_shape(paged_attention, *args, *ints)
