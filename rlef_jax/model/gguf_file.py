"""A GGUF file as the Hugging Face folder that it was made from: its config, and its tensors by their names there.

Quantized tensors are dequantized to float32 when they are read. llama.cpp rotates neighbouring channels, so in files of
some families (`Family.gguf_interleaved`) the rows of q and k lie in another order: that is undone here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from rlef_jax.errors import ConfigError
from rlef_jax.model.families import FAMILIES
from rlef_jax.model.parameters import Place, file_tensors
from rlef_jax.model.rope import RopeScaling, rope_frequencies
from rlef_jax.model.transformer import ModelConfig

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"  # they give the vocabulary and whether weights are tied
_ROPE_FACTORS = "rope_freqs.weight"
# A file holds the scaled frequencies, not what they were made from: these are the scalings that were ever published.
_KNOWN_SCALINGS = (RopeScaling(8.0, 1.0, 4.0, 8192.0), RopeScaling(32.0, 1.0, 4.0, 8192.0))


class GGUFFile:
    """Weights in a .gguf file, or in several that one was split into.

    Attributes:
      path: the file; of several the first, which holds the metadata.
      cfg, family: the model.
      shapes, dtypes: of each tensor by its Hugging Face name; every dtype is "F32", what `read` gives.

    Raises ConfigError for a file that isn't GGUF or lacks its other parts, a model that isn't supported, and a tensor
    of a quantization that can't be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        parts = _parts(path)
        self.reader = parts[path]
        self._kind = self.field("general.architecture")
        families = [family for family in FAMILIES.values() if family.gguf and family.gguf == self._kind]
        if not families:
            supported = ", ".join(dict.fromkeys(family.gguf for family in FAMILIES.values() if family.gguf))
            raise ConfigError(f"{path}: architecture {self._kind!r} is not supported; it must be one of {supported}")
        self.family = families[0]
        tensors = {tensor.name: tensor for reader in parts.values() for tensor in reader.tensors}
        if len(tensors) != (expected_count := self.field("split.tensors.count", len(tensors))):
            raise ConfigError(
                f"{path}: its parts hold {len(tensors)} tensors of {expected_count}: they are of several models"
            )
        factors = tensors.pop(_ROPE_FACTORS, None)
        self.cfg = self._config(tensors, None if factors is None else np.asarray(factors.data, np.float64))
        self._places = file_tensors(self.cfg)
        names = {_gguf_name(place): name for name, place in self._places.items()}
        self._tensors = {names.get(name, name): tensor for name, tensor in tensors.items()}
        files = {tensor.name: part for part, reader in parts.items() for tensor in reader.tensors}
        self._files = {name: files[tensor.name] for name, tensor in self._tensors.items()}
        self._check_types()
        self.shapes: Mapping[str, tuple[int, ...]] = {name: _shape(tensor) for name, tensor in self._tensors.items()}
        self.dtypes: Mapping[str, str] = dict.fromkeys(self.shapes, "F32")

    def field(self, key: str, default: Any = None) -> Any:
        """A value of the file's metadata; `default` where it has none."""
        return _field(self.reader, key, default)

    def read(self, name: str) -> np.ndarray:
        """A copy of a tensor, float32, as the Hugging Face folder has it."""
        tensor = self._tensors[name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(self.shapes[name])
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            values = np.array(values)  # it was a view of the file, which JAX would keep
        heads = self._places[name].tensor.rotated_heads if name in self._places else 0
        if heads and self.family.gguf_interleaved:
            values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        return values

    def sliced(self, name: str) -> np.ndarray:
        """The whole tensor: blocks of a quantization, and heads that lie in another order, are not for slices."""
        return self.read(name)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name]

    def _check_types(self) -> None:
        model_tensors = {name: self._tensors[name] for name in self._places if name in self._tensors}
        if undecodable := [name for name, tensor in model_tensors.items() if not _decodable(tensor.tensor_type)]:
            file, first = self.file_of(undecodable[0]), model_tensors[undecodable[0]]
            raise ConfigError(
                f"{file}: tensor {first.name} is of type {first.tensor_type.name}, which can't be decoded"
                f" ({len(undecodable)} of {len(model_tensors)} tensors can't): take another quantization of this model"
            )

    def _config(self, tensors: Mapping[str, Any], factors: np.ndarray | None) -> ModelConfig:
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
        if _EMBEDDING not in tensors:
            raise ConfigError(f"{self.path}: {_EMBEDDING} missing")
        try:
            cfg = ModelConfig(
                vocab_size=_shape(tensors[_EMBEDDING])[0],
                d_model=d_model,
                n_layers=self._number("block_count"),
                n_heads=n_heads,
                n_kv_heads=self._number("attention.head_count_kv", n_heads),
                d_head=d_head,
                d_ff=self._number("feed_forward_length"),
                rope_theta=self._float("rope.freq_base", 10000.0),
                norm_eps=self._float("attention.layer_norm_rms_epsilon"),
                tie_embeddings=_OUTPUT not in tensors,
                **self.family.options,
                max_positions=self._number("context_length"),
                family=self.family.model_type,
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


def _parts(path: Path) -> dict[Path, gguf.GGUFReader]:
    """{path: reader} of a file, or of all that it was split into if it is the first of them. Raises ConfigError."""
    reader = _reader(path)
    count, number = _field(reader, "split.count", 1), _field(reader, "split.no", 0)
    if count <= 1:
        return {path: reader}
    prefix = f"{path}: is part {number + 1} of {count} of a split file"
    ending = f"-{number + 1:05}-of-{count:05}.gguf"
    if not path.name.endswith(ending):
        raise ConfigError(f"{prefix}, and isn't called NAME{ending}: where the others are can't be told")
    paths = [path.with_name(f"{path.name.removesuffix(ending)}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    if number:
        raise ConfigError(f"{prefix}: name the first, {paths[0]}")
    if lacking := [part.name for part in paths if not part.is_file()]:
        raise ConfigError(f"{prefix}, and {', '.join(lacking)} isn't there: get every part")
    readers = {path: reader} | {part: _reader(part) for part in paths[1:]}
    for i, (part, part_reader) in enumerate(readers.items()):
        if (_field(part_reader, "split.no", None), _field(part_reader, "split.count", None)) != (i, count):
            raise ConfigError(f"{part}: is not part {i + 1} of {count} of a split file, as its name says")
    return readers


def _reader(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ConfigError(f"{path}: cannot be read as GGUF: {error}") from error


def _field(reader: gguf.GGUFReader, key: str, default: Any) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


@functools.cache
def _decodable(kind: gguf.GGMLQuantizationType) -> bool:
    """Whether the gguf package can dequantize this type: it says so only when asked to."""
    try:
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


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


def _gguf_name(place: Place) -> str:
    return place.tensor.gguf.format(layer=place.layer)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in tensor.shape[::-1])


def _with_scaling(cfg: ModelConfig, factors: np.ndarray, path: Path) -> ModelConfig:
    """The config with the scaling that divides the frequencies by these factors [H/2]."""
    plain = rope_frequencies(cfg.layer_kinds[0], cfg.d_head).astype(np.float64)
    for scaling in _KNOWN_SCALINGS:
        scaled = dataclasses.replace(cfg, rope_scaling=scaling)
        divided = plain / rope_frequencies(scaled.layer_kinds[0], cfg.d_head)
        if factors.shape == divided.shape and np.allclose(divided, factors, rtol=1e-4):
            return scaled
    raise ConfigError(f"{path}: {_ROPE_FACTORS} holds a scaling that is neither Llama 3.1's nor 3.2's")
