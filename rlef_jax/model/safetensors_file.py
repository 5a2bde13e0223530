"""Safetensors files, read by slices with the `safetensors` package and written tensor by tensor.

The package writes only what is in memory as a whole, a shard of several GB; here one tensor at a time is. The format
(github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; the header, JSON of
{name: {"dtype", "shape", "data_offsets": [start, end]}}; the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from rlef_jax.errors import ConfigError
from rlef_jax.files import replacing

DTYPES: dict[str, Any] = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
_ALIGNMENT = 8  # of the first tensor's bytes, as the reference implementation has it
_LFS_POINTER = b"version https://git-lfs"


class SafetensorsFile:
    """One file, mapped into memory: what isn't asked for isn't read.

    `shapes` and `dtypes` hold each tensor's by its name, also of those whose dtype isn't one of `DTYPES`. Raises
    ConfigError for a file that is none, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safetensors.safe_open(path, framework="numpy")
            slices = {name: self._file.get_slice(name) for name in self._file.offset_keys()}  # as they lie in the file
        except (OSError, safetensors.SafetensorError) as error:
            raise ConfigError(f"{path}: not a safetensors file: {error}; {_advice(path)}") from error
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self.dtypes: dict[str, str] = {name: part.get_dtype() for name, part in slices.items()}

    def sliced(self, name: str) -> Any:
        """What gives a tensor's slices, e.g. [2:4, :]; each is read, and copied, when it is taken."""
        return self._file.get_slice(name)

    def read(self, name: str) -> np.ndarray:
        """A copy of a tensor."""
        return self._file.get_tensor(name)


def _advice(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return "can it be read?"
    return "it is a pointer of Git LFS: run `git lfs pull`" if pointer else "it is cut short or damaged: get it again"


def write_safetensors(
    path: Path,
    entries: Mapping[str, tuple[str, tuple[int, ...]]],
    read: Callable[[str], np.ndarray],
) -> None:
    """Writes {name: (dtype, shape)} in order, whole or not at all; `read(name)` gives a tensor, which is cast."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (kind, shape) in entries.items():
        start, end = end, end + math.prod(shape) * np.dtype(DTYPES[kind]).itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (kind, shape) in entries.items():
            tensor = read(name)
            if tensor.shape != shape:
                raise ValueError(f"{name} is {tensor.shape}, announced as {shape}")
            file.write(np.ascontiguousarray(tensor.astype(DTYPES[kind], copy=False)).view(np.uint8).data)


def split_by_size(
    entries: Mapping[str, tuple[str, tuple[int, ...]]], most: int
) -> Iterable[dict[str, tuple[str, tuple[int, ...]]]]:
    """The entries in order, in groups of at most `most` bytes (or one tensor)."""
    group: dict[str, tuple[str, tuple[int, ...]]] = {}
    held = 0
    for name, (kind, shape) in entries.items():
        size = math.prod(shape) * np.dtype(DTYPES[kind]).itemsize
        if group and held + size > most:
            yield group
            group, held = {}, 0
        group[name] = (kind, shape)
        held += size
    yield group
