"""The rotary keys of a Hugging Face `config.json`, read and written in the one spelling of `transformers`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rlef_jax.model.rope import LinearScaling, RopeScaling, Scaling, YarnScaling
from rlef_jax.model.transformer import ModelConfig

_ORIGINAL = "original_max_position_embeddings"
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)  # RopeScaling's fields
_YARN = ("factor", _ORIGINAL, "beta_fast", "beta_slow", "attention_factor", "truncate")  # YarnScaling's
_KEYS = {"default": (), "linear": ("factor",), "llama3": _LLAMA3, "yarn": (*_YARN, "mscale", "mscale_all_dim")}


def read_rope(values: Mapping[str, Any], *, nested: bool, windows: bool) -> tuple[dict[str, Any], list[str]]:
    """(the fields of ModelConfig about rotary embeddings, what is not supported).

    Args:
      values: the keys of a config as transformers resolved them.
      nested: `rope_parameters` holds those of layers with and without a sliding window (Gemma 3).
      windows: there are layers with one.
    """
    rope, length = values["rope_parameters"], values["max_position_embeddings"]
    of_layers = [rope.get(kind) for kind in ("full_attention", "sliding_attention")] if nested else [rope]
    if not all(isinstance(one, Mapping) for one in of_layers):
        return {}, [f"rope_parameters={rope!r:.80}"]
    if not nested:
        theta, scaling, faults = _read(rope, length)
        return {"rope_theta": theta, "rope_scaling": scaling}, faults
    theta, scaling, faults = _read(rope["full_attention"], length)
    fields: dict[str, Any] = {"rope_theta": theta, "rope_scaling": scaling}
    if windows:
        fields["window_rope_theta"], local, more = _read(rope["sliding_attention"], length)
        faults += more
        if local is not None:
            faults.append("rope_parameters: a scaling in layers with a sliding window")
    return fields, faults


def _read(rope: Mapping[str, Any], length: int) -> tuple[float, Scaling | None, list[str]]:
    """(theta, scaling, what is not supported) of a config's, or one sort of layers', rotary keys."""
    kind, theta = rope.get("rope_type"), rope.get("rope_theta")
    if not isinstance(kind, str) or kind not in _KEYS:
        return 0.0, None, [f"rope_type={kind!r} (only {', '.join(map(repr, _KEYS))})"]
    known = {*_KEYS[kind], "rope_type", "type", "rope_theta", "partial_rotary_factor"}
    faults = [f"{key}={rope[key]!r} with rope_type {kind!r}" for key in sorted(set(rope) - known)]
    needed = {"rope_theta", *(_KEYS[kind] if kind in ("linear", "llama3") else ())}
    numbers = {key: rope[key] for key in _KEYS[kind] if key != "truncate" and rope.get(key) is not None}
    numbers |= {key: rope.get(key) for key in needed}
    if wrong := [f"{key}={value!r} (only a number above 0)" for key, value in numbers.items() if not _counts(value)]:
        return 0.0, None, faults + wrong
    assert isinstance(theta, int | float)
    theta = float(theta)
    if (share := rope.get("partial_rotary_factor")) not in (None, 1.0):
        faults.append(f"partial_rotary_factor={share!r} (only 1.0)")
    if kind == "llama3":
        return theta, RopeScaling(*(float(rope[key]) for key in _LLAMA3)), faults
    if kind == "linear":
        return theta, LinearScaling(float(rope["factor"])), faults
    return theta, _yarn(rope, length) if kind == "yarn" else None, faults


def _counts(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _yarn(rope: Mapping[str, Any], length: int) -> YarnScaling:
    original = float(rope[_ORIGINAL])
    factor = float(rope["factor"] or length / original)

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention = rope.get("attention_factor")
    if attention is None:
        over, under = rope.get("mscale"), rope.get("mscale_all_dim")
        attention = magnitude(over) / magnitude(under) if over and under else magnitude(1.0)
    fast, slow = rope.get("beta_fast") or 32.0, rope.get("beta_slow") or 1.0
    truncate = float(bool(rope.get("truncate", True)))
    return YarnScaling(factor, original, float(fast), float(slow), float(attention), truncate)


def write_rope(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of a `config.json`, in the spelling that transformers 4 and 5 both read."""
    written: dict[str, Any] = {"rope_theta": cfg.rope_theta}
    if cfg.window_rope_theta:
        written["rope_local_base_freq"] = cfg.window_rope_theta
    scaling = cfg.rope_scaling
    if isinstance(scaling, RopeScaling):
        written["rope_scaling"] = {"rope_type": "llama3", **dict(zip(_LLAMA3, scaling, strict=True))}
    elif isinstance(scaling, YarnScaling):
        written["rope_scaling"] = {"rope_type": "yarn", **dict(zip(_YARN, scaling, strict=True))}
        written["rope_scaling"]["truncate"] = bool(scaling.truncate)
    elif scaling is not None:
        written["rope_scaling"] = {"rope_type": "linear", "factor": scaling.factor}
    if _ORIGINAL in written.get("rope_scaling", {}):
        written["rope_scaling"][_ORIGINAL] = int(written["rope_scaling"][_ORIGINAL])
    return written
