"""The update's objective: what it needs of the model, and a micro-batch's share of loss and metrics."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlef_jax.model.logp import LOGIT_TOKENS, token_logp
from rlef_jax.model.sharding import MeshSharding
from rlef_jax.model.transformer import ModelConfig, Params, forward
from rlef_jax.ppo import values
from rlef_jax.ppo.losses import likelihood_loss, policy_loss, value_loss
from rlef_jax.ppo.settings import Likelihood, LossSettings
from rlef_jax.ppo.token_batch import TokenBatch


@dataclasses.dataclass(frozen=True)
class ForwardSettings:
    """How the trainer runs the model; none of it changes a result but for rounding.

    `compute_dtype`, `remat`, `unroll` and `attention` are `forward`'s. `logit_tokens` is how many tokens' logits a
    device holds at a time. `keep_below`: where only the upper layers have adapters, what the layers below say of an
    iteration's tokens is computed once and kept on the host (`TokenBatch.below`). On a mesh of several devices
    gradients are added up between them in `reduce_dtype`; `sharding` is the mesh's: `on_mesh` sets it.
    """

    compute_dtype: Any = jnp.float32
    remat: str = "none"
    unroll: bool = True
    attention: str = "blocks"
    logit_tokens: int = LOGIT_TOKENS
    reduce_dtype: Any = jnp.float32
    keep_below: bool = False
    sharding: MeshSharding | None = None

    def on_mesh(self, mesh: Mesh, cfg: ModelConfig) -> ForwardSettings:
        """The same for programs on `mesh` (`sharding.over_mesh`), and with the attention of its devices' platform."""
        attention = self.attention
        if attention == "dot_product" and mesh.devices.flat[0].platform == "gpu":
            attention = "cudnn"
        sharding = MeshSharding(cfg, self.reduce_dtype) if mesh.size > 1 else None
        return dataclasses.replace(self, attention=attention, sharding=sharding)

    @property
    def adds_in_place(self) -> bool:
        """Whether the backward pass can add layers' gradients to sums (`layer_stack.WithTotals`): where it makes
        everything again, in a loop over the layers."""
        return self.remat == "full" and not self.unroll


def policy_logp(params: Params, cfg: ModelConfig, batch: TokenBatch, settings: ForwardSettings) -> jax.Array:
    """Log-probabilities [B, T], float32, of sampled tokens under a policy's weights; 0 for others."""
    return _logp(params, cfg, _hidden(params, cfg, batch, settings), batch, settings)


def states_below(params: Params, cfg: ModelConfig, batch: TokenBatch, settings: ForwardSettings) -> jax.Array:
    """What policy, reference and critic alike have behind the layers below adapters: `TokenBatch.below`."""
    return _hidden(params, cfg, batch, settings, range(cfg.layers_below))


def scores(
    params: dict[str, Any], cfg: ModelConfig, batch: TokenBatch, settings: ForwardSettings, *, detached: bool = False
) -> dict[str, jax.Array]:
    """What policy and critic say of a batch, whichever of the two `params` hold.

    {"logp": [B, T] of sampled tokens, 0 for others; "values": [B, N], see `ppo/values.py`}, float32. A critic without a
    trunk needs the policy beside it; `detached`, its values have no gradient with respect to the policy.
    """
    scored: dict[str, jax.Array] = {}
    hidden: Any = None
    if "policy" in params:
        hidden = _hidden(params["policy"], cfg, batch, settings)
        scored["logp"] = _logp(params["policy"], cfg, hidden, batch, settings)
    if "critic" in params:
        critic = params["critic"]
        if "trunk" in critic:
            read = _hidden(critic["trunk"], cfg, batch, settings)
        else:
            read = jax.lax.stop_gradient(hidden) if detached else hidden
        scored["values"] = values.read(critic["head"], read, batch)
    return scored


def _hidden(
    params: Params, cfg: ModelConfig, batch: TokenBatch, settings: ForwardSettings, layers: range | None = None
) -> jax.Array:
    if batch.below is not None:
        layers = range(cfg.layers_below, cfg.n_layers)
    return forward(
        params, cfg, batch.tokens, batch.positions, batch.segment_ids,
        compute_dtype=settings.compute_dtype, remat=settings.remat, unroll=settings.unroll,
        attention=settings.attention, sharding=settings.sharding, layers=layers, states=batch.below,
    )  # fmt: skip


def _logp(
    params: Params, cfg: ModelConfig, hidden: jax.Array, batch: TokenBatch, settings: ForwardSettings
) -> jax.Array:
    chunk = max(settings.logit_tokens // batch.tokens.shape[0], 1)
    return token_logp(params, cfg, hidden, batch.tokens, batch.action_mask, chunk=chunk, sharding=settings.sharding)


def objective(
    params: dict[str, Any],
    batch: TokenBatch,
    denominators: dict[str, jax.Array],
    cfg: ModelConfig,
    loss: LossSettings | Likelihood,
    settings: ForwardSettings,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A micro-batch's share of the update's loss, and the sums that make up its metrics.

    The loss is a sum of two terms, the policy's and the value's. Of `params` that hold only one of the two parts it is
    that part's term: where each has a trunk of its own, neither term depends on the other's weights; without a critic
    there is no other.

    Args:
      params: `TrainState.params`, or one of its parts.
      batch: filled by `prepare_iteration`.
      denominators: `values.count` of the *whole update*, float scalars. With them the
        shares of any split into micro-batches add up to the same loss and gradients.
      cfg, loss, settings: the model's sizes, the loss constants and how to run the model.
    """
    detached = isinstance(loss, LossSettings) and loss.detach_critic
    scored = scores(params, cfg, batch, settings, detached=detached)
    terms: list[jax.Array] = []
    sums: dict[str, jax.Array] = {}
    if "logp" in scored:
        mask = values.token_mask(batch)
        if isinstance(loss, Likelihood):
            policy, token_sums = likelihood_loss(scored["logp"], mask)
        else:
            policy, token_sums = policy_loss(
                scored["logp"], batch.old_logp, batch.behavior_logp, batch.advantages, mask, loss
            )
        terms.append(policy / denominators[values.TOKENS])
        sums |= {"policy": policy, **token_sums}
    if "values" in scored and not isinstance(loss, Likelihood):
        mask = values.mask(batch)
        value, value_sums = value_loss(scored["values"], batch.old_values, batch.returns, mask, loss)
        terms.append(loss.value_coef * value / denominators[values.VALUES])
        sums |= {"value": value, **value_sums}
    total = sum(terms[1:], terms[0])
    return total, {"loss": total, **sums}
