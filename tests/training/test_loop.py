"""An iteration's metrics: what updates, batches and episodes say stays apart, each under a name of its own."""

import dataclasses

import numpy as np
import pytest

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.ppo.metrics import episode_metrics, iteration_metrics
from rlef_jax.ppo.pack import pack
from rlef_jax.ppo.settings import PackSettings, PpoSettings
from rlef_jax.ppo.update import split_updates
from rlef_jax.ppo.values import count
from rlef_jax.progress import ProgressDisplay
from rlef_jax.sampling.session import SamplerStats
from rlef_jax.training.actor import Rollouts
from rlef_jax.training.loop import (
    Stopwatch,
    learn,
    pool_metrics,
    response_metrics,
    skipped_in_row,
    time_metrics,
)
from rlef_jax.training.rollout import RolloutProgress
from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict
from tests.helpers.tiny_tokenizer import tiny_tokenizer

CASE = TestCase("1", "1")
PPO = PpoSettings(updates=2, packing=PackSettings(microbatch_rows=4, buckets=(16,)))
OF_UPDATE = {"loss": 1.0, "action_tokens": 7.0, "values": 5.0, "applied": 1.0}


class Learner:
    """Scores nothing and moves nothing; gives each update's metrics as `rlef_jax.ppo.update.Learner` names them."""

    def score(self, params, batch):
        return np.zeros_like(batch.old_logp), np.zeros_like(batch.old_values)

    def ref_logp(self, params, batch):
        return np.zeros_like(batch.ref_logp)

    def with_states_below(self, params, batches):
        return batches

    def update(self, state, microbatches):
        return state, dict(OF_UPDATE)


@dataclasses.dataclass
class State:
    step: int = 0
    params: object = None


def episode(index, turns):
    """`turns` responses of two tokens each, all wrong."""
    verdict = Verdict(Status.WRONG_ANSWER, (TestResult(Status.WRONG_ANSWER),))
    turn = Turn((1,), (2, 3), (-1.0, -1.0), (0, 0), "stop", verdict)
    return Episode(Problem("p", "", (CASE,), (CASE,)), 0, 0, index, (turn,) * turns, "turn_limit")


@pytest.fixture
def episodes():
    return [episode(index, turns) for index, turns in enumerate((1, 2, 3, 3))]


def test_totals_of_the_iteration_and_means_of_an_episode(episodes):
    rollouts = Rollouts(0, episodes, RolloutProgress(4, 4, SamplerStats(18, 40, 0, 0, 0, 0, 0, 1.0, 1.0)), idle_s=0.0)
    with ProgressDisplay() as display:
        _, metrics, applied = learn(
            State(), None, rollouts, Learner(), seed=0, ppo=PPO, watch=Stopwatch(), display=display,
            on_bad_update=lambda *_: None,
        )  # fmt: skip
    assert (metrics["turns"], metrics["action_tokens"], metrics["rows"]) == (9, 18, 4)
    assert metrics["turns_per_episode"] == pytest.approx(9 / 4)
    assert metrics["loss"] == 1.0 and applied == [True, True]


class Counting(Learner):
    """Its updates are applied where something counts, as the real one's; a loss of 1 and then 3."""

    losses = iter((1.0, 3.0) * 9)

    def update(self, state, microbatches):
        tokens = float(count(microbatches)["tokens"])
        if not tokens:
            return state, {"applied": 0.0, "action_tokens": 0.0, "values": 0.0}
        return state, OF_UPDATE | {"loss": next(self.losses), "action_tokens": tokens}


