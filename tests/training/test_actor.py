"""The actor's thread: who waits for whom, and what happens when either side fails."""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback

import pytest

from rlef_jax.errors import StoppedError
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.sampling.session import SamplerStats
from rlef_jax.training.actor import ActorThread, RolloutRequest, RolloutResult, shard_range
from rlef_jax.training.loop import staleness_metrics
from rlef_jax.training.rollout import RolloutProgress, RolloutSettings
from rlef_jax.types import Episode, Problem, Turn

PROGRESS = RolloutProgress(0, 0, SamplerStats(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0))
SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=(0,), max_new_tokens=1)
REQUEST = RolloutRequest("train", seed=0, step=0, count=4, indexes=range(4), settings=RolloutSettings(SAMPLING))


class Quick:
    """An actor that makes its episodes at once, and notes what was asked for and which weights there were."""

    def __init__(self, fail_at=None):
        self.fail_at, self.version = fail_at, None
        self.asked: list[tuple[RolloutRequest, int | None]] = []
        self.stopped = threading.Event()

    def set_weights(self, params, version):
        self.version = version

    def episodes(self, request):
        self.asked.append((request, self.version))
        if request.step == self.fail_at:
            self.break_down()
        return RolloutResult([], PROGRESS)

    def stop(self):
        self.stopped.set()

    def judge_counters(self):
        return {}

    def break_down(self):
        raise ZeroDivisionError("the actor broke")


class Endless(Quick):
    """An actor that is never done."""

    def episodes(self, request):
        self.stopped.wait()
        raise StoppedError("asked to")


def settle(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_it_runs_ahead_by_max_staleness_and_no_further(max_staleness):
    actor = Quick()
    with ActorThread(actor, REQUEST, first=4, last=11, max_staleness=max_staleness) as thread:
        for step in range(4, 12):
            thread.publish(step, None, 10 * step)
            ahead = min(step + max_staleness, 11)
            settle(lambda ahead=ahead: actor.asked and actor.asked[-1][0].step == ahead)
            time.sleep(0.05)  # nothing may follow, however long the learner takes
            assert actor.asked[-1][0].step == ahead
            assert thread.get(step).step == step
    assert [request.step for request, _ in actor.asked] == list(range(4, 12))
    for request, version in actor.asked:
        assert version >= request.version >= 10 * max(4, request.step - max_staleness)
        assert request == dataclasses.replace(REQUEST, step=request.step, version=request.version)


def test_the_actors_failure_reaches_the_learner_with_its_traceback():
    with ActorThread(Quick(fail_at=1), REQUEST, first=0, last=3, max_staleness=0) as thread:
        thread.publish(0, None, 0)
        thread.get(0)
        thread.publish(1, None, 1)
        with pytest.raises(ZeroDivisionError, match="the actor broke") as caught:
            thread.get(1)
    assert "break_down" in "".join(traceback.format_exception(caught.value))


def test_what_was_made_before_a_failure_is_still_given():
    with ActorThread(Quick(fail_at=2), REQUEST, first=0, last=3, max_staleness=3) as thread:
        thread.publish(0, None, 0)
        settle(lambda: "actor" not in {t.name for t in threading.enumerate()})  # it has failed
        assert [thread.get(step).step for step in (0, 1)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            thread.get(2)


@pytest.mark.parametrize("publish", [False, True])
def test_the_learners_failure_ends_the_thread(publish):
    """Whether it waits for weights or the actor is in the middle of rollouts."""
    with pytest.raises(KeyError), ActorThread(Endless(), REQUEST, first=0, last=3, max_staleness=0) as thread:
        if publish:
            thread.publish(0, None, 0)
        raise KeyError("the learner broke")
    assert not [t for t in threading.enumerate() if t.name == "actor"]


def test_a_learner_that_waits_can_be_stopped():
    began = time.monotonic()
    with (
        ActorThread(Quick(), REQUEST, first=0, last=3, max_staleness=0) as thread,
        pytest.raises(StoppedError),
    ):
        thread.get(0, lambda: time.monotonic() > began + 0.1)


@pytest.mark.parametrize("count", [0, 1, 7, 1024])
def test_shards_are_disjoint_whole_and_even(count):
    for parts in (1, 2, 3, 8, 36):
        shards = [shard_range(count, part, parts) for part in range(parts)]
        assert [i for shard in shards for i in shard] == list(range(count))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
    with pytest.raises(ValueError, match="part must be from 0 to 1, not 2"):
        shard_range(count, 2, 2)


@pytest.mark.parametrize("indexes", [range(2, 5), range(0, 4, 2), range(3, 1), range(-1, 2)])
def test_a_request_names_episodes_that_there_are(indexes):
    with pytest.raises(ValueError, match=r"consecutive and within range\(4\)"):
        dataclasses.replace(REQUEST, indexes=indexes)


def test_staleness_is_counted_in_iterations_over_tokens():
    problem = Problem("p", "", (), ())

    def episode(*versions):
        turns = tuple(Turn((1,), (2,) * len(v), (-1.0,) * len(v), v, "stop") for v in versions)
        return Episode(problem, 0, 0, 0, turns, "turn_limit")

    found = staleness_metrics([episode((8, 8, 8), (12,)), episode((4, 4))], version=12, updates=4)
    assert found["staleness_mean"] == pytest.approx((3 * 1 + 0 + 2 * 2) / 6)
    assert (found["staleness_max"], found["mixed_versions"]) == (2.0, 0.5)
    assert staleness_metrics([episode((4, 8)), episode()], version=12, updates=4)["mixed_versions"] == 1.0
    for nothing in ([], [episode(())], [episode(), episode((), ())]):
        assert staleness_metrics(nothing, version=12, updates=4) == {}
