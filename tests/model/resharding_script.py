"""Run by test_resharding with eight devices: weights from meshes of several shapes to others, compared on the host."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rlef_jax.model.resharding import layout_between, reshard
from rlef_jax.model.sharding import make_mesh

ARRAY = np.arange(8 * 6 * 4, dtype=np.float32).reshape(8, 6, 4)
# (trainer's mesh and its first device, sampler's mesh and its first device)
CASES = {
    "the same devices": ((2, 2, 2), 0, (4, 1, 2), 0),
    "devices apart": ((1, 2, 2), 0, (1, 1, 4), 4),
    "fewer devices": ((2, 2, 2), 0, (1, 1, 2), 0),
    "apart, not split": ((1, 4, 1), 0, (2, 1, 1), 4),
    "from one device": ((1, 1, 1), 0, (2, 1, 2), 4),
}


def main():
    devices, results = jax.devices(), {}
    for name, (trainer, first, sampler, other_first) in CASES.items():
        source = make_mesh(*trainer, devices=devices[first:])
        target = NamedSharding(make_mesh(*sampler, devices=devices[other_first:]), PartitionSpec("tensor"))
        array = jax.device_put(ARRAY, NamedSharding(source, PartitionSpec("tensor", None, "fsdp")))
        with jax.transfer_guard_device_to_host("disallow"):  # nothing passes through the host
            moved = reshard(array, target, jnp.bfloat16)
        array.delete()  # it is a copy
        results[name] = {
            "right": bool(np.array_equal(np.asarray(moved, np.float32), ARRAY.astype(jnp.bfloat16))),
            "placed": moved.sharding == target and str(moved.dtype) == "bfloat16",
        }
    mesh = make_mesh(1, 2, 2)
    between = layout_between(mesh, NamedSharding(make_mesh(1, 1, 4), PartitionSpec("tensor")))
    results["shard"] = between.shard_shape(ARRAY.shape)
    try:
        layout_between(mesh, NamedSharding(make_mesh(1, 1, 8), PartitionSpec("tensor")))
    except ValueError as error:
        results["refused"] = str(error)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
