"""Jobs of several processes: how they are found, what they compute together, how they end."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.training.processes import Job, find_job
from tests.helpers.small_run import environment

pytestmark = pytest.mark.long

SCRIPT = pathlib.Path(__file__).with_name("process_script.py")
ROOT = str(pathlib.Path(__file__).parents[2])


def test_jobs_are_found_in_flags_then_the_environment():
    assert find_job({}, {}) is None
    variables = {"RLEF_JAX_COORDINATOR": "a:1", "RLEF_JAX_PROCESSES": "4", "RLEF_JAX_PROCESS": "3"}
    assert find_job({}, variables) == Job("a:1", 4, 3)
    assert find_job({"process": "2", "coordinator": None}, variables) == Job("a:1", 4, 2)
    assert find_job({}, {"RLEF_JAX_PROCESSES": "auto"}) == Job()


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"processes": "2"}, "--coordinator or RLEF_JAX_COORDINATOR, --process or RLEF_JAX_PROCESS too"),
        ({"coordinator": "a:1", "processes": "two", "process": "0"}, "are numbers"),
        ({"coordinator": "a:1", "processes": "2", "process": "2"}, "must be from 0 to 1"),
    ],
)
def test_half_a_job_is_an_error(flags, message):
    with pytest.raises(ConfigError, match=message):
        find_job(flags, {})


def started(count, workdir):
    """A job's processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = environment(
        PYTHONPATH=ROOT,
        XLA_FLAGS=f"--xla_force_host_platform_device_count={4 // count}",
        RLEF_JAX_COORDINATOR=f"127.0.0.1:{port}",
        RLEF_JAX_PROCESSES=str(count),
    )
    return [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(workdir)],
            env=shared | {"RLEF_JAX_PROCESS": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_an_update_over_processes_equals_one_device(count, tmp_path):
    """Loss, gradients and weights after an SGD step, over gloo."""
    job = started(count, tmp_path)
    ended = [process.communicate(timeout=600) for process in job]
    assert [process.returncode for process in job] == [0] * count, "\n".join(e[1][-1500:] for e in ended)
    told = json.loads(ended[0][0].splitlines()[-1])
    assert told["processes"] == told["devices"] == count
    assert sum(told["shares"]) == 13 and max(told["shares"]) - min(told["shares"]) <= 1
    assert told["same_episodes"]
    assert told["random_feedback"] == [True, 6]
    assert told["evaluation"] == [True, True, count - 1]
    keys = ["sampling.own_devices", "mesh.reference", "mesh.critic"]
    said = [f"config.{key}: not in a job of several processes, and this one has {count}" for key in keys for _ in "12"]
    assert [text.partition(": leave out")[0] for text in told["refusals"]] == said
    assert max(told["gaps"]) < 1e-5
    assert told["empty"][0] == [0.0, 1, 0.0] and told["empty"][1][:2] == [1.0, 2] and told["empty"][1][2] > 1e-3
    assert not any("gaps" in e[0] for e in ended[1:])  # only the first one tells


@pytest.mark.parametrize("others", ["exit 1", "sleep 0.3; exit 1", "exec sleep 300"])
def test_a_local_job_ends_with_the_first_of_its_processes(tmp_path, others):
    """Whether the others end with it, after it or not at all, it is the killed one that is named."""
    python = tmp_path / "python"
    ends = f'if [ "$RLEF_JAX_PROCESS" = 2 ]; then kill -9 $$; fi; {others}'
    python.write_text(f'#!/bin/bash\nif [ "$1" = -c ]; then echo 1234; exit; fi\nsleep 0.3; {ends}\n')
    python.chmod(0o755)
    done = subprocess.run(
        [f"{ROOT}/launch/local.sh", "4", "configs/tiny.py", str(tmp_path / "run")],
        env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 128 + signal.SIGKILL
    assert "process 2 of 4 ended with code 137: stopping the job; the same command goes on" in done.stderr


def test_sigterm_ends_a_process_that_waits_for_the_others(tmp_path):
    waiting = started(2, tmp_path)
    waiting[1].kill()
    time.sleep(3)
    waiting[0].send_signal(signal.SIGTERM)
    for process in waiting:
        process.communicate(timeout=30)
    assert waiting[0].returncode == -signal.SIGTERM
