"""The PPO update over a mesh: scoring, one objective, accumulated gradients with global denominators.

An iteration: `split_updates` -> `pack` (each part) -> `prepare_iteration` (all parts) -> `Learner.update` (each part).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlef_jax.model.logp import LOGIT_TOKENS, token_logp
from rlef_jax.model.sharding import ROWS, Layout, make_mesh, param_shardings, place
from rlef_jax.model.transformer import ModelConfig, Params, forward
from rlef_jax.model.value import values as read_values
from rlef_jax.ppo import returns as turn_returns
from rlef_jax.ppo.losses import LossSettings, policy_loss, value_loss
from rlef_jax.ppo.metrics import iteration_metrics
from rlef_jax.ppo.train_state import TrainState, init_state, make_optimizer
from rlef_jax.types import Episode, TokenBatch

__all__ = ["Learner", "TrainState", "init_state", "make_optimizer", "prepare_iteration", "split_updates"]


@dataclasses.dataclass(frozen=True)
class ForwardSettings:
    """How the trainer runs the model; none of it changes a result but for rounding.

    `compute_dtype`, `remat`, `unroll` and `attention` are `forward`'s. `logit_tokens` is how many tokens' logits a
    device holds at a time, where `row_shards` of them share a batch's rows. The last two are the mesh's: `Learner` sets
    them.
    """

    compute_dtype: Any = jnp.float32
    remat: str = "none"
    unroll: bool = True
    attention: str = "blocks"
    logit_tokens: int = LOGIT_TOKENS
    row_shards: int = 1
    layout: Layout | None = None


def _on_mesh(how: ForwardSettings, mesh: Mesh, cfg: ModelConfig) -> ForwardSettings:
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    return dataclasses.replace(how, row_shards=shards, layout=Layout(mesh, cfg) if mesh.size > 1 else None)


def log_probs_and_values(
    params: dict[str, Any], cfg: ModelConfig, batch: TokenBatch, how: ForwardSettings
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [B, T] of sampled tokens (0 for others) and turn values [B, N], both float32."""
    hidden = _hidden(params["policy"], cfg, batch, how)
    logp = _logp(params["policy"], cfg, hidden, batch, how)
    critic = params["critic"]
    seen = _hidden(critic["trunk"], cfg, batch, how) if "trunk" in critic else hidden
    return logp, read_values(critic["head"], seen, batch.turn_positions)


def _hidden(params: Params, cfg: ModelConfig, batch: TokenBatch, how: ForwardSettings) -> jax.Array:
    return forward(
        params, cfg, batch.tokens, batch.positions, batch.segment_ids,
        compute_dtype=how.compute_dtype, remat=how.remat, unroll=how.unroll, attention=how.attention, layout=how.layout,
    )  # fmt: skip


