"""Tensors of files to the devices that hold parts of them: of a file only what this process's devices hold is read.

A tensor goes to the devices as the file has it, with its axes taken apart (`FileTensor.split`) and each part where it
will lie; the devices bring the axes into the parameter's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rlef_jax.model.finite import check_tensor
from rlef_jax.model.parameters import FileTensor, Parameter

if TYPE_CHECKING:
    from rlef_jax.model.pretrained import Weights


def in_file_order(sharding: Any, p: Parameter, tensor: FileTensor) -> Any:
    """The sharding of `tensor.split`, one of the tensors that make up `p`, with which `p` gets `sharding`.

    The axes of a mesh that split `p.joined` split none here: they would cut across tensors.
    """
    if not isinstance(sharding, NamedSharding):
        return sharding
    stored_axes = [*sharding.spec, *(len(p.shape) - len(sharding.spec)) * [None]][p.stacked :]
    if len(p.tensors) > 1:
        stored_axes[p.joined] = None
    file_axes: list[Any] = [None] * len(stored_axes)
    for axis, at in zip(stored_axes, tensor.order, strict=True):
        file_axes[at] = axis
    return NamedSharding(sharding.mesh, PartitionSpec(*file_axes))


def placed(weights: Weights, name: str, tensor: FileTensor, sharding: Any, dtypes: Sequence[Any]) -> jax.Array:
    """A tensor [*tensor.split] in the file's dtype, on its devices.

    Raises ConfigError where a part that is read isn't finite in one of `dtypes`.
    """
    source = weights.sliced(name)
    devices: dict[tuple[slice, ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(tensor.split).items():
        devices.setdefault(index, []).append(device)
    parts = []
    for index, replicas in devices.items():
        part = read_part(source, tensor, index)
        check_tensor(weights.file_of(name), name, part, dtypes)
        parts += [jax.device_put(part, device) for device in replicas]
    return jax.make_array_from_single_device_arrays(tensor.split, sharding, parts)


def read_part(source: Any, tensor: FileTensor, index: Sequence[slice]) -> np.ndarray:
    """A tensor's part at `index`, slices of the axes of `tensor.split`, out of the smallest block that holds it.

    Args: source: gives slices of the file's tensor [*tensor.shape].
    """
    axes = iter(zip(tensor.split, index, strict=True))
    block: list[slice] = []  # of the file's axes
    shape: list[int] = []  # of the block, with axes taken apart
    inner: list[slice] = []  # what is wanted of it
    for size in tensor.shape:
        length, part = next(axes)
        start, stop, _ = part.indices(length)
        rest = size // length
        block.append(slice(start * rest, stop * rest))
        shape.append(stop - start)
        inner.append(slice(None))
        while rest > 1:
            length, part = next(axes)
            rest //= length
            shape.append(length)
            inner.append(part)
    return np.asarray(source[tuple(block)]).reshape(shape)[tuple(inner)]
