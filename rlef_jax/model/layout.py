"""Where Hugging Face's tensors lie in our parameters.

Ours are stacked over layers, and a layer's queries, keys and values are one array (see `transformer.param_shapes`). A
*piece* is one layer's share of such an array, or an array without layers. It is made of one tensor, or of several along
one axis; each is reshaped and transposed, which moves no data until it is read.

Letters in shapes: D model width, V vocabulary, K key/value heads, R query heads each, H head width, F feed-forward.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from rlef_jax.model.transformer import ModelConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor in a piece.

    Attributes:
      name: the tensor's, with {layer} for the layer's number.
      split: the shape that the tensor is given, its axes taken apart.
      order: the axes of `split` in the order in which the piece has them.
      shape: the tensor's own.
    """

    name: str
    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def to_piece(self, tensor: np.ndarray) -> np.ndarray:
        """The tensor as the piece has it: a view."""
        return tensor.reshape(self.split).transpose(self.order)

    def from_piece(self, part: np.ndarray) -> np.ndarray:
        """The tensor itself again."""
        return part.transpose(np.argsort(self.order)).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Piece:
    """The parts of a piece, and the axis along which there are several."""

    parts: tuple[Part, ...]
    axis: int = 0

    def cut(self, piece: np.ndarray) -> dict[str, np.ndarray]:
        """{name: tensor} of a whole piece."""
        widths = [part.split[part.order[self.axis]] for part in self.parts]
        cuts = np.split(piece, np.cumsum(widths)[:-1], axis=self.axis)
        return {part.name: part.from_piece(one) for part, one in zip(self.parts, cuts, strict=True)}


def _plain(name: str, *shape: int) -> Piece:
    return Piece((Part(name, shape, tuple(range(len(shape))), shape),))


def _transposed(name: str, rows: int, columns: int) -> Piece:
    return Piece((Part(name, (rows, columns), (1, 0), (rows, columns)),))


def layout(cfg: ModelConfig) -> dict[str, Any]:
    """The tree of `param_shapes` with a Piece at each leaf; under "layers" it stands for every layer's."""
    d, v, f = cfg.d_model, cfg.vocab_size, cfg.d_ff
    k, r, h = cfg.n_kv_heads, cfg.queries_per_kv, cfg.d_head
    block = "model.layers.{layer}."
    attention, mlp = block + "self_attn.", block + "mlp."

    def heads(name: str, group: int) -> Part:
        return Part(f"{attention}{name}_proj.weight", (k, group, h, d), (3, 0, 1, 2), (k * group * h, d))

    def bias(name: str, group: int) -> Part:
        return Part(f"{attention}{name}_proj.bias", (k, group, h), (0, 1, 2), (k * group * h,))

    sizes = {"q": r, "k": 1, "v": 1}
    layers = {
        "attn_norm": _plain(block + "input_layernorm.weight", d),
        "qkv": Piece(tuple(heads(name, group) for name, group in sizes.items()), axis=2),
        "attn_out": Piece((Part(attention + "o_proj.weight", (d, k, r, h), (1, 2, 3, 0), (d, k * r * h)),)),
        "mlp_norm": _plain(block + "post_attention_layernorm.weight", d),
        "gate": _transposed(mlp + "gate_proj.weight", f, d),
        "up": _transposed(mlp + "up_proj.weight", f, d),
        "down": _transposed(mlp + "down_proj.weight", d, f),
    }
    if cfg.qkv_bias:
        layers["qkv_bias"] = Piece(tuple(bias(name, group) for name, group in sizes.items()), axis=1)
    if cfg.qk_norm:
        layers |= {name: _plain(f"{attention}{name}.weight", h) for name in ("q_norm", "k_norm")}
    tree: dict[str, Any] = {
        "embed": _plain("model.embed_tokens.weight", v, d),
        "layers": layers,
        "final_norm": _plain("model.norm.weight", d),
    }
    if not cfg.tie_embeddings:
        tree["unembed"] = _plain("lm_head.weight", v, d)
    return tree


def tensor_shapes(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every tensor that a Hugging Face folder of this model holds, in the model's order."""
    tree = layout(cfg)
    layers = tree["layers"].values()
    shapes = dict(_named(tree["embed"], None))
    for layer in range(cfg.n_layers):
        for piece in layers:
            shapes |= _named(piece, layer)
    for name in ("final_norm", "unembed"):
        if name in tree:
            shapes |= _named(tree[name], None)
    return shapes


def _named(piece: Piece, layer: int | None) -> dict[str, tuple[int, ...]]:
    return {part.name.format(layer=layer): part.shape for part in piece.parts}
