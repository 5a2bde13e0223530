"""A Hugging Face `config.json` to a ModelConfig and back. Nothing in it that changes the output is passed over.

Each key is read, or must have the one value that we compute with, or is known to change nothing; any other key is
refused unless it is off (null, false, 0, empty). Both spellings of the rotary keys are understood: `rope_theta` and
`rope_scaling` (transformers 4), `rope_parameters` (5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlef_jax.errors import ConfigError
from rlef_jax.model.families import FAMILIES, Family, family_of
from rlef_jax.model.transformer import ModelConfig, RopeScaling

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "d_head",
    "intermediate_size": "d_ff",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_embeddings",
    "max_position_embeddings": "max_positions",
}
_READ = {*_SIZES, "model_type", "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "sliding_window",
         "max_window_layers"}  # fmt: skip
# What transformers takes where the file says nothing (but see `Family.required`).
_DEFAULTS: dict[str, Any] = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}
# Keys with the only value that we compute with.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
# Keys that change nothing in what we compute: names, training settings, token ids (the tokenizer's own are used).
_IGNORED = {
    "_name_or_path", "architectures", "attention_dropout", "attn_implementation", "_attn_implementation_autoset",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "dtype", "torch_dtype", "initializer_range",
    "is_llama_config", "pretraining_tp", "rope_interleaved", "transformers_version", "transformers.js_config",
    "use_cache", "unsloth_version", "unsloth_fixed",
}  # fmt: skip
_ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # RopeScaling's


def read_config(path: Path) -> ModelConfig:
    """The model that a config.json describes. Raises ConfigError naming the file, the key and what is supported."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: holds no JSON object")
    try:
        return parse_config(given)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(given: Mapping[str, Any]) -> ModelConfig:
    """The same of a parsed file. Raises ValueError."""
    name = given.get("model_type")
    if name not in FAMILIES:
        raise ValueError(f"model_type {name!r} is not supported; it must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    _refuse_unsupported(given, family)
    values = {**_DEFAULTS, **{key: given[key] for key in _SIZES if given.get(key) is not None}}
    optional = {"head_dim", "num_key_value_heads"} - family.required
    if lacking := sorted(set(_SIZES) - set(values) - optional):
        raise ValueError(f"{', '.join(lacking)} missing")
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    values.setdefault("head_dim", values["hidden_size"] // values["num_attention_heads"])
    theta, scaling = _rope(given)
    sizes = {field: values[key] for key, field in _SIZES.items()}
    return ModelConfig(
        **sizes, rope_theta=theta, rope_scaling=scaling,
        qkv_bias=family.qkv_bias, qk_norm=family.qk_norm, family=family.model_type,
    )  # fmt: skip


def _refuse_unsupported(given: Mapping[str, Any], family: Family) -> None:
    for key, value in given.items():
        if key in _FIXED and value not in (None, _FIXED[key]):
            raise ValueError(f"{key}={value!r} is not supported, only {_FIXED[key]!r}")
        if key not in _READ and key not in _FIXED and key not in _IGNORED and value:
            raise ValueError(
                f"{key}={value!r} is a key that rlef_jax doesn't know; if it changes nothing that the model computes,"
                " take it out of the file"
            )
    if odd := set(given.get("layer_types") or ()) - {"full_attention"}:
        raise ValueError(f"layer_types: {odd.pop()!r} is not supported, only 'full_attention'")
    if not family.idle_window and given.get("sliding_window") is not None:
        raise ValueError(f"sliding_window={given['sliding_window']!r} is not supported")


def _rope(given: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling)."""
    rope = {**(given.get("rope_scaling") or {}), **(given.get("rope_parameters") or {})}
    theta = float(rope.pop("rope_theta", None) or given.get("rope_theta") or 10000.0)
    old_name, new_name = rope.pop("type", None), rope.pop("rope_type", None)
    kind = new_name or old_name or "default"
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope_type {kind!r} is not supported, only 'default' and 'llama3'")
    if (share := rope.pop("partial_rotary_factor", None)) not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor={share!r} is not supported, only 1.0")
    if odd := sorted(set(rope) - set(_ROPE_KEYS if kind == "llama3" else ())):
        raise ValueError(f"rope parameters: {', '.join(odd)} not known for rope_type {kind!r}")
    if kind == "default":
        return theta, None
    if lacking := [key for key in _ROPE_KEYS if key not in rope]:
        raise ValueError(f"rope_type 'llama3' needs {', '.join(lacking)}")
    return theta, RopeScaling(*(float(rope[key]) for key in _ROPE_KEYS))


def config_json(cfg: ModelConfig) -> dict[str, Any]:
    """The config.json of a model, as transformers 4 and 5 both read it.

    It names the family that the model was loaded from; where that isn't known, the first one with its options. Raises
    ConfigError where there is none.
    """
    family = family_of(cfg.family, qkv_bias=cfg.qkv_bias, qk_norm=cfg.qk_norm)
    if family is None:
        raise ConfigError(
            "no Hugging Face model that rlef_jax knows has both qkv_bias and qk_norm: set one of them off"
        )
    written: dict[str, Any] = {"model_type": family.model_type, "architectures": [family.architecture]}
    written |= {key: getattr(cfg, field) for key, field in _SIZES.items()}
    written |= {"hidden_act": "silu", "rope_theta": cfg.rope_theta}
    if cfg.rope_scaling is not None:
        factor, low, high, original = cfg.rope_scaling
        written["rope_scaling"] = {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": int(original),
        }  # fmt: skip
    return written
