"""config.json: what is read as transformers reads it, what is passed over, what is refused, and what is written."""

from __future__ import annotations

import json

import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.model.hf_config import config_json, parse_config, read_config
from rlef_jax.model.parameters import count_params
from rlef_jax.model.rope import LayerKind, LinearScaling, RopeScaling, YarnScaling
from rlef_jax.model.transformer import ModelConfig
from tests.parity import cases

GEMMA3, MISTRAL, SMOLLM3 = (cases.FAMILIES[name] for name in ("gemma3_text", "mistral", "smollm3"))
QWEN2 = cases.FAMILIES["qwen2"]


def read(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; it must be one of llama, qwen2, qwen3, mistral"),
        ({"model_type": "qwen3_moe"}, "model_type 'qwen3_moe': mixtures of experts are not supported"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "mixtures of experts are not supported"),
        ({"model_type": "gemma3"}, "only its text models are supported, 'gemma3_text'"),
        ({"auto_map": {"AutoConfig": "c.C"}}, "auto_map=.*models that bring code of their own are not supported"),
        ({"hidden_act": "gelu"}, "not supported: hidden_act='gelu' \\(only 'silu'\\)"),
        ({"attention_bias": True}, "not supported: attention_bias=True"),
        ({"mlp_bias": True}, "not supported: mlp_bias=True"),
        ({"sliding_window": 4096}, "not supported: sliding_window=4096"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types=.*: all layers or none"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types: 'linear_attention' \\(only"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 \\(only 1.0\\)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic' \\(only 'default', 'linear', 'll"),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "transformers refuses it: .*low_freq_factor"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor=2.0 with rope_type 'default'"),
        ({"rope_scaling": cases.SCALING | {"beta": 1.0}}, "beta=1.0 with rope_type 'llama3'"),
        ({"residual_multiplier": 0.2}, "keys that rlef_jax doesn't know .*: residual_multiplier=0.2"),
        ({"model_type": ["llama"]}, "model_type \\['llama'\\] is not supported"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0 \\(only above 0\\)"),
        ({"rope_scaling": {"type": "linear", "factor": [4]}}, "factor=\\[4\\] \\(only a number above 0\\)"),
        ({"rope_theta": "much"}, "rope_theta='much' \\(only a number above 0\\)"),
        ({"hidden_size": None}, "transformers refuses it: .*hidden_size"),
        ({"num_key_value_heads": 3}, "n_heads=4 must be a multiple of n_kv_heads=3"),
        (QWEN2 | {"dual_chunk_attention_config": {"chunk_size": 4}}, "know .*dual_chunk_attention_config"),
        (QWEN2 | {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window=None with 'sliding_atten"),
        (SMOLLM3 | {"no_rope_layers": [1]}, "transformers refuses it|no_rope_layers: 1 for num_hidden_layers=2"),
        (GEMMA3 | {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        (GEMMA3 | {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        (GEMMA3 | {"hidden_activation": "gelu"}, "hidden_activation='gelu' \\(only 'gelu_pytorch_tanh'\\)"),
    ],
)
def test_what_we_do_not_compute_is_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"config\.json: .*{message}"):
        read(tmp_path, cases.LLAMA | changes if "hidden_activation" not in changes else changes)


def test_all_that_is_refused_is_in_one_message(tmp_path):
    changes = {"mlp_bias": True, "alibi": True, "hidden_act": "relu", "position_note": [1],
               "rope_scaling": {"type": "dynamic", "factor": 2.0}}  # fmt: skip
    with pytest.raises(ConfigError) as error:
        read(tmp_path, cases.LLAMA | changes)
    named = ("mlp_bias=True", "hidden_act='relu'", "rope_type='dynamic'", "alibi=True", "position_note=[1]")
    assert all(name in str(error.value) for name in named) and "\n" not in str(error.value)


def test_keys_that_change_nothing_are_passed_over(capfd):
    """Among them what old versions of transformers saved of their defaults, and how to generate. No message either."""
    changes = {
        "layer_types": ["full_attention"] * 2, "torch_dtype": "bfloat16", "pretraining_tp": 2, "unheard_of": None,
        "bos_token_id": 1, "_name_or_path": "x", "_commit_hash": "abc", "max_length": 20, "top_k": 50, "top_p": 0.9,
        "do_sample": True, "temperature": 0.6, "tokenizer_class": "T", "model_max_length": 4096,
        "output_attentions": True, "output_hidden_states": True, "return_dict": True, "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0}, "num_beams": 4, "encoder_no_repeat_ngram_size": 0, "chunk_size_feed_forward": 0,
        "cache_implementation": "hybrid", "attention_dropout": 0.1, "is_decoder": True, "pruned_heads": {},
    }  # fmt: skip
    assert parse_config(cases.LLAMA | changes) == parse_config(cases.LLAMA)
    assert parse_config(cases.LLAMA | {"rope_scaling": cases.YARN | {"factor": 3.0}}).rope_scaling.factor == 3.0
    assert capfd.readouterr() == ("", "")


def test_what_a_file_leaves_out_is_the_classes():
    """As transformers fills it in."""
    bare = {"vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 8}
    cfg = parse_config({"model_type": "llama", **bare})
    assert (cfg.n_kv_heads, cfg.d_head, cfg.d_ff, cfg.norm_eps, cfg.tie_embeddings) == (8, 4, 11008, 1e-6, False)
    assert parse_config({"model_type": "mistral", **bare}).window == 4096
    cfg = parse_config({"model_type": "smollm3", **bare})
    assert (cfg.rope_theta, cfg.rope_layers, cfg.tie_embeddings) == (2e6, (1, 1, 1, 0), True)
    cfg = parse_config({"model_type": "gemma3_text", **bare, "num_hidden_layers": 12})
    assert (cfg.rope_theta, cfg.window_rope_theta, cfg.window) == (1e6, 1e4, 4096)
    assert (cfg.d_head, cfg.query_scalar, cfg.window_layers) == (256, 0.0, (1, 1, 1, 1, 1, 0))


# What else published files hold, in short.
_FILE = {"bos_token_id": 1, "eos_token_id": [1, 106], "initializer_range": 0.02, "torch_dtype": "bfloat16",
         "transformers_version": "4.50.0.dev0", "use_cache": True, "attention_dropout": 0.0}  # fmt: skip
PUBLISHED = {
    "gemma-3-1b": (999_885_952, {
        "model_type": "gemma3_text", "attn_logit_softcapping": None, "cache_implementation": "hybrid", "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
        "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256,
        "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "vocab_size": 262144,
    }),
    "SmolLM3-3B": (3_075_098_624, {
        "model_type": "smollm3", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "layer_types": ["full_attention"] * 36, "max_window_layers": 28, "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16, "num_key_value_heads": 4, "pretraining_tp": 2,
        "rope_theta": 5000000.0, "use_sliding_window": False, "vocab_size": 128256,
    }),
    "OLMo-2-0425-1B": (1_484_916_736, {
        "model_type": "olmo2", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
        "num_hidden_layers": 16, "pad_token_id": 100277, "rope_theta": 500000, "vocab_size": 100352,
    }),
    "Mistral-7B-v0.1": (7_241_732_096, {
        "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "sliding_window": 4096,
        "vocab_size": 32000,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_as_many_parameters_as_published(name):
    count, config = PUBLISHED[name]
    assert count_params(parse_config(config | _FILE)) == count


@pytest.mark.parametrize(
    "changes, theta, scaling",
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 500.0, None),
        ({"rope_parameters": {**cases.SCALING, "rope_theta": 500.0}}, 500.0, RopeScaling(8.0, 1.0, 4.0, 32.0)),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, 100.0, LinearScaling(4.0)),
        ({"rope_scaling": cases.ROPES["yarn betas"]}, 100.0, YarnScaling(4.0, 32.0, 4.0, 0.5, 1.138629436111989, 1.0)),
    ],
)
def test_rotary_keys_of_either_spelling(changes, theta, scaling):
    """What is in rope_parameters counts, where rope_theta (100) is beside it."""
    cfg = parse_config(cases.LLAMA | changes)
    assert (cfg.rope_theta, cfg.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize(
    "config, window, layers",
    [
        (MISTRAL, 10, ()),
        (MISTRAL | {"sliding_window": None}, 0, ()),
        (QWEN2 | {"sliding_window": 10, "max_window_layers": 0}, 0, ()),  # switched off
        (QWEN2 | {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 2}, 0, ()),  # past the layers
        (QWEN2 | {"use_sliding_window": True, "sliding_window": 10, "max_window_layers": 1}, 10, (0, 1)),
        (SMOLLM3 | {"use_sliding_window": True, "sliding_window": 10}, 10, (0, 1)),
        (GEMMA3 | {"layer_types": ["full_attention", "sliding_attention"]}, 10, (0, 1)),
    ],
)
def test_windows_are_those_of_transformers(config, window, layers):
    cfg = parse_config(config)
    assert (cfg.window, cfg.window_layers) == (window, layers)
    assert parse_config(config_json(cfg)) == cfg


def test_each_layer_is_of_its_kind():
    cfg = parse_config(GEMMA3 | {"num_hidden_layers": 5})
    near, far = LayerKind(20.0, None, 10), LayerKind(1000.0, LinearScaling(4.0))
    assert cfg.layer_kinds == (near, far, near, far, near)
    short = ModelConfig(**cfg.__dict__ | {"max_positions": 10})
    assert short.layer_kinds[0] == LayerKind(20.0, None, 0)  # the window holds every row
    turned = LayerKind(100.0, None)
    assert parse_config(SMOLLM3).layer_kinds == (turned, turned._replace(rotary=False))


def test_a_config_is_written_as_it_is_read():
    for config in cases.FAMILIES.values():
        assert parse_config(config_json(parse_config(config))) == parse_config(config)
    small = ModelConfig(vocab_size=5, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, d_head=8, d_ff=8)
    for scaling, message in (
        (RopeScaling(8.0, 4.0, 1.0, 32.0), "low_freq_factor must be below"),
        (YarnScaling(4.0, 32.0, 1.0, 4.0, 1.0, 1.0), "beta_slow must be below"),
        (LinearScaling(0.0), "factor must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ModelConfig(**small.__dict__ | {"rope_scaling": scaling})
