"""The scripts under launch/ with programs of these tests in place of SLURM's; Kubernetes' file as its API has it."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from rlef_jax.planning.environment import variables

ROOT = Path(__file__).parents[1]
SCRIPTS = ("slurm_8b.sh", "slurm_70b.sh")


@pytest.fixture
def cluster(tmp_path):
    """A submit folder: launch/, a run that ends with $CODE, and srun and scontrol, which write down what they do."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    log = tmp_path / "log"
    programs = {
        # It starts two tasks and, as --kill-on-bad-exit has it, kills the other one when the first has failed.
        "bin/srun": 'while [[ $1 == --* ]]; do shift; done\nTASK=0 "$@" & a=$!\nTASK=1 "$@" & b=$!\n'
        "wait -n; code=$?\nif ((code)); then kill -9 $a $b 2>/dev/null; fi\n"
        "for p in $a $b; do wait $p; c=$?; ((c > code)) && code=$c; done\nexit $code",
        "bin/scontrol": f'echo "scontrol $*" >> {log}\nexit ${{REFUSED:-0}}',
        ".venv/bin/python": f'sleep "0.$TASK"\necho "task $*" >> {log}\nexit $CODE',
    }
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return tmp_path


def submitted(cluster, script, code, **environment):
    """The finished script, and the lines that srun's tasks and scontrol wrote."""
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / script), "--config.seed=1"], cwd=cluster, capture_output=True, text=True,
        env={"PATH": f"{cluster}/bin:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(cluster), "SLURM_JOB_ID": "77",
             "CODE": str(code), **environment},
    )  # fmt: skip
    return done, (cluster / "log").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_stopped_job_goes_back_into_the_queue(cluster, script):
    done, lines = submitted(cluster, script, 75)
    *tasks, last = lines
    assert done.returncode == 75 and last == "scontrol requeue 77"
    assert "job 77 is back in the queue" in done.stderr
    assert not list((cluster / "runs").iterdir())
    assert len(tasks) == 2 and all("-m rlef_jax.train" in t and t.endswith(" --config.seed=1") for t in tasks)


def test_a_steps_own_code_is_enough(cluster):
    (cluster / "bin" / "srun").write_text("#!/bin/bash\nexit 75\n")
    done, lines = submitted(cluster, "slurm_8b.sh", 75)
    assert done.returncode == 75 and lines == ["scontrol requeue 77"]


@pytest.mark.parametrize("code", [0, 1, 2, 137, 143])
@pytest.mark.parametrize("script", SCRIPTS)
def test_other_codes_pass_through(cluster, script, code):
    done, lines = submitted(cluster, script, code)
    assert done.returncode == max(code, 137 if code else 0)  # the other task is killed for it
    assert all(line.startswith("task") for line in lines)
    assert not (cluster / "runs").exists()


def test_a_job_that_cannot_be_requeued_says_so(cluster):
    done, lines = submitted(cluster, "slurm_8b.sh", 75, REFUSED="1")
    assert done.returncode == 75 and lines[-1] == "scontrol requeue 77" and "submit again to go on" in done.stderr
    done, lines = submitted(cluster, "slurm_8b.sh", 75, SLURM_RESTART_COUNT="3", RLEF_JAX_REQUEUES="3")
    assert done.returncode == 75 and "requeued 3 times already: submit again to go on" in done.stderr
    assert sum(line.startswith("scontrol") for line in lines) == 1  # the first job's


def test_no_launcher_changes_how_xla_compiles():
    """So that runs compile what `rlef_jax.plan` does, which adds nothing but what it needs without a card."""
    found = {path.name: re.findall(r"xla_(?:gpu|tpu)_\w+", path.read_text()) for path in (ROOT / "launch").iterdir()}
    assert not any(found.values()), found
    assert variables("cuda", {})["XLA_FLAGS"] == "--xla_gpu_autotune_level=0"


def test_a_jobs_own_xla_flags_reach_its_processes(cluster):
    (cluster / ".venv" / "bin" / "python").write_text(f'#!/bin/bash\necho "flags $XLA_FLAGS" >> {cluster}/log\n')
    _, lines = submitted(cluster, "slurm_8b.sh", 0, XLA_FLAGS="--xla_gpu_mine=1")
    assert lines == ["flags --xla_gpu_mine=1"] * 2


def test_kubernetes_restarts_a_stopped_job_without_counting():
    job = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())["spec"]
    (replicated,) = job["replicatedJobs"]
    (rule,) = job["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["targetReplicatedJobs"] == [replicated["name"]]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    pods = replicated["template"]["spec"]
    (stopped,) = pods["podFailurePolicy"]["rules"]
    (container,) = pods["template"]["spec"]["containers"]
    assert stopped == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [75]},
    }
    assert pods["template"]["spec"]["restartPolicy"] == "Never"  # without it the API refuses a podFailurePolicy