def _logp(params: Params, cfg: ModelConfig, hidden: jax.Array, batch: TokenBatch, how: ForwardSettings) -> jax.Array:
    chunk = max(how.logit_tokens * how.row_shards // batch.tokens.shape[0], 1)
    return token_logp(params, cfg, hidden, batch.tokens, batch.action_mask, chunk=chunk, layout=how.layout)


def objective(
    params: dict[str, Any],
    batch: TokenBatch,
    denominators: dict[str, jax.Array],
    cfg: ModelConfig,
    loss: LossSettings,
    how: ForwardSettings,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A micro-batch's share of the update's loss, and the sums that make up its metrics.

    Args:
      params: `TrainState.params`.
      batch: filled by `prepare_iteration`.
      denominators: {"tokens", "turns"}: action tokens and turns of the *whole update*, float scalars. With them the
        shares of any split into micro-batches add up to the same loss and gradients.
      cfg, loss, how: the model's sizes, the loss constants and how to run the model.
    """
    logp, values = log_probs_and_values(params, cfg, batch, how)
    token_mask, turn_mask = batch.action_mask * batch.weight[:, None], batch.turn_mask * batch.weight[:, None]
    policy, token_sums = policy_loss(logp, batch.old_logp, batch.behavior_logp, batch.advantages, token_mask, loss)
    value, turn_sums = value_loss(values, batch.old_values, batch.returns, turn_mask, loss)
    total = policy / denominators["tokens"] + loss.value_coef * value / denominators["turns"]
    return total, {"policy": policy, "value": value, "loss": total, **token_sums, **turn_sums}


def count_denominators(microbatches: Sequence[TokenBatch]) -> dict[str, np.float32]:
    """Action tokens and turns of an update over all of its micro-batches, rows of weight 0 left out; at least 1."""
    tokens = sum(float((np.asarray(b.action_mask).sum(1) * np.asarray(b.weight)).sum()) for b in microbatches)
    turns = sum(float((np.asarray(b.turn_mask).sum(1) * np.asarray(b.weight)).sum()) for b in microbatches)
    return {"tokens": np.float32(max(tokens, 1.0)), "turns": np.float32(max(turns, 1.0))}


class Learner:
    """The jitted functions of one training run. It owns compiled code and shardings, no weights.

    Parameters lie on the mesh by the model's sharding rules, rows of a batch over its `data` and `fsdp` axes, so
    `rows` of a batch must be a multiple of their product. A gradient whose global norm isn't finite, or is over
    `max_grad_norm` (0: no limit), is not applied.
    """

    def __init__(
        self,
        model_cfg: ModelConfig,
        optimizer: optax.GradientTransformation,
        *,
        loss: LossSettings | None = None,
        separate_critic: bool = True,
        mesh: Mesh | None = None,
        reference_mesh: Mesh | None = None,
        how: ForwardSettings | None = None,
        max_grad_norm: float = 0.0,
    ) -> None:
        """`reference_mesh` is where the reference policy lies and is scored, by default `mesh`."""
        self.model_cfg, self.optimizer, self.separate_critic = model_cfg, optimizer, separate_critic
        self.max_grad_norm = max_grad_norm if max_grad_norm > 0 else float("inf")
        self.mesh = mesh if mesh is not None else make_mesh()
        self.loss = loss or LossSettings()
        self.how = _on_mesh(how or ForwardSettings(), self.mesh, model_cfg)
        reference = self.mesh if reference_mesh is None else reference_mesh
        self._reference_how = _on_mesh(self.how, reference, model_cfg)
        self.reference_shardings = param_shardings(reference, model_cfg)
        self.reference_rows = NamedSharding(reference, ROWS)
        self.replicated = NamedSharding(self.mesh, PartitionSpec())
        self.rows = NamedSharding(self.mesh, ROWS)
        self.stacked_rows = NamedSharding(self.mesh, PartitionSpec(None, *ROWS))
        self.policy_shardings = param_shardings(self.mesh, model_cfg)
        critic: dict[str, Any] = {"head": {"w": self.replicated, "b": self.replicated}}
        if separate_critic:
            critic["trunk"] = self.policy_shardings
        self.param_shardings = {"policy": self.policy_shardings, "critic": critic}
        self._compile()

    def _compile(self) -> None:
        one, rows, params = self.replicated, self.rows, self.param_shardings
        # Whole on every device, so that every process can read them.
        self._score = jax.jit(self._score_fn, in_shardings=(params, rows), out_shardings=(one, one))
        self._ref = jax.jit(
            self._ref_fn, in_shardings=(self.reference_shardings, self.reference_rows),
            out_shardings=NamedSharding(self.reference_rows.mesh, PartitionSpec()),
        )  # fmt: skip
        self._gradients = jax.jit(
            self._gradients_fn, in_shardings=(params, self.stacked_rows, one), out_shardings=(params, one)
        )
        self._add = jax.jit(
            lambda a, b: jax.tree.map(jnp.add, a, b),
            in_shardings=((params, one), (params, one)), out_shardings=(params, one), donate_argnums=(0,),
        )  # fmt: skip
        self._apply: Any = None  # compiled once the optimizer state's structure is known

    def _applied(self, where: Any) -> Any:
        """The jitted optimizer step on a state that lies `where` its shardings say."""
        return jax.jit(
            self._apply_fn,
            in_shardings=(where, self.param_shardings),
            out_shardings=(where, self.replicated),
            donate_argnums=(0,),
        )

    def init(self, key: jax.Array, policy_params: Params) -> TrainState:
        """A new TrainState on the mesh from a copy of `policy_params`; `key` draws the value head."""
        state = init_state(key, policy_params, self.model_cfg, self.separate_critic, self.optimizer)
        return place(state, self.state_shardings(state))

    def state_shardings(self, state: TrainState) -> Any:
        """A TrainState of shardings: the optimizer's moments lie where their parameters do, the rest everywhere."""
        moments = optax.tree_map_params(
            self.optimizer,
            lambda _, sharding: sharding,
            state.opt_state,
            self.param_shardings,
            transform_non_params=lambda _: self.replicated,
        )
        step: Any = self.replicated
        return TrainState(params=self.param_shardings, opt_state=moments, step=step)

    def lowered(self, state: TrainState, microbatches: TokenBatch) -> dict[str, Any]:
        """An update's programs before they are compiled, from shapes alone.

        Args:
          state: of `ShapeDtypeStruct`s, without shardings.
          microbatches: of `ShapeDtypeStruct`s, [M, B, ...].

        Returns:
          {"gradients": of those micro-batches, "apply": the optimizer's step, "score": of one micro-batch}.
        """
        where = self.state_shardings(state)
        state = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, where)
        counts = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in ("tokens", "turns")}
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), microbatches)
        return {
            "gradients": self._gradients.lower(state.params, microbatches, counts),
            "apply": self._applied(where).lower(state, state.params),
            "score": self._score.lower(state.params, one),
        }

    def place_policy(self, policy_params: Params) -> Params:
        """A copy of policy-shaped weights on the reference's mesh, to serve as the reference policy."""
        return place(jax.tree.map(jnp.copy, policy_params), self.reference_shardings)

    def score(self, params: dict[str, Any], batch: TokenBatch) -> tuple[jax.Array, jax.Array]:
        """(log-probabilities [B, T], 0 on tokens that weren't sampled; values [B, N]) under `TrainState.params`."""
        return self._score(params, place(batch, self.rows))

    def ref_logp(self, ref_params: Params, batch: TokenBatch) -> jax.Array:
        """Log-probabilities [B, T] under a reference policy, 0 on tokens that weren't sampled."""
        return self._ref(ref_params, place(batch, self.reference_rows))

    def update(self, state: TrainState, microbatches: Sequence[TokenBatch]) -> tuple[TrainState, dict[str, float]]:
        """One optimizer step on the mean loss over all micro-batches. `state` is donated: use the one returned.

        A bad gradient (see the class) leaves parameters and optimizer state as they were; `state.step` counts it.

        Args:
          state: on the mesh (from `init`).
          microbatches: NumPy TokenBatches filled by `prepare_iteration`, of any mix of lengths.

        Returns:
          (the next state, metrics: loss, policy_loss, value_loss, clip_fraction, approx_kl, ratio_mean,
          truncated_share, value_clip_fraction, grad_norm, applied (0.0 for a bad gradient), action_tokens, turns).
        """
        grads, sums, counts = self._accumulated(state.params, microbatches)
        if self._apply is None:
            self._apply = self._applied(self.state_shardings(state))
        state, norm_and_applied = self._apply(state, grads)
        return state, _readable(jax.device_get(sums), jax.device_get(norm_and_applied), counts)

    def gradients(self, params: dict[str, Any], microbatches: Sequence[TokenBatch]) -> dict[str, Any]:
        """The gradients that `update` would hand to the optimizer."""
        return self._accumulated(params, microbatches)[0]

    def _accumulated(
        self, params: dict[str, Any], microbatches: Sequence[TokenBatch]
    ) -> tuple[dict[str, Any], dict[str, jax.Array], dict[str, np.float32]]:
        """Gradients and metric sums added up over the micro-batches, and the update's denominators."""
        counts = count_denominators(microbatches)
        on_mesh = place(counts, self.replicated)
        total = None
        for group in _equal_groups(microbatches):
            share = self._gradients(params, place(group, self.stacked_rows), on_mesh)
            total = share if total is None else self._add(total, share)
        if total is None:
            raise ValueError("an update needs a micro-batch")
        return *total, counts

    def _score_fn(self, params: dict[str, Any], batch: TokenBatch) -> tuple[jax.Array, jax.Array]:
        return log_probs_and_values(params, self.model_cfg, batch, self.how)

    def _ref_fn(self, ref_params: Params, batch: TokenBatch) -> jax.Array:
        hidden = _hidden(ref_params, self.model_cfg, batch, self._reference_how)
        return _logp(ref_params, self.model_cfg, hidden, batch, self._reference_how)

    def _gradients_fn(
        self, params: Any, stacked: TokenBatch, denominators: Any
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        """Gradients and metric sums of micro-batches [M, B, ...], one after the other."""

        def share(batch: TokenBatch) -> tuple[dict[str, Any], dict[str, jax.Array]]:
            derivative = jax.grad(objective, has_aux=True)
            return derivative(params, batch, denominators, self.model_cfg, self.loss, self.how)

        first, rest = jax.tree.map(lambda a: a[0], stacked), jax.tree.map(lambda a: a[1:], stacked)
        # The first share is the sum's start: a single micro-batch needs no second set of gradients.
        total = share(first)
        if len(stacked.weight) == 1:
            return total
        return jax.lax.scan(lambda sums, batch: (jax.tree.map(jnp.add, sums, share(batch)), None), total, rest)[0]

    def _apply_fn(self, state: TrainState, grads: Any) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
        norm = optax.global_norm(grads)
        good = norm <= self.max_grad_norm if self.max_grad_norm < float("inf") else jnp.isfinite(norm)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        after = (optax.apply_updates(state.params, updates), opt_state)
        before = (state.params, state.opt_state)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
        return TrainState(params, opt_state, state.step + 1), (norm, good)


def _equal_groups(microbatches: Sequence[TokenBatch]) -> Iterator[TokenBatch]:
    """Micro-batches of one length stacked to [M, B, ...], M a power of two: few shapes, so few compilations."""
    by_length: dict[int, list[TokenBatch]] = {}
    for batch in microbatches:
        by_length.setdefault(batch.tokens.shape[1], []).append(batch)
    for alike in by_length.values():
        while alike:
            size = 1 << (len(alike).bit_length() - 1)
            yield jax.tree.map(lambda *arrays: np.stack(arrays), *alike[:size])
            alike = alike[size:]


def _readable(
    sums: dict[str, Any], norm_and_applied: tuple[Any, Any], counts: dict[str, np.float32]
) -> dict[str, float]:
    """Sums over the update -> the metrics that people read."""
    tokens, turns = float(counts["tokens"]), float(counts["turns"])
    return {
        "loss": float(sums["loss"]),
        "policy_loss": float(sums["policy"]) / tokens,
        "value_loss": float(sums["value"]) / turns,
        "clip_fraction": float(sums["clipped"]) / tokens,
        "approx_kl": float(sums["approx_kl"]) / tokens,
        "ratio_mean": float(sums["ratio"]) / tokens,
        "truncated_share": float(sums["truncated"]) / tokens,
        "value_clip_fraction": float(sums["value_clipped"]) / turns,
        "value_mse": float(sums["value_error"]) / turns,
        "grad_norm": float(norm_and_applied[0]),
        "applied": float(norm_and_applied[1]),
        "action_tokens": tokens,
        "turns": turns,
    }


def split_updates(episodes: Sequence[Episode], updates: int, *, seed: int, step: int) -> list[list[Episode]]:
    """Deal an iteration's episodes into `updates` disjoint parts of one size, at random by (seed, step).

    Raises:
      ValueError: the number of episodes isn't a multiple of `updates`.
    """
    if len(episodes) % updates:
        raise ValueError(f"{len(episodes)} rollouts can't be split into {updates} updates of one size")
    order = np.random.default_rng([seed, step]).permutation(len(episodes))
    # Within a part the order is the episodes' own, so that packing does not depend on the shuffle's details.
    return [[episodes[i] for i in sorted(part)] for part in np.split(order, updates)]


def prepare_iteration(
    learner: Learner,
    params: dict[str, Any],
    ref_params: Params,
    updates: Sequence[Sequence[TokenBatch]],
    *,
    kl_beta: float = 0.05,
    normalize_advantages: bool = True,
) -> tuple[list[list[TokenBatch]], dict[str, float]]:
    """Fix what stays fixed for the iteration: old and reference log-probabilities, old values, returns, advantages.

    Args:
      learner: scores the batches.
      params: `TrainState.params` at the iteration's start.
      ref_params: weights of the reference policy rho (from `Learner.place_policy`).
      updates: packed micro-batches of each update.
      kl_beta: weight of the KL penalty in the reward.
      normalize_advantages: over the valid turns of all updates together.

    Returns:
      (the same batches, filled; `iteration_metrics` of them).
    """
    flat = [batch for microbatches in updates for batch in microbatches]
    # All device work is started before the first result is read.
    pending = [(learner.score(params, batch), learner.ref_logp(ref_params, batch)) for batch in flat]
    filled, raw, masks = [], [], []
    for batch, ((old_logp, old_values), ref_logp) in zip(flat, jax.device_get(pending), strict=True):
        mask = np.asarray(batch.turn_mask) * np.asarray(batch.weight)[:, None]
        turns = mask.shape[1]
        kl = turn_returns.turn_means(old_logp - ref_logp, batch.action_mask, batch.turn_index, turns)
        rewards = turn_returns.penalised_rewards(batch.turn_rewards, kl, kl_beta, mask)
        episode = turn_returns.episode_of_turn(batch.segment_ids, batch.turn_positions)
        to_go = turn_returns.returns_to_go(rewards, episode)
        filled.append(_with(batch, old_logp=old_logp, ref_logp=ref_logp, old_values=old_values, returns=to_go * mask))
        raw.append((to_go - old_values) * mask)
        masks.append(mask)
    scaled = turn_returns.normalized(raw, masks) if normalize_advantages else raw
    filled = [
        _with(b, advantages=turn_returns.to_tokens(a, b.turn_index, b.action_mask))
        for b, a in zip(filled, scaled, strict=True)
    ]
    remaining = iter(filled)
    return [[next(remaining) for _ in microbatches] for microbatches in updates], iteration_metrics(filled)


def _with(batch: TokenBatch, **arrays: Any) -> TokenBatch:
    """The batch with some of its float fields replaced, as float32."""
    fields: dict[str, Any] = {name: np.asarray(a, np.float32) for name, a in arrays.items()}
    return dataclasses.replace(batch, **fields)
