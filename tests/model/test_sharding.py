"""The table of sharding rules covers every parameter, and says which one a mesh doesn't divide."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from rlef_jax.model.parameters import describe, init_params
from rlef_jax.model.sharding import AXES, make_mesh, param_shardings, param_specs
from rlef_jax.model.transformer import ModelConfig

CFG = ModelConfig(vocab_size=20, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_ff=20)


def test_every_parameter_has_a_spec_of_its_rank():
    for tie in (True, False):
        cfg = ModelConfig(**{**CFG.__dict__, "tie_embeddings": tie})
        params = jax.eval_shape(lambda cfg=cfg: init_params(jax.random.PRNGKey(0), cfg))
        specs = param_specs(cfg)
        pairs = jax.tree.map(lambda a, s: (a.ndim, len(s)), params, specs)
        assert all(a == b for a, b in jax.tree.leaves(pairs, is_leaf=lambda x: isinstance(x, tuple)))
    assert specs["layers"]["down"] == PartitionSpec(None, "tensor", "fsdp")


def test_one_device_mesh_places_parameters():
    params = jax.tree.map(lambda p: np.ones(p.shape), describe(CFG))
    mesh = make_mesh()
    placed = jax.device_put(params, param_shardings(mesh, CFG))
    assert all(a.sharding.mesh == mesh for a in jax.tree.leaves(placed))
    assert placed["embed"].sharding.spec == PartitionSpec("tensor", "fsdp")


def test_what_a_mesh_cannot_hold_is_named():
    with pytest.raises(ValueError, match="4096 devices are needed; there are 1"):
        make_mesh(data=4096)
    with pytest.raises(ValueError, match=r"'attn_out'.*tensor=4 doesn't divide 2"):
        param_shardings(AbstractMesh((1, 1, 4), AXES), CFG)
