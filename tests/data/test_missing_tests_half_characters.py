"""Text that UTF-8 can't encode, in tests, statements and names: left out or refused by name when problems are read."""

from __future__ import annotations

import json

import pytest

from rlef_jax import judge
from rlef_jax.data import benchmarks
from rlef_jax.data.missing_tests import Missing, encodable, is_encodable, well_formed
from rlef_jax.data.missing_tests import testable as those_with_tests
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.types import FunctionTest, Problem, TestCase

HALF = "\ud800"
SUM = "a, b = map(int, input().split())\nprint(a + b)\n"
INPUT, OUTPUT, WHOLE = TestCase(f"{HALF}\n", "7\n"), TestCase("3 4\n", f"{HALF}\n"), TestCase("3 4\n", "7\n")


@pytest.mark.parametrize(
    ("text", "want"),
    [("", ""), ("aé😀", "aé😀"), (HALF, "�"), ("\udc80", "�"), ("a\ud83d\ude00b", "a😀b"), ("\ude00\ud83d", "��")],
    ids=range(6),
)
def test_well_formed(text, want):
    assert well_formed(text) == want
    well_formed(text).encode()


def test_such_tests_are_left_out_and_counted():
    reports: list[Missing] = []
    function = FunctionTest("f", ((HALF,),), (HALF,), text=f"assert f('{HALF}')")
    bad = Problem(f"n{HALF}", f"d{HALF}", (INPUT, WHOLE), (OUTPUT,), (WHOLE, INPUT), start=HALF, shown_tests=(HALF,))
    problems = [Problem("whole", "w", (WHOLE,), (WHOLE,)), bad, Problem("f", "f", (function,), ())]
    encodable_problem, mended, untouched = those_with_tests(
        "x", [*problems, Problem("none", "n", (INPUT,), (OUTPUT,))], reports.append
    )
    assert encodable_problem == problems[0] and mended == Problem(
        "n�", "d�", (WHOLE,), (), (WHOLE,), start="�", shown_tests=("�",)
    )
    assert is_encodable(function) and untouched.public_tests[0].calls == ((HALF,),)  # any str can be passed
    assert untouched.public_tests[0].text == "assert f('�')"
    assert reports[0].left_out == ("none",)
    assert "1 without any test left out; 5 tests left out, whose text UTF-8 can't hold" in reports[0].line
    assert encodable(mended) == mended


@pytest.mark.parametrize("test", [INPUT, OUTPUT], ids=["input", "output"])
def test_judge_names_problem_and_test(tmp_path, capsys, test):
    tests = [{"input": one.input, "output": one.output} for one in (WHOLE, test)]
    (tmp_path / "p.json").write_text(json.dumps({"name": f"p{HALF}", "public_tests": tests}))
    (tmp_path / "sum.py").write_text(SUM)
    assert judge.main([str(tmp_path / "sum.py"), "--problem", str(tmp_path / "p.json")]) == judge.USAGE
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert "problem 'p\\ud800', test 2: half of a surrogate pair" in printed.err


def test_a_name_with_half_a_character_is_printed(tmp_path, capsys):
    tests = [{"input": WHOLE.input, "output": WHOLE.output}]
    (tmp_path / "p.json").write_text(json.dumps({"name": f"p{HALF}", "public_tests": tests}))
    (tmp_path / "sum.py").write_text(SUM)
    assert judge.main([str(tmp_path / "sum.py"), "--problem", str(tmp_path / "p.json")]) == judge.PASSED
    assert "1 of 1 tests passed" in capsys.readouterr().out


def live_code_bench(folder, *inputs):
    tests = json.dumps([{"input": text, "output": "7\n", "testtype": "stdin"} for text in inputs])
    row = {
        "question_title": "q", "question_content": f"Sum.{HALF}", "platform": "atcoder", "question_id": "q",
        "contest_id": "c", "contest_date": "2024-05-01T00:00:00", "starter_code": "", "difficulty": "easy",
        "public_test_cases": tests, "private_test_cases": tests, "metadata": "{}",
    }  # fmt: skip
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")


def test_live_code_bench(tmp_path, capsys):
    live_code_bench(tmp_path / "data", f"{HALF} 4\n", "3 4\n")
    (problem,) = benchmarks.load("livecodebench", tmp_path / "data")
    assert problem.tests == (WHOLE, WHOLE) and problem.description.endswith("�")
    (tmp_path / "samples.jsonl").write_text(json.dumps({"task_id": "q", "solution": SUM + f'x = "{HALF}"'}) + "\n")
    options = ["--benchmark=livecodebench", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]
    evaluate(parsed([*options, f"--judge-only={tmp_path / 'samples.jsonl'}"]))
    assert "2 tests left out, whose text UTF-8 can't hold" in capsys.readouterr().err
