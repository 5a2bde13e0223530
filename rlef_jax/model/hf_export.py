"""A Hugging Face folder from parameters or from other files, tensor by tensor."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlef_jax.files import write_json, write_text
from rlef_jax.model.finite import check_tensor
from rlef_jax.model.hf_config import config_json
from rlef_jax.model.layer_stack import layer_of
from rlef_jax.model.lora import PROJECTIONS, merged, split
from rlef_jax.model.parameters import file_tensors, leaf_at, tensor_shapes
from rlef_jax.model.pretrained import CONFIG, INDEX, SINGLE, HFFolder, Weights
from rlef_jax.model.safetensors_file import DTYPES, split_by_size, write_safetensors
from rlef_jax.model.transformer import ModelConfig, Params

Read = Callable[[str], np.ndarray]
SHARD_BYTES = 5 * 10**9  # of one file, as the Hub asks for
_TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}


def tensor_reader(params: Params, cfg: ModelConfig) -> Read:
    """A function from a tensor's Hugging Face name to the tensor, out of parameters; adapters are merged into it.

    It holds one layer's share of one parameter at a time.
    """
    places = file_tensors(cfg)
    layer_tensors: dict[str, np.ndarray] = {}

    def share_of(path: tuple[str, ...], layer: int | None) -> Any:
        leaf = leaf_at(params, path)
        if layer is None:
            return leaf
        if cfg.lora is None or path[-1] not in PROJECTIONS:
            return leaf[layer]
        return merged(leaf[layer], split(layer_of(params["layers"], layer))[1], cfg.lora, path[-1])

    def read(name: str) -> np.ndarray:
        if name not in layer_tensors:
            _, parameter, path, layer = places[name]
            layer_tensors.clear()
            share = np.asarray(jax.device_get(share_of(path, layer)))
            layer_tensors.update({part.format(layer=layer): tensor for part, tensor in parameter.cut(share).items()})
        return layer_tensors[name]

    return read


def write_model(
    output: Path,
    cfg: ModelConfig,
    read: Read,
    *,
    like: Weights | None,
    origin: Callable[[str], object] | None = None,
    dtype: str = "",
    most: int = SHARD_BYTES,
) -> None:
    """Writes safetensors and, when they are complete, config.json.

    Args:
      output: a folder.
      cfg: the model.
      read: its tensors by their Hugging Face names.
      like: the files that the model came from. A tensor that nobody changed gets the bytes that it has there; of a
        Hugging Face folder config.json is taken over.
      origin: what a tensor was read from, for errors; None is `output`.
      dtype: of all tensors, as safetensors spells it; "" is each tensor's own in `like`, or "F32" without it.
      most: bytes of one safetensors file.

    Raises ConfigError for a tensor that isn't finite in the dtype that it gets. After any error there may be whole
    files of tensors, and no config.json.
    """
    shapes = tensor_shapes(cfg)
    dtypes = dict.fromkeys(shapes, dtype or "F32") if dtype or like is None else like.dtypes
    entries = {name: (dtypes[name], shape) for name, shape in shapes.items()}

    def finite(name: str) -> np.ndarray:
        tensor = read(name)
        check_tensor(output if origin is None else origin(name), name, tensor, (DTYPES[entries[name][0]],))
        return tensor

    write_tensors(output, entries, finite, most)
    config = json.dumps(_config(cfg, like, dtype, dtypes), indent=2) + "\n"
    if isinstance(like, HFFolder) and not dtype:
        config = (like.path / CONFIG).read_text(encoding="utf-8")
    write_text(output / CONFIG, config)  # the last: until it is there, the folder is no model's


def write_tensors(output: Path, entries: Mapping[str, tuple[str, tuple[int, ...]]], read: Read, most: int) -> None:
    """Writes {name: (dtype, shape)} as model.safetensors, or as several files of at most `most` bytes with an index."""
    groups = list(split_by_size(entries, most))
    if len(groups) == 1:
        write_safetensors(output / SINGLE, entries, read)
        return
    places: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{len(groups):05}.safetensors"
        write_safetensors(output / file, group, read)
        places |= dict.fromkeys(group, file)
    size = sum(math.prod(shape) * np.dtype(DTYPES[kind]).itemsize for kind, shape in entries.values())
    write_json(output / INDEX, {"metadata": {"total_size": size}, "weight_map": places})


def _config(cfg: ModelConfig, like: Weights | None, dtype: str, dtypes: Mapping[str, str]) -> dict[str, Any]:
    """config.json's content with the right dtype in it."""
    if isinstance(like, HFFolder):
        config: dict[str, Any] = json.loads((like.path / CONFIG).read_text(encoding="utf-8"))
    else:
        config = config_json(like.cfg if like is not None else cfg)
    key = "dtype" if "dtype" in config else "torch_dtype"
    return config | {key: _TORCH_NAMES[dtype or next(iter(dtypes.values()))]}


def base_model_of(init: Path) -> str:
    """OWNER/NAME of the model in a Hugging Face folder, if its config.json says so; else ""."""
    try:
        name = json.loads((init / CONFIG).read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError, AttributeError):
        return ""
    return name if isinstance(name, str) and is_hub_name(name) else ""


def is_hub_name(name: str) -> bool:
    """Whether a name is of the form OWNER/NAME, and no path of this machine."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def license_of(init: Path) -> str:
    """The lines about the licence in the front matter of a Hugging Face folder's README.md, if it has any."""
    try:
        text = (init / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    front = text.removeprefix("---\n").partition("\n---")[0] if text.startswith("---\n") else ""
    return "\n".join(line for line in front.splitlines() if re.match(r"license(_name|_link)?:", line))
