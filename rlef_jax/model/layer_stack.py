"""A stack of layers, [L, ...] in each parameter, run one after the other by a loop that is compiled once.

Where gradients are added up over micro-batches, a second set of them the size of the model would only exist to be added
to the first. `WithTotals` carries the sums so far into the backward pass, which adds each layer's gradient in place:

    for l = L - 1, ..., 0:   (dx, dw) = vjp of layer l at its input x_l;   total[l] += dw

so that of all that arises on the way only the inputs x_l are kept, and one layer's gradient exists at a time.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
from jax.experimental.layout import Layout, with_layout_constraint

from rlef_jax.model.rope import LayerKind

STACK = "layers"  # its name among a model's parameters

# A layer: (x [B, T, D], its parameters) -> [B, T, D].
type Run = Callable[[jax.Array, dict[str, Any]], jax.Array]


@flax.struct.dataclass
class WithTotals:
    """A stack of layers, and sums of gradients of some of its parameters, of any dtype.

    In `run_stack` the gradient with respect to these `layers` comes out as `totals` plus the gradient. Parameters that
    have no total get none at all.
    """

    layers: dict[str, jax.Array]
    totals: dict[str, jax.Array]


def stretches(
    stack: dict[str, Any] | WithTotals, kinds: Sequence[LayerKind]
) -> Iterator[tuple[LayerKind, dict[str, Any] | WithTotals]]:
    """The stack of layers cut where their kind changes: (kind, stack of its layers). One kind is not cut or copied."""
    end = 0
    for kind, alike in itertools.groupby(kinds):
        start, end = end, end + len(list(alike))
        whole = end - start == len(kinds)
        yield kind, stack if whole else jax.tree.map(lambda a, cut=slice(start, end): a[cut], stack)


def run_stack(run: Run, x: jax.Array, stack: dict[str, Any] | WithTotals) -> jax.Array:
    """x [B, T, D] through all layers of a stack."""
    if isinstance(stack, WithTotals):
        trained = {name: stack.layers[name] for name in stack.totals}
        fixed = {name: array for name, array in stack.layers.items() if name not in trained}
        return _accumulating(run, x, trained, fixed, stack.totals)
    return jax.lax.scan(lambda x, layer: (run(x, layer), None), x, stack)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _accumulating(
    run: Run, x: jax.Array, trained: dict[str, Any], fixed: dict[str, Any], totals: dict[str, Any]
) -> jax.Array:
    del totals
    return run_stack(run, x, {**trained, **fixed})


def _keep_inputs(
    run: Run, x: jax.Array, trained: dict[str, Any], fixed: dict[str, Any], totals: dict[str, Any]
) -> tuple[jax.Array, tuple[Any, ...]]:
    x, inputs = jax.lax.scan(lambda x, layer: (run(x, layer), x), x, {**trained, **fixed})
    return x, (inputs, trained, fixed, totals)


def _add_in_place(run: Run, kept: tuple[Any, ...], d_x: jax.Array) -> tuple[jax.Array, dict[str, Any], None, None]:
    inputs, trained, fixed, totals = kept
    count = inputs.shape[0]

    def back(done: jax.Array, carry: tuple[jax.Array, dict[str, Any]]) -> tuple[jax.Array, dict[str, Any]]:
        d_x, totals = carry
        index = count - 1 - done
        x, layer, rest = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), (inputs, trained, fixed)
        )
        _, vjp = jax.vjp(lambda x, layer: run(x, {**layer, **rest}), x, layer)
        d_x, d_layer = vjp(d_x)
        return d_x, jax.tree.map(
            lambda total, d: _as_it_lay(total.at[index].add(d.astype(total.dtype))), totals, d_layer
        )

    d_x, totals = jax.lax.fori_loop(0, count, back, (d_x, totals))
    return d_x, totals, None, None


def _as_it_lay(total: jax.Array) -> jax.Array:
    """In the layout in which it came: in that of the layers' gradients it would be copied before the loop and after."""
    return with_layout_constraint(total, Layout(tuple(range(total.ndim))))


_accumulating.defvjp(_keep_inputs, _add_in_place)
