"""Adapters of low rank beside frozen weights (LoRA): which a model has, and what they add.

A projection x W with an adapter becomes (Hu et al., 2021, section 4.1)

    x W + (alpha / r) (x A) B        A [*I, r] random, B [r, *O] zero at first: the model begins as its base

of which A and B alone are trained. They are a model's parameters as any others, so that what is said of parameters
holds for them: `parameters.describe` has a record of each (`q_proj_a`, `q_proj_b`, ... among "layers", stacked over the
layers that have them) and says of the base that it isn't trained. From that follow, without a word about LoRA, what has
gradients and moments, what a checkpoint holds, where everything lies on a mesh, and how decoding keeps it. Base arrays
are never written, so policy, reference and critic have the same ones: three sets of adapters, one base.

Adapters are per projection, named as Hugging Face and PEFT name them, also where the base keeps several projections in
one matrix ("qkv"). They are in float32 at least, whatever the base is in. On a mesh the axes that W has in common with
A or B are split as W's are. The factor that isn't split over `tensor` gets a part of its gradient on each device along
it: `enter` adds them up.

The sampler keeps base and adapters apart as training does, and so computes the same: see `sampling/programs.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax.model.products import project

# By the parameter that has them: the projections that can have adapters, in their order along its fourth axis.
PROJECTIONS = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "attn_out": ("o_proj",),
    "gate": ("gate_proj",),
    "up": ("up_proj",),
    "down": ("down_proj",),
}
TARGETS = tuple(name for names in PROJECTIONS.values() for name in names)
_SUMMED_OVER_TENSOR = ("o_proj", "down_proj")  # their inputs are split over `tensor`, the others' outputs are


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which adapters a model has.

    Attributes:
      rank: r, 1 or more.
      alpha: what they add is multiplied by alpha / rank.
      targets: names in `TARGETS`.
      layers: how many layers have them, the last ones; 0 is all.

    Raises ValueError where a value can't be.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = TARGETS
    layers: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ValueError(f"rank={self.rank} must be 1 or more and alpha={self.alpha} above 0")
        if not self.targets or set(self.targets) - set(TARGETS):
            raise ValueError(f"targets={self.targets} must be one or more of {', '.join(TARGETS)}")
        if self.layers < 0:
            raise ValueError(f"layers={self.layers} must be 0 or more")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


def names_of(target: str) -> tuple[str, str]:
    """What a layer calls a projection's A and B."""
    return f"{target}_a", f"{target}_b"


def add_low_rank(
    product: jax.Array,
    layer: Mapping[str, Any],
    lora: LoraConfig,
    name: str,
    x: jax.Array,
    enter: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """A product x W [B, T, *O] with what the layer's adapters of W add to it.

    Args:
      product: of `x` [B, T, *I] and the parameter `name`.
      layer: a layer's parameters; without adapters of W the product is given back as it is.
      enter: see `sharding.MeshSharding`; `x` has been through it where it had to.
    """

    def low_rank(target: str) -> jax.Array | None:
        a, b = (layer.get(factor) for factor in names_of(target))
        if a is None or b is None:
            return None
        a, b = (a, enter(b)) if target in _SUMMED_OVER_TENSOR else (enter(a), b)
        return project(lora.scale * project(x, a), b)

    return _added(product, [low_rank(target) for target in PROJECTIONS[name]])


def _added(whole: jax.Array, parts: list[jax.Array | None]) -> jax.Array:
    """`whole` plus its parts, side by side along the last but one axis where they are several; None is zeros."""
    if len(parts) == 1 and parts[0] is not None:
        return whole + parts[0]
    if all(part is None for part in parts):
        return whole
    *outer, groups, width = whole.shape  # of "qkv": [..., R + 2, H], queries, then keys, then values
    sizes = (groups - len(parts) + 1, *(1,) * (len(parts) - 1))
    zeros = functools.partial(jnp.zeros, dtype=whole.dtype)
    return whole + jnp.concatenate(
        [zeros((*outer, size, width)) if part is None else part for part, size in zip(parts, sizes, strict=True)], -2
    )


def merged(weight: jax.Array, layer: Mapping[str, Any], lora: LoraConfig, name: str) -> jax.Array:
    """A layer's parameter `name` [*I, *O] with its adapters in it: W + (alpha / r) A B, in the adapters' dtype."""

    def product(target: str) -> jax.Array | None:
        a, b = (layer.get(factor) for factor in names_of(target))
        if a is None or b is None:
            return None
        flat = jnp.matmul(
            jnp.reshape(a, (-1, lora.rank)), jnp.reshape(b, (lora.rank, -1)), precision=jax.lax.Precision.HIGHEST
        )
        return lora.scale * flat.reshape(*a.shape[:-1], *b.shape[1:])

    parts = [product(target) for target in PROJECTIONS[name]]
    dtypes = {part.dtype for part in parts if part is not None}
    return _added(jnp.asarray(weight).astype(jnp.result_type(weight, *dtypes)), parts)


def merge(params: dict[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """A model without adapters that computes the same: the parameters of a base, with the adapters in them.

    What an adapter changes is in the adapters' dtype, everything else is as it is.
    """
    layers, adapters = split(params["layers"])
    for name, targets in PROJECTIONS.items():
        own = {factor: adapters[factor] for t in targets for factor in names_of(t) if factor in adapters}
        if own:
            first = len(layers[name]) - len(next(iter(own.values())))
            merge_layer = functools.partial(merged, lora=lora, name=name)
            changed = jax.vmap(merge_layer)(layers[name][first:], own)
            layers[name] = jnp.concatenate([layers[name][:first].astype(changed.dtype), changed])
    return {**params, "layers": layers}


def merged_on_host(params: dict[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """`merge` of arrays on the host, by its processor: no accelerator need have room for a second model."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return merge(params, lora)


_FACTORS = frozenset(factor for target in TARGETS for factor in names_of(target))


def is_adapter(name: str) -> bool:
    """Whether a layer's parameter of that name is an adapter's A or B."""
    return name in _FACTORS


def add_nothing(adapters: Mapping[str, Any]) -> bool:
    """Whether a model with these adapters is its base, as at first: every B is zero. All of them are on this host."""
    seconds = {names_of(target)[1] for target in TARGETS}
    return not any(np.asarray(leaf).any() for name, leaf in adapters.items() if name in seconds)


def split(layers: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the base's parameters, the adapters) of layers, stacked or one."""
    base = {name: leaf for name, leaf in layers.items() if not is_adapter(name)}
    return base, {name: leaf for name, leaf in layers.items() if is_adapter(name)}
