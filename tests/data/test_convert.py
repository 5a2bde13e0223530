"""Rows in the form of APPS and TACO become problems that the judge runs; what doesn't is counted by kind and place."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlef_jax.data import apps
from rlef_jax.data.convert import convert, main
from rlef_jax.data.jsonl.reader import open_split
from rlef_jax.data.live_code_bench import IMPORTS
from rlef_jax.errors import ConfigError
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for
from rlef_jax.types import FunctionTest, Limits, Status, TestCase

LEET = "class Solution:\n    def pairs(self, nums: List[int]) -> Dict[int, int]:\n        "


def io(**content):
    return json.dumps(content)


# As APPS has them: JSON text in fields, "" for nothing.
APPS = [
    {"problem_id": 0, "question": "Add two numbers.\n\n-----Input-----\n\na b\n", "starter_code": "",
     "solutions": json.dumps(["print(sum(map(int, input().split())))", "print(0)"]),
     "input_output": io(inputs=["1 2\n", "3 4\n", "5 6\n"], outputs=["3\n", "7\n", "11\n"]),
     "difficulty": "interview", "url": "https://example.org/a"},
    {"problem_id": 1, "question": "Return the pairs of a number and how often it is there.", "starter_code": LEET,
     "solutions": json.dumps([LEET + "return dict(Counter(nums))"]), "difficulty": "introductory", "url": "",
     "input_output": io(
         fn_name="pairs", inputs=[[[1, 1, 2]], [[3]], [[]]], outputs=[{"1": 2, "2": 1}, [{"3": 1}], [{}]])},
    {"problem_id": 2, "question": "Double it.", "starter_code": "def double(n):\n\t", "difficulty": "introductory",
     "solutions": json.dumps(["def double(n): return 2 * n"]), "url": "",
     "input_output": io(fn_name="double", inputs=[[1], [2], ["a"]], outputs=[[2], [4], ["aa"]])},
]  # fmt: skip
# As TACO has them: more fields, some of them empty.
TACO = [
    {"question": "Count the lines.", "starter_code": "", "name": None, "source": "codeforces", "raw_tags": "['dp']",
     "input_output": io(inputs=[["1", "2"], "3\n4\n5"], outputs=[["2"], "3"]), "difficulty": "EASY",
     "solutions": json.dumps(["import sys\nprint(len(sys.stdin.read().split()))"]), "picture_num": None,
     "time_limit": "2.5 seconds", "memory_limit": "256.0 megabytes", "Expected Time Complexity": None},
    {"question": "Sort it.", "starter_code": "", "solutions": "[]", "difficulty": "HARD", "time_limit": "soon",
     "input_output": io(fn_name="sort", inputs=[[[2, 1]], [[1]]], outputs=[[1, 2], [1]]), "memory_limit": "",
     "name": "Sorting", "source": "geeksforgeeks"},
]  # fmt: skip


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def converted(tmp_path, rows, name="apps", **settings):
    output = tmp_path / f"{name}_problems.jsonl"
    counts = convert([written(tmp_path / f"{name}.jsonl", rows)], output, **({"public": 2, "solutions": 10} | settings))
    return list(open_split([str(output)], "train")), counts


def test_rows_of_apps_become_problems(tmp_path):
    (add, pairs, double), counts = converted(tmp_path, APPS)
    assert (counts.rows, counts.written, counts.functions, counts.left_out, counts.partly) == (3, 3, 2, {}, {})
    assert (add.name, add.style, add.frame, add.description) == ("apps/0", "contest", (), APPS[0]["question"])
    assert add.public_tests == (TestCase("1 2\n", "3\n"), TestCase("3 4\n", "7\n"))
    assert add.private_tests == (TestCase("5 6\n", "11\n"),)
    assert add.tags == {"difficulty": "interview", "url": "https://example.org/a"}
    assert add.solutions == ("print(sum(map(int, input().split())))", "print(0)")
    assert (pairs.style, pairs.frame[0]) == ("function", IMPORTS)
    assert pairs.description.endswith(f"it is there.\n\nComplete this starter code:\n\n{LEET.rstrip()}")
    assert pairs.public_tests[0] == FunctionTest("Solution().pairs", (([1, 1, 2],),), ([{1: 2, 2: 1}],), compare="apps")
    assert double.frame == (IMPORTS.rstrip() + "; globals().pop('double', None)\n", "") and double.private_tests[
        0
    ].expected == (["aa"],)


def test_rows_of_taco_become_problems(tmp_path):
    (count, sort), counts = converted(tmp_path, TACO, name="taco")
    assert (count.name, sort.name) == ("taco/1", "taco/2")
    assert count.tests == (TestCase("1\n2", "2"), TestCase("3\n4\n5", "3"))
    assert (count.time_limit_s, count.memory_limit_bytes) == (2.5, 256 << 20)
    assert (sort.time_limit_s, sort.memory_limit_bytes) == (None, None)
    assert sort.tags == {"difficulty": "HARD", "source": "geeksforgeeks", "title": "Sorting"}
    assert sort.description == "Sort it.\n\nWrite a function of the name `sort`."
    assert list(counts.partly) == ["with a time_limit in another form, such as 'soon': the judge's own holds"]


@pytest.mark.parametrize("public, shown", [(1, 1), (2, 2), (3, 2), (100, 2)])
def test_one_test_at_least_stays_hidden(tmp_path, public, shown):
    problems, _ = converted(tmp_path, APPS, public=public, solutions=1)
    assert [len(p.public_tests) for p in problems] == [shown] * 3
    assert [len(p.tests) for p in problems] == [3] * 3 and [len(p.solutions) for p in problems] == [1] * 3


BROKEN = [
    ({"question": ""}, "without a question"),
    ({"question": None}, "without a question"),
    ({"input_output": ""}, "without tests"),
    ({"input_output": None}, "without tests"),
    ({"input_output": float("nan")}, "without tests"),
    ({"input_output": '{"inputs": ["1"'}, "whose input_output is no JSON object"),
    ({"input_output": f'{{"inputs": [{"9" * 5000}]}}'}, "whose input_output is no JSON object"),
    ({"input_output": "[1]"}, "whose input_output is no JSON object"),
    ({"input_output": 7}, "whose input_output is no JSON object"),
    ({"input_output": io(inputs="1", outputs="1")}, "whose inputs or outputs are no list"),
    ({"input_output": io(inputs=["1", "2"], outputs=["1"])}, "with another number of inputs than of outputs"),
    ({"input_output": io(inputs=["1"], outputs=["1"])}, "with one test, where one must be public and another hidden"),
    ({"input_output": io(inputs=["1", 2], outputs=["1", "2"])}, "with an input or output that is no text"),
    ({"input_output": io(fn_name="a b", inputs=[[1], [2]], outputs=[1, 2])}, "whose fn_name is no name"),
    ({"input_output": io(fn_name="f", inputs=[1, 2], outputs=[1, 2])}, "with arguments that are no list"),
    ({"starter_code": LEET}, "whose starter_code is a class Solution and that have no fn_name"),
    ({"input_output": io(inputs=["\ud800", "2"], outputs=["1", "2"])},
     "whose public_tests[...].input: half of a surrogate pair, which UTF-8 can't hold"),
    ({"problem_id": 0}, "whose id is that of a row before"),
]  # fmt: skip


def test_what_is_left_out_is_counted_by_kind_and_place(tmp_path):
    rows = [APPS[0], *(APPS[0] | {"problem_id": 100 + i} | change for i, (change, _) in enumerate(BROKEN))]
    path = written(tmp_path / "apps.jsonl", rows)
    path.write_text(path.read_text() + "{broken\n[1]\n")
    counts = convert([path], tmp_path / "out.jsonl", public=2, solutions=10)
    assert (counts.rows, counts.written) == (len(BROKEN) + 3, 1)
    expected: dict[str, list[str]] = {}
    for line, (_, reason) in enumerate(BROKEN, start=2):
        expected.setdefault(reason, []).append(f"{path}, line {line}")
    last = len(BROKEN) + 2
    expected["that are no JSON object"] = [f"{path}, line {last}", f"{path}, line {last + 1}"]
    assert counts.left_out == expected
    text = str(counts)
    assert text.startswith("21 rows: 1 problems (1 read standard input, 0 are functions), 20 rows left out\n")
    assert f"      4 left out: rows whose input_output is no JSON object ({path}, line 7, " in text
    assert ", and 1 more)" in text


@pytest.mark.parametrize("solutions", ["[broken", '{"a": 1}', '["print(1)", 3]', 5])
def test_solutions_that_are_no_list_of_programs_are_not_kept(tmp_path, solutions):
    (problem,), counts = converted(tmp_path, [APPS[0] | {"solutions": solutions}])
    assert problem.solutions == (("print(1)",) if "print" in str(solutions) else ())
    assert list(counts.partly) == ["with solutions that are no JSON list of programs: those aren't kept"]


def test_nothing_is_written_where_no_row_is_a_problem(tmp_path):
    output = tmp_path / "out.jsonl"
    with pytest.raises(ConfigError, match="there is no problem in it\n1 rows: 0 problems"):
        convert([written(tmp_path / "a.jsonl", [{"text": "x"}])], output, public=2, solutions=1)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_parquet_and_lists_and_packed_lines_are_read_alike(tmp_path):
    plain, _ = converted(tmp_path, TACO[:1], name="rows")
    table = [{k: v for k, v in row.items() if isinstance(v, str)} for row in TACO[:1]]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(TACO[:1]))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(json.dumps(TACO[0]).encode()))
    for name in ("rows.parquet", "rows.json", "rows.jsonl.gz"):
        output = tmp_path / f"of_{name}.jsonl.gz"
        convert([tmp_path / name], output, public=2, solutions=10)
        assert list(open_split([str(output)], "train")) == plain, name
    with pytest.raises(ConfigError, match="two files are called 'rows'"):
        convert([tmp_path / "rows.json", tmp_path / "rows.parquet"], tmp_path / "o.jsonl", public=2, solutions=1)


def test_converted_solutions_pass_and_others_do_not(tmp_path):
    """In the judge: standard input, a method of Solution, a function; results as APPS's runner compares them."""
    problems, _ = converted(tmp_path, [*APPS, TACO[0] | {"problem_id": 3}])
    wrong = ["print(1)", LEET + "return {1: 2}", "def double(n): return n", "print('x')"]
    tuples = "def double(n):\n    return (2 * n,)"  # as the published list of one
    with ExecutionPool(1, find_python("3.10")) as pool:

        def passes(problem, program):
            limits = limits_for(problem, Limits(wall_s=20))
            results = pool.run(program, problem.tests, limits, frame=problem.frame).result()
            return [result.status is Status.PASSED for result in results]

        for problem, program in zip(problems, wrong, strict=True):
            assert all(passes(problem, problem.solutions[0])), problem.name
            assert not all(passes(problem, program)), problem.name
        assert all(passes(problems[2], tuples))


