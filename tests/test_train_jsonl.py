"""A run on problems of one's own, mixed with others: trained, evaluated, refused over others; recorded responses."""

from __future__ import annotations

import json

import pytest

from rlef_jax import config as config_lib
from rlef_jax.data.jsonl.schema import line_of
from rlef_jax.data.sources import MIX
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.train import train
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.training.inputs import RECORD
from rlef_jax.training.metrics_writer import read_metrics
from rlef_jax.types import FunctionTest, Problem, TestCase
from tests.helpers.small_run import OVERRIDES

pytestmark = pytest.mark.long

TWICE = Problem(
    "twice", "Read n and print 2 n", (TestCase("1\n", "2\n"),), (TestCase("4\n", "8\n"),), time_limit_s=20.0,
    solutions=("print(2 * int(input()))",),
)  # fmt: skip
ADD = Problem(
    "add", "Write add(a, b), their sum.", (FunctionTest("add", ((1, 2),), (3,)),),
    (FunctionTest("add", ((2, 2), ([1], [2])), (4, [1, 2])),), time_limit_s=20.0, style="function",
    solutions=("def add(a, b): return a + b",),
)  # fmt: skip


def written(path, *problems):
    path.write_text("".join(line_of(problem) + "\n" for problem in problems))
    return str(path)


def test_a_run_on_own_problems(tmp_path, quick_compilation):
    own, extra = written(tmp_path / "own.jsonl", TWICE, ADD), written(tmp_path / "extra.jsonl", ADD)
    values = OVERRIDES | {
        "data.name": "jsonl", "data.train_files": (own,), "data.valid_files": (own,), "data.test_files": (own,),
        "data.mix": ("jsonl:2", f"{extra}:1", "mini_contests:1"), "eval.split": "test", "eval.every": 1,
        "eval.random_feedback": False, "train.iterations": 1, "ppo.rollouts": 16,
    }  # fmt: skip
    run = tmp_path / "run"
    train(config_lib.load("configs/tiny.py", overrides=values), run)
    episodes = read_episodes(run / "episodes" / "000000.jsonl.gz")
    sources = [e.problem.tags[MIX] for e in episodes]
    assert {e.problem.name for e, source in zip(episodes, sources) if source == "jsonl"} == {"twice", "add"}
    assert {e.problem.name for e, source in zip(episodes, sources) if source == "extra"} == {"add"}
    metrics = read_metrics(run)[0]
    assert [metrics[f"mix/{s}/episodes"] for s in ("jsonl", "extra", "mini_contests")] == [
        sources.count(s) for s in ("jsonl", "extra", "mini_contests")
    ]
    assert sum(map(sources.count, ("jsonl", "extra", "mini_contests"))) == 16
    assert metrics["mix/jsonl/solved"] == 0.0 and "valid/1@3" in metrics
    summary = json.loads((run / "summary.json").read_text())
    assert summary["rlef"]["problems"] == 2 and summary["bounds"] == {}
    assert [e.problem for e in read_episodes(run / "episodes" / "rlef.jsonl.gz")] == [TWICE, ADD]
    assert {name for name in json.loads((run / RECORD).read_text()) if "problems" in name} >= {
        "problems of test (config.data)", "problems of jsonl (config.data.mix)", "problems of extra (config.data.mix)",
    }  # fmt: skip

    results = evaluate(parsed([f"--workdir={run}", "--split=valid", "--samples=3"]))
    assert (results["problems"], results["1@3"]) == (2, 0.0)
    other = evaluate(parsed([f"--workdir={run}", "--benchmark=jsonl/test", f"--data={extra}", "--turns=1"]))
    assert (other["problems"], other["infra"]) == (1, 0)

    written(tmp_path / "extra.jsonl", ADD, TWICE)
    with pytest.raises(ConfigError, match=r"begun with other inputs: problems of extra \(config.data.mix\)"):
        train(config_lib.load("configs/tiny.py", overrides=values | {"train.iterations": 2}), run)


def test_recorded_responses_to_own_problems_are_judged(tmp_path):
    """A problem on standard input, and one of a function: right and wrong programs."""
    own = written(tmp_path / "own.jsonl", TWICE, ADD)
    right = [{"problem": p.name, "responses": [f"```python\n{p.solutions[0]}\n```"]} for p in (TWICE, ADD)]
    wrong = [{"problem": "twice", "responses": ["```python\nprint(2)\n```"]},
             {"problem": "add", "responses": ["```python\ndef add(a, b): return 3\n```"]}]  # fmt: skip
    for name, rows, score in (("right", right, 100.0), ("wrong", wrong, 0.0), ("half", [right[0], wrong[1]], 50.0)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        flags = [f"--judge-only={path}", "--benchmark=jsonl/test", f"--data={own}", "--turns=1"]
        results = evaluate(parsed([*flags, f"--out={tmp_path / name}"]))
        assert (results["1@1"], results["problems"], results["infra"]) == (score, 2, 0)
    with pytest.raises(ConfigError, match="--data: name the file of problems, e.g. --data=own.jsonl"):
        evaluate(parsed([f"--judge-only={path}", "--benchmark=jsonl/test", "--turns=1"]))
