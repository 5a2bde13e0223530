"""The sampler: multi-turn generation for a group of rows with its own copy of the weights and a KV cache.

Turns are append-only: each call gives every row the tokens that follow what it holds, and only those are prefilled.
A response's last token was never run through the model; it is prefilled together with the next delta.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax.model import kv_cache
from rlef_jax.model.kv_cache import KVCache
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.sampling.turn import TurnOutputs, read_prompts, token_uniforms, write_responses


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn.

    `temperature` 0 is greedy; `top_p` 1 and `top_k` 0 keep every token. A response ends with the first of `stop_ids`
    (which is part of it) or after `max_new_tokens`. Raises ValueError for values that mean nothing.
    """

    temperature: float
    top_p: float
    top_k: int
    stop_ids: tuple[int, ...]
    max_new_tokens: int

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(f"need temperature >= 0, 0 < top_p <= 1 and top_k >= 0, not {self}")
        if not self.stop_ids or self.max_new_tokens < 1:
            raise ValueError(f"need at least one stop id and max_new_tokens >= 1, not {self}")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One response. Per token: `behavior_logp` under the distribution that it was drawn from, `policy_logp` under
    the unmodified one (temperature 1). `finish_reason` is "stop", "length", or "" for a row that was idle (no ids).
    `version` names the weights."""

    ids: tuple[int, ...]
    behavior_logp: tuple[float, ...]
    policy_logp: tuple[float, ...]
    finish_reason: str
    version: int


@dataclasses.dataclass(frozen=True)
class GroupState:
    """A group of rows between turns. Consumed by `Sampler.generate`: its cache is given to the next state.

    `lengths` [B]: tokens of each row so far; `stored` and `in_tail` [B]: how many of them lie in either part of the
    cache. The rest, at most one token a row, is `pending` [B] (-1: none).
    """

    cache: KVCache
    lengths: np.ndarray
    stored: np.ndarray
    in_tail: np.ndarray
    pending: np.ndarray


class Sampler:
    """Samples responses for groups of `batch_size` rows of at most `max_len` tokens each.

    Prefill is compiled once per prompt bucket (the longest delta that a call may hold) and size of the cache's store,
    decode once per size; the store grows by `slot_multiple` slots as the rows do. It works on `device`, where one is
    given, else where the weights lie.
    """

    def __init__(
        self,
        model_cfg: ModelConfig,
        sampling_cfg: SamplingConfig,
        batch_size: int,
        max_len: int,
        prompt_buckets: tuple[int, ...],
        *,
        compute_dtype: Any = jnp.float32,
        slot_multiple: int = 64,
        device: jax.Device | None = None,
    ) -> None:
        if max_len > model_cfg.max_positions:
            raise ValueError(f"max_len={max_len} is over the model's max_positions={model_cfg.max_positions}")
        self.model_cfg = model_cfg
        self.sampling_cfg = sampling_cfg
        self.batch_size = batch_size
        self.max_len = max_len
        self.prompt_buckets = tuple(sorted(prompt_buckets))
        self._weights: tuple[Params, int] | None = None
        self._device = device
        self._dtype = compute_dtype
        self._slot_multiple = slot_multiple
        settings = {k: getattr(sampling_cfg, k) for k in ("temperature", "top_k", "top_p", "stop_ids")}
        self._read = jax.jit(functools.partial(read_prompts, cfg=model_cfg), donate_argnums=1)
        self._write = jax.jit(functools.partial(write_responses, cfg=model_cfg, **settings), donate_argnums=1)
        self._uniforms = jax.jit(functools.partial(token_uniforms, tokens=sampling_cfg.max_new_tokens))
        self._grow = jax.jit(kv_cache.grow, static_argnums=1)

    def set_weights(self, params: Params, version: int) -> None:
        """Take a copy of params, named `version`: the caller may change or donate its own afterwards.

        May be called while another thread generates: a turn keeps the weights that it began with, and the next turn
        of the same rows goes on with the new ones, over the cache that the old ones filled.
        """
        if self._device is not None:
            params = jax.device_put(params, self._device)
        copy = jax.tree.map(lambda a: jnp.array(a, dtype=self._dtype, copy=True), params)
        self._weights = (copy, version)

    def start_group(self) -> GroupState:
        """A group of empty rows."""
        cache = kv_cache.init_cache(self.model_cfg, self.batch_size, 0, self.sampling_cfg.max_new_tokens, self._dtype)
        none = np.zeros(self.batch_size, np.int32)
        return GroupState(cache=cache, lengths=none, stored=none, in_tail=none, pending=none - 1)

    def generate(
        self,
        state: GroupState,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        step: int,
        episode_indices: Sequence[int],
        turn: int | Sequence[int],
        max_new: Sequence[int] | None = None,
    ) -> tuple[GroupState, list[Sample]]:
        """Append a delta to each row and sample its response.

        Args:
          state: consumed; use the returned one.
          prompts: per row the tokens of its delta; [] = the row is idle in this call and doesn't change.
          seed, step, episode_indices, turn: name the random numbers (`turn` may differ by row).
          max_new: per row the most tokens to sample, on top of `max_new_tokens` and of max_len.
        Raises ValueError for a delta that is longer than the largest bucket or leaves no room for one token within
        max_len, RuntimeError before the first `set_weights`.
        """
        if self._weights is None:
            raise RuntimeError("set_weights must be called before generate")
        params, version = self._weights
        if len(prompts) != self.batch_size or len(episode_indices) != self.batch_size:
            raise ValueError(f"need {self.batch_size} prompts and episode indices, one per row")
        deltas = self._deltas(state, prompts)
        room = self._room(state, prompts, max_new)
        counts = np.array([len(d) for d in deltas], np.int32)
        bucket = self._bucket(int(counts.max()))
        tokens = np.zeros((self.batch_size, bucket), np.int32)
        for row, delta in enumerate(deltas):
            tokens[row, : len(delta)] = delta
        before = state.stored + state.in_tail
        needed = max(int(state.stored.max()) + self.sampling_cfg.max_new_tokens, int(before.max()) + bucket)
        cache = self._with_room(state.cache, needed)
        turns = np.broadcast_to(np.asarray(turn, np.int32), (self.batch_size,))
        uniforms = self._uniforms(np.uint32(seed), np.int32(step), np.asarray(episode_indices, np.int32), turns)
        hidden, cache = self._read(params, cache, tokens, counts, state.stored, state.in_tail)
        cache, out = self._write(params, cache, hidden, before + counts, room, uniforms)
        out = jax.device_get(out)
        samples = _samples(out, version)
        active, made = counts > 0, out.counts
        return GroupState(
            cache=cache,
            lengths=state.lengths + np.array([len(p) for p in prompts], np.int32) + made,
            stored=before + counts,
            in_tail=np.where(active, made - 1, 0).astype(np.int32),
            pending=np.where(active, out.ids[np.arange(self.batch_size), np.maximum(made - 1, 0)], state.pending),
        ), samples

    def _with_room(self, cache: KVCache, slots: int) -> KVCache:
        if slots <= cache.capacity:
            return cache
        return self._grow(cache, -(-slots // self._slot_multiple) * self._slot_multiple)

    def _deltas(self, state: GroupState, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """What each row prefills: its pending token, then the prompt; nothing if it is idle."""
        pending = [[p] if p >= 0 else [] for p in state.pending.tolist()]
        return [[*before, *prompt] if len(prompt) else [] for before, prompt in zip(pending, prompts, strict=True)]

    def _room(self, state: GroupState, prompts: Sequence[Sequence[int]], max_new: Sequence[int] | None) -> np.ndarray:
        """Per row [B] the most tokens to sample, 0 for an idle row."""
        asked = np.full(self.batch_size, self.sampling_cfg.max_new_tokens) if max_new is None else np.asarray(max_new)
        lengths = state.lengths + np.array([len(p) for p in prompts])
        room = np.minimum(np.minimum(asked, self.sampling_cfg.max_new_tokens), self.max_len - lengths)
        for row, prompt in enumerate(prompts):
            if not len(prompt):
                room[row] = 0
            elif room[row] < 1:
                raise ValueError(
                    f"row {row} has {lengths[row]} of {self.max_len} tokens with its prompt and may sample"
                    f" {asked[row]}: no room for a response"
                )
        return room.astype(np.int32)

    def _bucket(self, longest: int) -> int:
        for bucket in self.prompt_buckets:
            if longest <= bucket:
                return bucket
        raise ValueError(f"a prompt delta of {longest} tokens is over the largest bucket, {self.prompt_buckets[-1]}")


def _samples(out: TurnOutputs, version: int) -> list[Sample]:
    """The rows of a turn's outputs (numpy arrays) as Samples."""
    return [
        Sample(
            ids=tuple(out.ids[row, :n].tolist()),
            behavior_logp=tuple(out.behavior_logp[row, :n].tolist()),
            policy_logp=tuple(out.policy_logp[row, :n].tolist()),
            finish_reason="" if n == 0 else "stop" if out.stopped[row] else "length",
            version=version,
        )
        for row, n in enumerate(out.counts.tolist())
    ]
