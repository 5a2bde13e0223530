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
class TurnInputs:
    """What a turn is given. B rows, P tokens of the prompt bucket."""

    tokens: jax.Array  # [B, P] int32, each row's delta at its left end
    counts: jax.Array  # [B] int32, tokens of the delta; 0 = the row is idle
    lengths: jax.Array  # [B] int32, tokens in the store
    tail_counts: jax.Array  # [B] int32, tokens in the tail
    max_new: jax.Array  # [B] int32, most tokens to sample
    seed: jax.Array  # [] uint32
    step: jax.Array  # [] int32
    episodes: jax.Array  # [B] int32
    turns: jax.Array  # [B] int32


@flax.struct.dataclass
class TurnOutputs:
    """What a turn has sampled. G = most tokens a turn can sample; entries at and after counts mean nothing."""

    ids: jax.Array  # [B, G] int32
    behavior_logp: jax.Array  # [B, G] float32
    policy_logp: jax.Array  # [B, G] float32
    counts: jax.Array  # [B] int32
    stopped: jax.Array  # [B] bool, whether the last token is a stop id


def token_uniforms(inputs: TurnInputs, tokens: int) -> jax.Array:
    """Uniform numbers [B, tokens] in [0, 1) from fold_in(seed, step, episode, turn, token): a row's numbers are a
    function of its own episode and turn alone."""
    base = jax.random.fold_in(jax.random.PRNGKey(inputs.seed), inputs.step)

    def row(episode: jax.Array, turn: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(base, episode), turn)
        return jax.vmap(lambda token: jax.random.uniform(jax.random.fold_in(key, token)))(jnp.arange(tokens))

    return jax.vmap(row)(inputs.episodes, inputs.turns)


def run_turn(
    params: Params,
    cache: KVCache,
    inputs: TurnInputs,
    *,
    cfg: ModelConfig,
    temperature: float,
    top_k: int,
    top_p: float,
    stop_ids: tuple[int, ...],
) -> tuple[KVCache, TurnOutputs]:
    """Flush the last turn's tail, prefill the deltas, decode. The new turn lies in the tail, without its last token.

    The caller sees to it that the store has room: lengths + G and lengths + tail_counts + P are at most S.
    """
    rows = inputs.tokens.shape[0]
    slots = cache.tail[0][0].shape[2]
    uniforms = token_uniforms(inputs, slots)
    stops = jnp.asarray(stop_ids, jnp.int32)
    cache = kv_cache.flush_tail(cache, inputs.lengths)
    before = inputs.lengths + inputs.tail_counts
    hidden, cache = kv_cache.prefill(params, cfg, cache, inputs.tokens, before)
    lengths = before + inputs.counts
    last = jnp.maximum(inputs.counts - 1, 0)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    layers = [transformer.layer_params(params, index) for index in range(cfg.n_layers)]

    def draw(hidden: jax.Array, step: jax.Array, out: TurnOutputs) -> TurnOutputs:
        logits = transformer.unembed(params, cfg, hidden[:, None])[:, 0]
        probs = modified_probs(logits, temperature, top_k, top_p)
        uniform = jax.lax.dynamic_index_in_dim(uniforms, step, axis=1, keepdims=False)
        ids = inverse_cdf(probs, uniform)
        behavior = jnp.log(jnp.take_along_axis(probs, ids[:, None], axis=1))
        policy = jnp.take_along_axis(logits, ids[:, None], axis=1) - jax.nn.logsumexp(logits, axis=1, keepdims=True)
        active = ~out.stopped & (step < inputs.max_new)
        return TurnOutputs(
            ids=jax.lax.dynamic_update_slice(out.ids, ids[:, None], (0, step)),
            behavior_logp=jax.lax.dynamic_update_slice(out.behavior_logp, behavior, (0, step)),
            policy_logp=jax.lax.dynamic_update_slice(out.policy_logp, policy, (0, step)),
            counts=jnp.where(active, step + 1, out.counts),
            stopped=out.stopped | (active & (ids[:, None] == stops[None, :]).any(axis=1)),
        )

    def more(carry: tuple[Any, ...]) -> jax.Array:
        step, _, out = carry
        return jnp.any(~out.stopped & (step < inputs.max_new))

    def advance(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, tail, out = carry
        tokens = jax.lax.dynamic_index_in_dim(out.ids, step - 1, axis=1, keepdims=False)
        hidden, grown = kv_cache.decode_step(params, layers, cfg, cache.replace(tail=tail), tokens, lengths, step - 1)
        return step + 1, grown.tail, draw(hidden, step, out)

    empty = TurnOutputs(
        ids=jnp.zeros((rows, slots), jnp.int32),
        behavior_logp=jnp.zeros((rows, slots)),
        policy_logp=jnp.zeros((rows, slots)),
        counts=jnp.zeros((rows,), jnp.int32),
        stopped=inputs.counts == 0,
    )
    first = draw(hidden, jnp.int32(0), empty)
    _, tail, out = jax.lax.while_loop(more, advance, (jnp.int32(1), cache.tail, first))
    return cache.replace(tail=tail), out
