"""The judge's error rate: reference solutions on their problems' tests, and a check that resumes when stopped."""

from __future__ import annotations

import json

import pytest

from rlef_jax.data.code_contests import judge_check, references
from rlef_jax.data.code_contests.build import build
from rlef_jax.data.code_contests.references import error_rate_line, read_report, report_path
from rlef_jax.errors import ConfigError
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import Limits
from tests.helpers.contest_rows import row, write_parquet

RIGHT = "print(sum(map(int, input().split())))"
# (reason expected of each reference, changes of the row)
CASES = {
    "right": (["passed"], {}),
    "hidden": (["wrong answer"], {"solutions": ["print(3)"]}),
    "several": (["several answers"], {"solutions": ["print(0)"], "description": "Print any of them."}),
    "second": (["wrong answer", "passed"], {"solutions": ["print(0)", RIGHT]}),
    "late": (["limits"], {"solutions": ["while True: pass"]}),
    "syntax": (["python 2"], {"solutions": ["print 3"]}),
    "names": (["python 2"], {"solutions": ["print(sum(map(int, raw_input().split())))"]}),
    "crash": (["crash"], {"solutions": ["print(1 / 0)"]}),
    "files": (["files"], {"solutions": ["print(open('in.txt').read())"], "input_file": "in.txt"}),
    "none": ([], {"solutions": []}),
}


@pytest.fixture(scope="module")
def pool():
    with ExecutionPool(2, find_python("3.10")) as pool:
        yield pool


@pytest.fixture
def folder(tmp_path):
    rows = []
    for name, (_, changes) in CASES.items():
        programs = changes.get("solutions", [RIGHT])
        changes = changes | {"solutions": {"language": [3] * len(programs), "solution": programs}}
        changes["time_limit"] = {"seconds": 0, "nanos": 500_000_000} if name == "late" else {"seconds": 20, "nanos": 0}
        rows.append(row(name, **changes))
    (tmp_path / "source").mkdir()
    write_parquet(tmp_path / "source" / "valid.parquet", rows)
    build(tmp_path / "source", tmp_path / "out")
    return tmp_path / "out"


def check(folder, pool, judged_with=None, report=None):
    return judge_check.check(
        folder, "valid", pool, judged_with or {"solutions": 3}, solutions=3, limits=Limits(), ahead=2, report=report
    )


def test_each_failure_has_its_reason(folder, pool):
    assert "not measured; do python -m" in error_rate_line(folder, "valid")
    report = check(folder, pool)
    assert {p.name: list(p.reasons) for p in report.problems} == {name: reasons for name, (reasons, _) in CASES.items()}
    assert read_report(folder, "valid") == report
    counts = json.loads(report_path(folder, "valid").read_text())["counts"]
    assert (counts["problems"], counts["without_reference"], counts["problems_failing"]) == (10, 1, 7)
    assert (counts["solutions"], counts["solutions_failing"]) == (10, 8)
    assert counts["problems_failing_why"] == {
        "several answers": 1, "wrong answer": 1, "limits": 1, "python 2": 2, "files": 1, "crash": 1,
    }  # fmt: skip
    assert counts["solutions_failing_why"]["wrong answer"] == 2
    assert error_rate_line(folder, "valid") == (
        "judge's own errors on valid: no reference solution passes on 7 of 9 problems (77.8 %: 1 several answers,"
        " 1 wrong answer, 1 limits, 2 python 2, 1 files, 1 crash); 1 have none"
    )
    assert "none passes / failing" in judge_check.table(report)


class _StoppedError(Exception):
    pass


def test_an_interrupted_check_goes_on_and_another_begins_anew(folder, pool):
    def stop(done, total):
        if done == 4:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        check(folder, pool, report=stop)
    journal = report_path(folder, "valid").with_suffix(".part.jsonl")
    with journal.open("a") as file:
        file.write('["syntax", ["pyth')  # killed while writing
    assert not report_path(folder, "valid").is_file()
    progress = []
    resumed = check(folder, pool, report=lambda done, total: progress.append(done))
    assert progress == list(range(5, 11)) and len(resumed.problems) == 10 and not journal.is_file()
    assert [p.name for p in resumed.problems] == list(CASES)

    with pytest.raises(_StoppedError):
        check(folder, pool, report=stop)
    progress.clear()
    check(folder, pool, {"solutions": 2}, report=lambda done, total: progress.append(done))
    assert progress == list(range(1, 11))  # other settings: stored results aren't used


def test_the_command_refuses_what_it_cannot_do(folder, capsys, monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for arguments, message in (
        ([f"--data={folder}", "--split=train"], "--split: 'train' is none of valid"),
        ([f"--data={folder}", "--solutions=0"], "--solutions, --memory-mb"),
        ([f"--data={folder.parent}"], "no CodeContests in"),
    ):
        with pytest.raises(SystemExit) as stop:
            judge_check.main(arguments)
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and message in line
    report_path(folder, "valid").write_text("[]")
    with pytest.raises(ConfigError, match="is no report of judge_check"):
        references.error_rate_line(folder, "valid")
