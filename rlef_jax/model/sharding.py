"""One table that places the parameters on a mesh, by the names that `model/parameters.py` gives their axes.

The mesh has three axes: `data` splits rows, `fsdp` splits rows too and each parameter's model width, `tensor` splits
heads, the feed-forward layer's hidden width and the vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlef_jax.model.parameters import Parameter, describe
from rlef_jax.model.transformer import ModelConfig

AXES = ("data", "fsdp", "tensor")

# Which axis of the mesh splits what (`Parameter.axes`).
RULES: dict[str | None, str | None] = {
    "vocab": "tensor",
    "kv_heads": "tensor",
    "hidden": "tensor",
    "width": "fsdp",
    "layer": None,
    None: None,
}

# Rows of a batch: [B, ...].
ROWS = PartitionSpec(("data", "fsdp"))


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the first data * fsdp * tensor of `devices` (default: all). Raises ValueError if they are fewer."""
    needed, devices = data * fsdp * tensor, jax.devices() if devices is None else devices
    if needed > len(devices):
        raise ValueError(f"{data} x {fsdp} x {tensor} = {needed} devices are needed; there are {len(devices)}")
    return Mesh(np.array(devices[:needed]).reshape(data, fsdp, tensor), AXES)


def place(tree: Any, shardings: Any) -> Any:
    """The tree's arrays laid out on a mesh; `shardings` is one for all leaves or a tree of them.

    On a mesh over several processes each must hold the same values, and feeds the parts that lie on its own devices.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable:
            return jax.device_put(array, sharding)
        if isinstance(array, jax.Array) and array.sharding.is_equivalent_to(sharding, array.ndim):
            return array
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, tree, shardings)


def param_specs(cfg: ModelConfig) -> dict[str, Any]:
    """The PartitionSpec of each parameter: the tree of `init_params`."""
    return jax.tree.map(_spec, describe(cfg))


def _spec(parameter: Parameter) -> PartitionSpec:
    return PartitionSpec(*(RULES[axis] for axis in parameter.axes))


ROW_AXES = ("data", "fsdp")  # over which rows are split


def over_mesh(function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function` of each device's parts of its arguments, as a function of whole arrays on `mesh`.

    What the parts have to exchange `function` says itself (`MeshSharding`). A result whose spec doesn't name an axis
    must be the same on all devices along it. On one device it is the function itself.
    """
    if mesh.size == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def specs_of(tree: Any) -> Any:
    """The PartitionSpecs of a tree of NamedShardings."""
    return jax.tree.map(lambda sharding: sharding.spec, tree)


def unreduced(sharding: NamedSharding) -> NamedSharding:
    """Of a parameter's gradient before it is added up over rows: [N, *shape], for each of N devices its own.

    N is the number of devices that hold the same part of the parameter.
    """
    spec = sharding.spec
    apart = tuple(axis for axis in ROW_AXES if axis not in spec)
    return NamedSharding(sharding.mesh, PartitionSpec(apart, *spec))


def copies(sharding: NamedSharding) -> int:
    """How many devices hold the same part of a parameter, those along `tensor` not counted: N of `unreduced`."""
    return math.prod(sharding.mesh.shape[axis] for axis in ROW_AXES if axis not in sharding.spec)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(part: jax.Array, axis: int, dtype: Any, reduce_dtype: Any) -> jax.Array:
    """A weight in `dtype`, put together from its parts along `fsdp`; its gradient is added up in `reduce_dtype`."""
    return jax.lax.all_gather(part.astype(dtype), "fsdp", axis=axis, tiled=True)


def _gathered_forward(part: jax.Array, axis: int, dtype: Any, reduce_dtype: Any) -> tuple[jax.Array, jax.Array]:
    # An empty array tells the backward pass the part's dtype.
    return _gathered(part, axis, dtype, reduce_dtype), jnp.zeros((0,), part.dtype)


