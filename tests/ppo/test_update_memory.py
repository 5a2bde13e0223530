"""What an update needs while it runs, from its compiled program: nothing as large as the logits of all tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from rlef_jax.model.transformer import ModelConfig
from rlef_jax.planning.programs import shape_of, state_shapes
from rlef_jax.ppo.pack import empty_arrays
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.ppo.update import ForwardSettings, Learner

CFG = ModelConfig(vocab_size=4096, d_model=16, n_layers=1, n_heads=2, n_kv_heads=1, d_head=8, d_ff=32)
ROWS, LENGTH = 8, 128


@pytest.fixture(scope="module", autouse=True)
def whole_compilation():
    """These tests ask what the compiler makes of it, with all of its passes: the folder's fixture leaves some out."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def temporary(vocabulary=1, rows=1, length=1):
    """Bytes beside weights, batch and gradients, of a model and batch so many times as large."""
    cfg = dataclasses.replace(CFG, vocab_size=vocabulary * CFG.vocab_size)
    learner = Learner(cfg, optax.sgd(0.1), separate_critic=False, forward_settings=ForwardSettings(logit_tokens=64))
    one = shape_of(TokenBatch(**empty_arrays(rows * ROWS, length * LENGTH, 3)))
    stacked = jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape), a.dtype), one)
    lowered = learner.trainers[0].lowered(state_shapes(learner, jnp.float32), stacked)
    return lowered["gradients"].compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("more", ["rows", pytest.param("length", marks=pytest.mark.slow)])
def test_nothing_grows_with_tokens_times_vocabulary(more):
    """What doubling the tokens adds doesn't depend on the vocabulary: their product has no share in the memory."""
    logits = 4 * ROWS * LENGTH * CFG.vocab_size
    added = {v: temporary(vocabulary=v, **{more: 2}) - temporary(vocabulary=v) for v in (1, 2)}
    assert added[1] > 0
    assert abs(added[2] - added[1]) < 0.05 * logits
    assert temporary() < logits


def further_temporary(layers, remat):
    """Bytes beside weights, batch and gradients of two micro-batches more, of a deep model with few tokens."""
    cfg = ModelConfig(vocab_size=64, d_model=32, n_layers=layers, n_heads=2, n_kv_heads=1, d_head=8, d_ff=512)
    settings = ForwardSettings(unroll=False, remat=remat)
    learner = Learner(cfg, optax.sgd(0.1), separate_critic=True, forward_settings=settings)
    stacked = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), shape_of(TokenBatch(**empty_arrays(1, 16, 3)))
    )
    lowered = learner.trainers[0].lowered(state_shapes(learner, jnp.float32), stacked)
    return lowered["gradients"].compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_gradients_are_added_in_place():
    """With everything made again in a loop over the layers there is no second set of gradients, nor any part of one."""
    layer = 4 * (3 * 32 * 512)  # bytes of a layer's feed-forward gradients
    assert further_temporary(18, "full") < 12 * layer
    assert further_temporary(18, "dots") > 2 * 18 * layer
