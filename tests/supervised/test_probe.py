"""What a model would write: against greedy decoding step by step, in any layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from rlef_jax.model.parameters import init_params
from rlef_jax.model.transformer import ModelConfig, forward, unembed
from rlef_jax.ppo.objective import ForwardSettings
from rlef_jax.ppo.settings import PackSettings
from rlef_jax.supervised.examples import Example, spans
from rlef_jax.supervised.probe import HeldOutProbe, Probe

pytestmark = pytest.mark.usefixtures("quick_compilation")
CFG = ModelConfig(vocab_size=40, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_head=8, d_ff=32, max_positions=64)
PARAMS = init_params(jax.random.PRNGKey(0), CFG)


@jax.jit
def all_logits(tokens):
    """[1, 32, V]: one length, so that one program is compiled; a token sees nothing of what is behind it."""
    positions = jnp.arange(32, dtype=jnp.int32)[None]
    return unembed(PARAMS, CFG, forward(PARAMS, CFG, tokens, positions, jnp.ones_like(tokens)))


def logits(ids):
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(ids)] = ids
    return np.asarray(all_logits(padded)[0, : len(ids)])


def continued(prompt, count):
    """A prompt with what the model would write."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits(ids)[-1].argmax()))
    return ids


@pytest.fixture(scope="module")
def examples():
    """Two responses each: the first one the model's own, the second one with a token changed in every other example."""
    made = []
    for n in range(5):
        ids = continued(np.random.default_rng(n).integers(1, 40, 3 + n), 4)
        ids = continued([*ids, 7, 8], 3)
        if n % 2:
            ids[-2] = (ids[-2] + 1) % 40
        learned = np.zeros(len(ids), bool)
        learned[3 + n : 7 + n] = learned[-3:] = True
        made.append(Example(np.array(ids, np.int32), learned))
    return made


@pytest.mark.parametrize("logit_tokens", [1, 8, 1024])
@pytest.mark.parametrize("packing", [PackSettings(2, (16, 32)), PackSettings(3, (32,), row_episodes=4)])
def test_a_response_is_exact_where_greedy_decoding_would_write_it(examples, packing, logit_tokens):
    loss, exact = Probe(CFG, examples, packing, ForwardSettings(logit_tokens=logit_tokens))(PARAMS)
    assert exact == [[True, n % 2 == 0] for n in range(5)]
    total = [
        -log_softmax(logits(e.ids), axis=-1)[t - 1, e.ids[t]]
        for e in examples for a, b in spans(e.learned) for t in range(a, b)
    ]  # fmt: skip
    np.testing.assert_allclose(loss, np.mean(total), rtol=1e-5)


def test_held_out_examples_have_a_loss_and_a_percentage(examples):
    packing = PackSettings(2, (32,))
    measured = HeldOutProbe(CFG, examples, packing, ForwardSettings())(PARAMS)
    assert measured["valid/exact"] == pytest.approx(80.0) and measured["valid/loss"] > 0
    assert HeldOutProbe(CFG, [], packing, ForwardSettings())(PARAMS) == {}
