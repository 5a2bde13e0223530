"""Weights with NaN or infinity, or with what a narrower dtype can't hold, are refused by file and tensor."""

from __future__ import annotations

import importlib.resources

import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rlef_jax import config as config_lib
from rlef_jax.errors import ConfigError, RunError
from rlef_jax.export import export_weights
from rlef_jax.model.finite import check_params, fault
from rlef_jax.model.pretrained import load_pretrained, open_weights
from rlef_jax.model.safetensors_file import SafetensorsFile, write_safetensors
from rlef_jax.model.weights import save_params
from rlef_jax.training.build import build_policy
from tests.helpers.byte_bpe import TEMPLATES, write_tokenizer
from tests.helpers.hf_folder import write_folder
from tests.model.test_gguf_file import write_gguf
from tests.parity import cases

UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("value, message", [(np.nan, "holds nan"), (np.inf, "holds inf"), (-np.inf, "holds -inf")])
def test_one_entry_is_enough(dtype, value, message):
    values = np.linspace(-3.0, 3.0, 30).reshape(5, 6).astype(dtype)
    assert fault(values) is None
    values[4, 5] = value
    assert fault(values) == fault(values.T) == message


def test_all_of_a_large_tensor_is_looked_at():
    large = np.zeros((3, 600_000), np.float32)
    assert fault(large) is fault(large.T) is None
    large[2, -1] = np.nan
    assert fault(large) == fault(large.T) == fault(large[:, ::-1]) == "holds nan"


@pytest.mark.parametrize(
    "value, dtype, target, message",
    [
        (65519.0, np.float32, jnp.float16, None),  # rounds to 65504, the largest
        (65520.0, np.float32, jnp.float16, "holds 65520, which float16 can't hold"),
        (3.39e38, np.float32, jnp.bfloat16, None),
        (3.4e38, np.float32, jnp.bfloat16, "holds 3.4e+38, which bfloat16 can't hold"),
        (-1e300, np.float64, jnp.float32, "holds -1e+300, which float32 can't hold"),
        (65504.0, np.float16, jnp.float32, None),
        (1e5, ml_dtypes.bfloat16, jnp.float16, "holds 99840, which float16 can't hold"),
    ],
)
def test_what_a_narrower_dtype_cannot_hold_is_found(value, dtype, target, message):
    values = np.array([1.0, value, 2.0]).astype(dtype)
    assert fault(values, [target]) == message and fault(values) is None


def test_arrays_on_devices_are_named_by_their_path():
    tree = {"policy": {"embed": jnp.ones((3, 2)), "layers": {"qkv": jnp.full((2,), 7e4)}}}
    check_params("here", tree, [jnp.bfloat16])
    with pytest.raises(ConfigError, match=r"here: \['policy'\]\['layers'\]\['qkv'\] holds what float16 can't hold"):
        check_params("here", tree, [jnp.bfloat16, jnp.float16])
    tree["policy"]["embed"] = tree["policy"]["embed"].at[2, 1].set(jnp.nan)
    with pytest.raises(ConfigError, match=r"here: \['policy'\]\['embed'\] holds NaN or infinity: weights must be"):
        check_params("here", tree)


def spoil(path, name, value, dtype=None):
    """Writes a safetensors file again, all of `dtype`, with `value` as the last entry of a tensor."""
    file = SafetensorsFile(path)
    tensors = {n: np.array(file.read(n), np.float64) for n in file.shapes}
    tensors[name].flat[-1] = value
    with np.errstate(over="ignore"):
        write_safetensors(path, {n: (dtype or file.dtypes[n], s) for n, s in file.shapes.items()}, tensors.__getitem__)


def loaded(path, **options):
    weights = open_weights(str(path))
    return load_pretrained(weights, weights.cfg, **options)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.self_attn.v_proj.weight", UP])
