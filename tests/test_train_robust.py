"""Whole runs in a world that misbehaves: gradients that explode, workers that die, clocks that jump, slow disks."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from rlef_jax.errors import EXIT_FAILED
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.training.metrics_writer import read_metrics
from tests.helpers import plain_loop
from tests.helpers.small_run import OVERRIDES, assert_same_run, command, environment, finish_here, start

pytestmark = pytest.mark.long

SHORT = {"train.iterations": 4, "train.checkpoint_every": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, as_processes_compile):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    finish_here(folder, SHORT)
    return folder


def test_staleness_0_is_the_synchronous_run(whole, tmp_path):
    plain_loop.run(tmp_path / "plain", 4)
    with np.load(whole / "policy.npz") as a, np.load(tmp_path / "plain" / "policy.npz") as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.usefixtures("quick_compilation")
def test_asynchronous_tokens_are_never_too_old(tmp_path):
    finish_here(tmp_path / "run", SHORT | {"train.max_staleness": 1, "train.iterations": 6})
    records = read_metrics(tmp_path / "run")
    ages = []
    for step, record in enumerate(records):
        episodes = read_episodes(tmp_path / "run" / "episodes" / f"{step:06d}.jsonl.gz")
        versions = [v for e in episodes for turn in e.turns for v in turn.policy_version]
        assert max(versions) <= step * OVERRIDES["ppo.updates"]
        age = step - min(versions) / OVERRIDES["ppo.updates"]
        assert age <= 1 and age == record["staleness_max"]
        assert record["infra_episodes"] == 0 and len(episodes) == OVERRIDES["ppo.rollouts"]
        assert {"idle/learner", "idle/actor", "truncated_fraction"} <= set(record)
        ages.append(age)
    assert ages[0] == 0 and max(ages) > 0


@pytest.mark.usefixtures("quick_compilation")
def test_an_explosion_stops_the_run_and_can_be_replayed(tmp_path):
    """A learning rate of 1e30 makes the second update's gradient not finite, without any help from the test."""
    folder, wild = tmp_path / "run", SHORT | {"ppo.learning_rate": 1e30, "ppo.warmup_steps": 0}
    done = subprocess.run(command(folder, wild), env=environment(), capture_output=True, text=True)
    assert done.returncode == EXIT_FAILED and "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "update 1 was not applied: its gradient's norm is nan" in line and "rlef_jax.replay_batch" in line
    replayed = subprocess.run(
        [sys.executable, "-m", "rlef_jax.replay_batch", f"--workdir={folder}"],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert replayed.returncode == 0, replayed.stderr
    assert "update 1 of" in replayed.stdout and "norm nan" in replayed.stdout
    other = tmp_path / "skips"
    finish_here(other, wild | {"train.bad_update": "skip", "train.iterations": 1})
    [record] = read_metrics(other)
    assert record["skipped_updates"] == 1.0


def workers_of(process):
    """The judge's workers that a run has now: with the launcher of one, all below it ends."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(stat[1]) == process.pid and b"execution/launch.py" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
def test_a_worker_storm_changes_nothing(whole, tmp_path):
    """Every worker of the judge is killed at once, over and over, with time between for a program or two."""
    folder = tmp_path / "run"
    process = start(folder, SHORT)
    storms = 0
    while process.poll() is None:
        victims = workers_of(process) if storms < 3 else []  # a program is run again three times at most
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        storms += bool(victims)
        time.sleep(0.7)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert storms >= 2
    assert_same_run(whole, folder)


def wrapped(folder, patch):
    """A run in whose process `patch` was executed first."""
    arguments = command(folder, SHORT)[3:]
    program = textwrap.dedent(patch) + textwrap.dedent("""
        import runpy
        if __name__ == "__main__":  # not in the helper process that makes problems
            runpy.run_module("rlef_jax.train", run_name="__main__", alter_sys=True)
        """)
    script = folder.with_suffix(".py")
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment(PYTHONPATH=str(Path(__file__).parents[1])), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "patch",
    [
        """
        import os, time
        real, replace, jumps = time.time, os.replace, [0]
        def replaced(*args, **kwargs):
            # Whenever a file is finished, the clock goes on from yesterday or from 95 years ahead.
            jumps.append({0: 3e9, 3e9: -86400}.get(jumps[-1], 0))
            return replace(*args, **kwargs)
        os.replace = replaced
        time.time = lambda: real() + jumps[-1]
        """,
        """
        import os, time
        def slow(function):
            def later(*args, **kwargs):
                time.sleep(0.2)
                return function(*args, **kwargs)
            return later
        for name in ("replace", "rename", "fsync"):
            setattr(os, name, slow(getattr(os, name)))
        """,
    ],
    ids=["a clock that jumps", "a slow disk"],
)
def test_clocks_and_disks_change_nothing(whole, tmp_path, patch):
    wrapped(tmp_path / "run", patch)
    assert_same_run(whole, tmp_path / "run")
