"""What is known of each parameter of a model, said once: `describe` gives a tree of `Parameter` records.

Everything else about parameters derives from that tree: their first values (`init_params`), where they lie on a mesh
(`model/sharding.py`), in .npz files (`weights.py`), in Hugging Face folders and GGUF files (`pretrained.py`,
`hf_export.py`, `gguf_file.py`), which of them weight decay acts on and which are trained (`ppo/train_state.py`), how
decoding keeps them (`model/kv_cache.py`), and what a run needs (`planning/`). A new parameter is a record here, and its
use in `transformer.block`.

Letters in shapes: L layers, D model width, V vocabulary, K key/value heads, R query heads each, H head width, F hidden
width of the feed-forward layer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlef_jax.model.families import family_of, fields_of
from rlef_jax.model.lora import LoraConfig, names_of, split
from rlef_jax.model.transformer import ModelConfig, Params


@dataclasses.dataclass(frozen=True)
class Normal:
    """First values drawn from a normal distribution around 0 with this standard deviation."""

    std: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        # Drawn as a list: the same values, in a tenth of the time to compile.
        return self.std * jax.random.normal(key, (math.prod(shape),)).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Constant:
    """First values that are all this number."""

    value: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        del key
        return jnp.full(shape, self.value)


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor of a file that holds a parameter's values, or a part of them.

    Attributes:
      name: in a Hugging Face file, with {layer} for the layer's number.
      gguf: in a GGUF file, the same.
      split: the tensor's shape with its axes taken apart.
      order: the axes of `split` in the order in which the parameter has them.
      shape: the tensor's own.
      rotated_heads: how many heads that the rotary embedding turns its rows make up; 0 where it turns none.
    """

    name: str
    gguf: str
    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]
    rotated_heads: int = 0

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor with the parameter's axes: a view."""
        return tensor.reshape(self.split).transpose(self.order)

    def from_ours(self, part: np.ndarray) -> np.ndarray:
        """The tensor itself again."""
        return part.transpose(np.argsort(self.order)).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
      shape: with the axis of the layers in front, where it is stacked over them.
      axes: what each axis is, a name of `sharding.RULES` or None.
      init: makes its first values from (key, shape).
      dtype: what it is kept in.
      tensors: the tensors of a file that make up one layer's share of it (all of it where it has no layers), one
        behind the other along `joined`, an axis of that share. () for what no published file has.
      inputs: how many axes of a layer's share its product sums over, the first ones; 0 for what is no layer's matrix.
      decayed: weight decay acts on it.
      trainable: it is trained. What isn't has no gradient and no moments.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Normal | Constant
    dtype: Any = jnp.float32
    tensors: tuple[FileTensor, ...] = ()
    joined: int = 0
    inputs: int = 0
    decayed: bool = True
    trainable: bool = True

    @property
    def stacked(self) -> bool:
        """Whether the first axis is the layers'."""
        return self.axes[:1] == ("layer",)

    def abstract(self, sharding: Any = None) -> jax.ShapeDtypeStruct:
        """Its shape and dtype, and where it shall lie."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=sharding)

    def cut(self, share: np.ndarray) -> dict[str, np.ndarray]:
        """{name: tensor} of one layer's share, or of all of it."""
        widths = [tensor.split[tensor.order[self.joined]] for tensor in self.tensors]
        parts = np.split(share, np.cumsum(widths)[:-1], axis=self.joined)
        return {tensor.name: tensor.from_ours(part) for tensor, part in zip(self.tensors, parts, strict=True)}


def _as_it_is(name: str, gguf: str, *shape: int) -> FileTensor:
    return FileTensor(name, gguf, shape, tuple(range(len(shape))), shape)


def _transposed(name: str, gguf: str, rows: int, columns: int) -> FileTensor:
    return FileTensor(name, gguf, (rows, columns), (1, 0), (rows, columns))