def test_a_float16_tensor_that_overflowed_is_named(tmp_path, name):
    """Alone, in an array made of several tensors, and in a stack of layers."""
    folder = write_folder(tmp_path / "model", cases.LLAMA)
    spoil(folder / "model.safetensors", name, 1e6, "F16")
    with pytest.raises(ConfigError, match=rf"model/model\.safetensors: {name} holds inf: weights must be finite"):
        loaded(folder)


def test_the_shard_that_holds_it_is_named(tmp_path):
    folder = write_folder(tmp_path / "model", cases.LLAMA, dtype="BF16", shards=2)
    shard = next(p for p in folder.glob("*.safetensors") if UP in SafetensorsFile(p).shapes)
    spoil(shard, UP, np.nan)
    with pytest.raises(ConfigError, match=rf"{shard.name}: {UP} holds nan"):
        loaded(folder)


def test_a_gguf_tensor_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, cases.LLAMA)
    loaded(path)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path, "r+").tensors}
    tensors["blk.1.attn_q.weight"].data[0, 0] = -np.inf
    del tensors
    changed = path.rename(tmp_path / "changed.gguf")  # a file that was opened is kept
    with pytest.raises(ConfigError, match=r"changed\.gguf: model\.layers\.1\.self_attn\.q_proj\.weight holds -inf"):
        loaded(changed)


def test_a_cast_that_overflows_is_refused(tmp_path):
    folder = write_folder(tmp_path / "model", cases.LLAMA)
    spoil(folder / "model.safetensors", UP, 1e39, "F64")
    with pytest.raises(ConfigError, match=rf"{UP} holds 1e\+39, which float32 can't hold"):
        loaded(folder)
    spoil(folder / "model.safetensors", UP, 3.4e38, "F32")
    loaded(folder)
    for options in ({"dtype": jnp.bfloat16}, {"cast_to": ("bfloat16",)}):
        with pytest.raises(ConfigError, match=rf"{UP} holds 3\.4e\+38, which bfloat16 can't hold"):
            loaded(folder, **options)


def warm_start(path, name, value):
    """The shipped weights with one entry changed."""
    arrays = dict(np.load(str(importlib.resources.files("rlef_jax.assets") / "warm_start.npz")))
    arrays[name][-1, -1] = value
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "name, value, model, message",
    [
        ("embed", np.nan, {}, "embed holds nan: weights must be finite"),
        ("layers/attn_norm", -np.inf, {}, "layers/attn_norm holds -inf"),
        ("embed", 3.4e38, {"model.compute_dtype": "bfloat16"}, "which bfloat16 can't hold"),
    ],
)
def test_config_model_init_is_refused_before_anything_runs(tmp_path, name, value, model, message):
    """Training, evaluation and the supervised warm start all begin with this."""
    path = warm_start(tmp_path / "spoilt.npz", name, value)
    config = config_lib.load("configs/tiny.py", overrides={"model.init": str(path), **model})
    with pytest.raises(ConfigError, match=f"spoilt.npz: .*{message}") as refused:
        build_policy(config)
    assert len(str(refused.value).splitlines()) == 1


def test_what_is_not_finite_is_not_written(tmp_path):
    params = {"embed": jnp.ones((2, 2)), "final_norm": jnp.array([1.0, jnp.inf])}
    with pytest.raises(RunError, match=r"policy\.npz was not written: final_norm holds inf"):
        save_params(tmp_path / "policy.npz", params)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value, kind, dtype", [(np.inf, "F16", "same"), (3.4e38, "F32", "bfloat16")])
def test_export_refuses_and_leaves_nothing(tmp_path, value, kind, dtype):
    folder = write_folder(tmp_path / "model", cases.LLAMA | {"vocab_size": 640})
    write_tokenizer(folder, TEMPLATES["chatml"])
    spoil(folder / "model.safetensors", UP, value, kind)
    with pytest.raises(ConfigError, match=rf"model\.safetensors: {UP} holds"):
        export_weights(str(folder), tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()
