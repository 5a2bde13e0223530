"""Whole rollouts: the real sampler, the real judge, a small random model."""

from __future__ import annotations

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.model.logp import token_logp
from rlef_jax.model.transformer import ModelConfig, forward, init_params
from rlef_jax.sampling.sampler import Sampler, SamplingConfig
from rlef_jax.training.rollout import RolloutSettings, collect
from rlef_jax.types import Problem, TestCase
from tests.helpers.tiny_tokenizer import tiny_tokenizer

CHAT = ChatFormat(tiny_tokenizer())
CONTEXT, ROWS = 192, 3
MODEL = ModelConfig(
    vocab_size=CHAT.tokenizer.vocab_size, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_ff=32
)
SETTINGS = RolloutSettings(context=CONTEXT, max_new_tokens=12)
# Descriptions of different lengths, so that rows differ in everything.
PROBLEMS = [Problem(f"p{i}", "sum " * i, (TestCase("1", "2"),), (TestCase("3", "4"),)) for i in range(5)]


@pytest.fixture(scope="module")
def pool():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another Python than 3.10 serves here
        interpreter = find_python()
    with ExecutionPool(1, interpreter) as running:
        yield running


@pytest.fixture(scope="module")
def params():
    """Any weights do; large ones make log-probabilities differ. NumPy draws them: JAX would compile for seconds."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(init_params, cfg=MODEL), jax.random.PRNGKey(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0.0, 0.5, a.shape), a.dtype), shapes)


class Recording:
    """A sampler that also keeps every token fed to or sampled by each episode, as (index, tokens)."""

    def __init__(self, sampler: Sampler) -> None:
        self.batch_size = sampler.batch_size
        self.streams: dict[int, list[int]] = {}
        self._sampler = sampler

    def start_group(self):
        return self._sampler.start_group()

    def generate(self, state, prompts, *, episode_indices, **kwargs):
        state, samples = self._sampler.generate(state, prompts, episode_indices=episode_indices, **kwargs)
        for index, prompt, sample in zip(episode_indices, prompts, samples):
            if prompt:
                self.streams.setdefault(index, []).extend([*prompt, *sample.ids])
        return state, samples


@pytest.fixture(scope="module")
def sampler(params):
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=CHAT.stop_ids, max_new_tokens=12)
    made = Sampler(MODEL, sampling, batch_size=ROWS, max_len=CONTEXT, prompt_buckets=(CONTEXT,), slot_multiple=512)
    made.set_weights(params, version=5)
    return made


@pytest.fixture(scope="module")
def rollout(sampler, pool):
    recording = Recording(sampler)
    episodes = collect(recording, CHAT, pool, PROBLEMS, seed=0, step=3, settings=SETTINGS, first_index=10)
    return episodes, recording.streams


def test_sampled_tokens_are_the_episodes_tokens(rollout):
    episodes, streams = rollout
    assert [e.index for e in episodes] == [10, 11, 12, 13, 14]
    for episode in episodes:
        assert episode.end == "turn_limit" and len(episode.turns) == 3  # a random model writes no program
        assert list(episode.token_ids) == streams[episode.index]
        assert {v for turn in episode.turns for v in turn.policy_version} == {5}


def test_trainer_agrees_with_the_sampler_on_every_sampled_token(rollout, params):
    """One model: the sampler's log-probabilities over three turns are the trainer's, to 1e-4."""

    @jax.jit
    def trained_logp(tokens, positions, segments):
        return token_logp(params, MODEL, forward(params, MODEL, tokens, positions, segments), tokens)[0]

    for episode in rollout[0]:
        tokens = np.zeros((1, CONTEXT), np.int32)
        length = len(episode.token_ids)
        tokens[0, :length] = episode.token_ids
        segments = (np.arange(CONTEXT) < length).astype(np.int32)[None]
        positions = np.arange(CONTEXT, dtype=np.int32)[None]
        logp = np.asarray(trained_logp(tokens, positions, segments))
        at = 0
        for turn in episode.turns:
            at += len(turn.prompt_delta_ids)
            trained = logp[at : at + len(turn.response_ids)]
            np.testing.assert_allclose(trained, turn.behavior_logp, atol=1e-4)
            at += len(turn.response_ids)
        assert at == length


def test_an_episode_does_not_depend_on_its_neighbours(rollout, sampler, pool):
    """Other slots, other neighbours, one group instead of two at a time: the same tokens."""
    settings = dataclasses.replace(SETTINGS, groups_in_flight=1)
    for first in (1, 3):
        again = collect(
            sampler, CHAT, pool, PROBLEMS[first:], seed=0, step=3, settings=settings, first_index=10 + first
        )
        assert [e.token_ids for e in again] == [e.token_ids for e in rollout[0][first:]]
    other = collect(sampler, CHAT, pool, PROBLEMS, seed=0, step=4, settings=settings, first_index=10)
    assert [e.token_ids for e in other] != [e.token_ids for e in rollout[0]]
