"""A GGUF file as the Hugging Face folder that it was made from: its config, and its tensors by their names there.

Quantized tensors are dequantized to float32 when they are read. llama.cpp rotates neighbouring channels, so in files of
the `llama` architecture the rows of q and k lie in another order: that is undone here. (Qwen's are not reordered.)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rlef_jax.errors import ConfigError
from rlef_jax.model.hf_config import FAMILIES
from rlef_jax.model.transformer import ModelConfig, RopeScaling, rope_frequencies

_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_ROPE_FACTORS = "rope_freqs.weight"
# A file holds the scaled frequencies, not what they were made from: these are the scalings that were ever published.
_KNOWN_SCALINGS = (RopeScaling(8.0, 1.0, 4.0, 8192.0), RopeScaling(32.0, 1.0, 4.0, 8192.0))


class GGUFFile:
    """Weights in a .gguf file.

    Attributes:
      path: the file.
      cfg: the model.
      shapes, dtypes: of each tensor by its Hugging Face name; every dtype is "F32", what `read` gives.

    Raises ConfigError for a file that isn't GGUF, or a model that isn't supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ConfigError(f"{path}: cannot be read as GGUF: {error}") from error
        self._tensors = {_hf_name(tensor.name): tensor for tensor in self.reader.tensors}
        factors = self._tensors.pop(_ROPE_FACTORS, None)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(int(n) for n in tensor.shape[::-1]) for name, tensor in self._tensors.items()
        }
        self.dtypes: Mapping[str, str] = dict.fromkeys(self.shapes, "F32")
        self._kind = self.field("general.architecture")
        if self._kind not in FAMILIES:
            raise ConfigError(
                f"{path}: architecture {self._kind!r} is not supported; it must be one of {', '.join(FAMILIES)}"
            )
        self.cfg = self._config(None if factors is None else np.asarray(factors.data, np.float64))

    def field(self, key: str, default: Any = None) -> Any:
        """A value of the file's metadata; `default` where it has none."""
        field = self.reader.get_field(key)
        return default if field is None else field.contents()

    def read(self, name: str) -> np.ndarray:
        """A tensor, float32, as the Hugging Face folder has it."""
        tensor = self._tensors[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(self.shapes[name])
        heads = {"q_proj.weight": self.cfg.n_heads, "k_proj.weight": self.cfg.n_kv_heads}
        count = heads.get(".".join(name.split(".")[-2:])) if self._kind == "llama" else None
        if count is not None:
            values = values.reshape(count, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        return values

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor: this one."""
        return self.path

    def _config(self, factors: np.ndarray | None) -> ModelConfig:
        for key in ("attention.sliding_window", "expert_count"):
            if self.field(f"{self._kind}.{key}"):
                raise ConfigError(f"{self.path}: {self._kind}.{key} is not supported")
        scaling = self.field(f"{self._kind}.rope.scaling.type", "none")
        if scaling != "none":
            raise ConfigError(f"{self.path}: rope scaling {scaling!r} is not supported, only rope_freqs.weight")
        d_model, n_heads = self._number("embedding_length"), self._number("attention.head_count")
        d_head = self._number("attention.key_length", d_model // n_heads)
        for key in ("rope.dimension_count", "attention.value_length"):
            if self._number(key, d_head) != d_head:
                raise ConfigError(f"{self.path}: {self._kind}.{key} must be the head width {d_head}")
        if "model.embed_tokens.weight" not in self.shapes:
            raise ConfigError(f"{self.path}: token_embd.weight missing")
        bias, norm = FAMILIES[self._kind]
        try:
            cfg = ModelConfig(
                vocab_size=self.shapes["model.embed_tokens.weight"][0],
                d_model=d_model,
                n_layers=self._number("block_count"),
                n_heads=n_heads,
                n_kv_heads=self._number("attention.head_count_kv", n_heads),
                d_head=d_head,
                d_ff=self._number("feed_forward_length"),
                rope_theta=self._float("rope.freq_base", 10000.0),
                norm_eps=self._float("attention.layer_norm_rms_epsilon"),
                tie_embeddings="lm_head.weight" not in self.shapes,
                qkv_bias=bias,
                qk_norm=norm,
                max_positions=self._number("context_length"),
            )
        except ValueError as error:
            raise ConfigError(f"{self.path}: {error}") from error
        return cfg if factors is None else _with_scaling(cfg, factors, self.path)

    def _number(self, key: str, default: int | None = None) -> int:
        value = self.field(f"{self._kind}.{key}", default)
        if not isinstance(value, int):
            raise ConfigError(f"{self.path}: {self._kind}.{key} is {value!r}, not a whole number")
        return value

    def _float(self, key: str, default: float | None = None) -> float:
        value = self.field(f"{self._kind}.{key}", default)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{self.path}: {self._kind}.{key} is {value!r}, not a number")
        return float(str(np.float32(value)))  # it was rounded to float32: 9.99999975e-06 was 1e-05


def open_gguf(path: Path) -> GGUFFile:
    """The file, opened once: the `gguf` package takes seconds to list a large vocabulary. Raises ConfigError."""
    try:
        state = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as GGUF: {error}") from error
    return _opened(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _opened(path: Path, size: int, changed: int) -> GGUFFile:
    return GGUFFile(path)


def _hf_name(name: str) -> str:
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
    if match and match[2] in _BLOCK:
        return f"model.layers.{match[1]}.{_BLOCK[match[2]]}"
    return _WHOLE.get(name, name)


def _with_scaling(cfg: ModelConfig, factors: np.ndarray, path: Path) -> ModelConfig:
    """The config with the scaling that divides the frequencies by these factors [H/2]."""
    for scaling in _KNOWN_SCALINGS:
        scaled = dataclasses.replace(cfg, rope_scaling=scaling)
        divided = rope_frequencies(cfg).astype(np.float64) / rope_frequencies(scaled)
        if factors.shape == divided.shape and np.allclose(divided, factors, rtol=1e-4):
            return scaled
    raise ConfigError(f"{path}: {_ROPE_FACTORS} holds a scaling that is neither Llama 3.1's nor 3.2's")
