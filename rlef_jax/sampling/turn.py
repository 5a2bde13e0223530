"""One turn of a group of rows as a pure function: prefill the prompt deltas, then decode until every row stops."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from rlef_jax.model import kv_cache, transformer
from rlef_jax.model.kv_cache import KVCache
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.sampling.distribution import inverse_cdf, modified_probs


@flax.struct.dataclass
class TurnOutputs:
    """What a turn has sampled. G = most tokens a turn can sample; entries at and after counts mean nothing."""

    ids: jax.Array  # [B, G] int32
    behavior_logp: jax.Array  # [B, G] float32
    policy_logp: jax.Array  # [B, G] float32
    counts: jax.Array  # [B] int32
    stopped: jax.Array  # [B] bool, whether a stop id was sampled (or the row was idle)


def token_uniforms(
    seed: jax.Array, step: jax.Array, episodes: jax.Array, turns: jax.Array, *, tokens: int
) -> jax.Array:
    """Uniform numbers [B, tokens] in [0, 1) from fold_in(seed, step, episode, turn, token), with episodes and turns
    [B]: a row's numbers are a function of its own episode and turn alone."""
    base = jax.random.fold_in(jax.random.PRNGKey(seed), step)

    def row(episode: jax.Array, turn: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(base, episode), turn)
        return jax.vmap(lambda token: jax.random.uniform(jax.random.fold_in(key, token)))(jnp.arange(tokens))

    return jax.vmap(row)(episodes, turns)


def read_prompts(
    params: Params,
    cache: KVCache,
    tokens: jax.Array,
    counts: jax.Array,
    lengths: jax.Array,
    tail_counts: jax.Array,
    *,
    cfg: ModelConfig,
) -> tuple[jax.Array, KVCache]:
    """Flush the last turn's tail and prefill the deltas: (hidden [B, D] at each delta's last token, cache).

    Args:
      tokens: [B, P], each row's delta at its left end; counts [B] is its length, 0 for an idle row (whose hidden
        state means nothing).
      lengths, tail_counts: [B], tokens in the store and in the tail. The caller sees to it that the store has room:
        lengths + G and lengths + tail_counts + P are at most S.
    """
    cache = kv_cache.flush_tail(cache, lengths)
    hidden, cache = kv_cache.prefill(params, cfg, cache, tokens, lengths + tail_counts)
    last = jnp.maximum(counts - 1, 0)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0], cache


def write_responses(
    params: Params,
    cache: KVCache,
    hidden: jax.Array,
    lengths: jax.Array,
    max_new: jax.Array,
    uniforms: jax.Array,
    *,
    cfg: ModelConfig,
    temperature: float,
    top_k: int,
    top_p: float,
    stop_ids: tuple[int, ...],
) -> tuple[KVCache, TurnOutputs]:
    """Decode until every row has sampled a stop id or max_new [B] tokens (0: the row is idle).

    Args:
      hidden: [B, D], at each row's last token; lengths [B] counts its tokens in the store, that one included.
      uniforms: [B, G], one number per token.
    The responses lie in the returned cache's tail, except for their last tokens, which were never run.
    """
    rows, slots = uniforms.shape
    stops = jnp.asarray(stop_ids, jnp.int32)
    layers = [transformer.layer_params(params, index) for index in range(cfg.n_layers)]

    def draw(hidden: jax.Array, step: jax.Array, out: TurnOutputs) -> TurnOutputs:
        logits = transformer.unembed(params, cfg, hidden[:, None])[:, 0]
        probs = modified_probs(logits, temperature, top_k, top_p)
        uniform = jax.lax.dynamic_index_in_dim(uniforms, step, axis=1, keepdims=False)
        ids = inverse_cdf(probs, uniform)
        behavior = jnp.log(jnp.take_along_axis(probs, ids[:, None], axis=1))
        policy = jnp.take_along_axis(logits, ids[:, None], axis=1) - jax.nn.logsumexp(logits, axis=1, keepdims=True)
        active = ~out.stopped & (step < max_new)
        return TurnOutputs(
            ids=jax.lax.dynamic_update_slice(out.ids, ids[:, None], (0, step)),
            behavior_logp=jax.lax.dynamic_update_slice(out.behavior_logp, behavior, (0, step)),
            policy_logp=jax.lax.dynamic_update_slice(out.policy_logp, policy, (0, step)),
            counts=jnp.where(active, step + 1, out.counts),
            stopped=out.stopped | (active & (ids[:, None] == stops[None, :]).any(axis=1)),
        )

    def more(carry: tuple[Any, ...]) -> jax.Array:
        step, _, out = carry
        return jnp.any(~out.stopped & (step < max_new))

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, cache, out = carry
        tokens = jax.lax.dynamic_index_in_dim(out.ids, step - 1, axis=1, keepdims=False)
        hidden, cache = kv_cache.decode_step(params, layers, cfg, cache, tokens, lengths, step - 1)
        return step + 1, cache, draw(hidden, step, out)

    empty = TurnOutputs(
        ids=jnp.zeros((rows, slots), jnp.int32),
        behavior_logp=jnp.zeros((rows, slots)),
        policy_logp=jnp.zeros((rows, slots)),
        counts=jnp.zeros((rows,), jnp.int32),
        stopped=max_new == 0,
    )
    first = draw(hidden, jnp.int32(0), empty)
    _, cache, out = jax.lax.while_loop(more, advance, (jnp.int32(1), cache, first))
    return cache, out
