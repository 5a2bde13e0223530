"""A few decoding steps of all rows as one pure function: run a token, draw the next, stop where a row is done."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from rlef_jax.model import kv_cache, transformer
from rlef_jax.model.kv_cache import KVCache
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.sampling.distribution import inverse_cdf, modified_weights, weights


@flax.struct.dataclass
class Rows:
    """What the rows ask for, [B] each; `stop_ids` is [B, N], filled up with -1.

    Attributes:
      tokens: the last token of each row, which hasn't been run; `lengths`: how many tokens lie in the cache.
      room: most tokens to draw; 0 for a row that is idle.
      seed, step, episode, turn: the response's name (see `token_uniforms`); `drawn`: tokens of it so far.
      temperature, top_k, top_p: see `distribution`.
    """

    tokens: jax.Array
    lengths: jax.Array
    room: jax.Array
    seed: jax.Array
    step: jax.Array
    episode: jax.Array
    turn: jax.Array
    drawn: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    stop_ids: jax.Array


@flax.struct.dataclass
class Drawn:
    """What the steps have drawn. T = steps; entries at and after counts mean nothing."""

    ids: jax.Array  # [B, T] int32
    behavior_logp: jax.Array  # [B, T] float32, under the distribution that the token was drawn from
    policy_logp: jax.Array  # [B, T] float32, under the unmodified one
    counts: jax.Array  # [B] int32
    stopped: jax.Array  # [B] bool, whether a stop id was drawn (or the row was idle)
    steps: jax.Array  # [] int32, steps that were run


def token_uniforms(rows: Rows, count: int) -> jax.Array:
    """Uniform numbers [B, count] in [0, 1) of each row's next tokens, from fold_in(seed, step, episode, turn, token).

    A token's number is a function of its own place in its own episode alone.
    """

    def one(seed: jax.Array, step: jax.Array, episode: jax.Array, turn: jax.Array, drawn: jax.Array) -> jax.Array:
        key = jax.random.PRNGKey(seed)
        for name in (step, episode, turn):
            key = jax.random.fold_in(key, name)
        return jax.vmap(lambda token: jax.random.uniform(jax.random.fold_in(key, token)))(drawn + jnp.arange(count))

    return jax.vmap(one)(rows.seed, rows.step, rows.episode, rows.turn, rows.drawn)


def decode(
    params: Params, cache: KVCache, rows: Rows, *, cfg: ModelConfig, steps: int, capacity: int, plain: bool
) -> tuple[KVCache, Drawn]:
    """Up to `steps` steps of every row, fewer if all rows are done. The cache then holds what was run.

    A row that has drawn n tokens has its `tokens` and the first n - 1 of them in the cache behind its lengths.

    Args:
      params: with their layers apart (`kv_cache.unstack`).
      capacity: slots of the cache that are looked at, at least the longest of lengths. Needs lengths + steps <= S.
      plain: no row has temperature 0, a top_k or a top_p; the vocabulary is read less often then.
    """
    count = rows.tokens.shape[0]
    seen = kv_cache.first_slots(cache, capacity)
    uniforms = token_uniforms(rows, steps)

    def draw(hidden: jax.Array, step: jax.Array, out: Drawn) -> Drawn:
        logits = transformer.unembed(params, cfg, hidden[:, None])[:, 0]
        if plain:
            found = weights(logits, rows.temperature)
        else:
            found = modified_weights(logits, rows.temperature, rows.top_k, rows.top_p)
        uniform = jax.lax.dynamic_index_in_dim(uniforms, step, axis=1, keepdims=False)
        ids, total = inverse_cdf(found, uniform)
        behavior = jnp.log(jnp.take_along_axis(found, ids[:, None], axis=1)) - jnp.log(total)[:, None]
        policy = jnp.take_along_axis(logits, ids[:, None], axis=1) - jax.nn.logsumexp(logits, axis=1, keepdims=True)
        active = ~out.stopped & (step < rows.room)
        return Drawn(
            ids=jax.lax.dynamic_update_slice(out.ids, ids[:, None], (0, step)),
            behavior_logp=jax.lax.dynamic_update_slice(out.behavior_logp, behavior, (0, step)),
            policy_logp=jax.lax.dynamic_update_slice(out.policy_logp, policy, (0, step)),
            counts=jnp.where(active, step + 1, out.counts),
            stopped=out.stopped | (active & (ids[:, None] == rows.stop_ids).any(axis=1)),
            steps=step + 1,
        )

    def more(carry: tuple[KVCache, Drawn]) -> jax.Array:
        out = carry[1]
        return (out.steps < steps) & jnp.any(~out.stopped & (out.steps < rows.room))

    def advance(carry: tuple[KVCache, Drawn]) -> tuple[KVCache, Drawn]:
        tail, out = carry
        step = out.steps
        last = jax.lax.dynamic_index_in_dim(out.ids, jnp.maximum(step - 1, 0), axis=1, keepdims=False)
        tokens = jnp.where(step == 0, rows.tokens, last)
        hidden, tail = kv_cache.decode_step(params, cfg, seen, tail, tokens, rows.lengths, step)
        return tail, draw(hidden, step, out)

    empty = Drawn(
        ids=jnp.zeros((count, steps), jnp.int32),
        behavior_logp=jnp.zeros((count, steps)),
        policy_logp=jnp.zeros((count, steps)),
        counts=jnp.zeros((count,), jnp.int32),
        stopped=rows.room == 0,
        steps=jnp.int32(0),
    )
    tail = kv_cache.init_cache(cfg, count, steps, cache.layers[0][0].dtype)
    tail, out = jax.lax.while_loop(more, advance, (tail, empty))
    return kv_cache.flush(cache, tail, rows.lengths), out
