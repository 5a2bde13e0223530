"""Which keys of the model section a folder or GGUF file decides, and what happens where they were set."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError
from rlef_jax.model.hf_config import parse_config
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.weights import load_params, model_config, save_params
from rlef_jax.training.build import build_mesh, build_policy, build_sampling_programs, with_model_shape
from tests.helpers.byte_bpe import TEMPLATES, byte_bpe, write_tokenizer
from tests.helpers.hf_folder import write_folder
from tests.parity import cases

VOCAB = 640  # more rows than the tokenizer has ids, as Qwen's
MODEL = cases.FAMILIES["qwen2"] | {"vocab_size": VOCAB, "rope_scaling": cases.SCALING}


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path / "model", TEMPLATES["chatml"])
    return write_folder(tmp_path / "model", MODEL)


def configured(**model):
    return config_lib.load("configs/tiny.py", overrides={f"model.{key}": value for key, value in model.items()})


def test_a_folder_fills_the_shape_and_the_tokenizer(folder):
    config = with_model_shape(configured(init=str(folder)))
    m = config.model
    assert (m.vocab_size, m.d_model, m.n_layers, m.n_heads, m.n_kv_heads, m.d_head, m.d_ff) == (640, 32, 2, 4, 2, 8, 48)
    assert (m.rope_theta, m.norm_eps, m.tie_embeddings, m.qkv_bias, m.qk_norm) == (100.0, 1e-5, True, True, False)
    assert m.rope_scaling == (8.0, 1.0, 4.0, 32.0) and m.tokenizer == str(folder)
    assert with_model_shape(config).to_dict() == config.to_dict()
    config_lib.check(config)
    untouched = configured()
    assert with_model_shape(untouched) is untouched


def test_a_run_can_go_on_from_what_it_saved(folder, tmp_path):
    config = with_model_shape(configured(init=str(folder)))
    config_lib.save(config, tmp_path)
    again = config_lib.load_saved(tmp_path)
    assert with_model_shape(again).to_dict() == config.to_dict()
    policy = build_policy(again)
    # Its policy.npz needs no folder: the saved keys are the model.
    save_params(tmp_path / "policy.npz", policy.params)
    again.model.init = str(tmp_path / "policy.npz")
    from_file = build_policy(again)
    assert from_file.cfg == policy.cfg and (policy.cfg.vocab_size, policy.cfg.family) == (VOCAB, "qwen2")
    jax.tree.map(np.testing.assert_array_equal, policy.params, from_file.params)
    with pytest.raises(ConfigError, match="missing or unexpected|the config's model needs"):
        load_params(tmp_path / "policy.npz", build_policy(configured()).cfg)


def test_a_saved_run_has_all_of_a_familys_options(folder, tmp_path):
    """Every option and pattern of layers survives the run's config.json."""
    write_folder(folder, cases.GEMMA3 | {"vocab_size": VOCAB})
    config = with_model_shape(configured(init=str(folder)))
    config_lib.save(config, tmp_path)
    again = config_lib.load_saved(tmp_path)
    assert again.to_dict() == config.to_dict()
    m = again.model
    assert (m.window, m.window_layers, m.window_rope_theta, m.query_scalar) == (10, (1, 0), 20.0, 24.0)
    assert (m.norms, m.norm_plus_one, m.activation, m.scale_embeddings) == ("around", True, "gelu_tanh", True)
    cfg = parse_config(cases.GEMMA3 | {"vocab_size": VOCAB})
    assert dataclasses.replace(model_config(m, VOCAB, 256), max_positions=cfg.max_positions) == cfg


def test_a_key_that_was_set_must_agree(folder):
    assert (
        with_model_shape(configured(init=str(folder), d_model=32, rope_scaling=(8.0, 1.0, 4.0, 32.0))).model.d_ff == 48
    )
    with pytest.raises(
        ConfigError, match=r"config\.model\.d_model: 64 was set, .*model has 32: leave it out\nconfig\.m"
    ):
        with_model_shape(configured(init=str(folder), d_model=64, rope_theta=5.0))
    with pytest.raises(ConfigError, match=r"config\.model\.rope_scaling: \(4\.0, .* was set"):
        build_policy(configured(init=str(folder), rope_scaling=(4.0, 1.0, 4.0, 32.0)))


def test_the_policy_is_the_folders(folder):
    config = configured(init=str(folder))
    policy = build_policy(config, build_mesh(config))
    assert policy.cfg.max_positions == 256 and policy.cfg.vocab_size == VOCAB
    assert policy.chat.tokenizer.encode("for x in y") == byte_bpe().encode("for x in y").ids
    assert policy.params["layers"]["qkv"].sharding.mesh.axis_names == ("data", "fsdp", "tensor")


def test_rows_longer_than_the_model_was_made_for_are_refused(folder):
    config = configured(init=str(folder))
    config.episode.context, config.ppo.buckets = 512, (512,)
    with pytest.raises(ConfigError, match=r"config\.episode\.context: 512 tokens; the model in .* was made for 256"):
        build_policy(config)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(folder):
    changed = json.loads((folder / "config.json").read_text()) | {"vocab_size": 100}
    write_folder(folder, changed)
    with pytest.raises(ConfigError, match=r"config\.model\.vocab_size: 100 rows of the embedding are fewer than"):
        build_policy(configured(init=str(folder)))


def test_scalings_that_are_none_are_refused():
    for wrong in ((8.0, 1.0), (8.0, 4.0, 1.0, 32.0), (0.0, 1.0, 4.0, 32.0)):
        with pytest.raises(ConfigError, match=r"config\.model\.rope_scaling: four numbers above 0"):
            configured(rope_scaling=wrong)


def test_the_samplers_memory_is_as_many_pages_as_it_holds():
    """8B: 128 KiB a token, so 40 GiB are 5,120 pages of 64; 0 is what all rows need; too little says what to do."""
    config = config_lib.load("configs/llama31_8b.py")
    cfg = model_config(config.model, 128_256, config.episode.context)

    def pages(**keys):
        changed = config_lib.load(
            "configs/llama31_8b.py", overrides={f"sampling.{key}": value for key, value in keys.items()}
        )
        return build_sampling_programs(changed, cfg, make_mesh(), 2).pages

    assert pages() == 5120 and pages(page_slots=128) == 2560
    assert pages(cache_gib=0.0, rows=8) == 8 * 8192 // 64
    assert pages(cache_gib=1.0) == 128  # one dialogue of 8,192 tokens
    message = r"config.sampling.cache_gib: 0.5 GiB can't hold .* episode.context=8192 tokens: raise it to 1.0 or more"
    with pytest.raises(ConfigError, match=message):
        pages(cache_gib=0.5)
