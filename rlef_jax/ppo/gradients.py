"""Gradients of an update's micro-batches, one after the other and added up: pure functions of one device's share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlef_jax.model.layer_stack import STACK, WithTotals
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.train_state import combine, select_parts

# From parameters and a micro-batch to its loss and its metric sums, "loss" among them.
type Objective = Callable[[dict[str, Any], TokenBatch], tuple[jax.Array, dict[str, jax.Array]]]
# Gradients of what is trained, and metric sums.
type GradientsAndSums = tuple[dict[str, Any], dict[str, jax.Array]]


def summed(
    objective: Objective, trainable: dict[str, Any], frozen: dict[str, Any], stacked: TokenBatch
) -> GradientsAndSums:
    """Of micro-batches [M, B, ...]. The first one's start the sum: one alone needs no second set of gradients."""

    def gradients(batch: TokenBatch) -> GradientsAndSums:
        return jax.grad(lambda trained: objective(combine(trained, frozen), batch), has_aux=True)(trainable)

    first, rest = jax.tree.map(lambda a: a[0], stacked), jax.tree.map(lambda a: a[1:], stacked)
    total = gradients(first)
    if len(stacked.weight) == 1:
        return total
    return jax.lax.scan(lambda sums, batch: (jax.tree.map(jnp.add, sums, gradients(batch)), None), total, rest)[0]


def added_in_place(
    objective: Objective,
    total: dict[str, Any],
    trainable: dict[str, Any],
    frozen: dict[str, Any],
    stacked: TokenBatch,
    apart: Sequence[tuple[str, ...]],
) -> GradientsAndSums:
    """(`total` and the gradients of micro-batches [M, B, ...], their metric sums).

    No second set of gradients exists: see `layer_stack.WithTotals`. `apart` are groups of parts of the parameters
    ("policy", "critic") that have no weights in common: one group's micro-batches run after the other's, so that the
    activations of one group exist at a time.
    """
    grads: dict[str, Any] = {}
    sums: dict[str, jax.Array] = {}
    for names in apart:
        own, own_frozen, own_total = (select_parts(tree, names) for tree in (trainable, frozen, total))

        def gradients(total: Any, batch: TokenBatch, own: Any = own, own_frozen: Any = own_frozen) -> GradientsAndSums:
            def loss(trained: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
                return objective(_with_totals(combine(trained, own_frozen), total), batch)

            return _added_to(total, *jax.grad(loss, has_aux=True)(own))

        # What comes next waits for this group's gradients.
        stacked, grads = jax.lax.optimization_barrier((stacked, grads))
        more, each = jax.lax.scan(gradients, own_total, stacked)
        own_sums = jax.tree.map(functools.partial(jnp.sum, axis=0), each)
        grads |= more
        sums |= own_sums | ({"loss": sums["loss"] + own_sums["loss"]} if sums else {})
    return grads, sums


def _with_totals(params: dict[str, Any], totals: dict[str, Any]) -> dict[str, Any]:
    """The parameters with each stack of layers and its totals in one."""

    def of(name: str, node: Any) -> Any:
        within = totals.get(name, {})
        if name == STACK:
            return WithTotals(node, within)
        return _with_totals(node, within) if isinstance(node, dict) else node

    return {name: of(name, node) for name, node in params.items()}


def _added_to(total: dict[str, Any], grads: dict[str, Any], sums: Any) -> GradientsAndSums:
    """(`total` and gradients of which those of stacked layers have been added to it already, `sums`)."""

    def add(path: Any, so_far: jax.Array, gradient: jax.Array) -> jax.Array:
        return gradient if any(step.key == STACK for step in path) else so_far + gradient

    return jax.tree_util.tree_map_with_path(add, total, grads), sums
