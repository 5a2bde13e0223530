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
from jax.sharding import SingleDeviceSharding

from rlef_jax.errors import ConfigError
from rlef_jax.model.gguf_file import open_gguf
from rlef_jax.model.hf_config import read_config
from rlef_jax.model.parameters import Parameter, describe, tensor_shapes
from rlef_jax.model.placing import in_file_order, placed
from rlef_jax.model.safetensors_file import DTYPES, SafetensorsFile
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

    def sliced(self, name: str) -> Any: ...  # read(name)[slices] is sliced(name)[slices], where only these are read

    def file_of(self, name: str) -> Path: ...


class HFFolder:
    """A folder with config.json and safetensors, of which those are taken that transformers takes: model.safetensors,
    or the files that an index names. Only headers are read at first.

    Raises ConfigError for a folder that lacks something, or a model that isn't supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / CONFIG).is_file():
            raise ConfigError(f"{path}: no {CONFIG}: is it a Hugging Face model's folder?")
        self.cfg = read_config(path / CONFIG)
        stored_files = _files(path)
        # Of a model that was saved without its output layer the names lack the first part, as in transformers.
        expected, prefix = tensor_shapes(self.cfg), "model."
        self._places = {
            name if name in expected or prefix + name not in expected else prefix + name: name for name in stored_files
        }
        self._files = {name: stored_files[stored_name] for name, stored_name in self._places.items()}
        self.shapes: Mapping[str, tuple[int, ...]] = {n: f.shapes[self._places[n]] for n, f in self._files.items()}
        self.dtypes: Mapping[str, str] = {n: f.dtypes[self._places[n]] for n, f in self._files.items()}

    def read(self, name: str) -> np.ndarray:
        """A copy of a tensor."""
        return self._files[name].read(self._places[name])

    def sliced(self, name: str) -> Any:
        """What gives a tensor's slices, each read when it is taken."""
        return self._files[name].sliced(self._places[name])

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._files[name].path


