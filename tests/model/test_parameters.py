"""One tree of records: what derives from it covers the same parameters, and a new record reaches all of it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec, Sharding

from rlef_jax.model import parameters
from rlef_jax.model.hf_config import parse_config
from rlef_jax.model.hf_export import tensor_reader, write_model
from rlef_jax.model.kv_cache import unstack
from rlef_jax.model.parameters import (
    FileTensor,
    Normal,
    Parameter,
    abstract_params,
    count_params,
    describe,
    init_params,
    tensor_shapes,
)
from rlef_jax.model.pretrained import HFFolder, load_pretrained
from rlef_jax.model.sharding import make_mesh, param_shardings
from rlef_jax.model.weights import load_params, save_params
from rlef_jax.ppo.train_state import trained_by_default
from tests.helpers.hf_folder import write_folder
from tests.parity import cases

FAMILIES = ("llama", "llama tie_word_embeddings", "qwen2", "qwen3", "smollm3", "olmo2", "gemma3_text")
# The names in published files of one layer, and around the layers.
LAYER = (
    "input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
    "self_attn.o_proj.weight", "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)  # fmt: skip
_HEADS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
MORE = {
    "qwen2": tuple(f"self_attn.{name}_proj.bias" for name in "qkv"),
    "qwen3": _HEADS,
    "olmo2": (*_HEADS, "post_feedforward_layernorm.weight"),
    "gemma3_text": (*_HEADS, "pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"),
}
LESS = {"olmo2": ("input_layernorm.weight",)}


@pytest.fixture(scope="module", autouse=True)
def quickly(quick_compilation):
    """All tests here compile much and compute little."""


def structure(tree):
    return jax.tree.structure(tree, is_leaf=lambda leaf: isinstance(leaf, Sharding))


def check_all_cover(cfg, tmp_path):
    """Whatever derives from the description of `cfg` has its tree and its shapes."""
    described = describe(cfg)
    params = init_params(jax.random.PRNGKey(0), cfg)
    trees = (params, abstract_params(cfg), param_shardings(make_mesh(), cfg))
    assert {structure(tree) for tree in trees} == {structure(described)}
    assert [a.shape for a in jax.tree.leaves(params)] == [p.shape for p in jax.tree.leaves(described)]
    assert all(len(p.axes) == len(p.shape) for p in jax.tree.leaves(described))
    assert count_params(cfg) == sum(a.size for a in jax.tree.leaves(params))
    assert sum(np.prod(shape) for shape in tensor_shapes(cfg).values()) == count_params(cfg)
    layers = unstack(params, cfg)["layers"]
    assert len(layers) == cfg.n_layers and all(layer.keys() == described["layers"].keys() for layer in layers)
    save_params(tmp_path / "params.npz", params)
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path / "params.npz", cfg), params)


def check_round_trip(folder, tmp_path):
    """Loaded and exported again, a folder has the same tensors, name by name; loaded again it is the same model."""
    source = HFFolder(folder)
    params = load_pretrained(source, source.cfg)
    output = tmp_path / "exported"
    output.mkdir()
    write_model(output, source.cfg, tensor_reader(params, source.cfg), like=None)
    written = HFFolder(output)
    assert written.cfg == source.cfg
    assert list(written.shapes) == list(tensor_shapes(source.cfg)) and written.shapes.keys() == source.shapes.keys()
    for name in source.shapes:
        np.testing.assert_array_equal(written.read(name), source.read(name), err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(written, source.cfg), params)
    return written


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_covered(family, tmp_path):
    config = cases.FAMILIES[family]
    layer = set(LAYER + MORE.get(family, ())) - set(LESS.get(family, ()))
    names = [f"model.layers.{i}.{name}" for i in range(2) for name in layer]
    names += ["model.embed_tokens.weight", "model.norm.weight"]
    names += [] if config["tie_word_embeddings"] else ["lm_head.weight"]
    cfg = parse_config(config)
    assert sorted(tensor_shapes(cfg)) == sorted(names)
    check_all_cover(cfg, tmp_path)
    check_round_trip(write_folder(tmp_path / "model", config), tmp_path)


def test_a_new_parameter_is_one_record(tmp_path, monkeypatch):
    """A gate on the attention's result, say: first values, shards, files, decay and counts know it by its record."""
    before, known = parse_config(cases.LLAMA), parameters.describe_layer

    def with_one_more(cfg):
        d, name = cfg.d_model, "model.layers.{layer}.self_attn.g_proj.weight"
        tensor = FileTensor(name, "blk.{layer}.attn_g.weight", (7, d), (1, 0), (7, d))
        more = Parameter(
            (d, 7), ("width", None), Normal(2.0), tensors=(tensor,), inputs=1, decayed=False, trainable=False
        )
        return {**known(cfg), "attn_gate": more}

    count = count_params(before)
    monkeypatch.setattr(parameters, "describe_layer", with_one_more)
    cfg = dataclasses.replace(before, n_layers=3)
    assert count_params(before) == count + 2 * 32 * 7
    check_all_cover(cfg, tmp_path)
    params = init_params(jax.random.PRNGKey(0), cfg, jnp.bfloat16)
    gate = params["layers"]["attn_gate"]
    assert gate.shape == (3, 32, 7) and gate.dtype == jnp.bfloat16 and 1.8 < np.std(np.float32(gate)) < 2.2
    assert param_shardings(make_mesh(), cfg)["layers"]["attn_gate"].spec == PartitionSpec(None, "fsdp", None)
    assert unstack(params, cfg)["layers"][0]["attn_gate"].array.shape == (7, 32)
    for on in (lambda p: p.decayed, lambda p: p.trainable):
        off = [path[-1].key for path, p in jax.tree_util.tree_leaves_with_path(describe(cfg)) if not on(p)]
        assert off == ["attn_gate"]
    assert not trained_by_default(cfg)(("policy", "layers", "attn_gate"))
    written = check_round_trip(write_folder(tmp_path / "model", cases.LLAMA), tmp_path)
    assert written.shapes["model.layers.1.self_attn.g_proj.weight"] == (7, 32)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "olmo2", "gemma3_text"])
