"""Adapters: what they add, where they are, what they are merged into, and what their gradients are."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.config_checks import LORA_TARGETS
from rlef_jax.model.lora import TARGETS, LoraConfig, merge, names_of, split
from rlef_jax.model.parameters import (
    adapter_tensors,
    describe,
    file_tensors,
    init_adapters,
    init_params,
    with_adapters,
)
from rlef_jax.model.transformer import ModelConfig, forward, unembed

BASE = ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_ff=16, qkv_bias=True)
ALL = dataclasses.replace(BASE, lora=LoraConfig(2, 6.0))
SOME = dataclasses.replace(BASE, lora=LoraConfig(2, 6.0, ("k_proj", "o_proj", "down_proj"), 1))
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(9, dtype=np.int32), (2, 9))


@pytest.fixture(scope="module", autouse=True)
def quickly(quick_compilation):
    """All tests here compile much and compute little."""


def random_params(cfg, dtype=jnp.float32):
    """With adapters that add something."""
    params = init_params(jax.random.PRNGKey(0), cfg, dtype)
    keys = iter(jax.random.split(jax.random.PRNGKey(1), 99))
    moved = {n: a if n.endswith("_a") else 0.3 * jax.random.normal(next(keys), a.shape) for n, a in adapters_of(params)}
    return with_adapters(params, moved)


def adapters_of(params):
    return split(params["layers"])[1].items()


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def logits(params, cfg, unroll=True, dtype=jnp.float32):
    hidden = forward(
        params, cfg, TOKENS, POSITIONS, np.ones_like(TOKENS), unroll=unroll, compute_dtype=dtype,
        remat="none" if unroll else "full",
    )  # fmt: skip
    return unembed(params, cfg, hidden)


def factors(difference, name, scale):
    """(A, B) with scale A B = difference [*I, *O] exactly, of rank min(I, O)."""
    inputs = 3 if name == "o_proj" else 1
    flat = np.asarray(difference, np.float64).reshape(np.prod(difference.shape[:inputs]), -1) / scale
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    a = (u * s).reshape(*difference.shape[:inputs], -1)
    return a.astype(np.float32), v.reshape(-1, *difference.shape[inputs:]).astype(np.float32)


def test_adapters_of_a_difference_give_the_other_weights_logits():
    """(alpha / r) A B = W' - W in every matrix of every layer: the base with them computes what W' does."""
    cfg = dataclasses.replace(BASE, lora=LoraConfig(8, 12.0))
    base, other = (init_params(jax.random.PRNGKey(seed), BASE) for seed in (0, 1))
    matrices = {"attn_out": "o_proj", "gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    targets = base | {
        "layers": base["layers"] | {name: other["layers"][name] for name in (*matrices, "qkv")},
    }
    difference = jax.tree.map(lambda a, b: np.asarray(a - b), targets["layers"], base["layers"])
    parts = {target: difference[name] for name, target in matrices.items()}
    parts |= {"q_proj": difference["qkv"][:, :, :, :2], "k_proj": difference["qkv"][:, :, :, 2:3]}
    parts["v_proj"] = difference["qkv"][:, :, :, 3:]
    adapters = {}
    for target, stack in parts.items():
        found = [factors(layer, target, 1.5) for layer in stack]
        adapters |= {name: np.stack(each) for name, each in zip(names_of(target), zip(*found), strict=True)}
    adapted = with_adapters(base, adapters)
    described = describe(cfg)["layers"]
    assert {name: array.shape for name, array in adapters.items()} == {name: described[name].shape for name in adapters}
    assert float(jnp.abs(logits(targets, BASE) - logits(base, BASE)).max()) > 0.1
    np.testing.assert_allclose(logits(adapted, cfg), logits(targets, BASE), atol=1e-5)


@pytest.mark.parametrize("cfg", [ALL, SOME], ids=["all", "some"])
def test_merged_equals_apart(cfg):
    """Layers as straight code and in a loop; of some layers and projections too."""
    params = random_params(cfg)
    plain = jax.jit(lambda params: merge(params, cfg.lora))(params)
    assert jax.tree.structure(plain) == jax.tree.structure(describe(BASE))
    changed = {n for n, a in plain["layers"].items() if not np.array_equal(a, params["layers"][n])}
    assert changed == ({"qkv", "attn_out", "gate", "up", "down"} if cfg is ALL else {"qkv", "attn_out", "down"})
    if cfg is SOME:
        assert all(np.array_equal(a[0], params["layers"][n][0]) for n, a in plain["layers"].items())
    expected = logits(plain, BASE)
    assert float(jnp.abs(expected - logits(params, BASE)).max()) > 0.1
    for unroll in (True, False):
        np.testing.assert_allclose(logits(params, cfg, unroll), expected, atol=1e-5)


@pytest.mark.parametrize("cfg", [pytest.param(ALL, marks=pytest.mark.slow), SOME], ids=["all", "some"])
def test_gradients_are_those_of_the_merged_weights(cfg):
    """Of a loss of the logits, by automatic differentiation of the plain model through the merge."""
    params = random_params(cfg)
    weights = jnp.asarray(np.random.default_rng(3).standard_normal((2, 9, 11)), jnp.float32)

    def apart(adapters, unroll):
        return jnp.sum(weights * logits(with_adapters(params, adapters), cfg, unroll))

    def through_merge(adapters):
        return jnp.sum(weights * logits(merge(with_adapters(params, adapters), cfg.lora), BASE))

    adapters = dict(adapters_of(params))
    expected = jax.jit(jax.grad(through_merge))(adapters)
    for unroll in (True, False):
        for name, gradient in jax.jit(jax.grad(apart), static_argnums=1)(adapters, unroll).items():
            scale = float(jnp.abs(expected[name]).max())
            assert scale > 1e-2
            np.testing.assert_allclose(gradient, expected[name], atol=2e-5 * scale, err_msg=name)


def test_a_model_begins_as_its_base():
    plain, params = (init_params(jax.random.PRNGKey(0), cfg) for cfg in (BASE, ALL))
    base = params | {"layers": split(params["layers"])[0]}
    jax.tree.map(np.testing.assert_array_equal, base, plain)
    np.testing.assert_array_equal(logits(params, ALL), logits(plain, BASE))
    for name, array in adapters_of(params):
        spread = float(jnp.std(array))
        fan_in = np.prod(array.shape[1:-1])
        assert spread == 0 if name.endswith("_b") else spread == pytest.approx((3 * fan_in) ** -0.5, rel=0.3)


def test_adapters_alone_are_trained_and_kept_in_full_precision():
    described = describe(SOME, jnp.bfloat16)
    names = {name for target in SOME.lora.targets for name in names_of(target)}
    for path, p in jax.tree_util.tree_leaves_with_path(described):
        of_adapter = path[-1].key in names
        assert p.trainable is of_adapter and p.dtype == (jnp.float32 if of_adapter else jnp.bfloat16)
        assert p.shape[0] == 1 or not of_adapter
    assert init_adapters(jax.random.PRNGKey(0), SOME, jnp.bfloat16).keys() == names
    params = random_params(SOME, jnp.bfloat16)
    assert params["layers"]["down_proj_b"].dtype == jnp.float32 and params["layers"]["down"].dtype == jnp.bfloat16
    assert logits(params, SOME, dtype=jnp.bfloat16).dtype == jnp.float32
    assert jax.tree.map(lambda p: p.trainable, describe(BASE)) == jax.tree.map(lambda p: True, describe(BASE))


def test_tensors_are_named_as_peft_names_them():
    assert list(file_tensors(SOME)) == list(file_tensors(BASE))
    names = adapter_tensors(SOME)
    assert len(names) == 2 * 3
    place = names["base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight"]
    assert place.tensor.shape == (2, 16) and place.path == ("layers", "o_proj_a") and place.layer == 0
    assert names["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].tensor.shape == (8, 2)
    assert TARGETS == LORA_TARGETS


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(rank=0, alpha=1.0), "rank=0"),
        (dict(rank=1, alpha=0.0), "alpha=0.0"),
        (dict(rank=1, alpha=1.0, targets=()), "targets"),
        (dict(rank=1, alpha=1.0, targets=("qkv",)), "qkv"),
        (dict(rank=1, alpha=1.0, layers=-1), "layers=-1"),
    ],
)
def test_what_cannot_be_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        LoraConfig(**values)


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"lora.layers=3 is over n_layers=2"):
        dataclasses.replace(BASE, lora=LoraConfig(1, 1.0, layers=3))
