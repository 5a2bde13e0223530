"""`make gpu-check` from end to end on pretend devices, and what makes it fail."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.small_run import environment

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.long


@pytest.fixture
def script(monkeypatch):
    """A file of benchmarks/, imported by its name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_all_checks_pass_on_four_cpu_devices():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_check.py", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=environment(
            PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=4"
        ),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    judged = [row["check"] for row in told["results"] if row["ok"]]
    assert told["failed"] == 0 and set(judged) == {"devices", "parity", "mismatch", "mesh", "update"}
    [(what, gap)] = [(row["what"], row["found"]) for row in told["results"] if row["check"] == "mesh"]
    assert "2 x 2 x 1" in what and 0 < gap < 1e-5
    assert {row["found"] for row in told["results"] if "one card" in row["what"]} == {"not installed"}


@pytest.mark.parametrize("found", [2.0, float("nan")])
def test_a_value_over_its_bound_fails_the_whole(script, capsys, found):
    report = script("gpu_subject").Report()
    report.at_most("parity", "good", 0.5, 1.0)
    report.at_most("parity", "bad", found, 1.0)
    report.add("update", "a speed", 3.0)
    assert report.end() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["PASS", "FAIL"] and json.loads(lines[-1])["failed"] == 1


def test_the_plans_number_is_read_from_what_it_prints(script):
    stated = (ROOT / "configs" / "llama32_1b.py").read_text()
    assert script("gpu_speed").planned_gib(stated) == {"trains": 47.1, "samples": 50.7}
