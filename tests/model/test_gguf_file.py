"""GGUF files give the model, weights and names of the Hugging Face folder that they were made from."""

from __future__ import annotations

import gguf
import jax
import numpy as np
import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.model.gguf_file import GGUFFile
from rlef_jax.model.hf_config import parse_config
from rlef_jax.model.parameters import tensor_shapes
from rlef_jax.model.pretrained import HFFolder, load_pretrained, open_weights
from rlef_jax.model.rope import RopeScaling, rope_frequencies
from tests.helpers.hf_folder import write_folder
from tests.parity import cases

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
Q4_1, Q8_0 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0


def gguf_name(name):
    base, kind = name.rsplit(".", 1)
    if base in WHOLE:
        return f"{WHOLE[base]}.{kind}"
    _, _, layer, rest = base.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def permuted(tensor, heads):
    """llama.cpp's own reordering of q and k (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return (
        tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
    )


def write_gguf(path, config, *, kinds=None, leave_out=(), most=0, **fields):
    """The file that llama.cpp's converter makes of `cases`' weights; several of `most` tensors each, if given.

    kinds: {part of a name: quantization, or None and the raw type for zeros of a type that can't be written}.
    """
    cfg, family = parse_config(config), config["model_type"]
    writer = gguf.GGUFWriter(path, family, split_max_tensors=most)
    writer.add_block_count(cfg.n_layers)
    writer.add_context_length(cfg.max_positions)
    writer.add_embedding_length(cfg.d_model)
    writer.add_feed_forward_length(cfg.d_ff)
    writer.add_head_count(cfg.n_heads)
    writer.add_head_count_kv(cfg.n_kv_heads)
    writer.add_key_length(cfg.d_head)
    writer.add_value_length(cfg.d_head)
    writer.add_rope_freq_base(cfg.rope_theta)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    for key, value in fields.items():
        writer.add_key_value(f"{family}.{key.replace('__', '.')}", value, gguf.GGUFValueType.UINT32)
    for name, shape in tensor_shapes(cfg).items():
        tensor = cases.tensor(name, shape)
        heads = {"q_proj": cfg.n_heads, "k_proj": cfg.n_kv_heads}.get(name.split(".")[-2])
        if heads and family == "llama":
            tensor = permuted(tensor, heads)
        if name in leave_out:
            continue
        kind = next((kind for part, kind in (kinds or {}).items() if part in name), None)
        if kind is None:
            writer.add_tensor(gguf_name(name), tensor)
        elif isinstance(kind, tuple):
            block, size = gguf.GGML_QUANT_SIZES[kind[1]]
            writer.add_tensor(
                gguf_name(name), np.zeros((shape[0], shape[1] // block * size), np.uint8), raw_dtype=kind[1]
            )
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    if cfg.rope_scaling is not None:
        plain = rope_frequencies(cfg.layer_kinds[0]._replace(rope_scaling=None), cfg.d_head)
        scaled = rope_frequencies(cfg.layer_kinds[0], cfg.d_head)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["llama", "llama tie_word_embeddings", "llama head_dim", "qwen2", "qwen3"])
def test_a_gguf_file_is_the_folder_that_it_was_made_from(family, tmp_path, quick_compilation):
    config = cases.FAMILIES[family]
    folder = HFFolder(write_folder(tmp_path / "model", config))
    file = open_weights(str(write_gguf(tmp_path / "model.gguf", config)))
    assert file.cfg == folder.cfg and dict(file.shapes) == dict(folder.shapes)
    ours, theirs = (load_pretrained(weights, folder.cfg) for weights in (file, folder))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_quantized_tensors_are_near(tmp_path):
    kinds = {"q_proj": Q4_1, "o_proj": Q4_1, "embed": Q8_0}
    file = GGUFFile(write_gguf(tmp_path / "model.gguf", cases.LLAMA, kinds=kinds))
    for name, bound in (
        ("model.layers.0.self_attn.q_proj.weight", 0.08),
        ("model.layers.1.self_attn.o_proj.weight", 0.08),
        ("model.embed_tokens.weight", 0.01),
        ("model.layers.0.mlp.up_proj.weight", 0.0),
    ):
        tensor, exact = file.read(name), cases.tensor(name, file.shapes[name])
        assert tensor.dtype == np.float32 and np.abs(tensor - exact).max() <= bound
        assert bound == 0.0 or (tensor != exact).any()


def test_llama_31s_and_32s_scaling_is_recognised(tmp_path):
    for factor in (8.0, 32.0):
        scaling = cases.SCALING | {"factor": factor, "original_max_position_embeddings": 8192}
        config = cases.LLAMA | {"rope_scaling": scaling, "rope_theta": 500000.0, "head_dim": 32}
        cfg = GGUFFile(write_gguf(tmp_path / f"{factor}.gguf", config)).cfg
        assert cfg == parse_config(config) and cfg.rope_scaling == RopeScaling(factor, 1.0, 4.0, 8192.0)
    with pytest.raises(ConfigError, match=r"rope_freqs\.weight holds a scaling that is neither"):
        GGUFFile(write_gguf(tmp_path / "other.gguf", cases.LLAMA | {"rope_scaling": cases.SCALING}))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"attention__sliding_window": 64}, r"llama\.attention\.sliding_window is not supported"),
        ({"expert_count": 8}, r"llama\.expert_count is not supported"),
        ({"rope__dimension_count": 4}, r"llama\.rope\.dimension_count must be the head width 8"),
    ],
)
def test_what_we_do_not_compute_is_refused(fields, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"model\.gguf: {message}"):
        GGUFFile(write_gguf(tmp_path / "model.gguf", cases.LLAMA, **fields))


def test_missing_tensors_are_named(tmp_path):
    lost = "model.layers.1.mlp.down_proj.weight"
    weights = GGUFFile(write_gguf(tmp_path / "model.gguf", cases.LLAMA, leave_out=[lost]))
    with pytest.raises(ConfigError, match=rf"model\.gguf: tensors missing: {lost}"):
        load_pretrained(weights, weights.cfg)


WIDE = cases.LLAMA | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 8}


@pytest.mark.parametrize("kind", ["Q8_K", "Q1_0", "I8", "F64"])
def test_a_type_that_cannot_be_decoded_is_named_at_opening(kind, tmp_path):
    kinds = {"up_proj": (None, gguf.GGMLQuantizationType[kind])}
    path = write_gguf(tmp_path / "model.gguf", WIDE, kinds=kinds)
    message = rf"model\.gguf: tensor blk\.0\.ffn_up\.weight is of type {kind}, which can't be decoded \(1 of 12 "
    with pytest.raises(ConfigError, match=message):
        open_weights(str(path))


@pytest.mark.parametrize("kind", ["MXFP4", "BF16", "TQ1_0", "Q6_K", "F16"])
def test_types_that_can_be_decoded_are_read(kind, tmp_path):
    kinds = {"up_proj": (None, gguf.GGMLQuantizationType[kind])}
    file = open_weights(str(write_gguf(tmp_path / "model.gguf", WIDE, kinds=kinds)))
    tensor = file.read("model.layers.0.mlp.up_proj.weight")
    assert tensor.shape == (256, 256) and tensor.dtype == np.float32 and not tensor.any()


def test_a_split_file_is_the_whole_one(tmp_path, quick_compilation):
    """Its parts are found beside the first, and errors name the one that holds a tensor."""
    single = open_weights(str(write_gguf(tmp_path / "whole.gguf", cases.LLAMA)))
    write_gguf(tmp_path / "model.gguf", cases.LLAMA, most=9)
    parts = sorted(tmp_path.glob("model-*"))
    assert [path.name for path in parts] == [f"model-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    split = open_weights(str(parts[0]))
    assert split.cfg == single.cfg and dict(split.shapes) == dict(single.shapes)
    ours, theirs = (load_pretrained(weights, single.cfg) for weights in (split, single))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert {split.file_of(name) for name in split.shapes} == set(parts)
    assert split.file_of("lm_head.weight") == parts[2] and split.file_of("model.embed_tokens.weight") == parts[0]


def test_parts_that_are_not_all_there_are_named(tmp_path):
    write_gguf(tmp_path / "model.gguf", cases.LLAMA, most=9)
    first, second, third = sorted(tmp_path.glob("model-*"))
    with pytest.raises(
        ConfigError, match=rf"{second.name}: is part 2 of 3 of a split .*: name the first, .*{first.stem}"
    ):
        open_weights(str(second))
    third.rename(tmp_path / "third")
    with pytest.raises(ConfigError, match=rf"{first.name}: is part 1 of 3 .*, and {third.name} isn't there: get every"):
        open_weights(str(first))
    third.write_bytes(second.read_bytes())
    with pytest.raises(ConfigError, match=rf"{third.name}: is not part 3 of 3 of a split file, as its name says"):
        open_weights(str(first))
    write_gguf(tmp_path / "other.gguf", cases.LLAMA | {"num_hidden_layers": 3}, most=11)
    third.write_bytes((tmp_path / "other-00003-of-00003.gguf").read_bytes())
    with pytest.raises(ConfigError, match=rf"{first.name}: its parts hold \d+ tensors of 21: they are of several"):
        open_weights(str(first))
    with pytest.raises(ConfigError, match=r"renamed\.gguf: is part 1 of 3 .* isn't called NAME-00001-of-00003\.gguf"):
        open_weights(str(first.rename(tmp_path / "renamed.gguf")))
