"""The transformer against a slow NumPy reference written from the papers, and its segment masking."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.logp import token_logp
from rlef_jax.model.parameters import init_params
from rlef_jax.model.transformer import LayerKind, ModelConfig, forward, unembed

pytestmark = pytest.mark.usefixtures("quick_compilation")

CFG = ModelConfig(vocab_size=19, d_model=12, n_layers=2, n_heads=4, n_kv_heads=2, d_head=4, d_ff=20, rope_theta=50.0)


class FirstApart(ModelConfig):
    """The first layer sees two tokens and has no rotary embedding, the others see all and have another than usual."""

    @property
    def layer_kinds(self):
        return (LayerKind(self.rope_theta, None, 2, False),) + (LayerKind(3.0, None),) * (self.n_layers - 1)


jitted_forward = jax.jit(forward, static_argnums=1, static_argnames=("remat", "unroll"))


def sharp_params(cfg, seed=0):
    """Random parameters far from initialisation: norms differ from one, attention is far from uniform."""
    init = jax.jit(init_params, static_argnums=1)
    leaves, tree = jax.tree.flatten(jax.device_get(init(jax.random.PRNGKey(seed), cfg)))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [np.float32(4.0 * a + rng.normal(0, 0.1, a.shape)) for a in leaves])


def reference_logits(params, cfg, tokens):
    """Logits [T, V] of one sequence in float64: loops over positions and heads, the rotation by complex numbers."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    half, group = cfg.d_head // 2, cfg.n_heads // cfg.n_kv_heads

    def norm(x, scale):
        return x / np.sqrt((x**2).mean() + cfg.norm_eps) * scale

    def rotate(x, position, kind):
        if not kind.rotary:
            return x
        turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * kind.rope_theta ** (-np.arange(half) / half))
        return np.concatenate([turned.real, turned.imag])

    xs = [p["embed"][t] for t in tokens]
    for i in range(cfg.n_layers):
        layer = {name: a[i] for name, a in p["layers"].items()}
        kind = cfg.layer_kinds[i]
        normed = [norm(x, layer["attn_norm"]) for x in xs]
        for t in range(len(tokens)):
            for head in range(cfg.n_heads):
                k, r = divmod(head, group)
                query = rotate(normed[t] @ layer["qkv"][:, k, r], t, kind)
                visible = range(max(t + 1 - kind.window, 0) if kind.window else 0, t + 1)
                keys = [rotate(normed[s] @ layer["qkv"][:, k, group], s, kind) for s in visible]
                scores = np.array([query @ key for key in keys]) / np.sqrt(cfg.d_head)
                weights = np.exp(scores) / np.exp(scores).sum()
                mixed = sum(
                    w * (normed[s] @ layer["qkv"][:, k, group + 1]) for s, w in zip(visible, weights, strict=True)
                )
                xs[t] = xs[t] + mixed @ layer["attn_out"][k, r]
        for t, x in enumerate(xs):
            normed_x = norm(x, layer["mlp_norm"])
            gate = normed_x @ layer["gate"]
            xs[t] = x + (gate / (1 + np.exp(-gate)) * (normed_x @ layer["up"])) @ layer["down"]
    out = p["embed"] if cfg.tie_embeddings else p["unembed"]
    return np.stack([norm(x, p["final_norm"]) @ out.T for x in xs])


def run(params, cfg, tokens, positions=None, segments=None, **flags):
    tokens = np.asarray(tokens)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
    segments = np.ones_like(tokens) if segments is None else segments
    return jitted_forward(params, cfg, tokens, positions, segments, **flags)


@pytest.mark.parametrize("tie", [True, False])
def test_logits_are_the_references(tie):
    cfg = ModelConfig(**{**CFG.__dict__, "tie_embeddings": tie})
    params = sharp_params(cfg)
    tokens = np.random.default_rng(0).integers(0, 19, (2, 9))
    logits = unembed(params, cfg, run(params, cfg, tokens))
    expected = np.stack([reference_logits(params, cfg, row) for row in tokens])
    np.testing.assert_allclose(logits, expected, atol=2e-4)


@pytest.mark.parametrize("flags", [{}, {"unroll": False, "remat": "dots"}])
def test_each_layer_is_of_its_own_kind(flags):
    """As straight code, and as a scan of the first layer and one of the two others."""
    cfg = FirstApart(**{**CFG.__dict__, "n_layers": 3})
    params = sharp_params(cfg)
    tokens = np.random.default_rng(5).integers(0, 19, (1, 9))
    logits = unembed(params, cfg, run(params, cfg, tokens, **flags))
    np.testing.assert_allclose(logits[0], reference_logits(params, cfg, tokens[0]), atol=5e-4)


def test_token_logp_is_aligned_to_the_predicted_token():
    params = sharp_params(CFG)
    tokens = np.random.default_rng(1).integers(0, 19, (1, 7))
    logits = reference_logits(params, CFG, tokens[0])
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [0.0] + [logp[t - 1, tokens[0, t]] for t in range(1, 7)]
    result = token_logp(params, CFG, run(params, CFG, tokens), jnp.asarray(tokens))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result[0], expected, atol=2e-4)


def test_rows_over_one_block_of_queries_and_with_padding():
    """140 tokens cross the block of 128 queries; the padding behind changes nothing before it."""
    params = sharp_params(CFG)
    tokens = np.random.default_rng(2).integers(0, 19, (1, 140))
    expected = reference_logits(params, CFG, tokens[0])
    padded = np.concatenate([tokens, np.zeros((1, 20), int)], axis=1)
    segments = (np.arange(160) < 140)[None].astype(np.int32)
    logits = unembed(params, CFG, run(params, CFG, padded, segments=segments))
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[0, :140], expected, atol=3e-3)


def test_sequences_packed_in_a_row_are_as_if_alone():
    params = sharp_params(CFG)
    rng = np.random.default_rng(3)
    first, second = rng.integers(0, 19, (1, 5)), rng.integers(0, 19, (1, 8))
    packed = run(
        params,
        CFG,
        np.concatenate([first, second], axis=1),
        positions=np.concatenate([np.arange(5), np.arange(8)])[None],
        segments=np.array([[1] * 5 + [2] * 8]),
    )
    np.testing.assert_allclose(packed[:, :5], run(params, CFG, first), atol=1e-4)
    np.testing.assert_allclose(packed[:, 5:], run(params, CFG, second), atol=1e-4)


def test_scan_and_rematerialisation_change_neither_values_nor_gradients():
    params = sharp_params(CFG)
    tokens = np.random.default_rng(4).integers(0, 19, (2, 6))

    def loss(params, **flags):
        return token_logp(params, CFG, run(params, CFG, tokens, **flags), jnp.asarray(tokens)).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    for flags in ({"remat": "full"}, {"remat": "dots"}, {"unroll": False, "remat": "dots"}):
        other, other_grads = jax.jit(jax.value_and_grad(lambda p, flags=flags: loss(p, **flags)))(params)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other_grads, grads)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="n_heads=4 must be a multiple of n_kv_heads=3"):
        ModelConfig(**{**CFG.__dict__, "n_kv_heads": 3})
    with pytest.raises(ValueError, match="rows of 9 tokens: the model's max_positions is 8"):
        cfg = ModelConfig(**{**CFG.__dict__, "max_positions": 8})
        run(sharp_params(cfg), cfg, np.zeros((1, 9), int))
