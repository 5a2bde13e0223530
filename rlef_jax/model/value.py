"""The value head: a linear map from hidden states to one number per turn (RLEF, section 2.2) or per token (B.6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlef_jax.model.parameters import Constant, Normal, Parameter
from rlef_jax.model.transformer import ModelConfig


def describe_value_head(cfg: ModelConfig) -> dict[str, Parameter]:
    """Its parameters {"w": [D], "b": []}, float32: a fresh random linear map (A.1) to about unit size at most."""
    return {
        "w": Parameter((cfg.d_model,), (None,), Normal(cfg.d_model**-0.5)),
        "b": Parameter((), (), Constant(0.0)),
    }


def init_value_head(key: jax.Array, cfg: ModelConfig) -> dict[str, jax.Array]:
    """First values of `describe_value_head`; only "w" is random."""
    return {name: p.init(key, p.shape).astype(p.dtype) for name, p in describe_value_head(cfg).items()}


def values(head: dict[str, jax.Array], hidden: jax.Array, turn_positions: jax.Array) -> jax.Array:
    """Values [B, N], float32, read from hidden [B, T, D] at turn_positions [B, N].

    A turn's position is the last token of its prompt: the position whose next token is the turn's first sampled
    one. The positions of absent turns may be any valid index: mask their values.
    """
    read = jnp.take_along_axis(hidden, turn_positions[:, :, None], axis=1).astype(jnp.float32)
    return jnp.einsum("bnd,d->bn", read, head["w"]) + head["b"]


def next_token_values(head: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
    """Values [B, T], float32, from hidden [B, T, D]: that of token t is read at position t - 1, whose next token it is.

    A row's first token has 0. Neither that nor what is read across the border of two sequences is a value: no sequence
    begins with a sampled token.
    """
    read = jnp.einsum("btd,d->bt", hidden.astype(jnp.float32), head["w"]) + head["b"]
    return jnp.pad(read[:, :-1], ((0, 0), (1, 0)))
