"""The update on one mesh: the part of the parameters that lies there, and the programs that train it.

A program can't span two meshes. Where policy and critic share one, a trainer holds both and each step is a single
program; where they don't, each has a trainer of its own, with its own term of the objective.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlef_jax.model.sharding import ROW_AXES, ROWS, copies, over_mesh, place, shardings, specs_of, unreduced
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.ppo import gradients, values
from rlef_jax.ppo.gradients import GradientsAndSums
from rlef_jax.ppo.objective import ForwardSettings, objective, scores
from rlef_jax.ppo.settings import Likelihood, LossSettings
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.train_state import (
    IsTrainable,
    TrainState,
    combine,
    describe_params,
    init_state,
    kept_once,
    partition,
    select_parts,
    with_shared,
)


class MeshTrainer:
    """The jitted functions of the parts `names` of the parameters on `mesh`. It owns no weights.

    What it is given may be the whole of it, parameters or state: it takes its own part. Nothing here waits for a
    device, so that what several trainers are asked for runs at the same time.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        mesh: Mesh,
        model_cfg: ModelConfig,
        optimizer: optax.GradientTransformation,
        *,
        separate_critic: bool,
        loss: LossSettings | Likelihood,
        forward_settings: ForwardSettings,
        max_grad_norm: float,
        trainable: IsTrainable,
    ) -> None:
        self.names, self.mesh, self.model_cfg = names, mesh, model_cfg
        self.optimizer = optax.with_extra_args_support(optimizer)
        self.separate_critic = separate_critic
        self.loss, self.forward_settings, self.max_grad_norm = (
            loss,
            forward_settings.on_mesh(mesh, model_cfg),
            max_grad_norm,
        )
        self.replicated = NamedSharding(mesh, PartitionSpec())
        self.rows = NamedSharding(mesh, ROWS)
        self.stacked_rows = NamedSharding(mesh, PartitionSpec(None, *ROWS))
        self.param_shardings = select_parts(shardings(mesh, describe_params(model_cfg, separate_critic)), names)
        self.trainable = trainable
        self.trainable_shardings, self.frozen_shardings = partition(self.param_shardings, trainable)
        self.alone = mesh.size == 1
        # Of gradients before they are added up over rows: on one device there is nothing to add up.
        self.total_shardings = (
            self.trainable_shardings if self.alone else jax.tree.map(unreduced, self.trainable_shardings)
        )
        self._compile()

    def _compile(self) -> None:
        one, trainable = self.replicated, self.trainable_shardings
        frozen = kept_once(self.frozen_shardings, self.trainable)
        params = combine(trainable, frozen)
        rows, stacked_rows = self.rows, self.stacked_rows
        share = (self.total_shardings, one)

        def program(function: Any, arguments: tuple[Any, ...], results: Any) -> Any:
            return over_mesh(function, self.mesh, specs_of(arguments), specs_of(results))

        # Whole on every device, so that every process can read them.
        self._score = jax.jit(
            program(self._score_fn, (params, rows), rows), in_shardings=(params, rows), out_shardings=one
        )
        in_place = self.forward_settings.adds_in_place
        function = self._gradients_in_place_fn if in_place else self._gradients_fn
        arguments = (*((self.total_shardings,) if in_place else ()), trainable, frozen, stacked_rows, one)
        self._gradients = jax.jit(
            program(function, arguments, share),
            in_shardings=arguments, out_shardings=share, donate_argnums=(0,) if in_place else (),
        )  # fmt: skip
        self._add = jax.jit(
            _sum, in_shardings=(self.total_shardings,) * 2, out_shardings=self.total_shardings, donate_argnums=(0,)
        )
        self._no_gradients = jax.jit(self._zeros, out_shardings=self.total_shardings)
        self._reduce = jax.jit(_added_up, in_shardings=(self.total_shardings,), out_shardings=trainable)
        self._square = jax.jit(_squared_norm, in_shardings=(trainable,), out_shardings=one)
        self._apply: Any = None  # compiled once the optimizer state's structure is known

    def _applied(self, where: Any) -> Any:
        """The jitted optimizer step on a state without its frozen part that lies `where` its shardings say."""
        where = dataclasses.replace(where, frozen={})
        return jax.jit(
            self._apply_fn,
            in_shardings=(where, self.trainable_shardings, self.replicated),
            out_shardings=(where, self.replicated),
            donate_argnums=(0,),
        )

    def init(self, params: dict[str, Any]) -> TrainState:
        """This trainer's part of a new TrainState, on its mesh.

        What is trained is copied: the update donates it, and the caller's weights (the reference policy) live on.
        """
        trainable, frozen = partition(select_parts(params, self.names), self.trainable)
        trainable = place(jax.tree.map(jnp.copy, trainable), self.trainable_shardings)
        once = kept_once(self.frozen_shardings, self.trainable)
        frozen = with_shared(place(kept_once(frozen, self.trainable), once), self.trainable)
        where = self.state_shardings(jax.eval_shape(lambda: init_state(trainable, frozen, self.optimizer.init)))
        state = init_state(trainable, frozen, jax.jit(self.optimizer.init, out_shardings=where.opt_state))
        return dataclasses.replace(state, step=place(state.step, self.replicated))

    def state_shardings(self, state: TrainState) -> Any:
        """A TrainState of shardings for this trainer's part of a state.

        The optimizer's moments lie where their parameters do, the rest everywhere.
        """
        moments = optax.tree_map_params(
            self.optimizer,
            lambda _, sharding: sharding,
            select_parts(state.opt_state, self.names),
            self.trainable_shardings,
            transform_non_params=lambda _: self.replicated,
        )
        step: Any = self.replicated
        return TrainState(self.trainable_shardings, self.frozen_shardings, moments, step)

    def lowered(self, state: TrainState, microbatches: TokenBatch) -> dict[str, Any]:
        """An update's programs before they are compiled, from shapes alone.

        Args:
          state: of `ShapeDtypeStruct`s, without shardings.
          microbatches: of `ShapeDtypeStruct`s, [M, B, ...].

        Returns:
          {"gradients": of those micro-batches, added to others', "reduce": adds them up over the mesh (on several
          devices), "apply": the optimizer's step, "score": of one micro-batch}.
        """
        where = self.state_shardings(state)
        state = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), select_parts(state, self.names), where
        )
        counts = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in values.METRICS}
        one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), microbatches)
        frozen = kept_once(state.frozen, self.trainable)
        arguments: tuple[Any, ...] = (state.trainable, frozen, microbatches, counts)
        total = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            jax.eval_shape(self._zeros, state.trainable), self.total_shardings,
        )  # fmt: skip
        if self.forward_settings.adds_in_place:
            arguments = (total, *arguments)
        programs = {
            "gradients": self._gradients.lower(*arguments),
            "apply": self._applied(where).lower(dataclasses.replace(state, frozen={}), state.trainable, ()),
            "score": self._score.lower(combine(state.trainable, frozen), one),
        }
        return programs if self.alone else programs | {"reduce": self._reduce.lower(total)}

    def score(self, params: dict[str, Any], batch: TokenBatch) -> dict[str, jax.Array]:
        """`objective.scores` of this trainer's parameters."""
        own = kept_once(select_parts(params, self.names), self.trainable)
        return self._score(own, place(batch, self.rows))

    def accumulate(
        self,
        total: dict[str, Any] | None,
        params: dict[str, Any],
        stacked: TokenBatch,
        denominators: dict[str, jax.Array],
    ) -> GradientsAndSums:
        """(`total` and the gradients of micro-batches [M, B, ...], their metric sums).

        `total`, earlier gradients, is donated; `denominators` lie on this mesh. `reduced` adds the last ones up.
        """
        trainable, frozen = partition(select_parts(params, self.names), self.trainable)
        frozen = kept_once(frozen, self.trainable)
        stacked = place(stacked, self.stacked_rows)
        if self.forward_settings.adds_in_place:
            total = self._no_gradients(trainable) if total is None else total
            return self._gradients(total, trainable, frozen, stacked, denominators)
        grads, sums = self._gradients(trainable, frozen, stacked, denominators)
        return grads if total is None else self._add(total, grads), sums

    def reduced(self, grads: dict[str, Any]) -> dict[str, Any]:
        """Gradients that `accumulate` gave, added up over the mesh: once an update, whatever the micro-batches."""
        return grads if self.alone else self._reduce(grads)

    def squared_norm(self, grads: dict[str, Any]) -> jax.Array:
        """The squared norm of this trainer's gradients, a scalar on its mesh."""
        return self._square(grads)

    def own_state(self, state: TrainState) -> TrainState:
        """This trainer's part of a state, whose counts lie with the first trainer, on its mesh."""

        def here(leaf: jax.Array) -> jax.Array:
            away = leaf.sharding.device_set != self.replicated.device_set
            return jax.device_put(leaf, self.replicated) if away else leaf

        return jax.tree.map(here, select_parts(state, self.names))

    def apply(
        self, state: TrainState, grads: dict[str, Any], squares: tuple[jax.Array, ...]
    ) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
        """(this trainer's next state, (global norm, whether the gradient was applied)).

        Args:
          state: `own_state`'s; what is trained of it, and its moments, are donated.
          grads: this trainer's gradients.
          squares: the squared norms of all trainers' gradients, in one order for all: they must come to the same
            decision. () where this trainer has all of them.
        """
        if self._apply is None:
            self._apply = self._applied(self.state_shardings(state))
        bare = dataclasses.replace(state, frozen={})
        after, told = self._apply(bare, grads, jax.device_put(squares, self.replicated))
        return dataclasses.replace(after, frozen=state.frozen), told

    def _score_fn(self, params: dict[str, Any], batch: TokenBatch) -> dict[str, jax.Array]:
        return scores(with_shared(params, self.trainable), self.model_cfg, batch, self.forward_settings)

    def _gradients_fn(
        self, trainable: Any, frozen: Any, stacked: TokenBatch, denominators: dict[str, jax.Array]
    ) -> GradientsAndSums:
        """The gradients of micro-batches [M, B, ...], one after the other, and their metric sums.

        Of this device's rows: gradients aren't added up over `data` here.
        """
        frozen = with_shared(frozen, self.trainable)
        grads, sums = gradients.summed(self._objective(denominators), trainable, frozen, stacked)
        return self._of_all_rows(grads, sums)

    def _gradients_in_place_fn(
        self, total: dict[str, Any], trainable: Any, frozen: Any, stacked: TokenBatch, denominators: Any
    ) -> GradientsAndSums:
        """`_gradients_fn` with `total` added to the gradients."""
        if not self.alone:
            total = jax.tree.map(lambda a: a[0], total)
        apart = [(name,) for name in self.names] if self.separate_critic else [self.names]
        frozen = with_shared(frozen, self.trainable)
        objective_of = self._objective(denominators)
        grads, sums = gradients.added_in_place(objective_of, total, trainable, frozen, stacked, apart)
        return self._of_all_rows(grads, sums)

    def _objective(self, denominators: dict[str, jax.Array]) -> gradients.Objective:
        def of(params: dict[str, Any], batch: TokenBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
            return objective(params, batch, denominators, self.model_cfg, self.loss, self.forward_settings)

        return of

    def _of_all_rows(self, grads: dict[str, Any], sums: dict[str, jax.Array]) -> GradientsAndSums:
        """This device's gradients as its share of `total_shardings`, metric sums over all devices."""
        if self.alone:
            return grads, sums
        return jax.tree.map(lambda a: a[None], grads), jax.lax.psum(sums, ROW_AXES)

    def _zeros(self, trainable: Any) -> dict[str, Any]:
        """The gradients of no micro-batch."""

        def zeros(param: jax.Array, sharding: NamedSharding) -> jax.Array:
            shape = param.shape if self.alone else (copies(sharding), *param.shape)
            return jnp.zeros(shape, param.dtype)

        return jax.tree.map(zeros, trainable, self.trainable_shardings)

    def _apply_fn(
        self, state: TrainState, grads: Any, squares: tuple[jax.Array, ...]
    ) -> tuple[TrainState, tuple[jax.Array, jax.Array]]:
        norm = jnp.sqrt(sum(squares[1:], squares[0])) if squares else optax.tree.norm(grads)
        good = norm <= self.max_grad_norm if self.max_grad_norm < float("inf") else jnp.isfinite(norm)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.trainable, norm=norm)
        after = (optax.apply_updates(state.trainable, updates), opt_state)
        before = (state.trainable, state.opt_state)
        trainable, opt_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)
        return TrainState(trainable, state.frozen, opt_state, state.step + 1), (norm, good)


def _sum(total: dict[str, Any], grads: dict[str, Any]) -> dict[str, Any]:
    return jax.tree.map(jnp.add, total, grads)


def _added_up(grads: dict[str, Any]) -> dict[str, Any]:
    """Gradients [N, *shape] of N devices each -> [*shape]."""
    return jax.tree.map(lambda a: jnp.sum(a, axis=0), grads)


def _squared_norm(grads: dict[str, Any]) -> jax.Array:
    return optax.tree.norm(grads, squared=True)
