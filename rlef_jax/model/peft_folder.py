"""Folders of adapters as PEFT has them: adapter_config.json and adapter_model.safetensors, read and written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax.errors import ConfigError
from rlef_jax.files import write_json
from rlef_jax.model.finite import check_tensor
from rlef_jax.model.lora import TARGETS
from rlef_jax.model.parameters import adapted_layers, adapter_tensors, describe, leaf_at
from rlef_jax.model.safetensors_file import SafetensorsFile, write_safetensors
from rlef_jax.model.transformer import ModelConfig, Params

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Keys of adapter_config.json that would change what is computed, with the values that don't.
_USUAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (False, None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layer_replication": ([], None),
    "trainable_token_indices": ([], {}, None),
    "target_parameters": ([], None),
    "init_lora_weights": (
        True,
        False,
        None,
        "gaussian",
    ),  # others may belong to another base than the one that is named
    "loftq_config": ({}, None),
    "eva_config": (None,),
    "corda_config": (None,),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
}


def write_adapters(output: Path, params: Params, cfg: ModelConfig, base_model: str = "") -> None:
    """Writes a model's adapters, float32, and when they are complete adapter_config.json.

    Args:
      output: a folder.
      params, cfg: the model, with its adapters.
      base_model: where the base is, a folder or OWNER/NAME; "" leaves that open.

    Raises ConfigError for a tensor that isn't finite.
    """
    lora = cfg.lora
    if lora is None:
        raise ValueError("a model without adapters")
    places = adapter_tensors(cfg)

    def read(name: str) -> np.ndarray:
        place = places[name]
        share = np.asarray(jax.device_get(leaf_at(params, place.path)[place.layer]))
        tensor = place.tensor.from_ours(share)
        check_tensor(output, name, tensor, (np.float32,))
        return tensor

    entries = {name: ("F32", place.tensor.shape) for name, place in places.items()}
    write_safetensors(output / TENSORS, entries, read)
    some = adapted_layers(cfg) < cfg.n_layers
    write_json(
        output / CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model or None,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "target_modules": [target for target in TARGETS if target in lora.targets],
            "layers_to_transform": list(range(cfg.n_layers - adapted_layers(cfg), cfg.n_layers)) if some else None,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        },
    )


def read_adapters(folder: Path, cfg: ModelConfig, cast_to: Sequence[Any] = ()) -> dict[str, jax.Array]:
    """The adapters {name: [N, ...]} of a model, in the dtypes that `parameters.describe` gives them.

    Raises ConfigError for a folder that isn't one, adapters of another model or rank, something of PEFT's that isn't
    computed here, or a tensor that isn't finite in one of the dtypes `cast_to`, to which they will be cast later.
    """
    _check_config(folder, cfg)
    if not (folder / TENSORS).is_file():
        raise ConfigError(f"config.model.lora_init: no file {folder / TENSORS}: only safetensors are read")
    file, places = SafetensorsFile(folder / TENSORS), adapter_tensors(cfg)
    faults = {
        "missing": [name for name in places if name not in file.shapes],
        "not of this model's adapters": [name for name in file.shapes if name not in places],
        "of another shape": [name for name, place in places.items() if file.shapes.get(name) != place.tensor.shape],
    }
    for kind, names in faults.items():
        if names:
            raise ConfigError(
                f"config.model.lora_init: {file.path}: {len(names)} tensors {kind}, such as {names[0]}: set"
                " config.model.lora_targets and lora_layers to what the adapters are of"
            )
    shares: dict[str, list[np.ndarray]] = {}
    for name, place in places.items():
        tensor = file.read(name)
        check_tensor(file.path, name, tensor, (np.float32, *cast_to))
        shares.setdefault(place.path[-1], []).append(place.tensor.to_ours(tensor))
    described = describe(cfg)["layers"]
    return {name: jnp.asarray(np.stack(parts), described[name].dtype) for name, parts in shares.items()}


def _check_config(folder: Path, cfg: ModelConfig) -> None:
    path, lora = folder / CONFIG, cfg.lora
    if lora is None:
        raise ConfigError("config.model.lora_init: needs config.model.lora_rank, the adapters' rank")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha = int(found["r"]), float(found["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"config.model.lora_init: {path} can't be read as PEFT's: {error!r}") from error
    for key, value, wanted in (("lora_rank", rank, lora.rank), ("lora_alpha", alpha, lora.alpha)):
        if value != wanted:
            raise ConfigError(f"config.model.{key}: {wanted} is set, the adapters in {folder} have {value}")
    for key, usual in _USUAL.items():
        if found.get(key, usual[0]) not in usual:
            raise ConfigError(f"config.model.lora_init: {path} has {key}={found[key]!r}, which isn't computed here")
