"""`make gpu-check` from end to end on pretend devices, and that each of its stages can fail."""

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.small_run import environment

ROOT = Path(__file__).parents[1]
STAGES = ["devices", "parity", "mismatch", "mesh", "update", "sampling"]
pytestmark = pytest.mark.long


@pytest.fixture
def script(monkeypatch):
    """A file of benchmarks/, imported by its name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def started(devices, *arguments, **variables):
    """The quick form in a process of its own, on so many pretend devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "benchmarks/gpu_check.py", "--quick", *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", XLA_FLAGS=flags, **variables),
    )  # fmt: skip


def finished(process, code):
    """(its last lines but one, the line of JSON)."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, out[-3000:] + err[-3000:]
    *lines, last = out.splitlines()
    return lines, json.loads(last)


@pytest.mark.slow
def test_a_stage_passes_and_another_fails_by_name():
    """The stages that compile least."""
    lines, told = finished(started(2, "--stages", "mesh", "--spoil", "mesh"), 1)
    assert told["failed"] == ["mesh"] and {"passed: devices", "FAILED: mesh"} <= set(lines)
    assert lines[-1] == "on CPUs: nothing here was computed on a GPU"
    assert {row["on"] for row in told["results"]} == {"cpu"}
    [(what, gap)] = [(row["what"], row["found"]) for row in told["results"] if row["stage"] == "mesh"]
    assert "1 x 2 x 1" in what and gap > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("devices, left_out", [(1, {"mesh"}), (4, set())])
def test_every_stage_passes(devices, left_out):
    lines, told = finished(started(devices), 0)
    assert told["failed"] == [] and f"passed: {', '.join(s for s in STAGES if s not in left_out)}" in lines
    gaps = {row["what"]: row["found"] for row in told["results"] if row["stage"] == "mesh" and row["result"] == "PASS"}
    assert left_out or (0 < gaps["gradients on 2 x 2 x 1, float32: gap / largest"] < 1e-5)
    skipped = {row["stage"]: row["what"] for row in told["results"] if row["result"] == "skipped"}
    assert set(skipped) == {"update", "sampling", "baselines"} | left_out
    assert skipped["baselines"] == "vllm: no --baselines=PYTHON"


@pytest.mark.slow
def test_every_stage_fails_on_a_wrong_number():
    lines, told = finished(started(4, "--spoil", *STAGES), 1)
    assert told["failed"] == STAGES and f"FAILED: {', '.join(STAGES)}" in lines
    # All that has a bound fails but what isn't spoiled.
    passed = [row["what"] for row in told["results"] if row["result"] == "PASS"]
    assert passed == ["JAX uses cpu; nvidia-smi shows none"]


@pytest.mark.slow
@pytest.mark.parametrize("spoil, code", [((), 0), (("--spoil", "mesh"), 1)])
def test_two_processes_check_together(spoil, code):
    """As on two nodes: a mesh over both, and a sampler on each one's own devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"RLEF_JAX_COORDINATOR": f"127.0.0.1:{port}", "RLEF_JAX_PROCESSES": "2"}
    first, second = (started(2, *spoil, **shared, RLEF_JAX_PROCESS=str(number)) for number in range(2))
    lines, told = finished(first, code)
    out, err = second.communicate(timeout=60)
    assert second.returncode == code and "PASS" not in out, out + err[-3000:]  # the first one tells
    assert told["failed"] == (["mesh"] if spoil else [])
    assert [row["found"] for row in told["results"] if row["what"] == "processes"] == [2]
    assert any("gradients on 2 x 2 x 1" in row["what"] for row in told["results"])
    assert not spoil or {"FAILED in process 0: mesh", "FAILED in process 1: mesh"} <= set(lines)


def test_cpus_where_there_is_a_card_are_a_failure(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 550.54, 81559 MiB'\n")
    smi.chmod(0o755)
    command = [sys.executable, "benchmarks/gpu_check.py"]
    given = environment(PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    )
    assert done.returncode == 1 and "FAILED: devices" in done.stdout.splitlines()
    without = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=given | {"PATH": str(tmp_path / "x")}
    )
    assert (
        without.returncode == 2
        and without.stderr == "error: nvidia-smi shows no card; --quick runs a tiny model on CPUs\n"
    )


