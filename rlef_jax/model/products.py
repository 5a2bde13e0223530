"""Products of activations with weights, as the matrix products that XLA runs fastest."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class OutputMajor:
    """A weight [*I, *O] kept as its transpose `array` [*O, *I]: what decoding multiplies by (`kv_cache.unstack`)."""

    array: jax.Array


# Up to so many rows a product takes XLA's CPU backend less time with the matrix in front (docs/lab/sampler.md).
_FEW_ROWS = 64


def times_transposed(x: jax.Array, matrix: jax.Array, dtype: Any) -> jax.Array:
    """x [N, D] times the transpose of matrix [F, D] -> [N, F], added up and given in `dtype`.

    On CPUs the right-hand matrix of a product is packed each time, the left-hand one isn't: for few rows of x, matrix
    is put on the left. Without the barrier the compiler turns the product round again.
    """

    def matrix_right(x: jax.Array, matrix: jax.Array) -> jax.Array:
        return jnp.matmul(x, matrix.T, preferred_element_type=dtype)

    def matrix_left(x: jax.Array, matrix: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier(jnp.matmul(matrix, x.T, preferred_element_type=dtype)).T

    if len(x) > _FEW_ROWS:
        return matrix_right(x, matrix)
    return jax.lax.platform_dependent(x, matrix, cpu=matrix_left, default=matrix_right)


def project(x: jax.Array, weights: jax.Array | OutputMajor, bias: jax.Array | None = None) -> jax.Array:
    """x [B, T, *I] times weights [*I, ...], plus bias [...] -> [B, T, ...], as one plain matrix product.

    XLA's CPU backend takes up to twice as long over the same product written on the unflattened arrays.
    """
    b, t, *inputs = x.shape
    flat = x.reshape(b * t, -1)
    width = flat.shape[1]
    if isinstance(weights, OutputMajor):
        outputs = weights.array.shape[: -len(inputs)]
        flat = times_transposed(flat, weights.array.astype(x.dtype).reshape(-1, width), x.dtype)
    else:
        outputs = weights.shape[len(inputs) :]
        flat = flat @ weights.astype(x.dtype).reshape(width, -1)
    if bias is not None:
        flat = flat + bias.astype(x.dtype).reshape(1, -1)
    return flat.reshape(b, t, *outputs)
