"""Log-probabilities of tokens without the logits of all of them: some positions of each row at a time.

With logits z = h W^T of a token's predecessor, target a and L = logsumexp(z):

    log p(a) = z_a - L,    d log p(a) / dz = onehot(a) - exp(z - L)

so that L is all that the forward pass must keep; the backward pass makes each chunk's logits again. Positions whose
log-probability nobody asks for are left out: each row's wanted ones are moved to its front, and the loop ends with
the last of them.

Letters in shapes: B rows, T tokens, D model width, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rlef_jax.model.transformer import ComputeSharding, ModelConfig, Params, output_weights

LOGIT_TOKENS = 1024
"""Tokens whose logits exist at a time, where no chunk is given."""


def token_logp(
    params: Params,
    cfg: ModelConfig,
    hidden: jax.Array,
    tokens: jax.Array,
    wanted: jax.Array | None = None,
    *,
    chunk: int = 0,
    sharding: ComputeSharding | None = None,
) -> jax.Array:
    """Log-probability of each token given those before it: float32 [B, T], aligned to the *predicted* token.

    out[b, t] = log p(tokens[b, t] | tokens[b, < t]), read from hidden[b, t - 1]; out[:, 0] = 0. Where a row holds
    several segments, the first token of each is predicted from the segment before: leave it out of `wanted`.

    Args:
      params, cfg: the model's; only the output layer is used.
      hidden: [B, T, D], what `forward` gives.
      tokens: int32 [B, T].
      wanted: [B, T], above 0 where the result is needed (elsewhere it is 0). By default everywhere.
      chunk: positions of a row whose logits exist at a time; 0 for `LOGIT_TOKENS` over all rows.
      sharding: on a mesh of several devices, where things lie.
    """
    rows, length = tokens.shape
    wanted = jnp.ones(tokens.shape, bool) if wanted is None else wanted > 0
    chunk = min(chunk or max(LOGIT_TOKENS // rows, 1), max(length - 1, 1))
    weights = output_weights(params, cfg)
    if sharding is None:
        weights = weights.astype(hidden.dtype)
    else:
        weights = sharding.all_gather("embed" if cfg.tie_embeddings else "unembed", weights, hidden.dtype)
        hidden = sharding.enter(hidden)
    logp = _chunked(chunk, sharding, weights, hidden[:, :-1], tokens[:, 1:], wanted[:, 1:])
    return jnp.pad(logp, ((0, 0), (1, 0)))


def _logits(weights: jax.Array, hidden: jax.Array) -> jax.Array:
    """Logits [B, C, V], float32."""
    return jnp.einsum("bcd,vd->bcv", hidden, weights, preferred_element_type=jnp.float32)


def _hits(targets: jax.Array, vocab: int) -> jax.Array:
    """Whether an entry of the logits is the target's: bool [B, C, V]. Comparing fuses with what follows."""
    return jnp.arange(vocab, dtype=targets.dtype)[None, None, :] == targets[:, :, None]


class _Front:
    """Each row's wanted positions moved to its front, and cut into chunks."""

    def __init__(self, chunk: int, wanted: jax.Array) -> None:
        self.chunk, self.wanted = chunk, wanted
        self._order = jnp.argsort(~wanted, axis=1, stable=True)
        self._padding = -wanted.shape[1] % chunk
        self.chunks = -(-jnp.max(jnp.sum(wanted, axis=1)) // chunk)

    def move(self, array: jax.Array) -> jax.Array:
        """[B, T, ...] with wanted positions first, padded to whole chunks."""
        order = self._order.reshape(self._order.shape + (1,) * (array.ndim - 2))
        moved = jnp.take_along_axis(array, order, axis=1)
        return jnp.pad(moved, ((0, 0), (0, self._padding)) + ((0, 0),) * (array.ndim - 2))

    def back(self, moved: jax.Array) -> jax.Array:
        """The inverse of `move`, 0 where nothing was wanted."""
        inverse = jnp.argsort(self._order, axis=1)
        shape = (-1, -1) + (1,) * (moved.ndim - 2)
        array = jnp.take_along_axis(moved, inverse.reshape(inverse.shape + shape[2:]), axis=1)
        return jnp.where(self.wanted.reshape(self.wanted.shape + shape[2:]), array, 0)

    def at(self, array: jax.Array, index: Any) -> jax.Array:
        """Chunk `index` of a moved array: [B, C, ...]."""
        return jax.lax.dynamic_slice_in_dim(array, index * self.chunk, self.chunk, axis=1)

    def put(self, array: jax.Array, piece: jax.Array, index: Any) -> jax.Array:
        """A moved array with chunk `index` replaced."""
        return jax.lax.dynamic_update_slice_in_dim(array, piece, index * self.chunk, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(
    chunk: int,
    sharding: ComputeSharding | None,
    weights: jax.Array,
    hidden: jax.Array,
    targets: jax.Array,
    wanted: jax.Array,
) -> jax.Array:
    """Log-probabilities [B, T] of targets [B, T] that hidden [B, T, D] predict; 0 where not `wanted` [B, T].

    With a `sharding` the weights are those of a part of the vocabulary, and so is the gradient of hidden.
    """
    return _keep(chunk, sharding, weights, hidden, targets, wanted)[0]


def _keep(
    chunk: int,
    sharding: ComputeSharding | None,
    weights: jax.Array,
    hidden: jax.Array,
    targets: jax.Array,
    wanted: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    if sharding is not None:
        targets = sharding.local_ids(targets, len(weights))
    front = _Front(chunk, wanted)
    moved, aims = front.move(hidden), front.move(targets)

    def body(index: jax.Array, done: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = _logits(weights, front.at(moved, index))
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.sum(jnp.where(_hits(front.at(aims, index), weights.shape[0]), logits, 0.0), axis=-1)
        if sharding is not None:
            normalizer, chosen = sharding.tensor_logsumexp(normalizer), sharding.tensor_sum(chosen)
        return front.put(done[0], chosen - normalizer, index), front.put(done[1], normalizer, index)

    nothing = jnp.zeros(aims.shape, jnp.float32)
    logp, normalizers = jax.lax.fori_loop(0, front.chunks, body, (nothing, nothing))
    return front.back(logp), (weights, hidden, targets, wanted, normalizers)


def _backward(
    chunk: int, sharding: ComputeSharding | None, kept: tuple[jax.Array, ...], d_logp: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    del sharding
    weights, hidden, targets, wanted, normalizers = kept
    front = _Front(chunk, wanted)
    moved, aims = front.move(hidden), front.move(targets)
    d_moved = front.move(jnp.where(wanted, d_logp, 0.0))

    def body(index: jax.Array, done: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        piece = front.at(moved, index)
        likely = jnp.exp(_logits(weights, piece) - front.at(normalizers, index)[:, :, None])
        hits = _hits(front.at(aims, index), weights.shape[0])
        d_logits = (front.at(d_moved, index)[:, :, None] * (hits - likely)).astype(hidden.dtype)
        d_piece = jnp.einsum("bcv,vd->bcd", d_logits, weights)
        more = jnp.einsum("bcv,bcd->vd", d_logits, piece, preferred_element_type=jnp.float32)
        return done[0] + more, front.put(done[1], d_piece, index)

    start = (jnp.zeros(weights.shape, jnp.float32), jnp.zeros_like(moved))
    d_weights, d_hidden = jax.lax.fori_loop(0, front.chunks, body, start)
    return d_weights.astype(weights.dtype), front.back(d_hidden), None, None


_chunked.defvjp(_keep, _backward)