_BLOCK, _BLK = "model.layers.{layer}.", "blk.{layer}."  # what a layer's tensors are called, in either sort of file
# Norms of a layer by `ModelConfig.norms`: what `transformer.block` calls each, and its names in files.
_NORMS: dict[str, dict[str, tuple[str, str]]] = {
    "before": {
        "attn_norm": ("input_layernorm", "attn_norm"),
        "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
    },
    "after": {
        "attn_post_norm": ("post_attention_layernorm", "post_attention_norm"),
        "mlp_post_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
    },
    "around": {
        "attn_norm": ("input_layernorm", "attn_norm"),
        "attn_post_norm": ("post_attention_layernorm", "post_attention_norm"),
        "mlp_norm": ("pre_feedforward_layernorm", "ffn_norm"),
        "mlp_post_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
    },
}
# The order of a layer's parameters in files; biases and the norms of heads follow.
_PLACES = (
    "attn_norm", "qkv", "attn_out", "attn_post_norm", "mlp_norm", "gate", "up", "down", "mlp_post_norm",
)  # fmt: skip


def describe_layer(cfg: ModelConfig) -> dict[str, Parameter]:
    """The parameters of one layer, without the axis of the layers.

    Query head k * R + r (in Llama's order) is `qkv[:, k, r]`; `[:, k, R]` are the keys and `[:, k, R + 1]` the values
    of group k, so that one matrix product makes all three and tensor parallelism splits between groups.
    """
    d, f, k, r, h = cfg.d_model, cfg.d_ff, cfg.n_kv_heads, cfg.queries_per_kv, cfg.d_head
    attention, mlp, blk = _BLOCK + "self_attn.", _BLOCK + "mlp.", _BLK
    residual = (2 * cfg.n_layers) ** -0.5

    def projection(name: str, group: int, heads: int) -> FileTensor:
        return FileTensor(
            f"{attention}{name}_proj.weight", f"{blk}attn_{name}.weight",
            (k, group, h, d), (3, 0, 1, 2), (k * group * h, d), rotated_heads=heads,
        )  # fmt: skip

    def bias(name: str, group: int) -> FileTensor:
        return FileTensor(
            f"{attention}{name}_proj.bias", f"{blk}attn_{name}.bias", (k, group, h), (0, 1, 2), (k * group * h,)
        )

    def feed_forward(name: str) -> Parameter:
        tensor = _transposed(f"{mlp}{name}_proj.weight", f"{blk}ffn_{name}.weight", f, d)
        return Parameter((d, f), ("width", "hidden"), Normal(0.5 * d**-0.5), tensors=(tensor,), inputs=1)

    matrices = {
        "qkv": Parameter(
            (d, k, r + 2, h), ("width", "kv_heads", None, None), Normal(0.5 * d**-0.5), inputs=1, joined=2,
            tensors=(projection("q", r, cfg.n_heads), projection("k", 1, k), projection("v", 1, 0)),
        ),
        "attn_out": Parameter(
            (k, r, h, d), ("kv_heads", None, None, "width"), Normal(0.5 * (k * r * h) ** -0.5 * residual), inputs=3,
            tensors=(
                FileTensor(
                    attention + "o_proj.weight", blk + "attn_output.weight",
                    (d, k, r, h), (1, 2, 3, 0), (d, k * r * h),
                ),
            ),
        ),
        "gate": feed_forward("gate"),
        "up": feed_forward("up"),
        "down": Parameter(
            (f, d), ("hidden", "width"), Normal(0.5 * f**-0.5 * residual), inputs=1,
            tensors=(_transposed(mlp + "down_proj.weight", blk + "ffn_down.weight", d, f),),
        ),
    }  # fmt: skip
    parts = _describe_norms(cfg) | matrices
    layer = {place: parts.pop(place) for place in _PLACES if place in parts}
    if cfg.qkv_bias:
        # Some of Qwen's biases are above 100 by training: a pull to zero would be an update of its own.
        layer["qkv_bias"] = Parameter(
            (k, r + 2, h), ("kv_heads", None, None), Constant(0.0), joined=1, decayed=False,
            tensors=(bias("q", r), bias("k", 1), bias("v", 1)),
        )  # fmt: skip
    return layer | parts