def _gathered_backward(
    axis: int, dtype: Any, reduce_dtype: Any, like: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    del dtype
    added = jax.lax.psum_scatter(gradient.astype(reduce_dtype), "fsdp", scatter_dimension=axis, tiled=True)
    return (added.astype(like.dtype),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


@jax.custom_vjp
def _enter(x: jax.Array) -> jax.Array:
    """What all devices along `tensor` have in common, before each goes on with its own heads or columns: as it is.

    Each then has a part of the gradient: the backward pass adds them up.
    """
    return x


@jax.custom_vjp
def _leave(x: jax.Array) -> jax.Array:
    """The sum over `tensor` of what each device made with its own heads or columns. The gradient is as it is."""
    return jax.lax.psum(x, "tensor")


_enter.defvjp(lambda x: (x, None), lambda _, gradient: (jax.lax.psum(gradient, "tensor"),))
_leave.defvjp(lambda x: (jax.lax.psum(x, "tensor"), None), lambda _, gradient: (gradient,))


@dataclasses.dataclass(frozen=True)
class MeshSharding:
    """How a forward pass inside `over_mesh` works with parts of weights, and what it exchanges.

    Over `fsdp` (Zhao et al., 2023): a weight is gathered where it is used, in the dtype that is computed in; its
    gradient is reduce-scattered where it arises, in `reduce_dtype`. Over `tensor` (Shoeybi et al., 2019): each device
    has its heads, its hidden columns and its part of the vocabulary, and sums of activations are exchanged where
    `_enter` and `_leave` say. Over `data` nothing travels.
    """

    cfg: ModelConfig
    reduce_dtype: Any

    enter = staticmethod(_enter)
    leave = staticmethod(_leave)

    def all_gather(self, name: str, params: Any, dtype: Any) -> Any:
        """The parameters `name` ("embed", "unembed", or "layers": one layer's), whole but for `tensor`."""
        specs = param_specs(self.cfg)[name]
        if isinstance(specs, dict):  # without the axis of the stack, and of the parameters that this layer has
            specs = {key: PartitionSpec(*specs[key][1:]) for key in params}

        def gather(part: jax.Array, spec: PartitionSpec) -> jax.Array:
            if "fsdp" not in spec:
                return part.astype(dtype)
            return _gathered(part, tuple(spec).index("fsdp"), dtype, self.reduce_dtype)

        return jax.tree.map(gather, params, specs)

    def lookup(self, table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
        """Rows [B, T, D] of the embeddings for each device's own tokens [B, T].

        Tokens travel, and what they need of the table, instead of the table: each device looks up its part of the width
        for all along `fsdp`, of its part of the vocabulary. The gradient is added up in the table's dtype.
        """
        local = self.local_ids(jax.lax.all_gather(tokens, "fsdp", axis=0, tiled=True), len(table))
        here = (local >= 0) & (local < len(table))
        part = jnp.where(here[:, :, None], table[jnp.where(here, local, 0)], 0).astype(dtype)
        rows = _leave(jax.lax.all_to_all(part, "fsdp", split_axis=0, concat_axis=2, tiled=True))
        # In the exchange's layout, width first, all layers' inputs would be copied between the passes.
        return with_layout_constraint(rows, Layout((0, 1, 2)))

    def local_ids(self, tokens: jax.Array, size: int) -> jax.Array:
        """Ids as this device counts its part, of `size`, of the vocabulary; others' are below 0 or from `size` on."""
        return tokens - jax.lax.axis_index("tensor") * size

    def tensor_sum(self, x: jax.Array) -> jax.Array:
        """The sum over `tensor`, where all devices along it go on with different things."""
        return jax.lax.psum(x, "tensor")

    def tensor_mean(self, x: jax.Array) -> jax.Array:
        """The mean over `tensor`, the same."""
        return jax.lax.pmean(x, "tensor")

    def tensor_logsumexp(self, x: jax.Array) -> jax.Array:
        """The logsumexp over `tensor` of each device's own, without a gradient."""
        largest = jax.lax.pmax(x, "tensor")
        return largest + jnp.log(jax.lax.psum(jnp.exp(x - largest), "tensor"))


def param_shardings(mesh: Mesh, cfg: ModelConfig) -> dict[str, Any]:
    """The sharding of each of a model's parameters on `mesh`: the tree of `init_params`.

    Raises ValueError as `shardings`.
    """
    return shardings(mesh, describe(cfg))


def shardings(mesh: Mesh, described: Any) -> Any:
    """The sharding of each `Parameter` of a tree on `mesh`.

    Raises ValueError, naming the parameter, where the mesh doesn't divide a dimension.
    """

    def checked(path: Any, parameter: Parameter) -> NamedSharding:
        spec = _spec(parameter)
        for size, axis in zip(parameter.shape, spec, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                name = jax.tree_util.keystr(path)
                raise ValueError(f"parameter {name}: mesh axis {axis}={mesh.shape[axis]} doesn't divide {size}")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(checked, described)
