"""Small Hugging Face folders on disk, with the weights that the reference had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlef_jax.model.hf_config import parse_config
from rlef_jax.model.parameters import tensor_shapes
from rlef_jax.model.safetensors_file import write_safetensors
from tests.parity import cases


def write_folder(
    folder: Path,
    config: dict[str, Any],
    *,
    dtype: str = "F32",
    shards: int = 1,
    shapes_of: dict[str, Any] | None = None,
) -> Path:
    """A folder with `config` as its config.json, and tensors of `cases.tensor` of the shapes that `shapes_of` (or
    itself) needs, in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = tensor_shapes(parse_config(shapes_of or config))
    entries = {name: (dtype, shape) for name, shape in shapes.items()}

    def read(name: str) -> np.ndarray:
        return cases.tensor(name, shapes[name])

    if shards == 1:
        write_safetensors(folder / "model.safetensors", entries, read)
        return folder
    places = {}
    for i in range(shards):
        mine = dict(list(entries.items())[i::shards])
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, mine, read)
        places |= dict.fromkeys(mine, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
