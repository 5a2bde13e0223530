"""Evaluations within a run: their problems and feedback, and temperatures drawn by name."""

import dataclasses
import types

import pytest

from rlef_jax import config as config_lib
from rlef_jax import episode as machine
from rlef_jax.data import mini_contests
from rlef_jax.data.sources import Source
from rlef_jax.errors import ConfigError
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.training.actor import RolloutRequest
from rlef_jax.training.evaluator import SplitProblems
from rlef_jax.training.rollout import RolloutSettings, sampling_of
from rlef_jax.training.run import Run
from rlef_jax.training.workdir import Progress

SETTINGS = RolloutSettings(SamplingConfig(0.2, 0.95, 0, (0,), 8), temperature_range=(0.1, 1.0))


@pytest.mark.parametrize("rollouts", [1, 3])
def test_each_problem_has_its_rollouts_in_a_row(rollouts):
    find = SplitProblems(Source("mini_contests"), 4, rollouts)
    starts = find(RolloutRequest("valid", 0, 0, 4 * rollouts, range(1, 4 * rollouts), SETTINGS))
    four = mini_contests.eval_split("valid")[:4]
    assert list(starts.problems) == [four[i // rollouts] for i in range(1, 4 * rollouts)]
    assert tuple(starts.donors) == tuple(four) and starts.prompts is None


@pytest.mark.parametrize("asked, expected", [("", "none"), ("true", "true"), ("random", "random")])
def test_validation_follows_the_trainings_feedback(asked, expected):
    told = {}
    config = config_lib.load(
        "configs/tiny.py", overrides={"episode.feedback": "none", "eval.valid_feedback": asked, "eval.every": 1}
    )
    run = types.SimpleNamespace(config=config, evaluate=lambda *_, **options: told.update(options) or {})
    state = types.SimpleNamespace(params={"policy": {}}, step=3)
    assert Run._validate(run, state, Progress(1, None)) == {}
    assert told["feedback"] == expected


def test_a_response_has_a_temperature_of_its_own_by_its_name_alone():
    problem = mini_contests.eval_split("valid")[0]
    episodes = [machine.start(problem, seed=0, step=0, index=i) for i in range(200)]
    drawn = [sampling_of(SETTINGS, e).temperature for e in episodes]
    assert len(set(drawn)) == 200 and all(0.1 <= t <= 1.0 for t in drawn)
    assert sum(drawn) / 200 == pytest.approx(0.55, abs=0.06)
    assert [sampling_of(SETTINGS, e).temperature for e in reversed(episodes)] == drawn[::-1]
    plain = dataclasses.replace(SETTINGS, temperature_range=())
    assert sampling_of(plain, episodes[0]) is plain.sampling


@pytest.mark.parametrize("span", [(0.1,), (1.0, 0.1), (0.0, 1.0)])
def test_a_range_that_is_none_is_refused(span):
    with pytest.raises(ConfigError, match="eval.temperature_range: .* two numbers above 0, the lower first"):
        config_lib.load("configs/tiny.py", overrides={"eval.temperature_range": span})
