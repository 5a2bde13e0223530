"""The PPO update over its meshes: scoring, accumulated gradients with global denominators, the optimizer's step.

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

from rlef_jax.model.parameters import abstract_params
from rlef_jax.model.sharding import ROWS, make_mesh, over_mesh, param_shardings, place, specs_of
from rlef_jax.model.transformer import ModelConfig, Params
from rlef_jax.ppo import values
from rlef_jax.ppo.mesh_trainer import MeshTrainer
from rlef_jax.ppo.metrics import iteration_metrics
from rlef_jax.ppo.objective import ForwardSettings, policy_logp, states_below
from rlef_jax.ppo.ratio_quantiles import ratio_quantiles
from rlef_jax.ppo.settings import Likelihood, LossSettings, TargetSettings
from rlef_jax.ppo.targets import Scores, compute_targets
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.train_state import (
    IsTrainable,
    TrainState,
    combine,
    first_params,
    make_optimizer,
    merge_parts,
    partition,
    trained_by_default,
)
from rlef_jax.types import Episode

__all__ = ["ForwardSettings", "Learner", "TrainState", "make_optimizer", "prepare_iteration", "split_updates"]


class Learner:
    """The jitted functions of one training run. It owns compiled code and shardings, no weights.

    Parameters lie on the mesh by the model's sharding rules, rows of a batch over its `data` and `fsdp` axes, so
    `rows` of a batch must be a multiple of their product. The critic may have a mesh of its own; both then work at the
    same time (see `MeshTrainer`). A gradient whose global norm, over both, isn't finite or is over `max_grad_norm` (0:
    no limit) is not applied.
    """

    def __init__(
        self,
        model_cfg: ModelConfig,
        optimizer: optax.GradientTransformation,
        *,
        loss: LossSettings | Likelihood | None = None,
        separate_critic: bool = True,
        critic: bool = True,
        mesh: Mesh | None = None,
        critic_mesh: Mesh | None = None,
        reference_mesh: Mesh | None = None,
        forward_settings: ForwardSettings | None = None,
        max_grad_norm: float = 0.0,
        trainable: IsTrainable | None = None,
    ) -> None:
        """Without `critic` no value network is made, run or trained, and batches must be of the kind "none". The
        `Likelihood` needs that.

        `critic_mesh` and `reference_mesh` are where critic and reference policy lie, by default `mesh`; `trainable`
        says which parameters of `TrainState.params` are trained, by default what their `Parameter` says.

        With a `critic_mesh` of its own an `optimizer` that needs the global norm must take it as the extra argument
        `norm`, as `clip_by_norm` does.

        Raises ValueError for a mesh that doesn't divide the model, and for a `critic_mesh` that shares some of the
        policy's devices or whose critic isn't `separate_critic`, or isn't there.
        """
        if critic and isinstance(loss, Likelihood):
            raise ValueError("supervised training (Likelihood) has no critic: critic=False")
        self.model_cfg, self.optimizer, self.separate_critic = model_cfg, optimizer, separate_critic
        self.mesh = make_mesh() if mesh is None else mesh
        forward_settings = forward_settings or ForwardSettings()
        self.trainable = trainable or trained_by_default(model_cfg)
        meshes = {"policy": self.mesh} | ({"critic": critic_mesh or self.mesh} if critic else {})
        if critic_mesh is not None and critic_mesh != self.mesh:
            _check_apart(self.mesh, critic_mesh, critic, separate_critic)
        alike = {where: tuple(name for name in meshes if meshes[name] == where) for where in meshes.values()}
        self.trainers = [
            MeshTrainer(
                names, where, model_cfg, optimizer, separate_critic=separate_critic, loss=loss or LossSettings(),
                forward_settings=forward_settings, trainable=self.trainable,
                max_grad_norm=max_grad_norm if max_grad_norm > 0 else float("inf"),
            )
            for where, names in alike.items()
        ]  # fmt: skip
        self.param_shardings = merge_parts([trainer.param_shardings for trainer in self.trainers])
        self._place_reference(reference_mesh or self.mesh, forward_settings)

    def _place_reference(self, mesh: Mesh, forward_settings: ForwardSettings) -> None:
        self.reference_shardings, self.reference_rows = param_shardings(mesh, self.model_cfg), NamedSharding(mesh, ROWS)
        forward_settings = forward_settings.on_mesh(mesh, self.model_cfg)

        def ref_logp(params: Params, batch: TokenBatch) -> jax.Array:
            return policy_logp(params, self.model_cfg, batch, forward_settings)

        def below(params: Params, batch: TokenBatch) -> jax.Array:
            return states_below(params, self.model_cfg, batch, forward_settings)

        where = (self.reference_shardings, self.reference_rows)

        def compiled(function: Any) -> Any:
            return jax.jit(
                over_mesh(function, mesh, specs_of(where), ROWS),
                in_shardings=where,
                out_shardings=NamedSharding(mesh, PartitionSpec()),
            )

        self._ref = compiled(ref_logp)
        self._below = compiled(below) if forward_settings.keep_below and self.model_cfg.layers_below else None

    def init(self, key: jax.Array, policy_params: Params) -> TrainState:
        """A new TrainState on its meshes from `policy_params`, with copies of what is trained of them.

        `key` draws the value head.
        """
        params = first_params(key, policy_params, self.model_cfg, self.separate_critic)
        return merge_parts([trainer.init(params) for trainer in self.trainers])

    def place_policy(self, policy_params: Params) -> Params:
        """A copy of policy-shaped weights on the reference's mesh, to serve as the reference policy.

        What isn't trained is not copied where it lies there already.
        """
        trained, frozen = partition({"policy": policy_params}, self.trainable)
        copied = combine(jax.tree.map(jnp.copy, trained), frozen)["policy"]
        return place(copied, self.reference_shardings)

    def score(self, params: dict[str, Any], batch: TokenBatch) -> tuple[jax.Array, jax.Array | None]:
        """Under `TrainState.params`: (log-probabilities [B, T], 0 on tokens that weren't sampled; values [B, N], None
        without a critic)."""
        found = {name: array for trainer in self.trainers for name, array in trainer.score(params, batch).items()}
        return found["logp"], found.get("values")

    def ref_logp(self, ref_params: Params, batch: TokenBatch) -> jax.Array:
        """Log-probabilities [B, T] under a reference policy, 0 on tokens that weren't sampled."""
        return self._ref(ref_params, place(batch, self.reference_rows))

    def with_states_below(self, ref_params: Params, batches: Sequence[TokenBatch]) -> list[TokenBatch]:
        """The batches with `below`, on the host, where it is kept (`ForwardSettings.keep_below`)."""
        if self._below is None:
            return list(batches)
        states = [self._below(ref_params, place(batch, self.reference_rows)) for batch in batches]
        return [dataclasses.replace(batch, below=kept) for batch, kept in zip(batches, jax.device_get(states))]

    def lowered_reference(self, dtype: Any, batch: TokenBatch) -> dict[str, Any]:
        """The reference's programs before they are compiled, for weights of `dtype` and a batch of `ShapeDtypeStruct`s:
        {"reference": `ref_logp`, "below": what `with_states_below` runs, if it runs anything}."""
        params = abstract_params(self.model_cfg, dtype, self.reference_shardings)
        lowered = {"reference": self._ref.lower(params, batch)}
        if self._below is not None:
            lowered["below"] = self._below.lower(params, dataclasses.replace(batch, below=None))
        return lowered

    def update(self, state: TrainState, microbatches: Sequence[TokenBatch]) -> tuple[TrainState, dict[str, float]]:
        """One optimizer step on the mean loss over all micro-batches. `state` is donated: use the one returned.

        A bad gradient (see the class) leaves parameters and optimizer state as they were; `state.step` counts it. So
        does an update without a token that counts: a zero gradient would still decay the weights and move the moments.

        Args:
          state: on its meshes (from `init`).
          microbatches: NumPy TokenBatches filled by `prepare_iteration`, of any mix of lengths.

        Returns:
          (the next state, metrics: loss, policy_loss, value_loss, clip_fraction, approx_kl, ratio_mean, ratio_qNN,
          truncated_fraction, value_clip_fraction, value_mse, grad_norm, applied (0.0 where it was not), action_tokens,
          values). Of an update without a token that counts only the last three: the others are means over nothing.
          Without a critic those whose names begin with `value_` are not there, and there are 0 values. Of the
          `Likelihood` there are loss, policy_loss (the same), grad_norm, applied, action_tokens and values.
        """
        counts = values.count(microbatches)
        if not counts[values.TOKENS]:
            state = dataclasses.replace(state, step=state.step + 1)
            return state, {"applied": 0.0, **values.metrics(counts)}
        shares = self._accumulated(state.params, microbatches, counts)
        all_grads = [grads for grads, _ in shares]
        # A trainer with all of the gradients takes their norm as it applies them; several need each other's.
        several = len(self.trainers) > 1
        squares = (
            tuple(trainer.squared_norm(grads) for trainer, grads in zip(self.trainers, all_grads)) if several else ()
        )
        # Taken before the first trainer donates what all have.
        owned = [trainer.own_state(state) for trainer in self.trainers]
        applied = [trainer.apply(own, grads, squares) for trainer, own, grads in zip(self.trainers, owned, all_grads)]
        # All device work is started before the first result is read.
        sums = [_added(groups) for groups in jax.device_get([sums for _, sums in shares])]
        return merge_parts([after for after, _ in applied]), _readable(sums, jax.device_get(applied[0][1]), counts)

    def gradients(self, params: dict[str, Any], microbatches: Sequence[TokenBatch]) -> dict[str, Any]:
        """The gradients, of what is trained of all `params`, that `update` would hand to the optimizer.

        Raises ValueError where no token counts.
        """
        counts = values.count(microbatches)
        if not counts[values.TOKENS]:
            raise ValueError("an update needs a token that counts")
        return merge_parts([grads for grads, _ in self._accumulated(params, microbatches, counts)])

    def _accumulated(
        self, params: dict[str, Any], microbatches: Sequence[TokenBatch], counts: dict[str, np.float32]
    ) -> list[tuple[dict[str, Any], list[dict[str, jax.Array]]]]:
        """Each trainer's gradients and metric sums, of all micro-batches and devices; `counts` are the denominators."""
        on_meshes = [place(counts, trainer.replicated) for trainer in self.trainers]
        totals: list[Any] = [None for _ in self.trainers]
        sums: list[list[Any]] = [[] for _ in self.trainers]
        for group in _equal_groups(microbatches):
            for index, trainer in enumerate(self.trainers):
                totals[index], more = trainer.accumulate(totals[index], params, group, on_meshes[index])
                sums[index].append(more)
        return [(trainer.reduced(total), more) for trainer, total, more in zip(self.trainers, totals, sums)]


