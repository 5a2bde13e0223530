"""Folders as PEFT has them: written, read back, checked against PEFT's own arithmetic in NumPy, and refused."""

import dataclasses
import hashlib
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from rlef_jax.errors import ConfigError
from rlef_jax.model.hf_export import tensor_reader
from rlef_jax.model.lora import LoraConfig, split
from rlef_jax.model.parameters import adapter_tensors, file_tensors, with_adapters
from rlef_jax.model.peft_folder import CONFIG, TENSORS, read_adapters, write_adapters
from rlef_jax.model.pretrained import HFFolder, load_pretrained
from rlef_jax.model.safetensors_file import write_safetensors
from rlef_jax.model.transformer import ModelConfig
from rlef_jax.model.weights import path_of
from tests.helpers.hf_folder import write_folder
from tests.model.test_lora import ALL, SOME, random_params
from tests.model.test_pretrained_families import REFERENCE, logits_of
from tests.parity import cases


@pytest.fixture(scope="module", autouse=True)
def quickly(quick_compilation):
    """All tests here compile much and compute little."""


@pytest.fixture(params=[ALL, SOME], ids=["all", "some"])
def written(request, tmp_path):
    params = random_params(request.param)
    write_adapters(tmp_path, params, request.param, "me/base")
    return request.param, params, tmp_path


@pytest.mark.parametrize("name", cases.LORA)
def test_logits_are_pefts(name, tmp_path):
    """Of adapters that `peft` itself named and ran (`make golden`, or live: `make parity`)."""
    with np.load(REFERENCE / "lora.npz") as stored:
        expected, names = stored[name], stored[f"{name} names"].tolist()
    config, lora = cases.LORA[name]
    weights = HFFolder(write_folder(tmp_path / "base", config))
    layers = len(lora.get("layers_to_transform", []))
    ours = LoraConfig(lora["r"], lora["lora_alpha"], tuple(lora["target_modules"]), layers)
    cfg = dataclasses.replace(weights.cfg, lora=ours)
    shapes = {name: place.tensor.shape for name, place in adapter_tensors(cfg).items()}
    assert sorted(shapes) == names
    write_safetensors(
        tmp_path / TENSORS, {n: ("F32", s) for n, s in shapes.items()}, lambda n: cases.tensor(n, shapes[n])
    )
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", **lora}))
    params = with_adapters(load_pretrained(weights, weights.cfg), read_adapters(tmp_path, cfg))
    found = logits_of(cfg, params)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    assert np.abs(found - logits_of(weights.cfg, params)).max() > 0.5


def test_what_is_written_is_read(written):
    cfg, params, folder = written
    found = read_adapters(folder, cfg)
    expected = split(params["layers"])[1]
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
        assert array.dtype == expected[name].dtype
    config = json.loads((folder / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 6.0, "me/base")
    assert tuple(config["target_modules"]) == cfg.lora.targets
    assert config["layers_to_transform"] == (None if cfg is ALL else [1])


def test_the_files_are_what_peft_adds_to_the_bases(written):
    """W + (lora_alpha / r) B A for each tensor of the base's file is the tensor of the merged model's file."""
    cfg, params, folder = written
    base, merged = tensor_reader(params, cfg.base), tensor_reader(params, cfg)
    stored = safetensors.numpy.load_file(folder / TENSORS)
    config, adapted = json.loads((folder / CONFIG).read_text()), 0
    for name in file_tensors(cfg):
        tensor = base(name).astype(np.float64)
        place = "base_model.model." + name.removesuffix(".weight")
        if f"{place}.lora_A.weight" in stored:
            a, b = (stored.pop(f"{place}.lora_{factor}.weight").astype(np.float64) for factor in "AB")
            tensor += config["lora_alpha"] / config["r"] * (b @ a)
            adapted += 1
        np.testing.assert_allclose(merged(name), tensor, atol=1e-5, err_msg=name)
    assert not stored and adapted == (14 if cfg is ALL else 3)


def test_what_is_no_folder_of_these_adapters_is_refused(tmp_path):
    params = random_params(SOME)
    write_adapters(tmp_path, params, SOME)
    for lora, words in (
        (dataclasses.replace(SOME.lora, rank=3), "lora_rank: 3 is set, .* have 2"),
        (dataclasses.replace(SOME.lora, alpha=3.0), "lora_alpha: 3.0 is set, .* have 6.0"),
        (dataclasses.replace(SOME.lora, layers=0), "6 tensors missing, such as .*layers.0.self_attn.k_proj.lora_A"),
        (LoraConfig(2, 6.0, ("k_proj",), 1), "4 tensors not of this model's adapters"),
        (None, "needs config.model.lora_rank"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_adapters(tmp_path, dataclasses.replace(SOME, lora=lora))
    with pytest.raises(ConfigError, match="of another shape"):
        read_adapters(tmp_path, dataclasses.replace(SOME, d_ff=8))
    config = json.loads((tmp_path / CONFIG).read_text())
    for key, value in (("use_dora", True), ("bias", "all"), ("rank_pattern", {"q_proj": 4})):
        (tmp_path / CONFIG).write_text(json.dumps(config | {key: value}))
        with pytest.raises(ConfigError, match=f"has {key}="):
            read_adapters(tmp_path, SOME)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ConfigError, match="can't be read as PEFT's"):
        read_adapters(tmp_path, SOME)


def test_numbers_that_are_none_are_refused(tmp_path):
    params = random_params(SOME)
    broken = params | {"layers": params["layers"] | {"k_proj_b": params["layers"]["k_proj_b"].at[0, 0].set(np.nan)}}
    with pytest.raises(ConfigError, match=r"k_proj.lora_B.weight holds nan"):
        write_adapters(tmp_path, broken, SOME)
    assert not list(tmp_path.glob("*.json"))
    large = params | {
        "layers": params["layers"] | {"k_proj_b": 1e30 * jax.numpy.ones_like(params["layers"]["k_proj_b"])}
    }
    write_adapters(tmp_path, large, SOME)
    read_adapters(tmp_path, SOME, (ml_dtypes.bfloat16,))
    with pytest.raises(ConfigError, match="float16 can't hold"):
        read_adapters(tmp_path, SOME, (np.float16,))


def test_the_shipped_adapters_of_smollm2_are_the_recorded_ones():
    """In SmolLM2-135M's shape, without its weights."""
    cfg = ModelConfig(
        vocab_size=49152, d_model=576, n_layers=30, n_heads=9, n_kv_heads=3, d_head=64, d_ff=1536,
        lora=LoraConfig(16, 32.0, layers=10),
    )  # fmt: skip
    folder = path_of("package:smollm2_warm_start")
    assert (folder / TENSORS).stat().st_size <= 8_000_000
    record = json.loads((folder / "made_by.json").read_text())
    assert hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest() == record["sha256"]
    adapters = read_adapters(folder, cfg)
    assert sum(a.size for a in adapters.values()) == 1_628_160
    assert all(float(np.abs(a).max()) > 1e-3 for a in adapters.values())  # both halves have learned something
