"""A sampler of a model with adapters: its log-probabilities are the trainer's, and only adapters come to it anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.model.logp import token_logp
from rlef_jax.model.lora import LoraConfig, split
from rlef_jax.model.parameters import init_adapters, with_adapters
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import forward
from rlef_jax.sampling.programs import Programs
from tests.helpers.toy_sampler import CFG, PARAMS, SHAPES, at_once, make_sampler

LORA = dataclasses.replace(CFG, lora=LoraConfig(2, 8.0, layers=1))


@pytest.fixture(scope="module", autouse=True)
def quickly(quick_compilation):
    """All tests here compile much and compute little."""


def adapted(base, seed):
    adapters = init_adapters(jax.random.PRNGKey(seed), LORA)
    keys = iter(jax.random.split(jax.random.PRNGKey(seed + 9), 99))
    return with_adapters(base, {n: a + 0.3 * jax.random.normal(next(keys), a.shape) for n, a in adapters.items()})


SHORT = dataclasses.replace(SHAPES, rows=2, max_len=32, prefill_chunks=(16,), kinds=("plain",))


@jax.jit
def trainer_logp(params, tokens):
    hidden = forward(params, LORA, tokens, jnp.arange(32, dtype=jnp.int32)[None], jnp.ones_like(tokens))
    return token_logp(params, LORA, hidden, tokens)[0]


def test_new_adapters_come_to_the_base_that_is_there():
    base = jax.tree.map(jnp.asarray, PARAMS)
    first, second = adapted(base, 0), adapted(base, 1)
    sampler = make_sampler(Programs(LORA, SHORT, make_mesh()), first)
    held = sampler.weights()[0]
    sampler.set_weights(second, 8)
    now, version = sampler.weights()
    assert version == 8 and now["embed"] is held["embed"]
    for before, after in zip(held["layers"], now["layers"], strict=True):
        (old, old_adapters), (new, new_adapters) = split(before), split(after)
        assert all(new[name] is old[name] for name in old) and not set(new_adapters) - set(old_adapters)
        assert all(new_adapters[n] is not old_adapters[n] for n in new_adapters)
    assert [len(split(layer)[1]) for layer in now["layers"]] == [0, 14]
    for name, array in split(second["layers"])[1].items():  # as an update does that donates them
        array.delete() if name == "q_proj_a" else None
    samples = at_once(sampler, range(2), turns=1)[0]
    second = adapted(base, 1)
    gaps = {"new": [], "old": []}
    for prompt, sample in samples.values():
        for name, params in (("new", second), ("old", first)):
            ids = [*prompt, *sample.ids]
            tokens = np.pad(np.array([ids], np.int32), ((0, 0), (0, 32 - len(ids))))
            logp = np.asarray(trainer_logp(params, tokens))[len(prompt) : len(ids)]
            gaps[name].append(np.abs(logp - sample.policy_logp).max())
    assert max(gaps["new"]) < 1e-4 and min(gaps["old"]) > 1e-2
    other = adapted(jax.tree.map(lambda a: a + 0, base), 1)  # equal, and another array: nobody knows that it is equal
    sampler.set_weights(other, 9)
    assert sampler.weights()[0]["embed"] is not now["embed"]


def test_weights_on_the_host_are_copied_each_time():
    """NumPy arrays may change under the same name."""
    sampler = make_sampler(Programs(LORA, SHORT, make_mesh()), adapted(PARAMS, 0))
    held = sampler.weights()[0]["embed"]
    sampler.set_weights(adapted(PARAMS, 1), 8)
    assert sampler.weights()[0]["embed"] is not held
