"""A stack of layers, [L, ...] in each parameter, run one after the other by a loop that is compiled once.

Where gradients are added up over micro-batches, a second set of them the size of the model would only exist to be added
to the first. `WithTotals` carries the sums so far into the backward pass, which adds each layer's gradient in place:

    for l = L - 1, ..., 0:   (dx, dw) = vjp of layer l at its input x_l;   total[l] += dw

so that of all that arises on the way only the inputs x_l are kept, and one layer's gradient exists at a time.

A parameter that is stacked over fewer layers than others is one of the last layers (adapters, `model/lora.py`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
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


@flax.struct.dataclass
class Stretch:
    """Layers of a stack that are run by one loop: `count` of them, from the layer `first` of `whole` on.

    `own` are stacked over these layers alone. `whole` are stacked over all layers, and each layer's are taken out of
    the stack when it runs: to cut the stack would be to copy it. `totals` as in `WithTotals`, of some of `own`.
    """

    own: dict[str, jax.Array]
    whole: dict[str, jax.Array]
    totals: dict[str, jax.Array]
    first: int = flax.struct.field(pytree_node=False)
    count: int = flax.struct.field(pytree_node=False)


def _starts(stack: dict[str, jax.Array]) -> dict[str, int]:
    """Which layer is the first that has each parameter of a stack."""
    count = max(len(array) for array in stack.values())
    return {name: count - len(array) for name, array in stack.items()}


def layer_of(stack: dict[str, jax.Array], index: int) -> dict[str, jax.Array]:
    """The parameters of one layer."""
    starts = _starts(stack)
    return {name: array[index - starts[name]] for name, array in stack.items() if index >= starts[name]}


def stretches(
    stack: dict[str, Any] | WithTotals, kinds: Sequence[LayerKind], frozen: Callable[[str], bool] = lambda _: False
) -> Iterator[tuple[LayerKind, Stretch]]:
    """The stack of layers cut where their kind changes, or which parameters they have: (kind, its layers).

    What isn't cut isn't copied, and parameters that are `frozen`, which have no gradients, are never cut.
    """
    layers, totals = (stack.layers, stack.totals) if isinstance(stack, WithTotals) else (stack, {})
    starts = _starts(layers)
    alike = [(kind, sum(first <= layer for first in starts.values())) for layer, kind in enumerate(kinds)]
    end = 0
    for (kind, _), some in itertools.groupby(alike):
        start, end = end, end + len(list(some))
        cut = end - start < len(kinds)
        whole = {name for name in layers if cut and frozen(name) and name not in totals and not starts[name]}

        def own(arrays: dict[str, jax.Array], start: int = start, end: int = end) -> dict[str, jax.Array]:
            """Those of these layers: all of an array where it has no others."""
            return {
                name: array if end - start == len(array) else array[start - first : end - first]
                for name, array in arrays.items()
                if start >= (first := starts[name])
            }

        yield (
            kind,
            Stretch(
                own={name: array for name, array in own(layers).items() if name not in whole},
                whole={name: layers[name] for name in whole},
                totals=own(totals),
                first=start,
                count=end - start,
            ),
        )


def run_stack(run: Run, x: jax.Array, stack: dict[str, Any] | WithTotals | Stretch) -> jax.Array:
    """x [B, T, D] through all layers of a stack."""
    if not isinstance(stack, Stretch):
        layers, totals = (stack.layers, stack.totals) if isinstance(stack, WithTotals) else (stack, {})
        stack = Stretch(layers, {}, totals, 0, len(next(iter(layers.values()))))
    trained = {name: stack.own[name] for name in stack.totals}
    fixed = {name: array for name, array in stack.own.items() if name not in trained}, stack.whole
    span = stack.first, stack.count
    if stack.totals:
        return _accumulating(run, span, x, trained, fixed, stack.totals)
    return _scanned(run, span, x, trained, fixed)[0]


type Span = tuple[int, int]  # the first layer, and how many
type Fixed = tuple[dict[str, Any], dict[str, Any]]  # what is the stretch's own, and what is stacked over all layers


def _scanned(
    run: Run, span: Span, x: jax.Array, trained: dict[str, Any], fixed: Fixed, *, keep: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """(x after the layers, with `keep` [N, B, T, D] before each)."""
    (first, count), (own, whole) = span, fixed

    def step(x: jax.Array, inputs: tuple[dict[str, Any], Any]) -> tuple[jax.Array, jax.Array | None]:
        layer, index = inputs
        return run(x, layer | _at(whole, index) if whole else layer), x if keep else None

    indexes = jnp.arange(first, first + count) if whole else None
    return jax.lax.scan(step, x, ({**trained, **own}, indexes), length=count)


def _at(arrays: Any, index: jax.Array) -> Any:
    return jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, keepdims=False), arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _accumulating(
    run: Run, span: Span, x: jax.Array, trained: dict[str, Any], fixed: Fixed, totals: dict[str, Any]
) -> jax.Array:
    del totals
    return _scanned(run, span, x, trained, fixed)[0]


def _keep_inputs(
    run: Run, span: Span, x: jax.Array, trained: dict[str, Any], fixed: Fixed, totals: dict[str, Any]
) -> tuple[jax.Array, tuple[Any, ...]]:
    x, inputs = _scanned(run, span, x, trained, fixed, keep=True)
    return x, (inputs, trained, fixed, totals)


def _add_in_place(
    run: Run, span: Span, kept: tuple[Any, ...], d_x: jax.Array
) -> tuple[jax.Array, dict[str, Any], None, None]:
    inputs, trained, (own, whole), totals = kept
    first, count = span

    def back(done: jax.Array, carry: tuple[jax.Array, dict[str, Any]]) -> tuple[jax.Array, dict[str, Any]]:
        d_x, totals = carry
        index = count - 1 - done
        x, layer, rest = _at((inputs, trained, own), index)
        rest |= _at(whole, first + index)
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
