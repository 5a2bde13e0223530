"""The whole command with the tiny model: killed and started again, chunks of any size, function problems, feedback."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.evaluation.chunk_store import RESULTS
from rlef_jax.training.episode_io import read_episodes
from tests.helpers.small_run import OVERRIDES, environment, leftovers

CONFIG = [f"--config.{key}={value}" for key, value in OVERRIDES.items() if key != "eval.split"]
ASKED = [
    "--config=configs/tiny.py",
    "--benchmark=mini_contests/valid",
    "--problems=6",
    "--samples=6",
    "--n-at-k=1@3,1@6",
]


def without(results, *names):
    return {k: v for k, v in results.items() if k not in names}


def tokens(folder: Path):
    return [(e.index, e.token_ids) for path in sorted((folder / "chunks").iterdir()) for e in read_episodes(path)]


def test_killed_and_started_again(tmp_path):
    command = [sys.executable, "-m", "rlef_jax.evaluate", *ASKED, *CONFIG, "--chunk=2", f"--out={tmp_path / 'killed'}"]
    first = tmp_path / "killed" / "chunks" / "000001.jsonl.gz"
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    until = time.monotonic() + 200
    while not first.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    existing = len(list(first.parent.glob("*.gz")))
    assert 2 <= existing < 6 and not (tmp_path / "killed" / RESULTS).exists()
    stamps = {path.name: path.stat().st_mtime_ns for path in first.parent.glob("*.gz")}
    resumed = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert all((first.parent / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())  # not made again
    results = json.loads(resumed.stdout)
    assert results["rollouts"] == 12 and "1@6" in resumed.stderr and not leftovers(tmp_path)
    # Never killed, and in one chunk: also in another process, with programs compiled in the same way.
    command[-2:] = [f"--out={tmp_path / 'whole'}"]
    whole = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert without(json.loads(whole.stdout), "folder", "evaluation") == without(results, "folder", "evaluation")
    assert tokens(tmp_path / "whole") == tokens(tmp_path / "killed")


HUMAN_EVAL = {
    "task_id": "HumanEval/{}",
    "prompt": 'def f{}(x):\n    """Says x."""\n',
    "canonical_solution": "    return x\n",
    "entry_point": "f{}",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n",
}


@pytest.mark.parametrize("feedback", ["true", "random"])
def test_function_problems_from_prompt_to_score(tmp_path, quick_compilation, feedback):
    rows = [{k: v.replace("{}", str(i)) for k, v in HUMAN_EVAL.items()} for i in range(2)]
    (tmp_path / "HumanEval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(parsed(["--config=configs/tiny.py", "--benchmark=human_eval", f"--data={tmp_path}", *CONFIG,
                             "--config.episode.context=640", "--config.ppo.buckets=(640,)",
                             f"--feedback={feedback}", f"--out={tmp_path / 'out'}"]))  # fmt: skip
    assert results["problems"] == 2 and results["1@3"] == 0.0
    episodes = [e for path in (tmp_path / "out" / "chunks").iterdir() for e in read_episodes(path)]
    assert [len(e.turns) for e in episodes] == [3, 3]
    assert episodes[0].problem.start == rows[0]["prompt"]


@pytest.mark.parametrize(
    "rows, flags, message",
    [
        (2, ["--problems=1"], "--problems: must be 2 or more with eval.random_feedback"),
        (1, [], "'HumanEval/0' has none beside it that has public tests"),
    ],
)
def test_random_feedback_of_one_problem_is_refused_before_anything_is_loaded(tmp_path, rows, flags, message):
    lines = [json.dumps({k: v.replace("{}", str(i)) for k, v in HUMAN_EVAL.items()}) + "\n" for i in range(rows)]
    (tmp_path / "HumanEval.jsonl").write_text("".join(lines))
    nothing = "--config.model.init=nowhere.npz"  # weights that can't be loaded
    built = ["--config=configs/tiny.py", "--benchmark=human_eval", f"--data={tmp_path}", nothing, *flags]
    with pytest.raises(ConfigError, match=message):
        evaluate(parsed([*built, "--feedback=random", f"--out={tmp_path / 'out'}"]))
    with pytest.raises(ConfigError, match=r"model\.init: no file nowhere\.npz"):
        evaluate(parsed([*built, f"--out={tmp_path / 'out'}"]))


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_the_help_speaks_of_both_commands_that_make_runs(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(f"rlef_jax.{command}").main()
    text = " ".join(capsys.readouterr().out.split())
    assert "a run of rlef_jax.train or rlef_jax.sft" in text
    assert "best (by validation), last, or its iteration (of rlef_jax.sft: its step)" in text
