"""Own problems: a line holds all of a problem, and every fault of a file is named by line and key."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlef_jax.data import benchmarks
from rlef_jax.data.code_contests.release import parquet_problems
from rlef_jax.data.jsonl import schema
from rlef_jax.data.jsonl.index import open_index
from rlef_jax.data.jsonl.reader import open_split
from rlef_jax.data.jsonl.schema import line_of, problem_of, row_of
from rlef_jax.data.jsonl.values import from_json, to_json
from rlef_jax.data.running import running
from rlef_jax.dialog.prompts import STYLES
from rlef_jax.errors import ConfigError
from rlef_jax.execution.functions import COMPARISONS
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for
from rlef_jax.training.episode_io import decode, problem_json
from rlef_jax.types import FunctionTest, Limits, Problem, Status, TestCase

texts = st.text(max_size=4)
filled = texts.filter(str.strip)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary(max_size=4)
leaves |= st.complex_numbers(allow_nan=False, allow_infinity=False)
hashable = leaves | st.tuples(leaves, leaves) | st.frozensets(leaves, max_size=2)
values = st.recursive(
    hashable,
    lambda v: st.lists(v, max_size=3) | st.tuples(v) | st.dictionaries(hashable, v, max_size=2) | st.sets(hashable),
    max_leaves=4,
)
SOME_VALUES = [1, 2.5, 'a"\n\u2028é', None, True, [1, [2]], {"a": 1}, {"python": 1}, (1, [2]), {1}, b"\xff", -math.inf]
SOME_TAGS = [{}, {"a": ("b", 1, None), "é": {"c": (1.5,)}}, {"id": "x/1", "python": True}]
programs = st.lists(texts, max_size=2).map(tuple)
plain = st.sampled_from(SOME_VALUES)


@st.composite
def function_tests(draw):
    made = draw(st.lists(st.lists(plain, max_size=2).map(tuple), min_size=1, max_size=2))
    check = draw(st.sampled_from([(), ("import math", "assert f(1) > 0")]))
    expected = () if check else tuple(draw(plain) for _ in made)
    name, compare = draw(st.sampled_from(["f", "größer", "_1"])), draw(st.sampled_from(COMPARISONS))
    return FunctionTest(name, tuple(made), expected, draw(st.sampled_from([0.0, 1e-6])), compare, draw(texts), check)


@st.composite
def problems(draw):
    test = draw(st.sampled_from([st.builds(TestCase, texts, texts), function_tests()]))
    tests = draw(st.lists(test, min_size=1, max_size=3))
    cuts = sorted(draw(st.tuples(st.integers(0, len(tests)), st.integers(0, len(tests)))))
    parts = [tuple(tests[i:j]) for i, j in zip([0, *cuts], [*cuts, len(tests)])]
    return Problem(
        draw(filled), draw(filled), *parts, draw(programs), draw(programs),
        time_limit_s=draw(st.none() | st.floats(1e-3, 1e3)),
        memory_limit_bytes=draw(st.none() | st.integers(1, 1 << 40)),
        tags=draw(st.sampled_from(SOME_TAGS)),
        style=draw(st.sampled_from(STYLES)),
        start=draw(texts),
        shown_tests=draw(programs),
        frame=draw(st.sampled_from([(), ("import math\n", "")])),
    )  # fmt: skip


def typed(value):
    """A value with its types, so that 1 differs from True."""
    if isinstance(value, set | frozenset):
        return type(value), frozenset(map(typed, value))
    if isinstance(value, dict):
        return dict, [(typed(k), typed(v)) for k, v in value.items()]
    return type(value), tuple(map(typed, value)) if isinstance(value, list | tuple) else value


@given(problems(), st.sampled_from(["", "train", "valid", "test"]))
def test_any_problem_comes_back_from_its_line(problem, split):
    faults: list[str] = []
    line = line_of(problem, split)
    assert line.isascii() and "\n" not in line
    assert (problem_of(row_of(line.encode(), faults), faults), faults) == ((problem, split), [])


@given(values)
def test_any_value_of_a_test_comes_back_of_the_same_types(value):
    back = from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))
    assert typed(back) == typed(value)


@pytest.mark.parametrize("value", [math.nan, -math.inf, [math.inf, (1,)], {"python": "1"}, {"python": 3, "x": 1}, -0.0])
def test_values_that_json_lacks_or_that_look_like_a_literal(value):
    there = to_json(value)
    assert repr(from_json(json.loads(json.dumps(there, allow_nan=False)))) == repr(value)


def test_values_that_no_literal_gives_are_refused():
    for value in (object(), complex(1, math.inf), range(3)):
        with pytest.raises(ValueError, match="literal"):
            to_json(value)


GOOD = {"name": "p", "description": "Add.", "public_tests": [{"input": "1 2", "output": "3"}]}
CALL = {"entry_point": "f", "calls": [[1]], "expected": [1]}


def with_test(test, **more):
    return GOOD | {"public_tests": [test]} | more


def nested(levels):
    """A list in a list and so on."""
    value = 1
    for _ in range(levels):
        value = [value]
    return value


LINE_OF_TAGS = json.dumps(GOOD | {"tags": {"x": "VALUE"}}).replace('"VALUE"', "VALUE")
FAULTS = [
    ('{"name": "p", "description": "Add."', "no JSON: Expecting ',' delimiter at character 36"),
    ("[1]", "[1], where the JSON object of a problem is wanted"),
    ('{"name": "p", "name": "q"}', "name: stands twice in one object"),
    ('{"time_limit_s": NaN}', 'no JSON: JSON has no NaN (in a value of a function test: {"python": "nan"})'),
    ('{"time_limit_s": -Infinity}', "no JSON: JSON has no -Infinity"),
    ("[" * 100_000, "no JSON: maximum recursion depth exceeded"),
    ({"name": "p", "public_tests": []}, "description: missing, and required"),
    (GOOD | {"name": " "}, "name: \" \", where a text that isn't empty is wanted"),
    (GOOD | {"description": None}, "description: missing, and required"),
    (GOOD | {"publictests": []}, 'publictests: unknown key; did you mean "public_tests"?'),
    (GOOD | {"zzz": 1}, "zzz: unknown key; there is name, description, split, public_tests,"),
    (GOOD | {"public_tests": {}}, "public_tests: {}, where a list is wanted"),
    (GOOD | {"public_tests": []}, "public_tests, private_tests, generated_tests: no test, where one or more are"),
    (GOOD | {"split": "dev"}, 'split: "dev", where one of train, valid, test is wanted'),
    (GOOD | {"style": ["contest"]}, "style: [\"contest\"], where one of contest, human_eval, mbpp, function is wanted"),
    (GOOD | {"time_limit_s": True}, "time_limit_s: true, where a number above 0 is wanted"),
    (GOOD | {"time_limit_s": 0}, "time_limit_s: 0, where a number above 0 is wanted"),
    (GOOD | {"memory_limit_bytes": 1.5}, "memory_limit_bytes: 1.5, where a whole number above 0 is wanted"),
    (GOOD | {"time_limit_s": 1e10}, "time_limit_s: 10000000000.0, where a number up to 86400, a day, is wanted"),
    (GOOD | {"time_limit_s": 10**400}, f"time_limit_s: 1{'0' * 59}..., where a number up to 86400, a day, is"),
    (GOOD | {"memory_limit_bytes": 2**64}, f"memory_limit_bytes: {2**64}, where a whole number up to {2**50}, a peb"),
    (with_test(CALL | {"atol": 10**400}), f"public_tests[0].atol: 1{'0' * 59}..., where a number up to 1e308 is"),
    (with_test(CALL | {"expected": [nested(250)]}), "public_tests[0].expected: can't be written to episodes: the"),
    (with_test(CALL | {"calls": [[nested(250)]]}), "public_tests[0].calls: can't be sent to a program: the value is"),
    (LINE_OF_TAGS.replace("VALUE", "1e999"), "tags.x: Infinity, where a finite number is wanted"),
    (LINE_OF_TAGS.replace("VALUE", '[{"y": -1e999}]'), "tags.x: -Infinity, where a finite number is wanted"),
    (GOOD | {"tags": {"x": nested(900)}}, "tags.x: a value nested too deeply, where one of up to 100 levels is wanted"),
    (GOOD | {"tags": []}, "tags: [], where an object is wanted"),
    (GOOD | {"frame": ["before"]}, 'frame: ["before"], where a list of two texts (before and after the program) is'),
    (GOOD | {"solutions": ["a", 2]}, "solutions[1]: 2, where a text is wanted"),
    (with_test(3), "public_tests[0]: 3, where an object {\"input\": ..., \"output\": ...} or of a function's calls is"),
    (with_test({"input": "1", "outptu": "2"}), 'public_tests[0].outptu: unknown key; did you mean "output"?'),
    (with_test({"input": "1"}), "public_tests[0].output: missing, and required"),
    (with_test({"input": 1, "output": "2"}), "public_tests[0].input: 1, where a text is wanted"),
    (with_test({"input": "\ud800", "output": ""}), "public_tests[0].input: half of a surrogate pair, which UTF-8"),
    (GOOD | {"description": "\udfff"}, "description: half of a surrogate pair, which UTF-8 can't hold"),
    (with_test(CALL | {"input": "1"}), 'public_tests[0].input: unknown key;'),
    (with_test({"calls": [[1]], "expected": [1]}), "public_tests[0].entry_point: missing, and required"),
    (with_test(CALL | {"calls": [1]}), "public_tests[0].calls[0]: 1, where a list is wanted"),
    (with_test(CALL | {"calls": []}), "public_tests[0].calls: [], where a list of one or more calls is wanted"),
    (with_test(CALL | {"expected": [1, 2]}), "public_tests[0].expected: 2 results, where as many as calls, 1, are"),
    (with_test(CALL | {"check": ["assert f(1)"]}), "public_tests[0].expected: 1 results, where none with a check"),
    (with_test(CALL | {"compare": "near"}), 'public_tests[0].compare: "near", where one of equal, sequence, apps'),
    (with_test(CALL | {"atol": -1}), "public_tests[0].atol: -1, where a number, 0 or more, is wanted"),
    (with_test(CALL | {"expected": [{"python": "(1,"}]}), 'public_tests[0].expected[0]: "python" must be the'),
    (with_test(CALL | {"expected": [{"python": "f()"}]}), 'public_tests[0].expected[0]: "python" must be the'),
    (with_test(CALL | {"entry_point": "Solution().f"}),
     'public_tests[0].entry_point: "Solution().f" is no name of a function, and no frame'),
    (with_test(CALL | {"calls": [[[{"python": "(1, 2)"}]]]}), 'public_tests[0].calls[0][0]: {"python": ...} stands'),
    ('{"time_limit_s": Infinity}', 'no JSON: JSON has no Infinity (in a value of a function test: {"python": "inf"})'),
]  # fmt: skip


@pytest.mark.parametrize("row, message", FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_named_by_line_and_key(tmp_path, row, message):
    path = tmp_path / "own.jsonl"
    line = row if isinstance(row, str) else json.dumps(row)
    path.write_text(f"{json.dumps(GOOD | {'name': 'first'})}\n\n{line}\n")
    with pytest.raises(ConfigError) as raised:
        open_index(path)
    assert str(raised.value).startswith(f"{path}:3: {message}")


def test_the_deepest_values_are_written_to_episodes_and_come_back():
    """And the largest limits are sent to a judge's process."""
    tests = [CALL | {"expected": [nested(198)], "calls": [[nested(197)]]}]
    row = GOOD | {
        "public_tests": tests,
        "tags": {"x": nested(100)},
        "time_limit_s": 86_400,
        "memory_limit_bytes": 2**50,
    }
    faults: list[str] = []
    problem, _ = problem_of(row_of(json.dumps(row).encode(), faults), faults)
    assert not faults
    assert decode(Problem, json.loads(problem_json(problem))) == problem
    assert problem_of(row_of(line_of(problem).encode(), faults), faults)[0] == problem and not faults
    with ExecutionPool(1, find_python("3.10")) as pool:
        limits = limits_for(problem, Limits())
        (result,) = pool.run("def f(x): return 1", [FunctionTest("f", ((1,),), (1,))], limits).result()
        assert result.status is Status.PASSED


