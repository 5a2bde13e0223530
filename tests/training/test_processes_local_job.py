"""launch/local.sh with four real processes: one is killed, the job ends and says so, the same command goes on; and what
the four compute together on their recorded rollouts is what one process does."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rlef_jax.training.metrics_writer import read_metrics
from tests.helpers.compiled import READ_ONLY
from tests.helpers.small_run import OVERRIDES, environment

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "training" / "job_script.py"
PROCESSES = 4
ITERATIONS = 6

pytestmark = pytest.mark.slow


def started(workdir, log):
    values = OVERRIDES | {"train.iterations": ITERATIONS, "train.checkpoint_every": 1, "execution.workers": 1}
    words = [f"--config.{key}={value}" for key, value in values.items()]
    return subprocess.Popen(
        [str(ROOT / "launch" / "local.sh"), str(PROCESSES), "configs/tiny.py", str(workdir), *words],
        env=environment(PYTHON=sys.executable, **READ_ONLY), stdout=log, stderr=subprocess.STDOUT,
        start_new_session=True, cwd=ROOT,
    )  # fmt: skip


def code_of(job, seconds):
    """The exit code of a job that ends in so many seconds."""
    try:
        return job.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise


def iterations_done(workdir):
    try:
        return len(read_metrics(workdir))
    except FileNotFoundError:
        return 0


def member(job, number):
    """The process that `local.sh` started with this number."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            numbered = f"RLEF_JAX_PROCESS={number}\0".encode() in (entry / "environ").read_bytes()
        except OSError:
            continue
        if numbered and int(parent) == job.pid:
            return int(entry.name)
    raise AssertionError(f"no process {number}")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run of four processes of which one was killed after two iterations, and which was started again."""
    folder = tmp_path_factory.mktemp("runs")
    workdir, logs = folder / "four", [folder / "first.log", folder / "second.log"]
    with open(logs[0], "w") as log:
        first = started(workdir, log)
        while iterations_done(workdir) < 2:
            assert first.poll() is None, logs[0].read_text()
            time.sleep(0.05)
        os.kill(member(first, 2), signal.SIGKILL)
        codes = [code_of(first, seconds=30)]  # what the job promises
    left = iterations_done(workdir)
    with open(logs[1], "w") as log:
        codes.append(code_of(started(workdir, log), seconds=900))
    return workdir, (codes[0], logs[0].read_text(), left), (codes[1], logs[1].read_text())


def test_a_killed_process_stops_the_job_and_says_so(job):
    _, (code, told, left), _ = job
    assert code == 128 + signal.SIGKILL
    assert "process 2 of 4 ended with code 137: stopping the job; the same command goes on" in told
    assert 2 <= left < ITERATIONS


def test_the_same_command_goes_on(job):
    workdir, (_, _, left), (code, told) = job
    assert code == 0, told[-3000:]
    assert [record["step"] for record in read_metrics(workdir)] == list(range(ITERATIONS))
    assert "going on from iteration" in told
    assert (workdir / "policy.npz").exists() and left < ITERATIONS


def gradients(workdir, output, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = environment(PYTHONPATH=str(ROOT))
    if processes > 1:
        given |= {"RLEF_JAX_COORDINATOR": f"127.0.0.1:{port}", "RLEF_JAX_PROCESSES": str(processes)}
    members = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(workdir), str(processes), str(output)],
            env=given | ({"RLEF_JAX_PROCESS": str(number)} if processes > 1 else {}),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )
        for number in range(processes)
    ]  # fmt: skip
    told = [process.communicate(timeout=600)[0] for process in members]
    assert [process.returncode for process in members] == [0] * processes, "\n".join(t[-1500:] for t in told)
    with np.load(output) as stored:
        return [stored[name] for name in stored.files]


def test_the_first_iterations_gradients_are_one_processs(job, tmp_path):
    """From the rollouts that the job recorded, made by all of its processes."""
    workdir = job[0]
    together = gradients(workdir, tmp_path / "four.npz", PROCESSES)
    alone = gradients(workdir, tmp_path / "one.npz", 1)
    assert max(float(np.abs(leaf).max()) for leaf in alone) > 1e-3
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5, rtol=1e-5)