def test_a_function_comes_from_the_program(tmp_path):
    """Not from what is imported for it: an empty program solves nothing."""
    rows = [
        APPS[2] | {"problem_id": name, "input_output": io(fn_name=name, inputs=inputs, outputs=outputs)}
        for name, inputs, outputs in (
            ("add", [[1, 2], [3, 4]], [[3], [7]]), ("factorial", [[3], [4]], [[6], [24]]),
            ("sum", [[[1, 2]], [[3, 4]]], [[3], [7]]), ("median", [[[1, 2, 3]], [[4]]], [[2], [4]]),
        )
    ]  # fmt: skip
    problems, _ = converted(tmp_path, rows)
    limits = Limits(wall_s=20)
    with ExecutionPool(1, find_python("3.10")) as pool:
        for problem in problems:
            ran = pool.run("pass", problem.tests, limits_for(problem, limits), frame=problem.frame).result()
            assert {result.status for result in ran} == {Status.RUNTIME_ERROR}, problem.name
        of_sum = "def sum(values):\n    return builtins.sum(values)\nimport builtins"
        ran = pool.run(of_sum, problems[2].tests, limits_for(problems[2], limits), frame=problems[2].frame).result()
        assert {result.status for result in ran} == {Status.PASSED}


@pytest.mark.parametrize(
    "inputs, outputs, calls, expected",
    [
        ([{"1": 2}], [{"3": 4}], [{1: 2}], [{3: 4}]),
        ([{"a": 1}, 5], [{"a": 1}, {"a": 2}], [{"a": 1}, 5], [{"a": 1}, {"a": 2}]),
        ([{"1": 1}, 5], {"1": 2}, [{"1": 1}, 5], [{1: 2}]),
    ],
)
def test_arguments_and_results_are_all_kept(inputs, outputs, calls, expected):
    row = APPS[2] | {"input_output": io(fn_name="double", inputs=[inputs] * 2, outputs=[outputs] * 2)}
    problem, _ = apps.problem(row, "p", public=1, solutions=1)
    assert problem.tests[0].calls == (tuple(calls),) and problem.tests[0].expected == (expected,)


