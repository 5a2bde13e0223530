"""What an update carries from one step to the next: parameters, optimizer state, step count.

Parameters are in two trees, those that are trained and those that are not. Gradients, moments, donated buffers and
checkpoints are of the first alone; scores are of both, combined. What policy and critic both have frozen is one array
(`kept_once`): with adapters beside a frozen base, the base.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlef_jax.model.parameters import describe, leaf_at
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.model.value import describe_value_head, init_value_head
from rlef_jax.ppo.settings import OptimizerSettings


@flax.struct.dataclass
class TrainState:
    """The trainer's state, a pytree.

    `params` is {"policy": Params, "critic": {"head": {"w", "b"}} or {"trunk": Params, "head": ...}}: a critic without
    a trunk reads the policy's hidden states. `trainable` and `frozen` are what `partition` makes of it. `step` (int32
    scalar) counts updates.
    """

    trainable: dict[str, Any]
    frozen: dict[str, Any]
    opt_state: optax.OptState
    step: jax.Array

    @property
    def params(self) -> dict[str, Any]:
        """All parameters."""
        return combine(self.trainable, self.frozen)

    def with_params(self, params: dict[str, Any]) -> TrainState:
        """The state with other parameters of the same structure, of which the same ones are trained."""
        trainable, frozen = partition(params, lambda path: _holds(self.trainable, path))
        return dataclasses.replace(self, trainable=trainable, frozen=frozen)


# Whether the parameter at a path ("policy", "layers", "qkv") is trained.
type IsTrainable = Callable[[tuple[str, ...]], bool]


def partition(params: Any, trainable: IsTrainable, path: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """(what is trained, what isn't) of a tree of dicts: each without the other's leaves, and below the first level
    without dicts that would be empty."""
    kept: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, node in params.items():
        if isinstance(node, dict):
            parts = partition(node, trainable, (*path, name))
            for target, part_of_node in zip((kept, rest), parts, strict=True):
                if part_of_node or not path:
                    target[name] = part_of_node
        else:
            (kept if trainable((*path, name)) else rest)[name] = node
    return kept, rest


def combine(trainable: Any, frozen: Any) -> Any:
    """The tree that `partition` took apart."""
    whole = dict(trainable)
    for name, node in frozen.items():
        whole[name] = combine(whole.get(name, {}), node) if isinstance(node, dict) else node
    return whole


def _holds(tree: Any, path: Sequence[str]) -> bool:
    for name in path:
        if name not in tree:
            return False
        tree = tree[name]
    return True


def kept_once(params: dict[str, Any], trainable: IsTrainable) -> dict[str, Any]:
    """`TrainState.params`, or a tree like it, without what the critic's trunk has frozen as the policy has it.

    Both come from the same weights, so it is the policy's own: `with_shared` adds it again. Programs take this, and a
    device has such weights once. Without the policy, or a trunk, it is the tree itself.
    """
    if "policy" not in params or "trunk" not in params.get("critic", {}):
        return params
    _, own = partition(params["critic"]["trunk"], _frozen_in_both(trainable))
    return {**params, "critic": {**params["critic"], "trunk": own}}


def with_shared(params: dict[str, Any], trainable: IsTrainable) -> dict[str, Any]:
    """The tree that `kept_once` took something from: the same arrays in both places."""
    if "policy" not in params or "trunk" not in params.get("critic", {}):
        return params
    shared, _ = partition(params["policy"], _frozen_in_both(trainable))
    return {**params, "critic": {**params["critic"], "trunk": combine(params["critic"]["trunk"], shared)}}


def _frozen_in_both(trainable: IsTrainable) -> IsTrainable:
    return lambda path: not trainable(("policy", *path)) and not trainable(("critic", "trunk", *path))


def select_parts(tree: Any, names: Sequence[str]) -> Any:
    """The parts `names`, of "policy" and "critic", of a TrainState or of anything made of trees like its `params`.

    Leaves outside of such trees (counts) are every part's.
    """
    return jax.tree.map(lambda node: {n: node[n] for n in names} if _parted(node) else node, tree, is_leaf=_parted)


def merge_parts(parts: Sequence[Any]) -> Any:
    """The whole of which these are the parts; what every part has is taken from the first."""

    def both(first: Any, *others: Any) -> Any:
        return {name: leaf for node in (first, *others) for name, leaf in node.items()} if _parted(first) else first

    return jax.tree.map(both, *parts, is_leaf=_parted)


def _parted(node: Any) -> bool:
    return isinstance(node, dict) and not node.keys().isdisjoint(("policy", "critic"))


def learning_rates(learning_rate: float, warmup_steps: int, decay_steps: int = 0) -> optax.Schedule:
    """Linear from learning_rate / warmup_steps at the first update to learning_rate at update `warmup_steps` (A.1), and
    with `decay_steps` (ours), from there linear to what would be 0 one update after update `decay_steps`. Later updates
    keep that one's rate.

    The first update moves already (ours): with as few updates as the demo makes, none is spent at rate 0.
    """

    def schedule(count: jax.Array) -> jax.Array:
        rate = jnp.minimum(1.0, (count + 1.0) / max(warmup_steps, 1))
        if decay_steps:
            left = jnp.maximum(decay_steps - count, 1.0) / max(decay_steps - warmup_steps + 1, 1)
            rate = jnp.minimum(rate, left)
        return learning_rate * rate

    return schedule


def describe_params(cfg: ModelConfig, separate_critic: bool) -> dict[str, Any]:
    """The tree of `TrainState.params` with what is known of each parameter, a `Parameter`, at its leaves."""
    policy = describe(cfg)
    critic: dict[str, Any] = {"head": describe_value_head(cfg)}
    if separate_critic:
        critic["trunk"] = policy
    return {"policy": policy, "critic": critic}


def trained_by_default(cfg: ModelConfig) -> IsTrainable:
    """What `Parameter.trainable` says of each parameter of `TrainState.params`."""
    described = describe_params(cfg, separate_critic=True)
    return lambda path: leaf_at(described, path).trainable


def _decayed(cfg: ModelConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Which of the parameters, all of `TrainState.params` or some parts, weight decay acts on: a tree of bools."""
    described = describe_params(cfg, separate_critic=True)

    def of(path: Any, _: Any) -> bool:
        return leaf_at(described, [step.key for step in path]).decayed

    return jax.tree_util.tree_map_with_path(of, params)


def make_optimizer(
    cfg: ModelConfig, settings: OptimizerSettings, rates: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """AdamW with linear warm-up (A.1), decay if asked for and, where clip_norm > 0, gradients clipped by global norm.

    Other learning `rates` take the place of the settings' own. One rate for policy and critic. Weight decay acts on
    every parameter of the model `cfg` but those that `Parameter.decayed` leaves out, QKV biases (ours: the paper names
    no exceptions, and its models have none).
    """
    adamw = optax.adamw(
        rates or learning_rates(settings.learning_rate, settings.warmup_steps, settings.decay_steps),
        b1=settings.adam_b1,
        b2=settings.adam_b2,
        weight_decay=settings.weight_decay,
        mask=functools.partial(_decayed, cfg),
    )
    return optax.chain(clip_by_norm(settings.clip_norm), adamw) if settings.clip_norm > 0 else adamw


def clip_by_norm(limit: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` by a norm that `update` is given: part of the gradients may lie on other devices."""

    def update(updates: Any, state: Any, params: Any = None, *, norm: jax.Array, **_: Any) -> tuple[Any, Any]:
        small = norm < limit
        return jax.tree.map(lambda g: jax.lax.select(small, g, (g / norm.astype(g.dtype)) * limit), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def first_params(
    key: jax.Array, policy_params: Params, model_cfg: ModelConfig, separate_critic: bool
) -> dict[str, Any]:
    """`TrainState.params` at step 0: the policy as given, the critic's trunk (if it has its own) from the same weights.

    No array of the policy is copied.
    """
    critic: dict[str, Any] = {"head": init_value_head(key, model_cfg)}
    if separate_critic:
        critic["trunk"] = policy_params
    return {"policy": policy_params, "critic": critic}


def init_state(
    trainable: dict[str, Any], frozen: dict[str, Any], init_moments: Callable[[Any], optax.OptState]
) -> TrainState:
    """A state at step 0; `init_moments` is the optimizer's `init`."""
    step = jnp.zeros((), jnp.int32)
    return TrainState(trainable=trainable, frozen=frozen, opt_state=init_moments(trainable), step=step)