def _describe_norms(cfg: ModelConfig) -> dict[str, Parameter]:
    """The norms of one layer: around attention and feed-forward layer, and of query and key heads."""
    unit = Constant(0.0 if cfg.norm_plus_one else 1.0)

    def norm(name: str, gguf: str, *shape: int, axis: str | None = None) -> Parameter:
        tensor = FileTensor(
            f"{_BLOCK}{name}.weight", f"{_BLK}{gguf}.weight", shape, tuple(range(len(shape))), (math.prod(shape),)
        )
        return Parameter(shape, (axis, *(None,) * (len(shape) - 1)), unit, tensors=(tensor,))

    norms = {place: norm(name, gguf, cfg.d_model) for place, (name, gguf) in _NORMS[cfg.norms].items()}
    heads = {"q": (cfg.n_kv_heads, cfg.queries_per_kv), "k": (cfg.n_kv_heads,)} if cfg.qk_norm else {}
    for name, all_heads in heads.items():
        names = f"self_attn.{name}_norm", f"attn_{name}_norm"
        if cfg.qk_norm_whole:
            norms[f"{name}_norm"] = norm(*names, *all_heads, cfg.d_head, axis="kv_heads")
        else:
            norms[f"{name}_norm"] = norm(*names, cfg.d_head)
    return norms


def adapted_layers(cfg: ModelConfig) -> int:
    """How many layers have adapters, the last ones."""
    return 0 if cfg.lora is None else cfg.lora.layers or cfg.n_layers


def _describe_adapters(layer: dict[str, Parameter], lora: LoraConfig) -> dict[str, Parameter]:
    """The adapters of one layer, without the axis of the layers, whose base is described by `layer` (`model/lora.py`).

    Their tensors are named as PEFT names them. A is random as in Hu et al. (2021), normal, with the variance of PEFT's.
    """
    adapters: dict[str, Parameter] = {}
    for p in layer.values():
        for t in p.tensors if p.inputs else ():
            name = t.name.removesuffix(".weight")
            if (target := name.rpartition(".")[2]) not in lora.targets:
                continue
            outer = len(t.split) - p.inputs  # in a file's tensor the axes of outputs come first
            inputs, outputs, rank = t.split[outer:], t.split[:outer], lora.rank
            fan_in, fan_out = math.prod(inputs), math.prod(outputs)
            a = FileTensor(
                f"base_model.model.{name}.lora_A.weight", "",
                (rank, *inputs), (*range(1, p.inputs + 1), 0), (rank, fan_in),
            )  # fmt: skip
            b = FileTensor(
                f"base_model.model.{name}.lora_B.weight", "",
                (*outputs, rank), (outer, *range(outer)), (fan_out, rank),
            )  # fmt: skip
            name_a, name_b = names_of(target)
            adapters[name_a] = Parameter(
                (*inputs, rank), (*p.axes[: p.inputs], None), Normal((3 * fan_in) ** -0.5), tensors=(a,),
                inputs=p.inputs,
            )  # fmt: skip
            adapters[name_b] = Parameter(
                (rank, *outputs), (None, *p.axes[p.inputs :]), Constant(0.0), tensors=(b,), inputs=1
            )
    return adapters


