"""Weights and tokenizers as files: `package:NAME` ships with rlef_jax, anything else is a path."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax.errors import ConfigError, RunError
from rlef_jax.files import replacing
from rlef_jax.model import finite
from rlef_jax.model.lora import TARGETS, LoraConfig
from rlef_jax.model.parameters import describe
from rlef_jax.model.rope import scaling_of
from rlef_jax.model.transformer import ModelConfig, Params

_PREFIX = "package:"


def path_of(name: str, suffix: str = "") -> Path:
    """What a config value names, whether it is there or not; `suffix` is that of what ships."""
    if name.startswith(_PREFIX):
        return Path(str(importlib.resources.files("rlef_jax.assets"))) / (name.removeprefix(_PREFIX) + suffix)
    return Path(name)


def resolve(name: str, suffix: str, key: str) -> Path:
    """The file that a config value names. Raises ConfigError, naming `key`, where there is none."""
    path = path_of(name, suffix)
    if not path.is_file():
        raise ConfigError(f"config.{key}: no file {path} (from {name!r})")
    return path


def _flat(params: Params) -> dict[str, Any]:
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return {"/".join(str(part.key) for part in path): leaf for path, leaf in paths}


def save_params(path: Path, params: Params) -> None:
    """Writes parameters as an uncompressed .npz of float32 arrays, whole or not at all.

    Raises RunError, and writes nothing, where one isn't finite; OSError, naming the file, where it can't be written.
    """
    arrays: dict[str, Any] = {name: np.asarray(leaf, np.float32) for name, leaf in _flat(params).items()}
    for name, array in arrays.items():
        if (fault_text := finite.fault(array)) is not None:
            raise RunError(f"{path} was not written: {name} {fault_text}: the weights are no longer finite")
    with replacing(path) as file:
        np.savez(file, **arrays)


def load_params(path: Path, cfg: ModelConfig, dtype: Any = jnp.float32, cast_to: Sequence[Any] = ()) -> Params:
    """Parameters written by `save_params`, of `dtype`; they will be cast to `cast_to` later.

    Raises ConfigError where names or shapes aren't the config's, or an entry isn't finite in one of these dtypes.
    """
    expected, tree = jax.tree_util.tree_flatten_with_path(describe(cfg, dtype))
    names = ["/".join(str(part.key) for part in leaf_path) for leaf_path, _ in expected]
    with np.load(path) as stored:
        if set(stored.files) != set(names):
            mismatched = sorted(set(stored.files) ^ set(names))
            raise ConfigError(f"{path}: not a model of this config: {', '.join(mismatched)} missing or unexpected")
        leaves = []
        for name, (_, parameter) in zip(names, expected, strict=True):
            array = stored[name]
            if array.shape != parameter.shape:
                raise ConfigError(f"{path}: {name} is {array.shape}, the config's model needs {parameter.shape}")
            finite.check_tensor(path, name, array, (dtype, *cast_to))
            leaves.append(jnp.asarray(array, parameter.dtype))
    return jax.tree.unflatten(tree, leaves)


# Keys of `config.model` that say what a model computes: a ModelConfig's fields but for the length of rows and adapters.
SHAPE_KEYS = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name not in ("max_positions", "lora"))
LORA_KEYS = ("lora_rank", "lora_alpha", "lora_targets", "lora_layers")


def lora_config(model: Any) -> LoraConfig | None:
    """The adapters that a config's `model` section describes. Raises ValueError where they can't be."""
    if not model.lora_rank:
        return None
    return LoraConfig(model.lora_rank, model.lora_alpha, tuple(model.lora_targets) or TARGETS, model.lora_layers)


def model_config(model: Any, vocab_size: int, max_positions: int) -> ModelConfig:
    """The ModelConfig that a config's `model` section describes, of a tokenizer's vocabulary.

    Raises ConfigError where `model.vocab_size` is set and holds fewer ids than the tokenizer has, or `model.family`
    doesn't name a family with the options that are set.
    """
    if 0 < model.vocab_size < vocab_size:
        raise ConfigError(
            f"config.model.vocab_size: {model.vocab_size} rows of the embedding are fewer than the tokenizer's "
            f"{vocab_size} ids: set config.model.tokenizer to the model's own"
        )
    values = {name: getattr(model, name) for name in SHAPE_KEYS}
    values["vocab_size"] = model.vocab_size or vocab_size
    try:
        values["rope_scaling"] = scaling_of(model.rope_scaling)
        return ModelConfig(**values, max_positions=max_positions, lora=lora_config(model))
    except ValueError as error:
        raise ConfigError(f"config.model: {error}") from error