def test_a_source_is_not_written_over(tmp_path):
    path = written(tmp_path / "train.jsonl", APPS)
    before = path.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(path)
    for output in (path, tmp_path / "link.jsonl"):
        with pytest.raises(ConfigError, match="is a --source, which it would replace: name another file"):
            convert([path], output, public=2, solutions=1)
    assert path.read_bytes() == before


def test_the_command(tmp_path, monkeypatch, capsys):
    source, output = written(tmp_path / "train.jsonl", APPS), tmp_path / "own.jsonl"
    arguments = [sys.executable, "-m", "rlef_jax.data.convert", "--source", str(source), f"--output={output}"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("3 rows: 3 problems (1 read standard input, 2 are functions), 0 rows left out\n")
    assert len(open_split([str(output)], "train")) == 3
    for flags, message in (
        (["--output=x.txt"], "--output: a file of the name"),
        ([f"--output={output}", "--public-tests=0"], "--public-tests: 1 or more; it is 0"),
    ):
        monkeypatch.setattr(sys, "argv", ["convert", "--source", str(source), *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_comparison_is_that_of_the_published_runner():
    """Its rules on hand-made cases: `_apps` against what APPS's testing_util does, written out."""
    from rlef_jax.execution.functions import compare

    cases = [
        (3, 3, True), (3, [3], True), ([3], [3], True), ([3], [[3]], True), (3, [[3]], False), ((1, 2), [1, 2], True),
        ((1, 2), [[1, 2]], True), ([(1, 2)], [[[1, 2]]], True), ([(1, 2)], [[1, 2]], False), ([], [], True),
        ("a", ["a", "b"], True), (None, [None], True), (None, [], False), ([(1, 2), (3, 4)], [[[1, 2], [3, 4]]], True),
    ]  # fmt: skip
    for result, expected, equal in cases:
        test = FunctionTest("f", ((),), (expected,), compare="apps")
        assert (compare(result, expected, test, ()) is None) == equal, (result, expected)


def test_rows_name_their_kind():
    with pytest.raises(apps.LeftOutError, match="without tests"):
        apps.problem({"question": "x"}, "n", public=1, solutions=1)
