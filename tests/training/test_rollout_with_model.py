"""Whole rollouts: the real sampler, the real judge, a small random model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import random
import threading
from concurrent.futures import Future

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.model.logp import token_logp
from rlef_jax.model.parameters import init_params
from rlef_jax.model.sharding import make_mesh
from rlef_jax.model.transformer import ModelConfig, forward
from rlef_jax.sampling.programs import Programs, Shapes
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.rollout import RolloutSettings, collect
from rlef_jax.types import Problem, Status, TestCase, TestResult
from tests.helpers.tiny_tokenizer import tiny_tokenizer

CHAT = ChatFormat(tiny_tokenizer())
CONTEXT, ROWS = 192, 2
MODEL = ModelConfig(
    vocab_size=CHAT.tokenizer.vocab_size, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_head=8, d_ff=32
)
SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=CHAT.stop_ids, max_new_tokens=12)
SETTINGS = RolloutSettings(SAMPLING, context=CONTEXT)
# Descriptions of different lengths, so that rows differ in everything.
PROBLEMS = [Problem(f"p{i}", "sum " * i, (TestCase("1", "2"),), (TestCase("3", "4"),)) for i in range(5)]
INDEXES = range(10, 15)


@pytest.fixture(scope="module")
def params():
    """Any weights do; large ones make log-probabilities differ. NumPy draws them: JAX would compile for seconds."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(init_params, cfg=MODEL), jax.random.PRNGKey(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.normal(0.0, 0.5, a.shape), a.dtype), shapes)


class Recording:
    """A sampler whose sessions also keep every token fed to or sampled by each episode, as (index, tokens)."""

    def __init__(self, sampler: Sampler) -> None:
        self.streams: dict[int, list[int]] = {}
        self._sampler = sampler

    @contextlib.contextmanager
    def session(self, on_compile=None):
        with self._sampler.session(on_compile) as session:
            self._session = session
            yield self

    def respond(self, dialogue, prompt, sampling, **kwargs):
        future = self._session.respond(dialogue, prompt, sampling, **kwargs)
        stream = self.streams.setdefault(dialogue.episode, [])
        future.add_done_callback(lambda done: stream.extend([*prompt, *done.result().ids]))
        return future

    def __getattr__(self, name):
        return getattr(self._session, name)


@pytest.fixture(scope="module")
def sampler(params):
    shapes = Shapes(
        rows=ROWS, max_len=CONTEXT, cache_lengths=(), prefill_chunks=(64,), prefill_tokens=128, decode_steps=4
    )
    made = Sampler(Programs(MODEL, shapes, make_mesh()), workers=2)
    made.set_weights(params, version=5)
    return made


@pytest.fixture(scope="module")
def rollout(sampler, pool):
    recording = Recording(sampler)
    episodes = collect(recording, CHAT, pool, PROBLEMS, seed=0, step=3, settings=SETTINGS, indexes=INDEXES)
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
    """Other rows, other neighbours, fewer at a time: the same tokens."""
    for first in (1, 3):
        again = collect(
            sampler, CHAT, pool, PROBLEMS[first:], seed=0, step=3, settings=SETTINGS, indexes=INDEXES[first:]
        )
        assert [e.token_ids for e in again] == [e.token_ids for e in rollout[0][first:]]
    other = collect(sampler, CHAT, pool, PROBLEMS, seed=0, step=4, settings=SETTINGS, indexes=INDEXES)
    assert [e.token_ids for e in other] != [e.token_ids for e in rollout[0]]


class Unreliable:
    """A judge that is slow at random and breaks at random: which programs it breaks on is a function of the draw."""

    def __init__(self, rng: random.Random, most_s: float, broken: float) -> None:
        self._rng, self._most_s, self._broken = rng, most_s, broken

    def run(self, program, tests, limits, *, stop_at_first_failure=False):
        future: Future = Future()
        draw = self._rng.random()
        status = Status.INFRA_ERROR if draw < self._broken else Status.PASSED if draw > 0.8 else Status.WRONG_ANSWER
        results = (TestResult(status, stdout="7"),) * len(tests)
        threading.Timer(self._rng.random() * self._most_s, lambda: future.set_result(results)).start()
        return future


@pytest.mark.parametrize("count", [60, pytest.param(1024, marks=pytest.mark.slow)])
def test_nothing_is_lost_whatever_the_judge_and_the_weights_do(params, count):
    """Queued at once through 8 rows (64 for 1024), with new weights every moment: each episode complete and valid."""
    shapes = Shapes(
        rows=4 if count < 1000 else 32,
        max_len=CONTEXT,
        cache_lengths=(),
        prefill_chunks=(64,),
        prefill_tokens=128,
        decode_steps=4,
    )
    sampler = Sampler(Programs(MODEL, shapes, make_mesh()), workers=2)
    sampler.set_weights(params, version=0)
    program = CHAT.tokenizer.encode("```python\nprint(7)\n```")
    chat = Writing(CHAT, program)
    over = threading.Event()

    def publish():
        for version in itertools.count(1):
            if over.wait(0.3):
                return
            factor = 1.0 + 0.01 * (version % 3)
            sampler.set_weights(jax.tree.map(lambda a, by=factor: a * by, params), version)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        problems = [dataclasses.replace(PROBLEMS[i % 5], name=f"q{i}") for i in range(count)]
        recording = Recording(sampler)
        judge = Unreliable(random.Random(0), most_s=0.4, broken=0.05)
        episodes = collect(recording, chat, judge, problems, seed=0, step=0, settings=SETTINGS)
    finally:
        over.set()
        thread.join()
    assert [e.index for e in episodes] == list(range(count))
    assert [e.problem.name for e in episodes] == [p.name for p in problems]
    assert {e.end for e in episodes} == {"public_passed", "turn_limit", "infra"}
    versions = set()
    for episode in episodes:
        assert list(episode.token_ids) == recording.streams[episode.index]
        assert 1 <= len(episode.turns) <= 3 and len(episode.token_ids) <= CONTEXT
        made = [v for turn in episode.turns for v in turn.policy_version]
        assert made == sorted(made)
        versions.update(made)
        for turn in episode.turns:
            assert len(turn.response_ids) == len(turn.behavior_logp) == len(turn.policy_version) >= 1
            assert all(np.isfinite(turn.behavior_logp)) and max(turn.behavior_logp) <= 1e-6
            assert turn.verdict is not None
    assert len(versions) > 2


class Writing(ChatFormat):
    """The chat format, where every response reads as one program: a random model writes none."""

    def __init__(self, chat, program):
        object.__setattr__(self, "tokenizer", chat.tokenizer)
        object.__setattr__(self, "program", program)

    def response_text(self, ids):
        return self.tokenizer.decode(self.program)