def _files(folder: Path) -> dict[str, SafetensorsFile]:
    """{tensor's name: its file}. Raises ConfigError where files are missing, or it is open which ones are meant."""
    if (folder / SINGLE).is_file():  # an index beside it is of another time: transformers, too, passes it over
        file = SafetensorsFile(folder / SINGLE)
        return dict.fromkeys(file.shapes, file)
    index = folder / INDEX
    if not index.is_file():
        if parts := sorted(path.name for path in folder.glob("*.safetensors")):
            raise ConfigError(
                f"{folder}: holds {_listed(parts)}, but no {INDEX} that says which of them are the model's: get that"
                f" file too, or, if one file is the whole model, rename it to {SINGLE}"
            )
        raise ConfigError(f"{folder}: neither {SINGLE} nor {INDEX}: only safetensors are read, no .bin or .pth")
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        files = {name: folder / name for name in sorted(set(places.values()))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{index}: cannot be read as an index: {error!r}") from error
    if lacking := [name for name, path in files.items() if not path.is_file()]:
        raise ConfigError(
            f"{index}: names files that aren't there: {_listed(lacking)}: get them, or the index that goes with the"
            " files that are there"
        )
    opened = {name: SafetensorsFile(path) for name, path in files.items()}
    if absent := [name for name, file_name in places.items() if name not in opened[file_name].shapes]:
        raise ConfigError(f"{index}: tensors are not in the files that it names: {_listed(absent)}")
    return {name: opened[file_name] for name, file_name in places.items()}


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
    expected = tensor_shapes(cfg)
    undecodable = [name for name in expected if weights.dtypes.get(name, "F32") not in DTYPES]
    if undecodable:
        first = undecodable[0]
        raise ConfigError(
            f"{weights.file_of(first)}: {first} is of dtype {weights.dtypes[first]}, as {len(undecodable)} of the"
            f" model's {len(expected)} tensors are of dtypes that can't be read; supported are {', '.join(DTYPES)}"
        )
    extra = [name for name in weights.shapes if name not in expected and not _is_redundant(name, weights, cfg)]
    faults = {
        "missing": [name for name in expected if name not in weights.shapes],
        "not of this model": extra,
        "of another shape": [
            f"{name} {weights.shapes[name]} instead of {shape}"
            for name, shape in expected.items()
            if weights.shapes.get(name, shape) != shape
        ],
    }
    if fault_texts := [f"tensors {kind}: {_listed(names)}" for kind, names in faults.items() if names]:
        raise ConfigError(f"{weights.path}: {'; '.join(fault_texts)}")


def _is_redundant(name: str, weights: Weights, cfg: ModelConfig) -> bool:
    """Rotary tables that old files carry, and an output matrix that is the embedding once more."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    [embed], [output] = (
        describe(dataclasses.replace(cfg, tie_embeddings=False))[key].tensors for key in ("embed", "unembed")
    )
    if name != output.name or not cfg.tie_embeddings or embed.name not in weights.shapes:
        return False
    if weights.dtypes[name] not in DTYPES:
        return False
    return bool(np.array_equal(weights.read(name), weights.read(embed.name)))


def _listed(names: Iterable[str]) -> str:
    all_names = list(names)
    more = f" and {len(all_names) - _MOST_NAMED} more" if len(all_names) > _MOST_NAMED else ""
    return ", ".join(all_names[:_MOST_NAMED]) + more


def load_pretrained(
    weights: Weights,
    cfg: ModelConfig,
    dtype: Any = jnp.float32,
    shardings: Any = None,
    cast_to: Sequence[Any] = (),
) -> Params:
    """The parameters, each tensor read once and put where it shall lie before the next but one is read.

    Args:
      weights: the files.
      cfg: their model. `weights.cfg`, or one that differs in `max_positions`.
      dtype: of the parameters; the files' own may be another.
      shardings: the tree of `sharding.param_shardings`; None is the first device.
      cast_to: dtypes that the parameters will be cast to later.

    Raises ConfigError naming tensors that are missing, too many or misshapen, of a dtype that can't be read, or hold an
    entry that isn't finite in one of these dtypes.
    """
    check_tensors(weights, cfg)
    described = describe(cfg, dtype)
    dtypes = (dtype, *cast_to)
    if shardings is None:
        first = SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: first, described)

    def tensors(p: Parameter, layer: int | None, sharding: Any) -> list[jax.Array]:
        return [
            placed(weights, t.name.format(layer=layer), t, in_file_order(sharding, p, t), dtypes) for t in p.tensors
        ]

    def place(p: Parameter, sharding: Any) -> jax.Array:
        orders = tuple(tensor.order for tensor in p.tensors)
        if not p.stacked:
            return _assembled(tensors(p, None, sharding), orders, p.joined).astype(p.dtype)
        stack = jax.jit(functools.partial(jnp.zeros, p.shape, p.dtype), out_shardings=sharding)()
        write = _writer(orders, p.joined, sharding)
        for layer in range(p.shape[0]):
            share = tensors(p, layer, sharding)
            jax.block_until_ready(stack)  # what the host holds of the layer before is let go of
            stack = write(stack, share, layer)
        return stack

    return jax.tree.map(place, described, shardings)


def _assembled(tensors: Sequence[jax.Array], orders: Sequence[tuple[int, ...]], joined: int) -> jax.Array:
    """A parameter, or a layer's share of it, of a file's tensors with their axes taken apart (`FileTensor.split`)."""
    moved = [t if order == tuple(range(t.ndim)) else t.transpose(order) for t, order in zip(tensors, orders)]
    return moved[0] if len(moved) == 1 else jnp.concatenate(moved, joined)


@functools.cache
def _writer(orders: tuple[tuple[int, ...], ...], joined: int, sharding: Any) -> Any:
    """(stack [L, ...], tensors, layer) -> the stack with a layer's share in it, in the stack's own memory."""

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=sharding)
    def write(stack: jax.Array, tensors: list[jax.Array], layer: jax.Array) -> jax.Array:
        share = _assembled(tensors, orders, joined).astype(stack.dtype)
        return jax.lax.dynamic_update_index_in_dim(stack, share, layer, 0)

    return write
