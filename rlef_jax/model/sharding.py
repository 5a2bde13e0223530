"""One table that places the parameters on a mesh, by the names that `model/parameters.py` gives their axes.

The mesh has three axes: `data` splits rows, `fsdp` splits rows too and each parameter's model width, `tensor` splits
heads, the feed-forward layer's hidden width and the vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
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
        host = np.asarray(array)
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, tree, shardings)


def param_specs(cfg: ModelConfig) -> dict[str, Any]:
    """The PartitionSpec of each parameter: the tree of `init_params`."""
    return jax.tree.map(_spec, describe(cfg))


def _spec(parameter: Parameter) -> PartitionSpec:
    return PartitionSpec(*(RULES[axis] for axis in parameter.axes))


@dataclasses.dataclass(frozen=True)
class MeshSharding:
    """Where intermediate results of a forward pass lie: rows stay split over `data` and `fsdp`, and weights, split over
    `fsdp` where they are kept, are gathered where they are used.

    Left alone, the compiler would rather split products over `fsdp` and add up activations, which are larger.
    """

    mesh: Mesh
    cfg: ModelConfig

    def rows(self, x: jax.Array) -> jax.Array:
        """An array [B, ...] of which each device holds its rows."""
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, ROWS))

    def all_gather(self, name: str, params: Any, dtype: Any) -> Any:
        """The parameters `name` ("embed", "unembed", or "layers": one layer's), cast before they travel."""
        specs = param_specs(self.cfg)[name]
        if isinstance(specs, dict):  # without the axis of the stack
            specs = {key: PartitionSpec(*spec[1:]) for key, spec in specs.items()}

        def gather(array: jax.Array, spec: PartitionSpec) -> jax.Array:
            whole = PartitionSpec(*(None if axis == "fsdp" else axis for axis in spec))
            return jax.lax.with_sharding_constraint(array.astype(dtype), NamedSharding(self.mesh, whole))

        return jax.tree.map(gather, params, specs)


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