def _check_apart(policy: Mesh, critic: Mesh, has_critic: bool, separate_critic: bool) -> None:
    if not has_critic:
        raise ValueError("there is no critic to lie on critic_mesh")
    if not separate_critic:
        raise ValueError("a critic without a trunk of its own must lie where the policy does")
    if set(policy.devices.flat) & set(critic.devices.flat):
        raise ValueError("critic_mesh must be the policy's mesh or have none of its devices")


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


def _added(groups: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metric sums of several groups of micro-batches, float32 as the devices have them -> of all of them."""
    return jax.tree.map(lambda first, *others: sum(others, first), *groups)


def _readable(
    trainers: Sequence[dict[str, Any]], norm_and_applied: tuple[Any, Any], counts: dict[str, np.float32]
) -> dict[str, float]:
    """Each trainer's sums over the update -> the metrics that people read."""
    sums = {name: value for trainer in trainers for name, value in trainer.items()}
    tokens, valued = float(counts[values.TOKENS]), float(counts[values.VALUES])
    means = {
        "policy_loss": ("policy", tokens),
        "value_loss": ("value", valued),
        "clip_fraction": ("clipped", tokens),
        "approx_kl": ("approx_kl", tokens),
        "ratio_mean": ("ratio", tokens),
        "truncated_fraction": ("truncated", tokens),
        "value_clip_fraction": ("value_clipped", valued),
        "value_mse": ("value_error", valued),
    }
    return {
        "loss": sum(float(trainer["loss"]) for trainer in trainers),
        **{name: float(sums[of]) / total for name, (of, total) in means.items() if of in sums},
        **(ratio_quantiles(sums["ratio_below"], tokens) if "ratio_below" in sums else {}),
        "grad_norm": float(norm_and_applied[0]),
        "applied": float(norm_and_applied[1]),
        **values.metrics(counts),
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
    settings: TargetSettings | None = None,
) -> tuple[list[list[TokenBatch]], dict[str, float]]:
    """Scores an iteration's batches and fixes what stays fixed for it, see `compute_targets`.

    Args:
      learner: scores the batches.
      params: `TrainState.params` at the iteration's start.
      ref_params: weights of the reference policy rho (from `Learner.place_policy`).
      updates: packed micro-batches of each update.
      settings: of the targets; None is the paper's.

    Returns:
      (the same batches, filled; `iteration_metrics` of them).
    """
    flat = learner.with_states_below(ref_params, [batch for microbatches in updates for batch in microbatches])
    # All device work is started before the first result is read.
    pending = [(learner.score(params, batch), learner.ref_logp(ref_params, batch)) for batch in flat]
    scores = [Scores(logp, predicted, ref_logp) for (logp, predicted), ref_logp in jax.device_get(pending)]
    filled = compute_targets(flat, scores, settings or TargetSettings())
    remaining = iter(filled)
    return [[next(remaining) for _ in microbatches] for microbatches in updates], iteration_metrics(filled)
