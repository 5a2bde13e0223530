"""A Hugging Face `config.json` to a ModelConfig and back. Nothing in it that changes the output is passed over.

`transformers.AutoConfig` reads the file: it takes the class of its `model_type`, fills in what is left out, and makes
one of the spellings that there are of rotary keys, layer types and sliding windows. Then each key, of the class or of
the file, is

- one that we compute with, or
- one that changes nothing in what we compute: names, training settings, how to generate, token ids (the tokenizer's
  own are used), and what begins with "_", which records how a model was loaded; or
- off (null, false, 0, empty), or has the one value that we compute with.

Any other is refused, all of them in one message. So is a key that neither the class nor `transformers` itself knows:
`transformers` reads none of those, but a key that is on was written for some program that does.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.errors import ConfigError
from rlef_jax.hugging_face import transformers
from rlef_jax.model.families import FAMILIES, Family, family_of, fields_of
from rlef_jax.model.hf_rope import read_rope, write_rope
from rlef_jax.model.transformer import ModelConfig, marked

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
# What else is read where the family's class has it, and what is read in every file.
_READ_OF_CLASS = {"sliding_window", "use_sliding_window", "layer_types", "no_rope_layers", "query_pre_attn_scalar",
                  "rope_parameters"}  # fmt: skip
_READ = {*_SIZES, "model_type", "rope_theta", "rope_scaling", "layer_types"}
_READ_OF_FAMILY = {"gemma3_text": {"rope_local_base_freq", "sliding_window_pattern"}}
# Keys that have a value where nothing is out of the ordinary.
_USUAL: dict[str, Any] = {"partial_rotary_factor": 1.0, "return_dict": True}
_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}
# What changes nothing, beside what `transformers.GenerationConfig` has.
_IGNORED = {
    "architectures", "attention_dropout", "attn_implementation", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "embd_pdrop", "eos_token_id", "finetuning_task", "id2label", "initializer_range", "is_decoder", "is_llama_config",
    "label2id", "max_window_layers", "model_max_length", "name_or_path", "no_rope_layer_interval", "num_labels",
    "output_attentions", "output_hidden_states", "pad_token_id", "prefix", "pretraining_tp", "problem_type",
    "resid_pdrop", "rope_interleaved", "sep_token_id", "task_specific_params", "tie_encoder_decoder",
    "tie_last_hidden_states", "tokenizer_class", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "unk_token_id", "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache",
}  # fmt: skip
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def read_config(path: Path) -> ModelConfig:
    """The model that a config.json describes. Raises ConfigError naming the file, the keys and what is supported."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds no JSON object")
    try:
        return parse_config(raw)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The same of a parsed file. Raises ValueError."""
    family = _family(raw)
    resolved, passed_over = _resolved(family, raw)
    values = {**raw, **resolved}
    faults, unknown = _unsupported(family, values, resolved, passed_over)
    layer_fields, layer_faults = _layers(values, resolved)
    rope, rope_faults = read_rope(
        values, nested=family.all_options["norms"] == "around", windows="window" in layer_fields
    )
    if unknown:
        reason = "keys that rlef_jax doesn't know (take out those that change nothing that the model computes)"
        rope_faults.append(f"{reason}: {', '.join(unknown)}")
    if faults := [*_not_sizes(values), *faults, *layer_faults, *rope_faults]:
        raise ValueError(f"not supported: {'; '.join(faults)}")
    sizes: dict[str, Any] = {field: values.get(key) for key, field in _SIZES.items()}
    sizes["d_head"] = sizes["d_head"] or sizes["d_model"] // sizes["n_heads"]
    scalar = values.get("query_pre_attn_scalar", sizes["d_head"]) if "query_scalar" in family.states else 0
    if scalar and scalar != sizes["d_head"]:
        layer_fields["query_scalar"] = float(scalar)
    return ModelConfig(**sizes, **rope, **layer_fields, **family.all_options, family=family.model_type)


def _family(raw: Mapping[str, Any]) -> Family:
    name = raw.get("model_type")
    if any(raw.get(key) for key in _EXPERTS) or "moe" in str(name):
        raise ValueError(f"model_type {name!r}: mixtures of experts are not supported")
    if name == "gemma3":
        raise ValueError("model_type 'gemma3' reads images too; only its text models are supported, 'gemma3_text'")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"model_type {name!r} is not supported; it must be one of {', '.join(FAMILIES)}")
    if raw.get("auto_map"):
        raise ValueError(f"auto_map={raw['auto_map']!r}: models that bring code of their own are not supported")
    return FAMILIES[name]


def _resolved(family: Family, raw: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """(the fields of transformers' class with their values, keys that change nothing). Raises ValueError."""
    raw_fields = copy.deepcopy({key: value for key, value in raw.items() if key != "model_type"})
    library = transformers()
    generation = vars(library.GenerationConfig())
    try:
        config = library.AutoConfig.for_model(family.model_type, **raw_fields)
    except Exception as error:  # whatever transformers and its validators raise
        message = " ".join(str(error).split())
        raise ValueError(f"transformers refuses it: {type(error).__name__}: {message:.300}") from error
    fields = [field.name for field in dataclasses.fields(config)]
    return {name: getattr(config, name) for name in fields}, _IGNORED | set(generation)


def _unsupported(
    family: Family, values: Mapping[str, Any], of_class: Mapping[str, Any], passed_over: set[str]
) -> tuple[list[str], list[str]]:
    """(keys that ask for what we don't compute, keys that nobody knows), each with its value."""
    activation = _ACTIVATIONS[family.all_options["activation"]]
    usual = _USUAL | {"hidden_act": activation, "hidden_activation": activation}
    read = _READ | (_READ_OF_CLASS & set(of_class)) | _READ_OF_FAMILY.get(family.model_type, set())
    faults, unknown = [], []
    for key, value in values.items():
        if key in read or key in passed_over or key.startswith("_") or not value:
            continue
        if key in usual:
            if value != usual[key]:
                faults.append(f"{key}={value!r} (only {usual[key]!r})")
        elif key in of_class or key in _MUST_BE_OFF:
            faults.append(f"{key}={value!r}")
        else:
            unknown.append(f"{key}={value!r:.80}")
    return faults, unknown


_MUST_BE_OFF = {"quantization_config", "per_layer_config", "attention_bias", "mlp_bias", "sliding_window",
                "use_sliding_window"}  # fmt: skip


def _not_sizes(values: Mapping[str, Any]) -> list[str]:
    sizes = {key: values[key] for key in _SIZES if key != "tie_word_embeddings" and values.get(key) is not None}
    return [f"{key}={value!r} (only above 0)" for key, value in sizes.items() if not 0 < value < math.inf]


def _layers(values: Mapping[str, Any], of_class: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(the fields of ModelConfig that say which layers have a window and rotary embeddings, what is not supported)."""
    count, window = values["num_hidden_layers"], of_class.get("sliding_window")
    types = values.get("layer_types") or []
    fields: dict[str, Any] = {}
    faults = [f"layer_types: {layer_type!r} (only 'full_attention', 'sliding_attention')"
              for layer_type in sorted(set(types) - {"full_attention", "sliding_attention"})]  # fmt: skip
    if types and len(types) != count:
        faults.append(f"layer_types: {len(types)} for num_hidden_layers={count}")
    slides = [kind == "sliding_attention" for kind in types] if "layer_types" in of_class else [bool(window)] * count
    if types and slides != [kind == "sliding_attention" for kind in types]:
        faults.append(f"layer_types={types!r:.80} with sliding_window={window!r}: all layers or none")
    if any(slides):
        if not window:
            faults.append(f"sliding_window={window!r} with 'sliding_attention' in layer_types")
        fields = {"window": window, "window_layers": _pattern(slides)}
    if "no_rope_layers" in of_class:
        rotary = [bool(mark) for mark in values["no_rope_layers"][:count]]
        faults += [] if len(rotary) == count else [f"no_rope_layers: {len(rotary)} for num_hidden_layers={count}"]
        fields["rope_layers"] = _pattern(rotary)
    return fields, faults


def _pattern(marks: Sequence[bool]) -> tuple[int, ...]:
    """The shortest stretch that is these marks over and over; () where all are set."""
    if all(marks):
        return ()
    lengths = range(1, len(marks) + 1)
    least = next(n for n in lengths if all(mark == marks[i % n] for i, mark in enumerate(marks)))
    return tuple(int(mark) for mark in marks[:least])


def config_json(cfg: ModelConfig) -> dict[str, Any]:
    """The config.json of a model, as transformers 4 and 5 both read it.

    It names the family that the model was loaded from; where that isn't known, the first one whose models may be so.
    Raises ConfigError where there is none.
    """
    fields = fields_of(cfg)
    family = family_of(cfg.family, **fields)
    if family is None:
        unusual = ", ".join(name for name, value in fields.items() if value != ModelConfig.__dict__[name])
        raise ConfigError(f"no Hugging Face model that rlef_jax knows has these together: {unusual}")
    entries: dict[str, Any] = {"model_type": family.model_type, "architectures": [family.architecture]}
    entries |= {key: getattr(cfg, field) for key, field in _SIZES.items()}
    entries["hidden_activation" if cfg.scale_embeddings else "hidden_act"] = _ACTIVATIONS[cfg.activation]
    entries |= write_rope(cfg)
    if "query_scalar" in family.states:
        scalar = cfg.query_scalar or cfg.d_head
        entries["query_pre_attn_scalar"] = int(scalar) if scalar == int(scalar) else scalar
    return entries | _layer_entries(cfg, family)


# What a family's class would take for a model of any vocabulary, where it is an id of one published model.
_NO_PADDING = {"smollm3": {"pad_token_id": None}, "olmo2": {"pad_token_id": None}}


def _layer_entries(cfg: ModelConfig, family: Family) -> dict[str, Any]:
    """The keys of `config.json` that say which layers have a window and rotary embeddings."""
    entries: dict[str, Any] = dict(_NO_PADDING.get(family.model_type, {}))
    if "rope_layers" in family.states:
        entries["no_rope_layers"] = [int(marked(cfg.rope_layers, layer)) for layer in range(cfg.n_layers)]
    if family.model_type in ("mistral", "gemma3_text") or cfg.window:
        entries["sliding_window"] = cfg.window or None
    if "window_layers" in family.states and (cfg.window or family.model_type == "gemma3_text"):
        slides = [bool(cfg.window) and marked(cfg.window_layers, layer) for layer in range(cfg.n_layers)]
        entries["layer_types"] = ["sliding_attention" if slide else "full_attention" for slide in slides]
        entries |= {} if family.model_type == "gemma3_text" else {"use_sliding_window": bool(cfg.window)}
    return entries
