"""Weights of Hugging Face folders and GGUF files, tensor by tensor to where they shall lie."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from rlef_jax.errors import ConfigError
from rlef_jax.model.finite import check_tensor
from rlef_jax.model.gguf_file import open_gguf
from rlef_jax.model.hf_config import read_config
from rlef_jax.model.parameters import Parameter, describe, tensor_shapes
from rlef_jax.model.safetensors_file import SafetensorsFile
from rlef_jax.model.transformer import ModelConfig, Params

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_NAMED = 8  # tensors in one error


class Weights(Protocol):
    """A model that lies in files: what it is, and its tensors by their Hugging Face names."""

    path: Path
    cfg: ModelConfig
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]  # as safetensors spells them

    def read(self, name: str) -> np.ndarray: ...

    def file_of(self, name: str) -> Path: ...


class HFFolder:
    """A folder with config.json and safetensors, one file or several with an index. Only headers are read at first.

    Raises ConfigError for a folder that lacks something, or a model that isn't supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / CONFIG).is_file():
            raise ConfigError(f"{path}: no {CONFIG}: is it a Hugging Face model's folder?")
        self.cfg = read_config(path / CONFIG)
        self._files: dict[str, SafetensorsFile] = {}
        if (path / INDEX).is_file():
            self._open_shards(path / INDEX)
        elif (path / SINGLE).is_file():
            file = SafetensorsFile(path / SINGLE)
            self._files = dict.fromkeys(file.shapes, file)
        else:
            raise ConfigError(f"{path}: neither {SINGLE} nor {INDEX}: only safetensors are read, no .bin or .pth")
        self.shapes: Mapping[str, tuple[int, ...]] = {name: file.shapes[name] for name, file in self._files.items()}
        self.dtypes: Mapping[str, str] = {name: file.dtypes[name] for name, file in self._files.items()}

    def _open_shards(self, index: Path) -> None:
        try:
            places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{index}: cannot be read as an index: {error!r}") from error
        if lacking := sorted({name for name in places.values() if not (self.path / name).is_file()}):
            raise ConfigError(f"{index}: names files that aren't there: {_named(lacking)}")
        files = {name: SafetensorsFile(self.path / name) for name in sorted(set(places.values()))}
        if lost := [name for name, where in places.items() if name not in files[where].shapes]:
            raise ConfigError(f"{index}: tensors are not in the files that it names: {_named(lost)}")
        self._files = {name: files[where] for name, where in places.items()}

    def read(self, name: str) -> np.ndarray:
        """A tensor as a view of its file."""
        return self._files[name].read(name)

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name].path


def open_weights(init: str) -> Weights | None:
    """The folder or GGUF file that `config.model.init` names; None for what is neither ("", .npz files, package:NAME).

    Raises ConfigError where it can't be used.
    """
    path = Path(init)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"config.model.init: no file {path} (docs/models.md says how to get weights)")
        return open_gguf(path)
    if init and path.is_dir():
        return HFFolder(path)
    if init and not path.suffix and not init.startswith("package:"):
        raise ConfigError(f"config.model.init: no folder {path} (docs/models.md says how to get weights)")
    return None


def check_tensors(weights: Weights, cfg: ModelConfig) -> None:
    """Raises ConfigError naming tensors that are missing, too many or of another shape than the config's."""
    wanted = tensor_shapes(cfg)
    extra = [name for name in weights.shapes if name not in wanted and not _is_redundant(name, weights, cfg)]
    faults = {
        "missing": [name for name in wanted if name not in weights.shapes],
        "not of this model": extra,
        "of another shape": [
            f"{name} {weights.shapes[name]} instead of {shape}"
            for name, shape in wanted.items()
            if weights.shapes.get(name, shape) != shape
        ],
    }
    if told := [f"tensors {what}: {_named(names)}" for what, names in faults.items() if names]:
        raise ConfigError(f"{weights.path}: {'; '.join(told)}")


