"""LiveCodeBench: our own problems in files of its published format, read and judged."""

from __future__ import annotations

import base64
import json
import pickle
import zlib

import pytest

from rlef_jax.data import benchmarks, live_code_bench
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.dialog.prompts import FORMAT_SENTENCE, first_message
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.types import FunctionTest, Status, TestCase

STARTER = "class Solution:\n    def addAll(self, numbers: List[int], start: int) -> int:\n        "


def packed(tests):
    """Private tests encoded as in code_generation_lite."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def stdin(*pairs):
    return [{"input": i, "output": o, "testtype": "stdin"} for i, o in pairs]


def functional(*pairs):
    return [{"input": i, "output": o, "testtype": "functional"} for i, o in pairs]


def row(name, date, public, private, *, function="", pack=packed):
    return {
        "question_title": f"Title of {name}",
        "question_content": f"Add numbers ({name}).",
        "platform": "leetcode" if function else "atcoder",
        "question_id": name,
        "contest_id": "weekly-1",
        "contest_date": f"{date}T00:00:00",
        "starter_code": STARTER if function else "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(public),
        "private_test_cases": pack(private),
        "metadata": json.dumps({"func_name": function} if function else {}),
    }


ADD = row("abc1_a", "2024-04-30", stdin(("1 2\n", "3\n")), stdin(("4 5\n", "9\n"), ("-1 1\n", "0\n")))
SUM = row("3001", "2024-05-01", functional(("[1, 2]\n3", "6")), functional(("[]\n0", "0"), ("[5]\n-5", "0")),
          function="addAll")  # fmt: skip
LATE = row("abc2_a", "2024-10-31", stdin(("1 1\n", "2\n")), stdin(("2 2\n", "4\n")), pack=json.dumps)


def written(folder, *files):
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(files, start=1):
        name = f"test{number if number > 1 else ''}.jsonl"
        (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def load(folder, **window):
    return benchmarks.load("livecodebench", folder, **window)


def test_every_field(tmp_path):
    add, total, late = load(written(tmp_path, [ADD], [SUM, ADD], [LATE]))
    assert (add.name, add.style, add.description) == ("abc1_a", "contest", "Add numbers (abc1_a).")
    assert add.public_tests == (TestCase("1 2\n", "3\n"),)
    assert add.private_tests == (TestCase("4 5\n", "9\n"), TestCase("-1 1\n", "0\n"))
    assert add.tags == {
        "title": "Title of abc1_a", "platform": "atcoder", "difficulty": "easy", "contest_id": "weekly-1",
        "contest_date": "2024-04-30",
    }  # fmt: skip
    assert total.public_tests == (FunctionTest("Solution().addAll", (([1, 2], 3),), (6,), compare="sequence"),)
    assert [t.calls for t in total.private_tests] == [(([], 0),), (([5], -5),)]
    assert late.private_tests == (TestCase("2 2\n", "4\n"),)  # plain JSON is read too


def test_without_private_tests_the_public_ones_decide_and_that_is_said_once(tmp_path):
    lines = []
    bare = [row(name, "2024-01-01", stdin(("1\n", "1\n")), []) for name in "xy"]
    nothing = row("z", "2024-01-01", [], [])
    problem, _ = load(written(tmp_path, [*bare, nothing]), tell=lambda missing: lines.append(missing.line))
    assert problem.private_tests == () and problem.hidden_tests == problem.public_tests == (TestCase("1\n", "1\n"),)
    assert lines == [
        "livecodebench: 2 problems; 2 without hidden tests: their public tests decide; 1 without any test left out"
    ]
    (only,) = load(written(tmp_path / "hidden", [row("x", "2024-01-01", [], stdin(("1\n", "1\n")))]))
    assert only.public_tests == () and only.hidden_tests == (TestCase("1\n", "1\n"),)


def resaved(question, **changes):
    """A row as `datasets` or pandas may save it."""
    plain = question | {"private_test_cases": live_code_bench.private_tests(question["private_test_cases"])}
    plain |= {key: json.loads(question[key]) for key in ("public_test_cases", "metadata")}
    return plain | changes


@pytest.mark.parametrize(
    "change",
    [
        {"contest_date": 1714435200000},
        {"contest_date": 1714435200.0},
        {"contest_date": 1714435200000000000},
        {"contest_date": "2024-04-30 00:00:00"},
        {"contest_date": "2024-04-30T00:00:00.000Z"},
        {"starter_code": None, "metadata": None},
        {"starter_code": float("nan"), "metadata": ""},
        {"private_test_cases": packed([{"input": "4 5\n", "output": "9\n", "testtype": "stdin"}] * 2)},
    ],
)
def test_rows_that_others_saved_again_are_understood(tmp_path, change):
    (problem,) = load(written(tmp_path, [resaved(ADD, **change)]))
    (original,) = load(written(tmp_path / "original", [ADD]))
    assert problem.tags == original.tags and problem.public_tests == original.public_tests
    assert len(problem.private_tests) == 2 and problem.style == "contest"
    [(name, tests)] = [
        (p.name, p.public_tests) for p in load(written(tmp_path / "f", [resaved(SUM, question_id=3001)]))
    ]
    assert (name, tests) == ("3001", load(written(tmp_path / "g", [SUM]))[0].public_tests)


@pytest.mark.parametrize(
    "text, arguments", [("[1, 2]\n3\n", ([1, 2], 3)), ("[1]\r\n2\n\n", ([1], 2)), ("", ()), ("\n", ())]
)
def test_blank_lines_are_no_arguments(tmp_path, text, arguments):
    (problem,) = load(written(tmp_path, [row("x", "2024-01-01", functional((text, "6\n")), [], function="f")]))
    assert problem.public_tests[0].calls == (arguments,)


def test_what_the_model_is_told(tmp_path):
    _, total = load(written(tmp_path, [ADD, SUM]))
    assert first_message(total) == (
        "Provide a Python solution for the following competitive programming question: Add numbers (3001).\n\n"
        f"Complete this starter code:\n\n{STARTER.rstrip()}\n\n{FORMAT_SENTENCE}"
    )


@pytest.mark.parametrize(
    "window, names",
    [
        ({}, ["abc1_a", "3001", "abc2_a"]),
        ({"until": "2024-10"}, ["abc1_a", "3001", "abc2_a"]),
        ({"until": "2024-10-30"}, ["abc1_a", "3001"]),
        ({"since": "2024-05"}, ["3001", "abc2_a"]),
        ({"since": "2024-05-02", "until": "2024"}, ["abc2_a"]),
        ({"since": "2024-04-30", "until": "2024-04-30"}, ["abc1_a"]),
        ({"count": 2}, ["abc1_a", "3001"]),
        ({"since": "2024-05", "count": 1}, ["3001"]),
    ],
)
def test_dates_are_days_months_or_years_and_both_count(tmp_path, window, names):
    folder = written(tmp_path / "below", [ADD, SUM, LATE]).parent  # a subfolder of --data is searched
    assert [p.name for p in load(folder, **window)] == names


def test_files_are_taken_in_the_order_of_their_numbers(tmp_path):
    rows = [row(str(i), "2024-01-01", stdin(("1\n", "1\n")), stdin(("2\n", "2\n"))) for i in range(1, 12)]
    assert [p.name for p in load(written(tmp_path, *([r] for r in rows)))] == [r["question_id"] for r in rows]


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('it ran')",)


def test_a_pickle_may_hold_text_and_nothing_else():
    def text(value, protocol=4):
        return base64.b64encode(zlib.compress(pickle.dumps(value, protocol=protocol))).decode()

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert live_code_bench.private_tests(text("[1]", protocol)) == [1]
    for value, message in (
        (Evil(), "it asks for builtins.exec"),
        (bytearray(b"[]"), "it asks for builtins.bytearray"),
        ([[]], "a pickled list"),
        (b"[]", "a pickled bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            live_code_bench.private_tests(text(value))
    for broken in ("no base64!", "bm8=", base64.b64encode(zlib.compress(b"no pickle")).decode(), text("no json")):
        with pytest.raises(ValueError):
            live_code_bench.private_tests(broken)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"private_test_cases": "?"}, "test.jsonl, line 2: ValueError: private tests that can't be read"),
        ({"public_test_cases": "{}"}, "TypeError: a dict, not a list"),
        ({"question_content": None}, "no question_content"),
        ({"metadata": '{"func_name": "f"}'}, "a test of type 'stdin' for the function 'f'"),
        (
            {"metadata": '{"func_name": "f(); x"}', "public_test_cases": json.dumps(functional(("1", "1")))},
            "is no name",
        ),
        ({"contest_date": None}, "line 2: ValueError: contest_date None is no date"),
        ({"contest_date": 12}, "line 2: ValueError: contest_date 12 is no date"),
        ({"contest_date": "May 2024"}, "line 2: ValueError: Invalid isoformat string"),
        ({"question_id": None}, "line 2: ValueError: no question_id"),
        ({"question_content": ["x"]}, "line 2: TypeError: question_content is ['x'], no text"),
        ({"public_test_cases": "[1]"}, "line 2: TypeError"),
        ({"public_test_cases": [{"input": "1"}]}, "line 2: KeyError: 'testtype'"),
        ({"public_test_cases": [{"input": 1, "output": "1", "testtype": "stdin"}]}, "line 2: TypeError: a test whose"),
        ({"private_test_cases": packed("text")}, "line 2: TypeError: a str, not a list"),
        ({"metadata": "[" * 100_000}, "line 2: RecursionError"),
        (
            {"public_test_cases": json.dumps(functional(("1" * 5000, "1"))), "metadata": {"func_name": "f"}},
            "line 2: ValueError",
        ),
    ],
)
def test_lines_of_another_form_are_named(tmp_path, change, message):
    with pytest.raises(ConfigError) as raised:
        load(written(tmp_path, [SUM, ADD | change]))
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1


def test_wrong_usage_is_one_line(tmp_path):
    folder = written(tmp_path / "files", [ADD, SUM])
    (tmp_path / "empty").mkdir()
    for name, data, window, message in (
        ("livecodebench", None, {}, "--benchmark=livecodebench needs --data=FOLDER"),
        ("livecodebench", tmp_path / "nowhere", {}, f"; there is no folder {tmp_path / 'nowhere'}"),
        ("livecodebench", tmp_path / "empty", {}, "no test.jsonl, test2.jsonl, ... in it"),
        ("livecodebench", folder, {"until": "October 2024"}, "--until: a date such as 2024-10 or 2024-10-31, not"),
        ("livecodebench", folder, {"since": "2025"}, "no question of these dates; theirs are 2024-04-30 to 2024-05-01"),
        ("mini_contests/valid", None, {"since": "2024"}, "--since: only livecodebench has dates"),
    ):
        with pytest.raises(ConfigError) as raised:
            benchmarks.load(name, data, **window)
        assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1


RIGHT = {
    "abc1_a": "a, b = map(int, input().split())\nprint(a + b)",
    "3001": f"{STARTER}return sum(numbers) + start\n",  # List is imported by the frame
    "abc2_a": "print(sum(map(int, sys.stdin.read().split())))",  # and sys too
}
WRONG = {
    "abc1_a": "a, b = map(int, input().split())\nprint(abs(a + b) or 1)",  # wrong on a hidden test
    "3001": f"{STARTER}return numbers[0] + start",
    "abc2_a": "print(3)",
}


def test_through_the_judge(tmp_path):
    folder = written(tmp_path / "files", [ADD, SUM, LATE])
    lines = [{"problem": n, "responses": [f"```python\n{WRONG[n]}\n```", f"```python\n{RIGHT[n]}\n```"]} for n in RIGHT]
    lines += [{"problem": n, "solution": code} for n, code in RIGHT.items()]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [f"--judge-only={samples}", "--benchmark=livecodebench", f"--data={folder}", "--turns=2"]
    results = evaluate(parsed([*arguments, "--until=2024-10", f"--out={tmp_path / 'out'}"]))
    episodes = [e for path in (tmp_path / "out" / "chunks").iterdir() for e in read_episodes(path)]
    assert [(e.problem.name, len(e.turns), e.solved) for e in episodes] == [
        ("abc1_a", 1, False), ("abc1_a", 1, True), ("3001", 2, True), ("3001", 1, True), ("abc2_a", 2, True),
        ("abc2_a", 1, True),
    ]  # fmt: skip
    assert (results["problems"], results["infra"]) == (3, 0)
    dialogue = episodes[2]
    assert dialogue.turns[0].verdict.status is Status.WRONG_ANSWER
    assert feedback_message(dialogue.problem, dialogue.turns[0].verdict) == (
        "Your code failed some test cases:\n\n- Failure: `Solution().addAll([1, 2], 3)`:\n`AssertionError: 4 != 6`"
        f"\n\nGive it another try.\n{FORMAT_SENTENCE}"
    )


@pytest.mark.parametrize(
    "program, last_lines",
    [
        ("x = 1", ["NameError: name 'Solution' is not defined"]),
        ("class Solution:\n    pass", ["AttributeError: 'Solution' object has no attribute 'addAll'"]),
        (f"{STARTER}return numbers[7]", ["    return numbers[7]", "IndexError: list index out of range"]),
    ],
)
def test_what_a_stack_trace_shows(tmp_path, program, last_lines):
    folder = written(tmp_path / "files", [SUM])
    samples = tmp_path / "samples.jsonl"
    samples.write_text(json.dumps({"problem": "3001", "responses": [f"```python\n{program}\n```"]}))
    evaluate(parsed([f"--judge-only={samples}", "--benchmark=livecodebench", f"--data={folder}", "--turns=1",
                     f"--out={tmp_path / 'out'}"]))  # fmt: skip
    [episode] = read_episodes(tmp_path / "out" / "chunks" / "000000.jsonl.gz")
    result = episode.turns[0].verdict.public[0]
    assert result.status is Status.RUNTIME_ERROR
    assert result.error.splitlines()[-len(last_lines) :] == last_lines
    assert live_code_bench.IMPORTS not in result.error