def describe(cfg: ModelConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The tree of a model's parameters, a `Parameter` of this dtype at each leaf, in the order of published files.

    First values: matrices are normal with standard deviation 1 / (2 sqrt(fan in)), those whose results are added to the
    residual stream divided by sqrt(2 L) as in GPT-2; norms multiply by 1, biases are 0. Adapters are float32 at least.
    """
    v, d = cfg.vocab_size, cfg.d_model
    family = family_of(cfg.family, **fields_of(cfg))

    def finished(p: Parameter) -> Parameter:
        tensors = p.tensors
        if family is not None and family.renamed:
            tensors = tuple(dataclasses.replace(t, name=family.renamed.get(t.name, t.name)) for t in tensors)
        return dataclasses.replace(p, dtype=jnp.dtype(dtype), tensors=tensors)

    def vocabulary(name: str, gguf: str) -> Parameter:
        tensor = _as_it_is(name, gguf, v, d)
        return finished(Parameter((v, d), ("vocab", "width"), Normal(0.5 * d**-0.5), tensors=(tensor,)))

    def stacked(p: Parameter, layers: int = cfg.n_layers) -> Parameter:
        return dataclasses.replace(p, shape=(layers, *p.shape), axes=("layer", *p.axes))

    layer = {name: finished(p) for name, p in describe_layer(cfg).items()}
    unit = Constant(0.0 if cfg.norm_plus_one else 1.0)
    final_norm = _as_it_is("model.norm.weight", "output_norm.weight", d)
    tree: dict[str, Any] = {
        "embed": vocabulary("model.embed_tokens.weight", "token_embd.weight"),
        "layers": {name: stacked(p) for name, p in layer.items()},
        "final_norm": finished(Parameter((d,), (None,), unit, tensors=(final_norm,))),
    }
    if not cfg.tie_embeddings:
        tree["unembed"] = vocabulary("lm_head.weight", "output.weight")
    if cfg.lora is not None:
        tree = jax.tree.map(lambda p: dataclasses.replace(p, trainable=False), tree)
        for name, p in _describe_adapters(layer, cfg.lora).items():
            p = dataclasses.replace(p, dtype=jnp.promote_types(dtype, jnp.float32))
            tree["layers"][name] = stacked(p, adapted_layers(cfg))
    return tree


def init_params(key: jax.Array, cfg: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """Random parameters of this dtype, see `describe`; each leaf of the tree has a key of its own.

    The base of a model with adapters is that of the model without.
    """
    params = _first_values(key, describe(cfg.base, dtype))
    return params if cfg.lora is None else with_adapters(params, init_adapters(jax.random.fold_in(key, 1), cfg, dtype))


def init_adapters(key: jax.Array, cfg: ModelConfig, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Random adapters beside a base of this dtype, by name: what they add is 0."""
    return _first_values(key, split(describe(cfg, dtype)["layers"])[1])


def with_adapters(base: Params, adapters: dict[str, Any]) -> Params:
    """The parameters of a model whose base these are."""
    return {**base, "layers": {**base["layers"], **adapters}}


def _first_values(key: jax.Array, described: dict[str, Any]) -> dict[str, Any]:
    parameters, tree = jax.tree.flatten(described)
    keys = jax.random.split(key, len(parameters))
    return jax.tree.unflatten(tree, [p.init(k, p.shape).astype(p.dtype) for p, k in zip(parameters, keys, strict=True)])


def abstract_params(cfg: ModelConfig, dtype: Any = jnp.float32, shardings: Any = None) -> Params:
    """Shapes and dtypes of the parameters; `shardings` is one for all of them, a tree of them, or None."""
    tree = describe(cfg, dtype)
    if isinstance(shardings, dict):
        return jax.tree.map(lambda p, sharding: p.abstract(sharding), tree, shardings)
    return jax.tree.map(lambda p: p.abstract(shardings), tree)


def count_params(cfg: ModelConfig) -> int:
    """How many numbers the model has; nothing is allocated."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(describe(cfg)))


def leaf_at(tree: Any, path: Iterable[str]) -> Any:
    """What lies in a tree of dicts at a path of keys."""
    for key in path:
        tree = tree[key]
    return tree


class Place(NamedTuple):
    """What a tensor of a file is of our parameters: of `parameter`, at `path` in their tree, in `layer` (None: it has
    no layers)."""

    tensor: FileTensor
    parameter: Parameter
    path: tuple[str, ...]
    layer: int | None


def file_tensors(cfg: ModelConfig) -> dict[str, Place]:
    """{name in a Hugging Face file: place} of every tensor that a file of this model holds, in the files' order.

    Adapters are in files of their own: `adapter_tensors`.
    """
    return _places(describe(cfg.base), cfg.n_layers)


def adapter_tensors(cfg: ModelConfig) -> dict[str, Place]:
    """{name in a PEFT file: place} of every tensor of the model's adapters. A place's layer counts those with some."""
    return _places({"layers": split(describe(cfg)["layers"])[1]}, cfg.n_layers)


def _places(described: dict[str, Any], layers: int) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for name, node in described.items():
        if isinstance(node, Parameter):
            places.update({t.name: Place(t, node, (name,), None) for t in node.tensors})
            continue
        for layer in range(layers):
            for inner, p in node.items():
                index = layer - (layers - p.shape[0])
                if index >= 0:
                    places.update({t.name.format(layer=layer): Place(t, p, (name, inner), index) for t in p.tensors})
    return places


def tensor_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor of `file_tensors`, in the same order."""
    return {name: place.tensor.shape for name, place in file_tensors(cfg).items()}