def _is_redundant(name: str, weights: Weights, cfg: ModelConfig) -> bool:
    """Rotary tables that old files carry, and an output matrix that is the embedding once more."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    [embed], [output] = (
        describe(dataclasses.replace(cfg, tie_embeddings=False))[key].tensors for key in ("embed", "unembed")
    )
    if name != output.name or not cfg.tie_embeddings or embed.name not in weights.shapes:
        return False
    return bool(np.array_equal(weights.read(name), weights.read(embed.name)))


def _named(names: Iterable[str]) -> str:
    some = list(names)
    more = f" and {len(some) - _MOST_NAMED} more" if len(some) > _MOST_NAMED else ""
    return ", ".join(some[:_MOST_NAMED]) + more


def load_pretrained(
    weights: Weights,
    cfg: ModelConfig,
    dtype: Any = jnp.float32,
    shardings: Any = None,
    cast_to: Sequence[Any] = (),
) -> Params:
    """The parameters, each tensor read once and put where it shall lie before the next one is read.

    Args:
      weights: the files.
      cfg: their model. `weights.cfg`, or one that differs in `max_positions`.
      dtype: of the parameters; the files' own may be another.
      shardings: the tree of `sharding.param_shardings`; None is the first device.
      cast_to: dtypes that the parameters will be cast to later.

    Raises ConfigError naming tensors that are missing, too many or misshapen, or hold an entry that isn't finite in one
    of these dtypes.
    """
    check_tensors(weights, cfg)
    described = describe(cfg, dtype)
    dtypes = (dtype, *cast_to)
    if shardings is None:
        first = SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: first, described)

    def place(p: Parameter, sharding: Any) -> jax.Array:
        if not p.stacked:
            return _placed(weights, p, None, sharding, dtypes).astype(p.dtype)
        stack = jax.jit(functools.partial(jnp.zeros, p.shape, p.dtype), out_shardings=sharding)()
        write = _writer(sharding)
        for layer in range(p.shape[0]):
            stack = write(stack, _placed(weights, p, layer, _of_layer(sharding), dtypes), layer)
        return stack

    return jax.tree.map(place, described, shardings)


def _of_layer(sharding: Any) -> Any:
    """The sharding of one layer out of a stack's, whose first axis isn't split."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    return sharding


@functools.cache
def _writer(sharding: Any) -> Any:
    """(stack [L, ...], share [...], layer) -> the stack with a layer's share in it, in the stack's own memory."""

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def write(stack: jax.Array, share: jax.Array, layer: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, share.astype(stack.dtype), layer, 0)

    return write


def _placed(weights: Weights, p: Parameter, layer: int | None, sharding: Any, dtypes: Sequence[Any]) -> jax.Array:
    """A parameter, or a layer's share of it, on its devices, in the files' dtype, found finite in `dtypes`.

    Of mapped files only this process's slices are read.
    """
    names = [tensor.name.format(layer=layer) for tensor in p.tensors]
    views = [tensor.to_ours(weights.read(name)) for name, tensor in zip(names, p.tensors, strict=True)]
    shape = p.shape if layer is None else p.shape[1:]

    def copied(name: str, view: np.ndarray) -> np.ndarray:
        copy = np.array(view, order="C")
        check_tensor(weights.file_of(name), name, copy, dtypes)
        return copy

    def shard(index: Any) -> np.ndarray:
        """A copy: JAX would keep a view of the file, and with it the file."""
        if len(views) == 1:
            return copied(names[0], views[0][index])
        inner = tuple(slice(None) if axis == p.joined else part for axis, part in enumerate(index))
        parts = [copied(name, view[inner]) for name, view in zip(names, views, strict=True)]
        return np.concatenate(parts, axis=p.joined)[_only(p.joined, index)]

    return jax.make_array_from_callback(shape, sharding, shard)


def _only(axis: int, index: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(part if i == axis else slice(None) for i, part in enumerate(index))
