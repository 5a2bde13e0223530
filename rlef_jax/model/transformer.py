"""Llama-family transformer over a params pytree: one definition for training, prefill and decode.

`run_model` is the only loop over layers and `block` the only copy of a layer's mathematics. Training passes them an
attention over the row itself (`model/attention.py`), prefill and decode an attention over a cache
(`model/kv_cache.py`). What differs from layer to layer is a `LayerKind`.

Letters in shapes: B rows, T tokens, D model width, V vocabulary, L layers, K key/value heads, R query heads per
key/value head, H head width, F hidden width of the feed-forward layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from rlef_jax.model.attention import KEPT, Attention, row_attention
from rlef_jax.model.families import family_of, fields_of
from rlef_jax.model.layer_stack import layer_of, run_stack, stretches
from rlef_jax.model.lora import LoraConfig, add_low_rank, is_adapter
from rlef_jax.model.products import project, times_transposed
from rlef_jax.model.rope import LayerKind, Scaling, Tables, apply_rope, check_scaling, rope_tables

Params = dict[str, Any]


class ComputeSharding(Protocol):
    """How weights that are split over a mesh are got at: see `model/sharding.py`."""

    def all_gather(self, name: str, params: Any, dtype: Any) -> Any: ...

    def lookup(self, table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array: ...

    def enter(self, x: jax.Array) -> jax.Array: ...

    def leave(self, x: jax.Array) -> jax.Array: ...

    def tensor_mean(self, x: jax.Array) -> jax.Array: ...

    def tensor_sum(self, x: jax.Array) -> jax.Array: ...

    def tensor_logsumexp(self, x: jax.Array) -> jax.Array: ...

    def local_ids(self, tokens: jax.Array, size: int) -> jax.Array: ...


REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(KEPT),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What of a layer is made again in the backward pass, by name: "none" of it, all but the results of matrix products and
of the attention ("dots"), or everything from the layer's input on ("full")."""


NORMS = ("before", "after", "around")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a model of the Llama family or its relatives computes with.

    Attributes:
      qkv_bias: the projections to queries, keys and values have biases (Qwen 2).
      qk_norm: an RMS norm over the width of each query and key head, before the rotation (Qwen 3, Gemma 3).
      qk_norm_whole: that norm is over all heads together (OLMo 2).
      norms: where a layer's RMS norms are: "before" attention and feed-forward layer, "after" them (OLMo 2) or both,
        "around" them (Gemma 3).
      norm_plus_one: norms multiply by 1 + weight (Gemma 3).
      activation: of the feed-forward layer, a name in `ACTIVATIONS`.
      scale_embeddings: embeddings are multiplied by sqrt(D) where tokens come in (Gemma 3).
      query_scalar: queries are divided by its root; 0 is the head width, as usual.
      window: how many tokens a token sees, itself among them, in layers with a sliding window; 0 is all.
      window_layers, rope_layers: which layers have the window, and rotary embeddings: a 1 or a 0 for each, over again
        where there are more layers; () is every layer.
      window_rope_theta: of the layers with the window, without scaling (Gemma 3); 0 is `rope_theta`.
      max_positions: the longest row that the model may be given.
      family: a name in `families.FAMILIES`, what its files are called; "" where that isn't known. It changes nothing
        that is computed.
      lora: the adapters beside its weights, which are then frozen (`model/lora.py`); None for a model without.

    Raises ValueError where values don't fit together.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: Scaling | None = None
    qk_norm_whole: bool = False
    norms: str = "before"
    norm_plus_one: bool = False
    activation: str = "silu"
    scale_embeddings: bool = False
    query_scalar: float = 0.0
    window: int = 0
    window_layers: tuple[int, ...] = ()
    window_rope_theta: float = 0.0
    rope_layers: tuple[int, ...] = ()
    max_positions: int = 8192
    family: str = ""
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}")
        if self.d_head % 2:
            raise ValueError(f"d_head={self.d_head} must be even: rotary embeddings turn pairs of channels")
        if self.rope_scaling is not None:
            check_scaling(self.rope_scaling)
        for name, known in (("norms", NORMS), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(known)}")
        for name in ("window_layers", "rope_layers"):
            if set(getattr(self, name)) - {0, 1}:
                raise ValueError(f"{name}={getattr(self, name)} must hold a 1 or a 0 for each layer")
        if self.qk_norm_whole and not self.qk_norm:
            raise ValueError("qk_norm_whole=True needs qk_norm=True")
        family_of(self.family, **fields_of(self))  # whether its models may be so
        if self.lora is not None and self.lora.layers > self.n_layers:
            raise ValueError(f"lora.layers={self.lora.layers} is over n_layers={self.n_layers}")

    @property
    def base(self) -> ModelConfig:
        """The model without adapters."""
        return self if self.lora is None else dataclasses.replace(self, lora=None)

    @property
    def layers_below(self) -> int:
        """How many layers come before the first with adapters: what they say of a token never changes. 0 without any
        adapters."""
        return self.n_layers - self.lora.layers if self.lora is not None and self.lora.layers else 0

    @property
    def queries_per_kv(self) -> int:
        """Query heads that share one key/value head (R)."""
        return self.n_heads // self.n_kv_heads

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Each layer's kind. A window that holds the longest row is none."""
        window = self.window if self.window < self.max_positions else 0

        def kind(layer: int) -> LayerKind:
            rotary = marked(self.rope_layers, layer)
            if not (self.window and marked(self.window_layers, layer)):
                return LayerKind(self.rope_theta, self.rope_scaling, 0, rotary)
            if self.window_rope_theta:
                return LayerKind(self.window_rope_theta, None, window, rotary)
            return LayerKind(self.rope_theta, self.rope_scaling, window, rotary)

        return tuple(kind(layer) for layer in range(self.n_layers))


