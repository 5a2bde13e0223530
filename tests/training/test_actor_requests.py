"""An actor that is only sent plain data: requests and results that were pickled, as another machine would have them."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from rlef_jax.data.sources import Source, training_problems
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.errors import StoppedError
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.training.actor import LocalActor, RolloutRequest, Starts, shard_range
from rlef_jax.training.evaluator import SplitProblems
from rlef_jax.training.problem_feed import ProblemFeed, TrainingProblems
from rlef_jax.training.rollout import RolloutSettings
from tests.helpers.scripted_sampler import ScriptedSampler
from tests.helpers.tiny_tokenizer import tiny_tokenizer

CHAT = ChatFormat(tiny_tokenizer())
SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=CHAT.stop_ids, max_new_tokens=80)
SETTINGS = RolloutSettings(SAMPLING, context=3000, feedback="random", max_failures=1)
COUNT = 3
REQUEST = RolloutRequest("valid", seed=3, step=0, count=COUNT, indexes=range(COUNT), settings=SETTINGS, version=2)


@pytest.fixture(scope="module")
def pool():
    with ExecutionPool(1, find_python()) as running:
        yield running


def make_actor(pool, **kwargs):
    sampler = ScriptedSampler(CHAT, lambda index, turn: f"```python\nprint({index})\n```")
    actor = LocalActor(sampler, CHAT, pool, SplitProblems(Source("mini_contests"), COUNT), **kwargs)
    actor.set_weights(None, 2)
    return actor


def sent(data):
    return pickle.loads(pickle.dumps(data))


def tokens(result):
    return [(e.index, e.problem.name, e.token_ids) for e in result.episodes]


def test_requests_and_results_are_plain_data(pool):
    """Two samplers of a fleet, each with its part of the episodes, make what one makes."""
    assert sent(REQUEST) == REQUEST
    whole = make_actor(pool).episodes(REQUEST)
    assert tokens(sent(whole)) == tokens(whole) and sent(whole).progress == whole.progress
    assert [e.index for e in whole.episodes] == list(range(COUNT)) and whole.progress.total == COUNT
    assert all(len(e.turns) == 3 for e in whole.episodes)  # random feedback was shown
    parts = [dataclasses.replace(REQUEST, indexes=shard_range(COUNT, part, 2)) for part in range(2)]
    results = [sent(make_actor(pool).episodes(sent(part))) for part in parts]
    assert [row for result in results for row in tokens(result)] == tokens(whole)


def test_weights_older_than_the_request_are_refused(pool):
    with pytest.raises(RuntimeError, match="weights of version 3 are asked for, there are 2"):
        make_actor(pool).episodes(dataclasses.replace(REQUEST, version=3))
    make_actor(pool).episodes(dataclasses.replace(REQUEST, version=1, indexes=range(1)))


def test_who_may_stop_it(pool):
    one = dataclasses.replace(REQUEST, may_stop=False, indexes=range(1))
    with pytest.raises(StoppedError):
        make_actor(pool, should_stop=lambda: True).episodes(REQUEST)
    assert make_actor(pool, should_stop=lambda: True).episodes(one).episodes[0].end
    stopped = make_actor(pool)
    stopped.stop()
    with pytest.raises(StoppedError):
        stopped.episodes(one)


def test_what_the_judge_did_is_counted(pool):
    actor = make_actor(pool)
    before = actor.judge_counters()["tests"]
    made = actor.episodes(dataclasses.replace(REQUEST, settings=dataclasses.replace(SETTINGS, feedback="true")))
    shown = sum(len(turn.verdict.public) + len(turn.verdict.hidden) for e in made.episodes for turn in e.turns)
    assert sent(actor.judge_counters())["tests"] - before == shown > 0


def test_the_feed_finds_a_requests_problems_and_the_iterations_donors():
    """Also where the next iteration's are being made already."""
    feed = ProblemFeed(TrainingProblems(Source("mini_contests")), last=1)
    try:
        for step in range(2):
            whole = training_problems("mini_contests", "train", 3, step, COUNT)
            request = dataclasses.replace(REQUEST, split="train", step=step, indexes=range(1, 3))
            assert feed(request) == Starts(whole[1:3], whole)
        request = dataclasses.replace(request, settings=dataclasses.replace(SETTINGS, feedback="true"))
        assert feed(request).problems == whole[1:3]
    finally:
        feed.close()