def test_parameters_come_apart_into_their_tensors(family):
    for p in jax.tree.leaves(describe(parse_config(cases.FAMILIES[family]))):
        tensors = {tensor.name: cases.tensor(tensor.name, tensor.shape) for tensor in p.tensors}
        share = np.concatenate([tensor.to_ours(tensors[tensor.name]) for tensor in p.tensors], axis=p.joined)
        assert share.shape == p.shape[1:] if p.stacked else p.shape
        for name, tensor in p.cut(share).items():
            np.testing.assert_array_equal(tensor, tensors[name])


def test_first_values_are_what_they_were():
    """Equal seeds give equal weights in every version: the first two numbers of each parameter, from an earlier one."""
    params = init_params(jax.random.PRNGKey(3), parse_config(cases.FAMILIES["qwen2"]))
    layers = params["layers"]
    expected = {
        "embed": [-0.21021752059459686, -0.1508052498102188],
        "attn_norm": [1.0, 1.0],
        "attn_out": [-0.026606183499097824, 0.08004559576511383],
        "down": [0.05852632224559784, 0.11399266868829727],
        "gate": [-0.030643556267023087, -0.02769443579018116],
        "mlp_norm": [1.0, 1.0],
        "qkv": [-0.014029476791620255, -0.030061334371566772],
        "qkv_bias": [0.0, 0.0],
        "up": [-0.06676561385393143, 0.11597958952188492],
    }
    for name, array in ({"embed": params["embed"]} | layers).items():
        np.testing.assert_allclose(np.ravel(array)[:2], expected.pop(name), rtol=1e-6, err_msg=name)
    assert not expected
