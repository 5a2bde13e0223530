"""A run that is killed and started again ends exactly as one that never stopped; signals stop it where it can go on."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rlef_jax.config import load_saved
from rlef_jax.errors import EXIT_STOPPED, ConfigError
from rlef_jax.training.build import build_policy
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.metrics_writer import read_metrics
from tests.helpers.small_run import (
    assert_same_run,
    command,
    environment,
    finish,
    finish_here,
    group_members,
    leftovers,
    start,
    timeless,
    wait_until_gone,
)

pytestmark = pytest.mark.long

OVERRIDES = {"eval.every": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, as_processes_compile):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish_here(folder, OVERRIDES)
    return folder


def rows(workdir: Path) -> int:
    try:
        return len(read_metrics(workdir))
    except FileNotFoundError:
        return 0


def wait_until(process, condition, seconds=300.0):
    """Whether the condition came true while the process ran."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return False
        if condition():
            return True
        time.sleep(0.002)
    raise AssertionError("nothing happened")


def kill(process):
    """How many processes the run had; all of them end."""
    count = len(group_members(process.pid))
    os.kill(process.pid, signal.SIGKILL)  # it alone: what it started must notice by itself
    process.wait()
    process.stdout.close()
    assert wait_until_gone(process.pid)
    return count


def killed_and_resumed(folder, moments):
    """Starts the run, kills it when each of `moments(folder)` says so, and lets the last start end.

    How many processes there were at each kill.
    """
    counts = []
    for moment in moments:
        process = start(folder, OVERRIDES)
        if wait_until(process, moment(folder)):
            counts.append(kill(process))
        else:
            process.communicate()
    finish_here(folder, OVERRIDES)
    return counts


def after(row_count, delay):
    """A moment: so many iterations are recorded, and `delay` seconds more have passed."""

    def of(folder):
        seen = []

        def condition():
            if not seen and rows(folder) >= row_count:
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() - seen[0] >= delay

        return condition

    return of


def while_writing(number):
    """A moment: the `number`-th checkpoint of this start is half-written."""

    def of(folder):
        names = set()

        def condition():
            names.update(p.name.split(".")[0] for p in (folder / "checkpoints").glob("*checkpoint-tmp*"))
            return len(names) >= number

        return condition

    return of


def test_kills_change_nothing(whole, tmp_path):
    """Before the first checkpoint and in a checkpoint's write. Nor do they leave a helper's process."""
    folder = tmp_path / "run"
    counts = killed_and_resumed(folder, [after(1, 0.0), while_writing(1)])
    assert len(counts) == 2 and min(counts) >= 3
    assert_same_run(whole, folder)
    assert leftovers(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_twenty_kills_change_nothing(whole, tmp_path, seed):
    """Five runs, killed four times each at random moments, one of them inside the write of a checkpoint."""
    rng = random.Random(seed)
    folder = tmp_path / "run"
    counts = sorted(rng.sample(range(9), 3))
    moments = [after(count, rng.uniform(0.0, 0.4)) for count in counts]
    moments.insert(rng.randrange(3), while_writing(1))
    assert len(killed_and_resumed(folder, moments)) == 4
    assert_same_run(whole, folder)
    assert leftovers(folder) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_goes_on(whole, tmp_path, capsys, number):
    """The signal goes to the whole process group, as Ctrl-C and schedulers send it."""
    folder = tmp_path / "run"
    process = start(folder, OVERRIDES)
    assert wait_until(process, after(3, 0.01)(folder))
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED, output
    assert "Traceback" not in output
    done = rows(folder)
    assert f"stopped: {number.name}, saved after {done} iterations; the same command goes on from there" in output
    assert wait_until_gone(process.pid)
    finish_here(folder, OVERRIDES)
    assert f"going on from iteration {done}" in capsys.readouterr().out
    assert_same_run(whole, folder)


def test_a_second_signal_ends_it_at_once(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, OVERRIDES)
    assert wait_until(process, after(1, 0.0)(folder))
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode in (128 + signal.SIGTERM, EXIT_STOPPED)  # the first may have been answered already
    assert wait_until_gone(process.pid)


def test_a_finished_run_is_told_again_and_never_refuses(whole, capsys):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*.jsonl.gz")}
    finish_here(whole, OVERRIDES)
    assert "going on from iteration 10" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*.jsonl.gz")}
    done = subprocess.run(
        command(whole, OVERRIDES, "--resume=never"), env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "holds a run already, and --resume=never: give another --workdir" in done.stderr
    with pytest.raises(ConfigError, match="config.ppo.kl_beta: 0.05 there, 0.5 here"):
        finish_here(whole, OVERRIDES | {"ppo.kl_beta": 0.5})


@pytest.mark.slow
def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path):
    """Without decay, which depends on a run's length."""
    longer = OVERRIDES | {"ppo.decay": "none"}
    finish(tmp_path / "long", longer)
    finish(tmp_path / "run", longer | {"train.iterations": 5})
    finish(tmp_path / "run", longer)
    assert_same_run(tmp_path / "long", tmp_path / "run")


def test_the_best_by_validation_is_kept_and_is_the_result(whole):
    """The tiny random model solves nothing, so all validations are equal, and the latest, after 8, is the best."""
    assert [r["step"] for r in read_metrics(whole) if "valid/1@3" in r] == [3, 7]
    with Checkpoints(whole / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.metadata(10)["best_iteration"] == 8
        kept = checkpoints.restore(8, {"policy": build_policy(load_saved(whole)).params})["policy"]
    with np.load(whole / "policy.npz") as result:
        np.testing.assert_array_equal(result["embed"], kept["embed"])


@pytest.mark.slow
def test_validation_disturbs_nothing_and_patience_ends_training(whole, tmp_path):
    finish(tmp_path / "never")
    unvalidated = [timeless(r) for r in read_metrics(tmp_path / "never")]
    validated = [timeless(r) for r in read_metrics(whole)]
    assert unvalidated == [{k: v for k, v in r.items() if not k.startswith("valid/")} for r in validated]
    output = finish(tmp_path / "patient", {"eval.every": 1, "eval.patience": 2})
    assert "no better validation in 2 after iteration 3: training ends" in output
    assert len(read_metrics(tmp_path / "patient")) == 3
    assert "training ends" in finish(tmp_path / "patient", {"eval.every": 1, "eval.patience": 2})
    assert len(read_metrics(tmp_path / "patient")) == 3


@pytest.mark.slow
def test_an_evaluation_of_any_kept_checkpoint(whole):
    def evaluate(checkpoint):
        return subprocess.run(
            [sys.executable, "-m", "rlef_jax.evaluate", f"--workdir={whole}", "--split=valid", "--problems=4",
             f"--checkpoint={checkpoint}"],
            env=environment(), capture_output=True, text=True,
        )  # fmt: skip

    for checkpoint in ("best", "last", "8"):
        done = evaluate(checkpoint)
        assert done.returncode == 0 and json.loads(done.stdout)["1@3"] == 0.0, done.stderr
    done = evaluate("3")
    assert done.returncode == 2 and "--checkpoint=3: give best, last or one of" in done.stderr
