"""Families as data: a model is exported as what it was loaded as, and a new family is a record."""

from __future__ import annotations

import dataclasses
import importlib
import json

import jax
import numpy as np
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.hugging_face import transformers
from rlef_jax.model.families import FAMILIES, Family, family_of
from rlef_jax.model.gguf_file import GGUFFile
from rlef_jax.model.hf_config import config_json, parse_config
from rlef_jax.model.hf_export import tensor_reader, write_model
from rlef_jax.model.pretrained import HFFolder, load_pretrained
from rlef_jax.model.transformer import ModelConfig
from tests.helpers.hf_folder import write_folder
from tests.model.test_gguf_file import write_gguf
from tests.parity import cases

SMALL = ModelConfig(vocab_size=5, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, d_head=8, d_ff=8)
O_PROJ = "model.layers.{layer}.self_attn.o_proj.weight"


@pytest.fixture
def twin(monkeypatch):
    """A family with Llama's options, its GGUF name and a tensor's name of its own, known beside the others."""
    family = Family(
        "twin", "TwinForCausalLM", "llama", gguf_interleaved=True, renamed={O_PROJ: O_PROJ.replace("o_proj", "dense")}
    )
    monkeypatch.setitem(FAMILIES, "twin", family)
    known = transformers().CONFIG_MAPPING
    config = type("TwinConfig", (known["llama"],), {"model_type": "twin"})
    monkeypatch.setitem(known._extra_content, "twin", config)  # as AutoConfig.register, which can't be undone
    return family


def test_families_with_equal_options_keep_their_names(twin, tmp_path, quick_compilation):
    """Loaded, exported without the files that it came from and loaded again, each is what it was."""
    for name, lies_in in (("twin", "dense"), ("llama", "o_proj")):
        source = HFFolder(write_folder(tmp_path / name, cases.LLAMA | {"model_type": name}))
        params = load_pretrained(source, source.cfg)
        output = tmp_path / f"{name} exported"
        output.mkdir()
        write_model(output, source.cfg, tensor_reader(params, source.cfg), like=None)
        written = json.loads((output / "config.json").read_text())
        assert written["model_type"] == name
        assert written["architectures"] == [FAMILIES[name].architecture]
        again = HFFolder(output)
        assert again.cfg == source.cfg and again.cfg.family == name
        assert f"model.layers.1.self_attn.{lies_in}.weight" in again.shapes
        jax.tree.map(np.testing.assert_array_equal, load_pretrained(again, again.cfg), params)


def test_without_a_name_the_options_decide(twin):
    """The first family with these options, of Hugging Face's and of a GGUF file's."""
    for name, options in {"llama": {}, "qwen2": {"qkv_bias": True}, "qwen3": {"qk_norm": True}}.items():
        assert config_json(dataclasses.replace(SMALL, **options))["model_type"] == name
        assert config_json(dataclasses.replace(SMALL, family=name, **options))["model_type"] == name
    assert config_json(dataclasses.replace(SMALL, family="twin"))["model_type"] == "twin"
    for name, varying in {"mistral": {"window": 4}, "smollm3": {"rope_layers": (0, 1)}}.items():
        assert config_json(dataclasses.replace(SMALL, **varying))["model_type"] == name
    assert family_of("", qkv_bias=True, qk_norm=True) is None


def test_a_gguf_files_family_is_the_first_of_its_name(twin, tmp_path):
    assert GGUFFile(write_gguf(tmp_path / "model.gguf", cases.LLAMA)).cfg.family == "llama"


def test_a_family_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="family='gpt2' is not known; it must be one of llama, qwen2, qwen3"):
        dataclasses.replace(SMALL, family="gpt2")
    with pytest.raises(ValueError, match="family='llama' has no rope_layers, window"):
        dataclasses.replace(SMALL, family="llama", window=4, rope_layers=(1, 0))
    with pytest.raises(ValueError, match="family='qwen2' has qkv_bias=True, not False"):
        dataclasses.replace(SMALL, family="qwen2")
    with pytest.raises(ConfigError, match="has these together: qkv_bias, qk_norm$"):
        config_json(dataclasses.replace(SMALL, qkv_bias=True, qk_norm=True))


def test_published_names():
    """What transformers calls each family's class and its configuration."""
    transformers()
    published = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    for config in cases.FAMILIES.values():
        written = config_json(parse_config(config))
        [architecture] = written["architectures"]
        assert architecture == published[written["model_type"]]
        assert written["model_type"] == config["model_type"]
