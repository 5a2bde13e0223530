"""Parts of a file's tensors: what is read, and that the devices put them together to the parameter."""

from __future__ import annotations

import itertools
import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlef_jax.model.hf_config import parse_config
from rlef_jax.model.parameters import file_tensors
from rlef_jax.model.placing import in_file_order, read_part
from rlef_jax.model.sharding import make_mesh
from tests.parity import cases

PLACES = file_tensors(parse_config(cases.FAMILIES["qwen2"] | {"num_key_value_heads": 2}))


class Recorder:
    """A tensor that counts the entries that are read of it."""

    def __init__(self, shape):
        self.values, self.entries_read = np.arange(math.prod(shape)).reshape(shape), 0

    def __getitem__(self, index):
        self.entries_read += self.values[index].size
        return self.values[index]


@pytest.mark.parametrize("name", [name for name in PLACES if "layers.1" not in name])
def test_a_part_is_read_out_of_the_smallest_block(name):
    """Any slices of any axes give the right part; of an axis that a mesh splits only the part itself is read."""
    tensor = PLACES[name].tensor
    axes = PLACES[name].parameter.axes[-len(tensor.split) :]  # those without a name are never split
    tensor_values = np.arange(math.prod(tensor.shape)).reshape(tensor.split)
    for index in itertools.product(*([slice(None), slice(n // 2, n), slice(n // 3, n - n // 3)] for n in tensor.split)):
        source = Recorder(tensor.shape)
        np.testing.assert_array_equal(read_part(source, tensor, index), tensor_values[index])
        if all(index[axis] == slice(None) or name is not None for axis, name in zip(tensor.order, axes, strict=True)):
            assert source.entries_read == tensor_values[index].size


def test_a_sharding_is_told_in_the_files_order():
    mesh = make_mesh()
    for name, spec in {
        "model.embed_tokens.weight": ("tensor", "fsdp"),
        "model.layers.0.self_attn.q_proj.weight": ("tensor", None, None, "fsdp"),
        "model.layers.0.self_attn.o_proj.weight": ("fsdp", "tensor", None, None),
        "model.layers.0.self_attn.q_proj.bias": ("tensor", None, None),
        "model.layers.0.mlp.up_proj.weight": ("tensor", "fsdp"),
        "model.layers.0.mlp.down_proj.weight": ("fsdp", "tensor"),
    }.items():
        tensor, parameter, *_ = PLACES[name]
        axes = {"width": "fsdp", "vocab": "tensor", "hidden": "tensor", "kv_heads": "tensor"}
        ours = NamedSharding(mesh, PartitionSpec(*(axes.get(axis) for axis in parameter.axes)))
        assert tuple(in_file_order(ours, parameter, tensor).spec) == spec
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert in_file_order(here, parameter, tensor) is here


def test_an_axis_along_which_tensors_are_joined_is_split_after_them():
    tensor, parameter, *_ = PLACES["model.layers.0.self_attn.q_proj.weight"]
    ours = NamedSharding(make_mesh(), PartitionSpec(None, None, "data", "tensor"))
    assert tuple(in_file_order(ours, parameter, tensor).spec) == ("data", None, None, None)
