"""Weights from folders: what is loaded, where it lies, what it needs meanwhile, and how what is wrong is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

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
    kept = load_pretrained(three, three.cfg, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(kept["layers"]["qkv"], rounded["layers"]["qkv"].astype(jnp.bfloat16))


def test_our_safetensors_are_everybodys(tmp_path):
    """The reference implementation reads what we write, and we what it writes."""
    numpy = pytest.importorskip("safetensors.numpy")
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.c": np.arange(3, dtype=np.float16)}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    kinds = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}
    entries = {name: (kinds[tensor.dtype], tensor.shape) for name, tensor in tensors.items()}
    write_safetensors(ours, entries, tensors.__getitem__)
    numpy.save_file(tensors, theirs)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(numpy.load_file(ours)[name], tensor)
        np.testing.assert_array_equal(SafetensorsFile(theirs).read(name), tensor)


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


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.model\.init: no folder .*docs/models\.md"):
        open_weights(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"config\.model\.init: no file .*none\.gguf"):
        open_weights(str(tmp_path / "none.gguf"))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        open_weights(str(tmp_path))
    folder = write_folder(tmp_path / "model", cases.LLAMA, shards=2)
    (folder / "model-00002-of-00002.safetensors").rename(folder / "gone")
    with pytest.raises(ConfigError, match=r"files that aren't there: model-00002-of-00002\.safetensors"):
        open_weights(str(folder))
    (folder / "gone").rename(folder / "model-00002-of-00002.safetensors")
    os.truncate(folder / "model-00001-of-00002.safetensors", 3000)
    with pytest.raises(ConfigError, match=r"model-00001-of-00002\.safetensors: cut short, \d+ bytes"):
        open_weights(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ConfigError, match=r"neither model\.safetensors nor .*only safetensors are read"):
        open_weights(str(folder))
    (folder / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not JSON at all.")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        open_weights(str(folder))
    (tmp_path / "bad.gguf").write_bytes(b"no")
    with pytest.raises(ConfigError, match=r"bad\.gguf: cannot be read as GGUF"):
        open_weights(str(tmp_path / "bad.gguf"))


def run_python(source, *args, **environment):
    """The output of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source), *map(str, args)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_shard_gets_its_part(tmp_path):
    """On 2 x 2 x 2 devices each holds its part, and together they are what one device holds."""
    config = cases.FAMILIES["qwen2"] | {"vocab_size": 64, "tie_word_embeddings": False}
    folder = write_folder(tmp_path / "model", config, shards=2)
    source = """
        import sys
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
        assert split["layers"]["qkv"].addressable_shards[0].data.size * 4 == split["layers"]["qkv"].size
        print(len(jax.tree.leaves(split)), "parameters")
    """
    assert run_python(source, folder, XLA_FLAGS="--xla_force_host_platform_device_count=8") == "11 parameters\n"


def test_loading_needs_a_few_tensors_beside_the_parameters(tmp_path):
    """The peak of this process's own memory, mapped files left out, over the 270 MB of the parameters themselves."""
    config = cases.LLAMA | {"hidden_size": 512, "num_hidden_layers": 16, "num_attention_heads": 8, "head_dim": 64,
                            "intermediate_size": 2048, "num_key_value_heads": 8}  # fmt: skip
    cfg = parse_config(config)
    folder, kept = tmp_path / "model", 4 * count_params(cfg) / 2**20
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = tensor_shapes(cfg)
    entries = {name: ("BF16", shape) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", entries, lambda name: np.ones(shapes[name], np.float32))
    small = write_folder(tmp_path / "small", config | {"num_hidden_layers": 1})
    source = """
        import sys, threading
        from pathlib import Path

        import jax

        from rlef_jax.model.pretrained import HFFolder, load_pretrained

        def anonymous():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

        def load(folder):
            weights = HFFolder(Path(folder))
            return jax.block_until_ready(load_pretrained(weights, weights.cfg))

        kept = load(sys.argv[2])  # JAX itself
        before, peak, done = anonymous(), [0.0], threading.Event()

        def watch():
            while not done.wait(0.002):
                peak[0] = max(peak[0], anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        kept = load(sys.argv[1])
        done.set()
        watcher.join()
        print(max(peak[0], anonymous()) - before)
    """
    tuned = "glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=131072"
    used = float(run_python(source, folder, small, GLIBC_TUNABLES=tuned))
    assert kept > 250
    assert used < kept + 48  # a tensor is 4 MB, a stack of them 64 MB; programs are compiled meanwhile