def marked(layers: tuple[int, ...], layer: int) -> bool:
    """Whether a layer has a 1 in what `ModelConfig` says of each layer."""
    return not layers or bool(layers[layer % len(layers)])


def rms_norm(
    x: jax.Array,
    scale: jax.Array,
    eps: float,
    plus_one: bool = False,
    mean: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """x [..., D] over its root mean square (taken in float32), times scale ([D] or [..., D]). Same dtype as x.

    `plus_one`: times 1 + scale, in float32: in half precision the sum would lose what the scale is about.
    `mean`: from the mean square of this x to that of all devices' parts.
    """
    x32 = x.astype(jnp.float32)
    square = jnp.mean(x32 * x32, axis=-1, keepdims=True)
    x32 = x32 * jax.lax.rsqrt((square if mean is None else mean(square)) + eps)
    shape = (1,) * (x.ndim - scale.ndim) + scale.shape
    if plus_one:
        return (x32 * (1.0 + scale.astype(jnp.float32).reshape(shape))).astype(x.dtype)
    return x32.astype(x.dtype) * scale.astype(x.dtype).reshape(shape)


def block(
    layer: Params,
    cfg: ModelConfig,
    x: jax.Array,
    rope: Tables | None,
    attention: Attention,
    sharding: ComputeSharding | None = None,
) -> tuple[jax.Array, Any]:
    """One layer: x [B, T, D] -> ([B, T, D], what the attention keeps).

    `rope` are the layer's rotary tables, None where it has none. `attention(queries [B, T, K, R, H], keys [B, T, K, H],
    values [B, T, K, H]) -> ([B, T, K, R, H], kept)` gets rotated queries (already divided by sqrt(H), or what the
    config has instead) and keys; what else they may look at is the caller's business, and so is `kept` (a cache; None
    in training). A layer has the norms that it has parameters for. With a `sharding` the layer's heads and hidden
    columns are some of all.
    """
    r = cfg.queries_per_kv
    enter, leave = (_as_it_is, _as_it_is) if sharding is None else (sharding.enter, sharding.leave)

    def normed(name: str, x: jax.Array) -> jax.Array:
        return rms_norm(x, layer[name], cfg.norm_eps, cfg.norm_plus_one) if name in layer else x

    def projected(name: str, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        product = project(x, layer[name], bias)
        return product if cfg.lora is None else add_low_rank(product, layer, cfg.lora, name, x, enter)

    qkv = projected("qkv", enter(normed("attn_norm", x)), layer.get("qkv_bias"))
    heads = qkv[:, :, :, : r + 1]
    if cfg.qk_norm:
        heads = _normed_heads(layer, cfg, heads, sharding)
    rotated = heads if rope is None else apply_rope(heads, rope)
    scale = (cfg.query_scalar or cfg.d_head) ** -0.5
    attended, kept = attention(rotated[:, :, :, :r] * scale, rotated[:, :, :, r], qkv[:, :, :, r + 1])
    x = x + normed("attn_post_norm", leave(projected("attn_out", attended)))
    inner = enter(normed("mlp_norm", x))
    hidden = ACTIVATIONS[cfg.activation](projected("gate", inner)) * projected("up", inner)
    return x + normed("mlp_post_norm", leave(projected("down", hidden))), kept


def _as_it_is(x: jax.Array) -> jax.Array:
    return x


def _normed_heads(layer: Params, cfg: ModelConfig, heads: jax.Array, sharding: ComputeSharding | None) -> jax.Array:
    """Queries and keys [B, T, K, R + 1, H] over their root mean squares: each head's, or that of all of its sort."""
    r = cfg.queries_per_kv
    if not cfg.qk_norm_whole:
        of_queries, of_keys = layer["q_norm"], layer["k_norm"]
        if sharding is not None:  # all devices have them, and each its heads' part of their gradients
            of_queries, of_keys = sharding.enter(of_queries), sharding.enter(of_keys)
        scales = jnp.concatenate([jnp.tile(of_queries, (r, 1)), of_keys[None]])
        return rms_norm(heads, scales, cfg.norm_eps, cfg.norm_plus_one)
    mean = None if sharding is None else sharding.tensor_mean

    def whole(some: jax.Array, scale: jax.Array) -> jax.Array:
        flat = some.reshape(*some.shape[:2], -1)
        return rms_norm(flat, scale.reshape(-1), cfg.norm_eps, cfg.norm_plus_one, mean).reshape(some.shape)

    queries, keys = whole(heads[:, :, :, :r], layer["q_norm"]), whole(heads[:, :, :, r:], layer["k_norm"])
    return jnp.concatenate([queries, keys], axis=3)


def embed(
    params: Params, cfg: ModelConfig, tokens: jax.Array, compute_dtype: Any, sharding: ComputeSharding | None = None
) -> jax.Array:
    """Embeddings [B, T, D] of tokens [B, T]."""
    table = params["embed"]
    x = table[tokens].astype(compute_dtype) if sharding is None else sharding.lookup(table, tokens, compute_dtype)
    return x * jnp.asarray(cfg.d_model**0.5, compute_dtype) if cfg.scale_embeddings else x


def layer_params(params: Params, index: int) -> Params:
    """The parameters of one layer, taken out of the stack where they are stacked."""
    layers = params["layers"]
    return layer_of(layers, index) if isinstance(layers, dict) else layers[index]


def run_model(
    params: Params,
    cfg: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    attend: Callable[[LayerKind, Any], Attention],
    memory: Sequence[Any] | None = None,
    *,
    dtype: Any,
    unroll: bool = True,
    remat: str = "none",
    sharding: ComputeSharding | None = None,
    layers: range | None = None,
    states: jax.Array | None = None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Layers, one after the other: (hidden states [B, T, D] after the final norm, what each attention keeps).

    Args:
      params: with their layers stacked, or apart (`kv_cache.unstack`).
      tokens, positions: int32 [B, T].
      attend: (a layer's kind, its entry of `memory`) -> its attention, see `block`.
      memory: what each layer's attention is given, such as its part of a cache; None for nothing.
      dtype: that is computed in.
      unroll, remat, sharding: see `forward`. A scan takes no memory and keeps nothing.
      layers: which ones, by default all; behind others than the last the states are as they leave it, without the norm.
        A scan begins and ends where `layer_stack.stretches` cuts.
      states: [B, T, D], what comes to the first of them; by default the tokens' embeddings.
    """
    layers = layers or range(cfg.n_layers)
    kinds = cfg.layer_kinds
    ropes = {kind: rope_tables(kind, cfg.d_head, positions) for kind in dict.fromkeys(kinds)}

    def runner(kind: LayerKind) -> Callable[[jax.Array, Params, Any], tuple[jax.Array, Any]]:
        def run(x: jax.Array, layer: Params, own: Any) -> tuple[jax.Array, Any]:
            if sharding is not None:
                layer = sharding.all_gather("layers", layer, dtype)
            return block(layer, cfg, x, ropes[kind], attend(kind, own), sharding)

        return run if remat == "none" else jax.checkpoint(run, policy=REMAT[remat])

    run = {kind: runner(kind) for kind in ropes}
    x = embed(params, cfg, tokens, dtype, sharding) if states is None else states.astype(dtype)
    kept: list[Any] = []
    if unroll:
        for index in layers:
            x, more = run[kinds[index]](x, layer_params(params, index), None if memory is None else memory[index])
            kept.append(more)
    else:
        for kind, stretch in stretches(params["layers"], kinds, lambda name: bool(cfg.lora) and not is_adapter(name)):
            if stretch.first in layers:
                x = run_stack(functools.partial(_result_alone, run[kind]), x, stretch)
    if layers.stop < cfg.n_layers:
        return x, tuple(kept)
    return rms_norm(x, params["final_norm"], cfg.norm_eps, cfg.norm_plus_one), tuple(kept)


def _result_alone(run: Callable[..., tuple[jax.Array, Any]], x: jax.Array, layer: Params) -> jax.Array:
    """What a layer makes of x, in a loop that has no memory and keeps nothing."""
    return run(x, layer, None)[0]


def forward(
    params: Params,
    cfg: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array,
    *,
    compute_dtype: Any = jnp.float32,
    remat: str = "none",
    unroll: bool = True,
    attention: str = "blocks",
    sharding: ComputeSharding | None = None,
    layers: range | None = None,
    states: jax.Array | None = None,
) -> jax.Array:
    """Hidden states [B, T, D] after the final norm, in compute_dtype.

    Args:
      tokens, positions, segment_ids: int32 [B, T]. A token sees the earlier tokens of its own segment (and itself).
        Positions count from 0 in each segment; segment 0 is padding, whose outputs mean nothing but are finite.
      remat: what is computed again in the backward pass, a name in `REMAT`.
      unroll: one copy of the layer per layer (faster for small models) or a scan (compiles faster for deep ones).
      attention: which one, see `row_attention`.
      sharding: on a mesh of several devices, where things lie.
      layers, states: some of the layers, see `run_model`.
    Raises ValueError where T is over `cfg.max_positions`.
    """
    length = tokens.shape[1]
    if length > cfg.max_positions:
        raise ValueError(f"rows of {length} tokens: the model's max_positions is {cfg.max_positions}")
    hidden, _ = run_model(
        params, cfg, tokens, positions, lambda kind, _: row_attention(segment_ids, attention, kind.window),
        dtype=compute_dtype, unroll=unroll, remat=remat, sharding=sharding, layers=layers, states=states,
    )  # fmt: skip
    return hidden


def output_weights(params: Params, cfg: ModelConfig) -> jax.Array:
    """The output layer's weights [V, D]."""
    return params["embed" if cfg.tie_embeddings else "unembed"]


def unembed(params: Params, cfg: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Logits [B, T, V], float32, of hidden states [B, T, D]. The update never holds so many: `model/logp.py`."""
    b, t, d = hidden.shape
    weights = output_weights(params, cfg).astype(hidden.dtype)
    return times_transposed(hidden.reshape(b * t, d), weights, jnp.float32).reshape(b, t, -1)