@pytest.mark.parametrize("found", [2.0, float("nan")])
def test_a_value_over_its_bound_fails_its_stage(script, capsys, found):
    report = script("gpu_report").Report("gpu")
    with report.stage("parity"):
        report.at_most("good", 0.5, 1.0)
        report.at_most("bad", found, 1.0)
    with report.stage("update"):
        report.tell("a speed", 3.0)
    assert report.end() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["PASS", "FAIL"] and "FAILED: parity" in lines
    assert json.loads(lines[-1])["failed"] == ["parity"]


def test_an_exception_fails_its_stage_and_the_next_one_goes_on(script, capsys):
    report = script("gpu_report").Report("gpu")
    with report.stage("parity"):
        raise ValueError("no such kernel\nand more")
    with report.stage("mesh"):
        report.skip("gradients", "one device")
    assert report.end() == 1
    said, seen = capsys.readouterr()
    assert "ValueError: no such kernel" in said and "FAILED: parity" in said.splitlines() and "Traceback" in seen
    assert "skipped in part or whole: mesh" in said.splitlines()


@pytest.mark.parametrize(
    "before, after, result", [(10.0, 47.0, "PASS"), (10.0, 52.5, "FAIL"), (10.0, 42.0, "FAIL"), (47.0, 47.0, "skipped")]
)
def test_peak_memory_is_held_against_the_plan(script, before, after, result):
    """Within a tenth; an earlier stage's peak hides a lower one."""
    report, speed = script("gpu_report").Report("gpu"), script("gpu_speed")
    speed.report_peak(report, before, after, speed.Planned(47.1, 50.7), 47.1)
    assert [row["result"] for row in report.rows] == [result]


def test_the_plans_number_is_read_from_what_it_prints(script):
    stated = (ROOT / "configs" / "llama32_1b.py").read_text()
    assert script("gpu_speed").planned_gib(stated) == {"trains": 47.1, "samples": 50.7}


def test_a_plan_that_fails_is_a_failure(script, capsys):
    """Of a configuration that isn't there; the process itself is real."""
    speed, subjects = script("gpu_speed"), script("gpu_subject")
    s = subjects.Subject(None, subjects.ModelConfig(256, 8, 1, 1, 1, 8, 8), {}, "configs/none.py", "", (1, 1, 1))
    found = speed.plan(s, "h100")
    assert found.failed and "configs/none.py" in capsys.readouterr().err
    report = script("gpu_report").Report("gpu")
    speed.report_peak(report, 1.0, 2.0, found, found.trains)
    assert [row["result"] for row in report.rows] == ["FAIL"]


def test_a_baseline_that_breaks_is_a_failure_and_a_missing_one_is_not(script):
    report, speed = script("gpu_report").Report("gpu"), script("gpu_speed")
    found = {
        "transformers": {"speed": 50.0, "device": "cuda"}, "vllm": {"failed": "vllm_generate.py ended with code 1"},
        "other": {"skipped": "no --baselines=PYTHON"},
    }  # fmt: skip
    speed.check_baselines(report, found, 100.0)
    assert [(row["found"], row["on"], row["result"]) for row in report.rows] == [
        (50.0, "cuda", ""), (2.0, "gpu", ""), ("", "gpu", "FAIL"), ("", "gpu", "skipped"),
    ]  # fmt: skip


def test_a_baseline_is_looked_for_and_its_end_is_seen(script, tmp_path, capsys):
    """By an interpreter of this test's: without the library, and with one that ends at once."""
    speed = script("gpu_speed")
    python = tmp_path / "python"
    order = {"rows": 2, "new": 4}
    for body, found in (
        ("exit 1", {"skipped": f"{python} has none"}),
        ('[ "$1" = -c ] || { echo no card >&2; exit 3; }', {"failed": "torch_generate.py ended with code 3"}),
        ("""[ "$1" = -c ] || while read -r line || [ "$line" ]; do echo '{"seconds": 0.5, "device": "cuda"}'; done""",
         {"speed": 16.0, "device": "cuda"}),
    ):  # fmt: skip
        python.write_text(f"#!/bin/bash\n{body}\n")
        python.chmod(0o755)
        assert speed._baseline(str(python), "transformers", "torch_generate.py", order) == found
    assert "no card" in capsys.readouterr().err
