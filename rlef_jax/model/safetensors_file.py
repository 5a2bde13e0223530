"""Safetensors files, read by slices and written tensor by tensor.

The format (github.com/huggingface/safetensors): 8 bytes with the header's length, little-endian; the header, JSON of
{name: {"dtype", "shape", "data_offsets": [start, end]}}; the tensors' bytes. The `safetensors` package writes only what
is in memory as a whole, and its NumPy side has no bfloat16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rlef_jax.errors import ConfigError
from rlef_jax.files import replacing

DTYPES: dict[str, Any] = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
_ALIGNMENT = 8  # of the first tensor's bytes, as the reference implementation has it


class SafetensorsFile:
    """One file, mapped into memory: what isn't looked at isn't read.

    `shapes` and `dtypes` hold each tensor's by its name. Raises ConfigError for a file that is none or is cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length)) if 0 < length <= path.stat().st_size else None
            if not isinstance(header, dict):
                raise ValueError("it has no header")
            header.pop("__metadata__", None)
            self._start = 8 + length
            self._offsets = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
            self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
            self.dtypes = {name: entry["dtype"] for name, entry in header.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not a safetensors file: {error}") from error
        ends = max((end for _, end in self._offsets.values()), default=0)
        if self._start + ends > path.stat().st_size:
            raise ConfigError(f"{path}: cut short, {self._start + ends} bytes were written: download it again")

    def read(self, name: str) -> np.ndarray:
        """A tensor as a view of the file. Raises ConfigError for a dtype that no weights have, or a wrong length."""
        kind, shape, (start, end) = self.dtypes[name], self.shapes[name], self._offsets[name]
        if kind not in DTYPES:
            raise ConfigError(f"{self.path}: {name} is of dtype {kind}; supported are {', '.join(DTYPES)}")
        dtype = np.dtype(DTYPES[kind])
        if end - start != math.prod(shape) * dtype.itemsize:
            raise ConfigError(f"{self.path}: {name} has {end - start} bytes for shape {shape} of {kind}")
        flat = np.memmap(self.path, np.uint8, "r", self._start + start, (end - start,))
        return np.asarray(flat.view(dtype)).reshape(shape)


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
