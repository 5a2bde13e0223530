"""What an update carries from one step to the next: parameters, optimizer state, step count."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.model.value import init_value_head


@flax.struct.dataclass
class TrainState:
    """The trainer's state, a pytree.

    `params` is {"policy": Params, "critic": {"head": {"w", "b"}} or {"trunk": Params, "head": ...}}: a critic without
    a trunk reads the policy's hidden states. `step` (int32 scalar) counts updates.
    """

    params: dict[str, Any]
    opt_state: optax.OptState
    step: jax.Array


def warmup_schedule(learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """Linear from learning_rate / warmup_steps at the first update to learning_rate at update `warmup_steps`.

    The first update moves already (ours): with as few updates as the demo makes, none is spent at rate 0.
    """

    def schedule(count: jax.Array) -> jax.Array:
        return learning_rate * jnp.minimum(1.0, (count + 1.0) / max(warmup_steps, 1))

    return schedule


def decayed(params: Any) -> Any:
    """Which parameters weight decay acts on: a tree of bools.

    Not the QKV biases: some of Qwen's are above 100 by training, and a pull to zero would be an update of its own.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "qkv_bias", params)


def make_optimizer(
    learning_rate: float,
    warmup_steps: int = 50,
    weight_decay: float = 0.1,
    clip_norm: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """AdamW with linear warm-up (A.1) and, where clip_norm > 0, clipping of the global gradient norm.

    One learning rate for policy and critic, weight decay on every parameter but QKV biases (ours: the paper names no
    exceptions, and its models have no such biases).
    """
    adamw = optax.adamw(
        warmup_schedule(learning_rate, warmup_steps), b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed
    )
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw) if clip_norm > 0 else adamw


def init_state(
    key: jax.Array,
    policy_params: Params,
    model_cfg: ModelConfig,
    separate_critic: bool,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    """A state at step 0: the policy as given, the critic's trunk (if it has its own) from the same weights.

    Every array is a copy: the update donates its buffers, and the caller's weights (the reference policy) live on.
    """
    critic: dict[str, Any] = {"head": init_value_head(key, model_cfg)}
    if separate_critic:
        critic["trunk"] = jax.tree.map(jnp.copy, policy_params)
    params = {"policy": jax.tree.map(jnp.copy, policy_params), "critic": critic}
    return TrainState(params=params, opt_state=optimizer.init(params), step=jnp.zeros((), jnp.int32))
