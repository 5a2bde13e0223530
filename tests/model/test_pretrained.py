"""Weights from folders: what is loaded, where it lies, what it needs meanwhile, and how what is wrong is named."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from rlef_jax.errors import ConfigError
from rlef_jax.model.hf_config import parse_config
from rlef_jax.model.parameters import count_params, tensor_shapes
from rlef_jax.model.pretrained import HFFolder, load_pretrained, open_weights
from rlef_jax.model.safetensors_file import SafetensorsFile, write_safetensors
from tests.helpers.hf_folder import write_folder
from tests.parity import cases

LLAMA_31 = cases.SCALING | {"original_max_position_embeddings": 8192}
META = cases.LLAMA | {
    "vocab_size": 128256, "rope_theta": 500000.0, "rope_scaling": LLAMA_31, "max_position_embeddings": 131072,
    "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    "sizes, count",
    [
        ((4096, 32, 32, 14336), 8_030_261_248),
        ((8192, 80, 64, 28672), 70_553_706_496),
    ],
)
def test_llama_31_has_as_many_parameters_as_published(sizes, count):
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    assert count_params(parse_config(META | dict(zip(names, sizes, strict=True)))) == count


def test_shards_and_dtypes(tmp_path):
    """bfloat16 files in three shards give the weights of one float32 file, rounded."""
    one = HFFolder(write_folder(tmp_path / "one", cases.LLAMA))
    three = HFFolder(write_folder(tmp_path / "three", cases.LLAMA, dtype="BF16", shards=3))
    exact, rounded = load_pretrained(one, one.cfg), load_pretrained(three, three.cfg)
    assert set(three.dtypes.values()) == {"BF16"}
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert b.dtype == jnp.float32
        np.testing.assert_array_equal(np.asarray(a).astype(ml_dtypes.bfloat16).astype(np.float32), b)
    narrow = load_pretrained(three, three.cfg, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(narrow["layers"]["qkv"], rounded["layers"]["qkv"].astype(jnp.bfloat16))


def test_our_safetensors_are_everybodys(tmp_path):
    """The package reads what we write, and we what it writes, by slices too."""
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.arange(3, dtype=np.float16)}
    tensors["d"] = np.arange(12, dtype=ml_dtypes.bfloat16).reshape(4, 3)
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    entries = {name: (kinds[tensor.dtype.name], tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(ours, entries, tensors.__getitem__)
    safetensors.numpy.save_file(tensors, theirs)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(safetensors.numpy.load_file(ours)[name], tensor)
        np.testing.assert_array_equal(SafetensorsFile(theirs).read(name), tensor)
    np.testing.assert_array_equal(SafetensorsFile(theirs).sliced("d")[1:3, 2:3], [[5], [8]])


def _renamed(folder, old, new, shape=None):
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: np.array(file.read(name)) for name in file.shapes}
    if old is not None:
        tensor = tensors.pop(old)
        if new is not None:
            tensors[new] = tensor if shape is None else np.resize(tensor, shape)
    else:
        tensors[new] = np.zeros(shape, np.float32)
    entries = {name: ("F32", tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(folder / "model.safetensors", entries, tensors.__getitem__)


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "old, new, shape, message",
    [
        (Q, None, None, rf"tensors missing: {Q}$"),
        (None, "extra.weight", (3,), r"tensors not of this model: extra\.weight$"),
        (None, "model.layers.0.mlp.up_proj.bias", (48,), r"not of this model: model\.layers\.0\.mlp\.up_proj\.bias"),
        (Q, Q, (32, 16), rf"tensors of another shape: {Q} \(32, 16\) instead of \(32, 32\)"),
        (Q, Q[:-6] + "waight", None, rf"missing: {Q}; tensors not of this model: {Q[:-6]}waight"),
    ],
)
def test_wrong_tensors_are_named(old, new, shape, message, tmp_path):
    folder = write_folder(tmp_path / "model", cases.LLAMA)
    _renamed(folder, old, new, shape)
    weights = HFFolder(folder)
    with pytest.raises(ConfigError, match=message):
        load_pretrained(weights, weights.cfg)


def test_many_wrong_tensors_are_counted(tmp_path):
    folder = write_folder(tmp_path / "model", cases.LLAMA | {"num_hidden_layers": 3}, shapes_of=cases.LLAMA)
    weights = HFFolder(folder)
    with pytest.raises(ConfigError, match=r"missing: model\.layers\.2\..* and 1 more"):
        load_pretrained(weights, weights.cfg)


def test_tensors_that_mean_nothing_are_passed_over(tmp_path):
    tied = cases.FAMILIES["llama tie_word_embeddings"]
    folder = write_folder(tmp_path / "model", tied)
    embedding = cases.tensor("model.embed_tokens.weight", (61, 32))
    _renamed(folder, None, "model.layers.0.self_attn.rotary_emb.inv_freq", (4,))
    _renamed(folder, "model.embed_tokens.weight", "lm_head.weight")
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: np.array(file.read(name)) for name in file.shapes} | {"model.embed_tokens.weight": embedding}

    def write():
        entries = {name: ("F32", tensor.shape) for name, tensor in tensors.items()}
        write_safetensors(folder / "model.safetensors", entries, tensors.__getitem__)
        weights = HFFolder(folder)
        load_pretrained(weights, weights.cfg)

    write()
    tensors["lm_head.weight"] = embedding + 1
    with pytest.raises(ConfigError, match=r"not of this model: lm_head\.weight"):
        write()


OLD, NEW, INDEX = "model-00001-of-00002.safetensors", "model.safetensors", "model.safetensors.index.json"


@pytest.mark.parametrize("shards_are_there", [True, False])
def test_a_whole_file_wins_over_an_index_of_another_time(shards_are_there, tmp_path):
    """A folder saved anew as one file: transformers, too, loads that one, whatever the old index names."""
    config = cases.LLAMA | {"num_hidden_layers": 1}
    folder = write_folder(tmp_path / "model", config, shards=2)
    for path in folder.glob("model-*"):
        tensors = safetensors.numpy.load_file(path)
        safetensors.numpy.save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)
        if not shards_are_there:
            path.unlink()
    assert (write_folder(folder, config) / INDEX).is_file()
    weights = HFFolder(folder)
    for name, shape in tensor_shapes(weights.cfg).items():
        np.testing.assert_array_equal(weights.read(name), cases.tensor(name, shape))
        assert weights.file_of(name) == folder / NEW
    (folder / NEW).unlink()
    if shards_are_there:
        name = "model.norm.weight"
        np.testing.assert_array_equal(HFFolder(folder).read(name), cases.tensor(name, (32,)) + 1)
    else:
        with pytest.raises(ConfigError, match=rf"{INDEX}: names files that aren't there: {OLD}, .*: get them, or the"):
            HFFolder(folder)


def test_shards_without_an_index_are_refused(tmp_path):
    folder = write_folder(tmp_path / "model", cases.LLAMA, shards=2)
    (folder / INDEX).unlink()
    with pytest.raises(ConfigError, match=rf"model: holds {OLD}, .*, but no {INDEX} that says .*: get that file too"):
        open_weights(str(folder))


def test_a_model_saved_without_its_output_layer_is_read(tmp_path):
    """Its tensors are called layers.0..., not model.layers.0..."""
    config = cases.FAMILIES["llama tie_word_embeddings"]
    folder = write_folder(tmp_path / "model", config)
    tensors = safetensors.numpy.load_file(folder / NEW)
    safetensors.numpy.save_file({n.removeprefix("model."): t for n, t in tensors.items()}, folder / NEW)
    weights = HFFolder(folder)
    params = load_pretrained(weights, weights.cfg)
    np.testing.assert_array_equal(params["final_norm"], tensors["model.norm.weight"])
    assert {name: weights.file_of(name) for name in tensors} == dict.fromkeys(tensors, folder / NEW)


def test_tensors_of_other_dtypes_are_named(tmp_path):
    folder = write_folder(tmp_path / "model", cases.LLAMA)
    tensors = safetensors.numpy.load_file(folder / NEW)
    for name in (Q, Q.replace("layers.1", "layers.0")):
        tensors[name] = tensors[name].astype(np.int8)
    safetensors.numpy.save_file(tensors, folder / NEW)
    weights = HFFolder(folder)
    first = Q.replace("layers.1", "layers.0")
    with pytest.raises(
        ConfigError, match=rf"{NEW}: {first} is of dtype I8, as 2 of the model's 21 .* supported are F32"
    ):
        load_pretrained(weights, weights.cfg)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "header too small; it is cut short or damaged: get it again"),
        (b"\x10\0\0\0\0\0\0\0not JSON at all.", "invalid JSON in header: .*cut short or damaged: get it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "a pointer of Git LFS: run `git lfs pull`",
        ),
        (-10, "cut short or damaged: get it again"),
        (3000, "cut short or damaged: get it again"),
        (40, "cut short or damaged: get it again"),
    ],
)
def test_damaged_files_are_named(data, message, tmp_path):
    folder = write_folder(tmp_path / "model", cases.LLAMA, shards=2)
    content = (folder / OLD).read_bytes()
    (folder / OLD).write_bytes(data if isinstance(data, bytes) else content[:data])
    with pytest.raises(ConfigError, match=rf"{OLD}: not a safetensors file: .*{message}$"):
        open_weights(str(folder))


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.model\.init: no folder .*docs/models\.md"):
        open_weights(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"config\.model\.init: no file .*none\.gguf"):
        open_weights(str(tmp_path / "none.gguf"))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        open_weights(str(tmp_path))
    folder = write_folder(tmp_path / "model", cases.LLAMA, shards=2)
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"more": OLD}}))
    with pytest.raises(ConfigError, match=rf"{INDEX}: tensors are not in the files that it names: more$"):
        open_weights(str(folder))
    for damaged in ("{", "[]", '{"weight_map": {"a": 3}}'):
        (folder / INDEX).write_text(damaged)
        with pytest.raises(ConfigError, match=rf"{INDEX}: cannot be read as an index"):
            open_weights(str(folder))
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        path.unlink()
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor .*only safetensors are read"):
        open_weights(str(folder))
    (tmp_path / "bad.gguf").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"bad\.gguf: cannot be read as GGUF"):
        open_weights(str(tmp_path / "bad.gguf"))


SOURCE = """
    import json, runpy, sys
    from pathlib import Path

    import jax
    import numpy as np

    from rlef_jax.model.pretrained import HFFolder, load_pretrained
    from rlef_jax.model.sharding import make_mesh, param_shardings

    weights = HFFolder(Path(sys.argv[1]))
    shardings = param_shardings(make_mesh(2, 2, 2), weights.cfg)
    whole, split = load_pretrained(weights, weights.cfg), load_pretrained(weights, weights.cfg, shardings=shardings)

    def compare(a, b, sharding):
        assert b.sharding.is_equivalent_to(sharding, b.ndim), (b.sharding, sharding)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(compare, whole, split, shardings)
    held = {leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(split["layers"])}
    print(json.dumps(sorted(held)))
    print(json.dumps(runpy.run_path(sys.argv[3])["measure"]("ours", Path(sys.argv[2]))))
"""


def test_every_device_gets_its_part_and_the_host_holds_little(tmp_path):
    """On 2 x 2 x 2 devices each holds its part, and together they are what one device holds. The peak of the process's
    own memory, mapped files left out, is little over the parameters."""
    script = Path(__file__).parents[2] / "benchmarks" / "loading.py"
    benchmark = runpy.run_path(str(script))
    small, large = tmp_path / "small", tmp_path / "large"
    write_folder(small, cases.FAMILIES["qwen2"] | {"vocab_size": 64, "tie_word_embeddings": False}, shards=2)
    size_mib = benchmark["make_folder"](large, benchmark["SMALL"], 50 << 20) >> 20
    assert size_mib == 228 and len(list(large.glob("model-0000?-of-00005.safetensors"))) == 5
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SOURCE), small, large, script],
        env=os.environ | benchmark["DEVICES"], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    held, measured = map(json.loads, done.stdout.splitlines())
    assert held == [0.25, 0.5, 1.0]  # matrices, biases by heads, norms
    # A tensor is 4 MiB, a stack of them 64 MiB; programs are compiled meanwhile.
    assert size_mib - 8 < measured["rise"] < size_mib + 32
