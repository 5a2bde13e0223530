"""Evaluations within a run: their problems and feedback, and temperatures drawn by name."""

import dataclasses
import io
import json
import types

import pytest

from rlef_jax import config as config_lib
from rlef_jax import episode as machine
from rlef_jax.data import mini_contests
from rlef_jax.data.code_contests.build import build
from rlef_jax.data.sources import Source, fit
from rlef_jax.dialog.load import load_chat
from rlef_jax.errors import ConfigError
from rlef_jax.progress import ProgressDisplay
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.training.actor import LocalActor, RolloutRequest
from rlef_jax.training.build import first_prompt_of
from rlef_jax.training.evaluator import Evaluator, SplitProblems
from rlef_jax.training.rollout import RolloutSettings, sampling_of
from rlef_jax.training.run import Run
from rlef_jax.training.workdir import Progress
from tests.helpers.contest_rows import row, write_parquet
from tests.helpers.scripted_sampler import ScriptedSampler

SETTINGS = RolloutSettings(SamplingConfig(0.2, 0.95, 0, (0,), 8), temperature_range=(0.1, 1.0))


@pytest.mark.parametrize("rollouts", [1, 3])
def test_each_problem_has_its_rollouts_in_a_row(rollouts):
    find = SplitProblems(Source("mini_contests"), 4, rollouts)
    starts = find(RolloutRequest("valid", 0, 0, 4 * rollouts, range(1, 4 * rollouts), SETTINGS))
    four = mini_contests.eval_split("valid")[:4]
    assert list(starts.problems) == [four[i // rollouts] for i in range(1, 4 * rollouts)]
    assert tuple(starts.donors) == tuple(four) and starts.prompts is None


def test_a_runs_evaluation_names_what_its_rules_left_out(tmp_path, pool):
    (tmp_path / "source").mkdir()
    written = [row("short"), row("long", description="Add the numbers. " * 60), row("other")]
    write_parquet(tmp_path / "source" / "valid.parquet", written)
    build(tmp_path / "source", tmp_path / "built")
    chat = load_chat("package:tokenizer")
    data = {"data.name": "code_contests", "data.dir": str(tmp_path / "built"), "data.max_prompt_tokens": 150}
    config = config_lib.load("configs/tiny.py", overrides=data | {"eval.bootstrap_samples": 5})
    source = fit(Source.of(config), ["valid"], first_prompt_of(config, chat), tell=str)
    sampler = ScriptedSampler(chat, lambda i, turn: "```python\nprint(sum(map(int, input().split())))\n```" * (i > 0))
    printed = io.StringIO()
    with ProgressDisplay(stream=printed) as display:
        actor = LocalActor(sampler, chat, pool, SplitProblems(source, 0))
        evaluate = Evaluator(config, actor, chat.stop_ids, tmp_path / "run", display, source)
        summary = evaluate("valid_000001", None, "valid", version=1)
    rules = {"with a prompt longer than max_prompt_tokens=150": 1}
    assert summary["problems"] == 2 and summary["1@3"] == 50.0
    assert summary["split_left_out"] == {"of": 3, "kept": 2, "rules": rules}
    line = "2 of 3 problems; left out: 1 with a prompt longer than max_prompt_tokens=150"
    assert f"2 rollouts of 2 problems of valid ({line}), 1@1 50.0" in printed.getvalue()
    assert json.loads((tmp_path / "run" / "evaluations" / "valid_000001.json").read_text())["summary"] == summary


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
