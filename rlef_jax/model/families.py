"""Model families as data: what a family's published files are called, and which options its models have.

To add a family whose layers compute what we compute already, add its record to `FAMILIES` (docs/models.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Fields of ModelConfig that all models of a family have alike, with what they are unless `Family.options` says more.
OPTIONS: dict[str, Any] = {
    "qkv_bias": False,
    "qk_norm": False,
    "qk_norm_whole": False,
    "norms": "before",
    "norm_plus_one": False,
    "activation": "silu",
    "scale_embeddings": False,
}
# Fields that differ from model to model and that not every family's `config.json` can state (`Family.states`).
VARYING: dict[str, Any] = {
    "window": 0,
    "window_layers": (),
    "window_rope_theta": 0.0,
    "rope_layers": (),
    "query_scalar": 0.0,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
      model_type: its name in a Hugging Face `config.json`, and `config.model.family`.
      architecture: the class in `transformers`, which `config.json` names too.
      gguf: its name in a GGUF file (`general.architecture`); "" where such files aren't read.
      options: the `OPTIONS` that aren't as usual.
      states: the `VARYING` fields that its `config.json` can state.
      gguf_interleaved: GGUF files hold the rows of each query and key head in llama.cpp's order, which rotates
        neighbouring channels.
      renamed: names of tensors in Hugging Face files where they differ from Llama's, by Llama's (as in
        `parameters.describe`, with {layer} for the layer's number).
    """

    model_type: str
    architecture: str
    gguf: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    states: frozenset[str] = frozenset()
    gguf_interleaved: bool = False
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def all_options(self) -> dict[str, Any]:
        """Each of `OPTIONS` as this family has it."""
        return {**OPTIONS, **self.options}


_WINDOWS = frozenset({"window", "window_layers"})

# By model_type. Of families with equal options the first is the one that a model of unknown family is exported as.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", "llama", gguf_interleaved=True),
        Family("qwen2", "Qwen2ForCausalLM", "qwen2", {"qkv_bias": True}, _WINDOWS),
        Family("qwen3", "Qwen3ForCausalLM", "qwen3", {"qk_norm": True}, _WINDOWS),
        Family("mistral", "MistralForCausalLM", states=frozenset({"window"})),
        Family("smollm3", "SmolLM3ForCausalLM", states=_WINDOWS | {"rope_layers"}),
        Family(
            "olmo2", "Olmo2ForCausalLM", options={"qk_norm": True, "qk_norm_whole": True, "norms": "after"},
        ),
        Family(
            "gemma3_text", "Gemma3ForCausalLM", states=_WINDOWS | {"window_rope_theta", "query_scalar"},
            options={
                "qk_norm": True, "norms": "around", "norm_plus_one": True, "activation": "gelu_tanh",
                "scale_embeddings": True,
            },
        ),
    )
}  # fmt: skip


def fields_of(cfg: Any) -> dict[str, Any]:
    """What of a ModelConfig tells families apart: {name: value} of `OPTIONS` and `VARYING`."""
    return {name: getattr(cfg, name) for name in (*OPTIONS, *VARYING)}


def family_of(name: str, **fields: Any) -> Family | None:
    """The family of that name; without a name the first one whose models may be so, None where there is none.

    Args:
      name: a model_type, or "".
      fields: of a ModelConfig (`fields_of`); those that are left out are as usual.

    Raises ValueError for a name that isn't known, or whose family's models aren't so.
    """
    options = {option: fields.get(option, usual) for option, usual in OPTIONS.items()}
    stated = {field for field, usual in VARYING.items() if fields.get(field, usual) != usual}
    if not name:
        return next((f for f in FAMILIES.values() if f.all_options == options and stated <= f.states), None)
    if name not in FAMILIES:
        raise ValueError(f"family={name!r} is not known; it must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for option, value in options.items():
        if family.all_options[option] != value:
            raise ValueError(f"family={name!r} has {option}={family.all_options[option]!r}, not {value!r}")
    if odd := sorted(stated - family.states):
        raise ValueError(f"family={name!r} has no {', '.join(odd)}")
    return family