def test_all_faults_of_a_file_are_named_at_once_up_to_a_number(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [GOOD, GOOD, GOOD | {"name": "q", "x": 1, "style": 3}, GOOD | {"name": "r"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ConfigError) as raised:
        open_index(path)
    places = [line.removeprefix(f"{path}:").partition(": ")[0::2] for line in str(raised.value).splitlines()]
    assert [number for number, _ in places] == ["2", "3", "3"]
    assert places[0][1] == 'name: "p" is the name of line 1 too, where one of its own is wanted'
    path.write_text("".join('{"a": 1}\n' for _ in range(100)))
    with pytest.raises(ConfigError) as raised:
        open_index(path)
    lines = str(raised.value).splitlines()
    assert len(lines) == 21 and lines[-1] == f"{path}: no more is looked for after 20 faults"


@pytest.mark.parametrize("data", [b"", b"\n \r\n", b"\xef\xbb\xbf\n", gzip.compress(b"\n", mtime=0)])
def test_a_file_without_a_problem_says_so(tmp_path, data):
    (tmp_path / "own.jsonl").write_bytes(data)
    with pytest.raises(ConfigError, match="own.jsonl: no problem in it"):
        open_index(tmp_path / "own.jsonl")


def test_only_a_newline_ends_a_line(tmp_path):
    """A byte order mark, Windows' line ends, characters that Python takes for line ends, no newline at the end."""
    odd = "a\u2028b\u2029c\x85d\x0be\x1cf"
    rows = [GOOD | {"name": name, "description": odd} for name in ("x", "y", "z")]
    text = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for name, data in (
        ("plain.jsonl", b"\xef\xbb\xbf" + text.encode()),
        ("packed.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + text.encode())),
        ("two_members.jsonl.gz", gzip.compress(text.encode()[:100]) + gzip.compress(text.encode()[100:])),
    ):
        (tmp_path / name).write_bytes(data)
        split = open_split([str(tmp_path / name)], "train")
        assert [(p.name, p.description) for p in split] == [(row["name"], odd) for row in rows]
        assert [split.place_of(i) for i in range(3)] == [f"{tmp_path / name}:{line}" for line in (1, 3, 5)]


PAGE = Path(__file__).parents[2] / "docs" / "own_problems.md"


def lines_of_the_page():
    return [block.replace("\n", " ") for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)]


def test_the_pages_tables_have_every_key():
    text = PAGE.read_text()
    first_cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("|")]
    keys = {key for cell in first_cells for key in re.findall(r"`(\w+)`", cell)}
    assert keys >= {*schema._KEYS, *schema._STDIN_KEYS, *schema._CALL_KEYS}
    assert all(f"`{name}`" in text for name in COMPARISONS)


def test_the_pages_lines_are_problems_that_the_judge_runs():
    programs = {"twice": "print(2 * int(input()))", "pair": "def pair(a, b): return a, b"}
    programs["root"] = "def root(x): return sqrt(x)"
    with ExecutionPool(1, find_python("3.10")) as pool:
        for line in lines_of_the_page():
            faults: list[str] = []
            problem, _ = problem_of(row_of(line.encode(), faults), faults)
            assert not faults
            limits = limits_for(problem, Limits(wall_s=20))
            for program, passes in ((programs.pop(problem.name), True), ("pair = root = lambda *a: [a]", False)):
                results = pool.run(program, problem.tests, limits, frame=problem.frame).result()
                assert all((result.status is Status.PASSED) == passes for result in results), problem.name
    assert not programs


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real problems in {SHARED}")
def test_real_problems_come_back_from_their_lines():
    """Contest problems, and function problems whose asserts decide."""
    contests = [p for path in sorted(SHARED.glob("code_contests/*.parquet")) for p, _ in parquet_problems(path)]
    with running(lambda: ExecutionPool(1, find_python("3.10"))) as runner:
        functions = [
            p for name in ("human_eval", "mbpp_sanitized") for p in benchmarks.load(name, SHARED, runner=runner)
        ]
    assert len(contests) == 240 and len(functions) == 164 + 257
    for problem in (*contests, *functions):
        faults: list[str] = []
        assert (problem_of(row_of(line_of(problem).encode(), faults), faults), faults) == ((problem, ""), [])
