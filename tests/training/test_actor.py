"""The actor's thread: who waits for whom, and what happens when either side fails."""

from __future__ import annotations

import threading
import time
import traceback

import pytest

from rlef_jax.errors import StoppedError
from rlef_jax.sampling.session import SamplerStats
from rlef_jax.training.actor import ActorThread
from rlef_jax.training.loop import staleness_metrics
from rlef_jax.training.rollout import RolloutProgress
from rlef_jax.types import Episode, Problem, Turn

PROGRESS = RolloutProgress(0, 0, SamplerStats(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0))


class Weights:
    """The seam that the thread has to the sampler: it takes weights under a version."""

    def __init__(self):
        self.version = None

    def set_weights(self, params, version):
        self.version = version


class Maker:
    """Makes rollouts at once, and notes which weights were there when it began."""

    def __init__(self, weights, fail_at=None):
        self.weights, self.fail_at = weights, fail_at
        self.began: list[tuple[int, int | None]] = []

    def __call__(self, step, should_stop):
        self.began.append((step, self.weights.version))
        if step == self.fail_at:
            self.break_down()
        return [], PROGRESS

    def break_down(self):
        raise ZeroDivisionError("the actor broke")


def settle(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_it_runs_ahead_by_max_staleness_and_no_further(max_staleness):
    weights = Weights()
    make = Maker(weights)
    with ActorThread(make, weights, first=4, last=11, max_staleness=max_staleness) as thread:
        for step in range(4, 12):
            thread.publish(step, None, 10 * step)
            ahead = min(step + max_staleness, 11)
            settle(lambda ahead=ahead: make.began and make.began[-1][0] == ahead)
            time.sleep(0.05)  # nothing may follow, however long the learner takes
            assert make.began[-1][0] == ahead
            assert thread.get(step).step == step
    assert [step for step, _ in make.began] == list(range(4, 12))
    for step, version in make.began:
        assert version >= 10 * max(4, step - max_staleness)


def test_the_actors_failure_reaches_the_learner_with_its_traceback():
    weights = Weights()
    with ActorThread(Maker(weights, fail_at=1), weights, first=0, last=3, max_staleness=0) as thread:
        thread.publish(0, None, 0)
        thread.get(0)
        thread.publish(1, None, 1)
        with pytest.raises(ZeroDivisionError, match="the actor broke") as caught:
            thread.get(1)
    assert "break_down" in "".join(traceback.format_exception(caught.value))


def test_what_was_made_before_a_failure_is_still_given():
    weights = Weights()
    with ActorThread(Maker(weights, fail_at=2), weights, first=0, last=3, max_staleness=3) as thread:
        thread.publish(0, None, 0)
        settle(lambda: "actor" not in {t.name for t in threading.enumerate()})  # it has failed
        assert [thread.get(step).step for step in (0, 1)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            thread.get(2)


def test_the_learners_failure_ends_the_thread():
    """Whether it waits for weights or is in the middle of rollouts."""

    def endless(step, should_stop):
        while not should_stop():
            time.sleep(0.005)
        raise StoppedError("asked to")

    for make, publish in ((Maker(Weights()), False), (endless, True)):
        with pytest.raises(KeyError), ActorThread(make, Weights(), first=0, last=3, max_staleness=0) as thread:
            if publish:
                thread.publish(0, None, 0)
            raise KeyError("the learner broke")
        assert not [t for t in threading.enumerate() if t.name == "actor"]


def test_a_learner_that_waits_can_be_stopped():
    began = time.monotonic()
    with (
        ActorThread(Maker(Weights()), Weights(), first=0, last=3, max_staleness=0) as thread,
        pytest.raises(StoppedError),
    ):
        thread.get(0, lambda: time.monotonic() > began + 0.1)


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
