"""`python -m rlef_jax.judge`: tables, JSON, exit codes, and messages for wrong usage."""

import json

import pytest

from rlef_jax import judge
from rlef_jax.execution.isolation import LEVELS

PROBLEM = {
    "name": "sum",
    "public_tests": [{"input": "1 2", "output": "3"}],
    "private_tests": [{"input": "4 5", "output": "9"}],
    "time_limit_s": 20.0,
}
PROGRAMS = {
    "right.py": "a, b = map(int, input().split())\nprint(a + b)",
    "wrong.py": "a, b = map(int, input().split())\nprint(a * b + 1)",
    "crash.py": "print(1 / 0)",
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "problem.json").write_text(json.dumps(PROBLEM))
    (tmp_path / "programs").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "programs" / name).write_text(text)
    return tmp_path


def run(capsys, *arguments):
    code = judge.main(list(map(str, arguments)))
    return code, *capsys.readouterr()


def test_a_folder_as_tables(folder, capsys):
    code, out, _ = run(capsys, folder / "programs", "--problem", folder / "problem.json")
    assert code == judge.FAILED
    assert "right.py: 2 of 2 tests passed (sum)" in out
    assert "wrong.py: 1 of 2 tests passed (sum)" in out and "line 1 expected 9" in out and "line 1 got      21" in out
    assert "crash.py: 0 of 2" in out and "ZeroDivisionError: division by zero" in out


def test_json_and_exit_codes(folder, capsys):
    code, out, _ = run(capsys, folder / "programs/right.py", "--problem", folder / "problem.json", "--json")
    row = json.loads(out)
    assert code == judge.PASSED and row["passed"] and [t["status"] for t in row["tests"]] == ["PASSED", "PASSED"]
    assert {"wall_s", "cpu_s", "memory_bytes", "exit_code", "stdout", "stderr"} <= set(row["tests"][0])
    arguments = folder / "programs/wrong.py", "--problem", folder / "problem.json", "--json"
    code, out, _ = run(capsys, *arguments, "--tests", "public")
    assert code == judge.PASSED and len(json.loads(out)["tests"]) == 1
    code, out, _ = run(capsys, *arguments, "--tests", "hidden", "--stop-at-first-failure")
    assert code == judge.FAILED and json.loads(out)["tests"][0]["status"] == "WRONG_ANSWER"


def test_the_papers_way_is_an_option(folder, capsys):
    (folder / "late.py").write_text("a, b = map(int, input().split())\nprint(a + b, flush=True)\n1 / 0")
    arguments = folder / "late.py", "--problem", folder / "problem.json", "--json"
    assert run(capsys, *arguments)[0] == judge.FAILED
    assert run(capsys, *arguments, "--stdout-only")[0] == judge.PASSED
    big = {"name": "big", "public_tests": [{"input": "", "output": f"x {2**53}"}]}
    (folder / "big.json").write_text(json.dumps(big))
    (folder / "near.py").write_text("print('X', 2**53 + 1)")
    arguments = folder / "near.py", "--problem", folder / "big.json", "--json"
    assert run(capsys, *arguments)[0] == judge.FAILED
    assert run(capsys, *arguments, "--doubles")[0] == judge.PASSED


def test_wrong_usage_is_a_line_and_exit_code_2(folder, capsys):
    for arguments in (
        (folder / "programs/right.py",),
        (folder / "programs/right.py", "--problem", folder / "none.json"),
        (folder / "programs/none.py", "--problem", folder / "problem.json"),
        (folder / "programs/right.py", "--problem", folder / "problem.json", "--name", "other"),
        (folder / "programs/right.py", "--problem", "mini_contests:none"),
    ):
        code, out, err = run(capsys, *arguments)
        assert code == judge.USAGE and err.startswith("error: ") and not out


def test_the_isolation_report_names_every_level(capsys):
    code, out, _ = run(capsys, "--isolation-report")
    assert code == judge.PASSED
    assert all(f"  {level.value} " in out for level in LEVELS)
    assert out.count(" used ") == 1
