"""Model families as data: what a family's published files are called, and which options its models have.

To add a family whose layers compute what we compute already, add its record to `FAMILIES` (docs/models.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of models.

    Attributes:
      model_type: its name in a Hugging Face `config.json`, and `config.model.family`.
      architecture: the class in `transformers`, which `config.json` names too.
      gguf: its name in a GGUF file (`general.architecture`).
      qkv_bias: the projections to queries, keys and values have biases.
      qk_norm: the heads of queries and keys are normalised.
      required: keys that a `config.json` must state: what transformers takes in their place is the number of one
        published model.
      idle_window: a `config.json` may name a sliding window, which `use_sliding_window` switches off. In other
        families' files a window that is named is on.
      gguf_interleaved: GGUF files hold the rows of each query and key head in llama.cpp's order, which rotates
        neighbouring channels.
      renamed: names of tensors in Hugging Face files where they differ from Llama's, by Llama's (as in
        `parameters.describe`, with {layer} for the layer's number).
    """

    model_type: str
    architecture: str
    gguf: str
    qkv_bias: bool = False
    qk_norm: bool = False
    required: frozenset[str] = frozenset()
    idle_window: bool = False
    gguf_interleaved: bool = False
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)


# By model_type. Of families with equal options the first is the one that a model of unknown family is exported as.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("llama", "LlamaForCausalLM", "llama", gguf_interleaved=True),
        Family(
            "qwen2", "Qwen2ForCausalLM", "qwen2", qkv_bias=True, idle_window=True,
            required=frozenset({"num_key_value_heads"}),
        ),
        Family(
            "qwen3", "Qwen3ForCausalLM", "qwen3", qk_norm=True, idle_window=True,
            required=frozenset({"num_key_value_heads", "head_dim"}),
        ),
    )
}  # fmt: skip


def family_of(name: str, *, qkv_bias: bool, qk_norm: bool) -> Family | None:
    """The family of that name; without a name the first one with these options, None where there is none.

    Raises ValueError for a name that isn't known, or whose family has other options.
    """
    options = {"qkv_bias": qkv_bias, "qk_norm": qk_norm}
    if not name:
        return next((f for f in FAMILIES.values() if (f.qkv_bias, f.qk_norm) == (qkv_bias, qk_norm)), None)
    if name not in FAMILIES:
        raise ValueError(f"family={name!r} is not known; it must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for option, value in options.items():
        if getattr(family, option) != value:
            raise ValueError(f"family={name!r} has {option}={getattr(family, option)}, not {value}")
    return family
