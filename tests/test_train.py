"""The whole job at the smallest size: every file that a run promises is there, and a second run writes the same."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlef_jax import config as config_lib
from rlef_jax.analysis.summary import EVALUATIONS
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.execution.interpreter import find_python
from rlef_jax.train import train
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.episode_io import read_episodes, saved_steps
from rlef_jax.training.inputs import PYTHON, RECORD
from rlef_jax.training.metrics_writer import read_metrics
from tests.helpers.small_run import OVERRIDES

pytestmark = pytest.mark.long

SMALL = OVERRIDES | {
    "train.iterations": 2,
    "train.checkpoint_every": 1,
    "eval.split": "valid",
    "eval.every": 2,
    "train.plots": True,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compilation):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(config_lib.load("configs/tiny.py", overrides=SMALL), folder)
    return folder


def test_every_metric_of_a_run_is_documented(run):
    page = Path("docs/metrics.md").read_text()
    # `turnK/STATUS` and the like stand for several names.
    patterns = [
        re.escape(name).replace("STATUS", r"[A-Z_]+").replace("turnK", r"turn\d+")
        for name in re.findall(r"`([^`\n]+)`", page)
    ]
    names = {name for record in read_metrics(run) for name in record}
    unknown = {name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)}
    assert not unknown


def test_a_run_leaves_everything_it_promises(run):
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == {*EVALUATIONS, "bounds"}
    for name in EVALUATIONS:
        assert {"1@1", "1@3", "1@3_ci", "repaired_at_2"} <= set(summary[name])
    assert summary["bounds"]["no_feedback"] < summary["bounds"]["pass_fail"] < summary["bounds"]["full"]
    records = read_metrics(run)
    assert [r["step"] for r in records] == [0, 1]
    for name in ("solved_turn1", "solved", "reward", "kl_to_ref", "mismatch_mean", "clip_fraction",
                 "explained_variance", "tokens_per_s", "time/total", "pool/tests"):  # fmt: skip
        assert name in records[0], name
    assert "valid/1@3" in records[1]
    assert records[0]["mismatch_max"] < 1e-4
    assert list((run / "tensorboard").iterdir())
    assert {p.name for p in (run / "plots").iterdir()} == {
        "learning.png",
        "drift.png",
        "error_kinds.png",
        "summary.png",
    }
    assert saved_steps(run) == [0, 1]
    with Checkpoints(run / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [1, 2]


def test_a_run_goes_on_over_other_inputs_only_if_told_to(run, tmp_path, capsys):
    """A Python for programs that is gone, and another in its place: by name, before the weights are loaded."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = config_lib.load("configs/tiny.py", overrides=SMALL)
    recorded = json.loads((folder / RECORD).read_text())
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.metadata(2)["inputs"] == recorded
    assert recorded[PYTHON] == [find_python().version]
    (folder / RECORD).write_text(json.dumps(recorded | {PYTHON: ["3.9.1"]}))
    refused = rf"begun with other inputs: {re.escape(PYTHON)}: 3\.9\.1 before, 3\..* now\. .*--resume=anyway"
    with pytest.raises(ConfigError, match=refused):
        train(config, folder)
    scored = (folder / "evaluations" / "warm_start.json").stat().st_mtime_ns
    train(config, folder, anyway=True)
    assert "goes on with another input, programs' Python" in capsys.readouterr().out
    assert json.loads((folder / RECORD).read_text()) == recorded
    assert (folder / "evaluations" / "warm_start.json").stat().st_mtime_ns > scored  # both scores are made with it


def test_an_episode_can_be_shown(run):
    command = [sys.executable, "-m", "rlef_jax.show_episode", str(run), "--index", "3"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Provide a Python solution for the following competitive programming question" in shown


def arguments(run: Path, **changes: object) -> argparse.Namespace:
    return argparse.Namespace(**(vars(parsed([f"--workdir={run}", "--problems=4"])) | changes))


def test_evaluating_a_run_gives_its_own_numbers(run, tmp_path):
    summary = json.loads((run / "summary.json").read_text())
    for warm_start, name in ((True, "warm_start"), (False, "rlef")):
        results = evaluate(arguments(run, warm_start=warm_start, episodes=tmp_path / f"{name}.jsonl.gz", chunk=3))
        assert {k: results[k] for k in summary[name]} == summary[name]
        run_episodes = read_episodes(run / "episodes" / f"{name}.jsonl.gz")
        assert [e.token_ids for e in read_episodes(tmp_path / f"{name}.jsonl.gz")] == [
            e.token_ids for e in run_episodes
        ]


def test_evaluation_counts_responses(run, tmp_path):
    results = evaluate(arguments(run, turns=1, samples=3, problems=2, episodes=tmp_path / "x.jsonl.gz"))
    assert (results["problems"], results["left_out"]) == (2, 0)
    episodes = read_episodes(tmp_path / "x.jsonl.gz")
    assert len(episodes) == 6
    assert all(len(e.turns) == 1 for e in episodes)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(turns=3, samples=1), "--samples=1 must be at least --turns=3"),
        (dict(turns=0, samples=0), "--turns: 1 or more"),
        (dict(temperature=float("nan")), "--temperature: 0 or more; it is nan"),
        (dict(top_p=7.0, problems=-1), "--problems: 0 or more; it is -1; --top-p: above 0, at most 1; it is 7.0"),
        (dict(split="nowhere"), "--split: 'nowhere' is none of"),
    ],
)
def test_bad_arguments_of_an_evaluation_are_one_line(run, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        evaluate(arguments(run, **changes))
    assert len(str(raised.value).splitlines()) == 1


def test_episodes_that_cannot_be_written_are_found_before_the_evaluation(run, tmp_path, monkeypatch):
    monkeypatch.setattr("rlef_jax.evaluation.job.build_pool", lambda *_: pytest.fail("the evaluation has begun"))
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "x.jsonl.gz"):
        with pytest.raises(ConfigError, match="--episodes: cannot be written"):
            evaluate(arguments(run, episodes=path))


def test_a_run_that_evaluated_nothing_is_evaluated_on_the_default_split(run, tmp_path, monkeypatch):
    saved = json.loads((run / "config.json").read_text())
    saved["eval"]["split"] = ""
    (tmp_path / "config.json").write_text(json.dumps(saved))

    def asked(name, split, count, tell):
        raise ConfigError(f"{count} of {split}")

    monkeypatch.setattr("rlef_jax.data.benchmarks.evaluation_problems", asked)
    with pytest.raises(ConfigError, match=f"4 of {config_lib.base_config().eval.split}"):
        evaluate(arguments(tmp_path, warm_start=True))


def test_bad_command_lines_are_one_line():
    command = [sys.executable, "-m", "rlef_jax.train", "--config=configs/tiny.py", "--workdir=/nowhere"]
    for override, hint in (
        ("--config.ppo.lerning_rate=1", "learning_rate"),
        ("--config.ppo.updates=3", "ppo.rollouts"),
    ):
        done = subprocess.run([*command, override], capture_output=True, text=True)
        assert done.returncode == 2
        assert hint in done.stderr
        assert "Traceback" not in done.stderr