@pytest.mark.parametrize(
    "broken, applied, loss", [((), [True, True], 2.0), ((1,), [True, False], 1.0), ((0, 1), [False] * 2, None)]
)
def test_an_empty_update_among_others_is_in_no_mean(episodes, broken, applied, loss):
    """The judge broke on all episodes of some updates: they are counted, and nobody is asked what to do."""
    parts = split_updates(range(4), 2, seed=0, step=0)
    lost = {index for part in broken for index in parts[part]}
    episodes = [dataclasses.replace(e, end="infra") if e.index in lost else e for e in episodes]
    rollouts = Rollouts(0, episodes, RolloutProgress(4, 4, SamplerStats(18, 40, 0, 0, 0, 0, 0, 1.0, 1.0)), idle_s=0.0)
    learner = Counting()
    learner.losses = iter((1.0, 3.0))
    with ProgressDisplay() as display:
        _, metrics, found = learn(
            State(), None, rollouts, learner, seed=0, ppo=PPO, watch=Stopwatch(), display=display,
            on_bad_update=lambda *_: pytest.fail("an empty update is not a bad one"),
        )  # fmt: skip
    assert found == applied and metrics.get("loss") == loss
    assert (metrics["applied"], metrics["skipped_updates"]) == (applied.count(True) / 2, applied.count(False))
    assert ("reward" in metrics) is (loss is not None) and metrics["infra_episodes"] == len(lost)
    assert all(np.isfinite(value) for value in metrics.values())


def test_updates_that_are_skipped_in_a_row():
    assert skipped_in_row(0, [True, True]) == (0, 0)
    assert skipped_in_row(3, [True, False, False, True, False]) == (2, 1)
    assert skipped_in_row(3, [False, True]) == (4, 0)
    assert skipped_in_row(9, [True, True]) == (0, 0)  # those before were told of already
    assert skipped_in_row(3, [False, False]) == (5, 5)
    assert skipped_in_row(3, []) == (0, 3)


def test_times_and_shares_of_a_sampler_that_did_nothing_are_left_out():
    rollouts = Rollouts(0, [], RolloutProgress(0, 0, SamplerStats(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)), idle_s=0.0)
    names = {"sampled_tokens_per_s", "sampler/idle_rows", "sampler/prefill_padding", "idle/actor"}
    assert not names & time_metrics(rollouts, Stopwatch(), synchronous=False).keys()
    rollouts = Rollouts(0, [], RolloutProgress(4, 4, SamplerStats(30, 40, 9, 12, 0, 0, 0, 2.0, 3.0)), idle_s=1.0)
    found = time_metrics(rollouts, Stopwatch(), synchronous=False)
    assert {name: found[name] for name in names} == {
        "sampled_tokens_per_s": 15.0, "sampler/idle_rows": 0.25, "sampler/prefill_padding": 0.25, "idle/actor": 0.25,
    }  # fmt: skip


def test_no_name_means_two_things(episodes):
    batches, _ = pack(episodes, buckets=(16,), rows=4, max_turns=3)
    assert not iteration_metrics(batches).keys() & episode_metrics(episodes).keys()


def test_the_pools_metrics_are_of_this_iteration():
    before = {"tests": 5, "retries": 1, "busy_s": 2.0, "statuses": {"PASSED": 5}, "status_s": {"PASSED": 1.5}}
    after = {
        "tests": 9,
        "retries": 1,
        "busy_s": 5.0,
        "statuses": {"PASSED": 5, "TIME_LIMIT": 4},
        "status_s": {"PASSED": 1.5, "TIME_LIMIT": 2.5},
    }
    assert pool_metrics(before, after) == {
        "pool/tests": 4.0,
        "pool/retries": 0.0,
        "pool/busy_s": 3.0,
        "pool/status/TIME_LIMIT": 4.0,
        "pool/seconds/TIME_LIMIT": 2.5,
    }


def test_responses_that_end_in_an_example_are_counted():
    tokenizer = tiny_tokenizer()
    program = "```python\na, b = map(int, input().split())\nprint(a + b)\n```\n"
    texts = [f"{program}So:\n```python\nassert add(1, 2) == 3\n```", program]
    problem = Problem("p", "Add.", (CASE,), (CASE,))
    turns = tuple(Turn((), tuple(tokenizer.encode(text)), (), (), "stop") for text in texts)
    episodes = [Episode(problem, 0, 0, 0, turns), Episode(problem, 0, 0, 1, turns[1:])]
    assert response_metrics(episodes, ChatFormat(tokenizer)) == {"example_fraction": pytest.approx(1 / 3)}
    assert response_metrics([], ChatFormat(tokenizer)) == {}
