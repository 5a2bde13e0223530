"""Several decoding steps of all rows as one pure function: run a token, draw the next, stop finished rows."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from rlef_jax.model import kv_cache, transformer
from rlef_jax.model.kv_cache import KVCache, Where
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.sampling.distribution import inverse_cdf, modified_weights, weights


@flax.struct.dataclass
class Rows:
    """The rows' requests, [B] each; `stop_ids` is [B, N], padded with -1.

    Attributes:
      tokens: the last token of each row, which hasn't been run yet; `lengths`: the number of tokens in the cache.
      room: largest number of tokens to draw; 0 for an idle row.
      seed, step, episode, turn: the response's name (see `token_uniforms`); `drawn`: its number of tokens so far.
      temperature, top_k, top_p: see `distribution`.
      tables: [B, N], the row's pages (see `kv_cache`).
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
    tables: jax.Array


@flax.struct.dataclass
class Drawn:
    """The drawn tokens; T = steps. Entries at index `counts` and after are undefined."""

    ids: jax.Array  # [B, T] int32
    behavior_logp: jax.Array  # [B, T] float32, under the distribution that the token was drawn from
    policy_logp: jax.Array  # [B, T] float32, under the unmodified distribution
    counts: jax.Array  # [B] int32
    stopped: jax.Array  # [B] bool, whether a stop id was drawn (or the row was idle)
    steps: jax.Array  # [] int32, number of steps run


def token_uniforms(rows: Rows, count: int) -> jax.Array:
    """Uniform numbers [B, count] in [0, 1) for each row's next tokens, from fold_in(seed, step, episode, turn, token).

    A token's number depends only on its place in its own episode.
    """

    def one(seed: jax.Array, step: jax.Array, episode: jax.Array, turn: jax.Array, drawn: jax.Array) -> jax.Array:
        key = jax.random.PRNGKey(seed)
        for name in (step, episode, turn):
            key = jax.random.fold_in(key, name)
        return jax.vmap(lambda token: jax.random.uniform(jax.random.fold_in(key, token)))(drawn + jnp.arange(count))

    return jax.vmap(one)(rows.seed, rows.step, rows.episode, rows.turn, rows.drawn)


def decode(
    params: Params,
    cache: KVCache,
    rows: Rows,
    *,
    cfg: ModelConfig,
    where: Where,
    steps: int,
    capacity: int,
    plain: bool,
) -> tuple[KVCache, Drawn]:
    """Runs up to `steps` steps of every row, fewer if all rows are done. Returns (updated cache, drawn tokens).

    For a row that has drawn n tokens, its `tokens` entry and the first n - 1 drawn ones are added to the cache after
    `lengths`, as far as there are pages for them.

    Args:
      params: weights with separate layers (`kv_cache.unstack`).
      capacity: slots of the rows that are read, at least the largest of `lengths`; the kernel reads what there is.
      plain: whether no row has temperature 0, a top_k or a top_p, which takes fewer passes over the vocabulary.
    """
    count = rows.tokens.shape[0]
    seen = cache if where.kernel else kv_cache.gather(cache, rows.tables, capacity, where)
    tables = rows.tables if where.kernel else None
    uniforms = token_uniforms(rows, steps)

    def draw(hidden: jax.Array, step: jax.Array, out: Drawn) -> Drawn:
        logits = transformer.unembed(params, cfg, hidden[:, None])[:, 0]
        if plain:
            row_weights = weights(logits, rows.temperature)
        else:
            row_weights = modified_weights(logits, rows.temperature, rows.top_k, rows.top_p)
        uniform = jax.lax.dynamic_index_in_dim(uniforms, step, axis=1, keepdims=False)
        ids, total = inverse_cdf(row_weights, uniform)
        behavior = jnp.log(jnp.take_along_axis(row_weights, ids[:, None], axis=1)) - jnp.log(total)[:, None]
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

    def unfinished(carry: tuple[KVCache, Drawn]) -> jax.Array:
        out = carry[1]
        return (out.steps < steps) & jnp.any(~out.stopped & (out.steps < rows.room))

    def advance(carry: tuple[KVCache, Drawn]) -> tuple[KVCache, Drawn]:
        tail, out = carry
        step = out.steps
        last = jax.lax.dynamic_index_in_dim(out.ids, jnp.maximum(step - 1, 0), axis=1, keepdims=False)
        tokens = jnp.where(step == 0, rows.tokens, last)
        hidden, tail = kv_cache.decode_step(
            params, cfg, seen, tail, tokens, rows.lengths, step, tables=tables, where=where
        )
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
    tail, out = jax.lax.while_loop(unfinished, advance, (tail, empty))
    return kv_cache.write(cache, tail.layers, rows.tables, rows.lengths, where), out
