"""Weights from one mesh to another, shard to shard: from the trainer's devices to a sampler's.

Two steps for each array, of which the second alone leaves a device: on the mesh where it lies, in the dtype that is
wanted, it is laid out as the other mesh will have it, a shard on each device and as many copies of all shards as there
is room for; then each device of the other mesh gets its shard from one that has it. No device ever holds more of an
array than its shard, and no host any of it.

In a job of several processes the first step is a program of all of them, so each must take part; the other mesh lies
within a process, and gets its shards from that process's devices.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_SHARD_AXIS, _COPY_AXIS = "shard", "copy"


def reshard(array: jax.Array, target: NamedSharding, dtype: Any) -> jax.Array:
    """A copy of `array` in `dtype`, laid out as `target`: the caller may donate its own afterwards."""
    source = getattr(array, "sharding", None)
    if not isinstance(source, NamedSharding) or not isinstance(source.mesh, Mesh) or source.mesh.size == 1:
        return jax.device_put(jnp.copy(array).astype(dtype), target)
    if isinstance(target.mesh, Mesh) and _order(source.mesh) == _order(target.mesh):
        return cast_program(target, jnp.dtype(dtype))(array)
    between = layout_between(source.mesh, target)
    laid_out = cast_program(between, jnp.dtype(dtype))(array)
    return _copied_shards(laid_out, target)


def _order(mesh: Mesh) -> list[jax.Device]:
    return list(mesh.devices.flat)


def layout_between(source: Mesh, target: NamedSharding) -> NamedSharding:
    """On the devices of `source`, shards as `target` has them, next to each other, and over again.

    Raises ValueError where the number of devices isn't a multiple of the number of shards.
    """
    axes = [axis for entry in target.spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]
    shards = math.prod(target.mesh.shape[axis] for axis in axes)
    if source.size % shards:
        raise ValueError(f"weights on {source.size} devices can't be handed over in {shards} shards")
    split = sum(entry is not None for entry in target.spec)
    if split > 1:
        raise ValueError(f"{target.spec} splits more than one dimension")
    mesh = Mesh(source.devices.reshape(-1, shards), (_COPY_AXIS, _SHARD_AXIS))
    return NamedSharding(mesh, PartitionSpec(*(None if entry is None else _SHARD_AXIS for entry in target.spec)))


@functools.lru_cache(maxsize=64)
def cast_program(sharding: NamedSharding, dtype: Any) -> Any:
    """The jitted copy of an array in another dtype and layout, on the devices where it is."""
    # A copy even where nothing changes: jit would hand the array through.
    return jax.jit(lambda array: jnp.copy(array).astype(dtype), out_shardings=sharding)


def _copied_shards(array: jax.Array, target: NamedSharding) -> jax.Array:
    """The array as `target` lays it out, each shard copied from a device of this process that has the same."""
    held = {_key(shard.index, array.shape): shard.data for shard in array.addressable_shards}
    wanted = target.addressable_devices_indices_map(array.shape)
    pieces = [jax.device_put(held[_key(index, array.shape)], device) for device, index in wanted.items()]
    return jax.make_array_from_single_device_arrays(array.shape, target, pieces)


def _key(index: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    return tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
