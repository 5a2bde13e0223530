"""Function problems: their asserts as tests, and their dialogues byte for byte (C.4, C.5)."""

import ast
from pathlib import Path

import pytest

from rlef_jax.data import asserts, benchmarks, evalplus, literals
from rlef_jax.data.running import finished, runner_of
from rlef_jax.errors import ConfigError
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import FunctionTest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SOLUTION = "def f(x):\n    return [x] * (x > 0) if x < 3 else f(x - 1)\n"
CHECK = """
METADATA = {"f": candidate} if False else {}

def check(candidate):
    assert True, "a joke"
    assert candidate(1) == [1], "shown to nobody"
    assert candidate(1) == [1.0]
    assert not candidate(0)
    assert tuple(candidate(5)) == (2,)
    import random
    for _ in range(100):
        x = random.randint(3, 9)
        assert candidate(x) == [2]
"""


@pytest.fixture(scope="module")
def pool():
    with ExecutionPool(2, find_python("3.10")) as shared:
        yield shared


@pytest.fixture
def read(pool):
    """Runs a reader to its end, with its runs in the judge, and returns its value."""
    return lambda reading: finished([reading], runner_of(pool))[0]


def test_asserts_become_tests(read):
    result = read(asserts.check_tests(CHECK, SOLUTION, "f"))
    first, second, third, fourth, loop = result.tests
    assert (first, second, third) == (
        FunctionTest("f", ((1,),), ([1],), text="assert f(1) == [1]"),
        FunctionTest(
            "f", ((1,),), ([1.0],), text="assert f(1) == [1.0]"
        ),  # the assert's expected value counts, not the reference's result
        FunctionTest("f", ((0,),), (False,), compare="truth", text="assert not f(0)"),
    )
    assert isinstance(second.expected[0][0], float)
    assert (fourth.text, fourth.calls, fourth.expected) == ("assert tuple(f(5)) == (2,)", ((5,),), ())
    assert loop.text == "for _ in range(100):\n    x = random.randint(3, 9)\n    assert f(x) == [2]"
    # The reference is recursive: exactly the loop's own calls are recorded.
    assert len(loop.calls) == 100 and all(3 <= x <= 9 for (x,) in loop.calls) and len(set(loop.calls)) > 3
    assert all("shown to nobody" not in text for test in result.tests for text in (test.text, *test.check))
    assert result.left_out == 0
    assert read(asserts.check_tests(CHECK, SOLUTION, "f")) == result  # random inputs from a fixed seed


def test_a_reference_that_fails_its_own_asserts(read):
    with pytest.raises(ValueError, match="the reference solution fails its own asserts|reference solution fails"):
        read(asserts.check_tests(CHECK.replace("not candidate(0)", "candidate(0) is None"), SOLUTION, "f"))


def test_listed_asserts_become_tests(read):
    listed = ["assert f(1) == [1] ", "assert math.isclose(f(2)[0], 2, rel_tol=0.1)", "assert f(1) + f(2)", "assert (",
              "assert len([1]) == 1", "assert f(0, ) == [] and not f(-1)"]  # fmt: skip
    result = read(asserts.listed_tests(listed, SOLUTION, "f", "import math"))
    assert [t.text for t in result.tests] == [listed[0].strip(), listed[1], listed[2], listed[5]]
    assert [t.calls for t in result.tests[1:]] == [((2,),), ((1,), (2,)), ((0,), (-1,))]
    assert result.tests[1].check[:2] == (SOLUTION, "import math")
    late = "from __future__ import annotations\nimport math"  # each source is separate
    assert len(read(asserts.listed_tests(listed[1:2], SOLUTION, "f", late)).tests) == 1
    assert result.left_out == 1  # the one that doesn't parse; one that doesn't call the function isn't counted


OBJECTS = "class Pair:\n    pass\ndef f(x):\n    x.append(1) if type(x) is list else None\n    return x or Pair()\n"


@pytest.mark.parametrize(
    "text",
    [
        "assert f(Pair()) is not None",  # an argument is an object of the program's own class
        "assert isinstance(f(0), Pair)",  # or the result is
        "x = []\nf(x)\nassert x == [1]",  # it checks how the function changed its argument
        "try:\n    f(1, 2)\n    assert False\nexcept TypeError:\n    assert f(1)",
        "assert eval(f('1 + 1')) == 2",
        "import pytest\nassert f(1) == pytest.approx(1)",
    ],
)
def test_asserts_that_results_alone_cannot_decide_are_left_out_and_counted(read, text):
    result = read(asserts.listed_tests([text, "assert f(1) == 1"], OBJECTS, "f"))
    assert [t.text for t in result.tests] == ["assert f(1) == 1"] and result.left_out == 1


def test_literals_are_read_and_not_run():
    def value(text):
        return literals.value(ast.parse(text, mode="eval").body)

    assert value("[1, -2.5, (3,), {'a': {1}}, set(), frozenset([1]), -0 - 1j, 2 ** 10, inf, None, 7 / 2]") == [
        1, -2.5, (3,), {"a": {1}}, set(), frozenset([1]), -1j, 1024, float("inf"), None, 3.5,
    ]  # fmt: skip
    for text in ("9 ** 9 ** 9", "[0] * 10 ** 10", "1 << 10 ** 10", "().__class__", "f(1)", "1 / 0", "{[]}", "{**{}}",
                 "'a' * 10", "...", "set(1, 2)"):  # fmt: skip
        with pytest.raises(literals.NoLiteralError):
            value(text)


HUMAN_EVAL = {
    "task_id": "HumanEval/x",
    "prompt": 'def f(x):\n    """Says x."""\n',
    "canonical_solution": "    return x\n",
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n    assert candidate('a') == 'a'\n",
}


def test_a_human_eval_line(read):
    problem = read(evalplus.problem(HUMAN_EVAL))
    assert problem.style == "human_eval" and problem.start == problem.description == HUMAN_EVAL["prompt"]
    assert [t.text for t in problem.public_tests] == ["assert f(1) == 1", "assert f('a') == 'a'"]
    assert problem.hidden_tests == problem.public_tests
    assert read(evalplus.problem(HUMAN_EVAL | {"test": "def check(candidate):\n    pass\n"})).tests == ()
    for change, message in (
        ({"prompt": None}, "HumanEval/x: "),
        ({"test": "x = 1"}, "HumanEval/x: its test code has no function check\\(candidate\\)"),
        ({"test": "def check(candidate):"}, "HumanEval/x: .*expected an indented block"),
    ):
        with pytest.raises(ValueError, match=message):
            read(evalplus.problem(HUMAN_EVAL | change))
    with pytest.raises(ValueError, match="HumanEval/x: no 'prompt'"):
        read(evalplus.problem({k: v for k, v in HUMAN_EVAL.items() if k != "prompt"}))


def test_an_mbpp_line(read):
    row = {"task_id": 12, "text": "Say x.", "code": SOLUTION, "test_list": ["assert f(1) == [1]", "assert f(2) == [2]"]}
    problem = read(evalplus.problem(row))
    assert (problem.name, problem.style, problem.start) == ("Mbpp/12", "mbpp", "")
    assert problem.shown_tests == ("assert f(1) == [1]",)
    assert [t.text for t in problem.public_tests] == row["test_list"]


@pytest.fixture
def loaded(pool):
    if not DATA.is_dir():
        pytest.skip(f"no {DATA}")
    return lambda name, count=0, **more: benchmarks.load(name, DATA, count, runner=runner_of(pool), **more)


def test_published_files_are_read(loaded):
    (first, *_) = plus = loaded("human_eval_plus", 3)
    assert len(plus) == 3 and len(first.public_tests) == 7
    sizes = [len(test.calls) for test in first.hidden_tests]
    assert (
        sum(sizes) > 500
        and set(sizes[:-1]) == {10}
        and all(len(t.expected) == len(t.calls) for t in first.hidden_tests)
    )
    assert first.public_tests[0].text == "assert has_close_elements([1.0, 2.0, 3.9, 4.0, 5.0, 2.2], 0.3) == True"
    root = loaded("human_eval_plus", 33)[32]
    assert {t.compare for t in root.hidden_tests} == {"root"}
    (loop,) = root.public_tests  # any root is accepted, as in the published loop, which draws the polynomials
    assert len(loop.calls) == 100 and "assert math.fabs(poly(coeffs, solution)) < 1e-4" in loop.text
    (first, *_) = loaded("mbpp_plus", 2)
    assert first.name == "Mbpp/2" and len(first.public_tests) == 3 and first.hidden_tests[0].compare == "set"
    assert first.description == "Write a function to find the shared elements from the given two lists."


def test_whole_sets_that_are_read_quickly(loaded):
    human_eval = loaded("human_eval")
    assert len(human_eval) == 164 and all(p.public_tests and p.start for p in human_eval)
    assert sum(len(p.public_tests) for p in human_eval) == 1133
    loops = {p.name: [t for t in p.public_tests if t.text.startswith("for ")] for p in human_eval}
    assert {name: len(tests[0].calls) for name, tests in loops.items() if tests} == {
        "HumanEval/32": 100, "HumanEval/38": 100, "HumanEval/44": 6, "HumanEval/50": 100, "HumanEval/53": 100,
    }  # fmt: skip
    reports = []
    mbpp = loaded("mbpp", tell=lambda missing: reports.append((missing.line, missing.left_out)))
    assert len(mbpp) == 499 and "Mbpp/367" not in {p.name for p in mbpp}  # its arguments are objects of its own class
    line = "mbpp: 499 problems; 1 without any test left out; 3 asserts left out, which can't be judged on results alone"
    assert reports == [(line, ("Mbpp/367",))]
    assert len(loaded("mbpp_sanitized")) == 257


def test_files_of_another_kind_are_one_line(tmp_path, pool):
    (tmp_path / "HumanEval.jsonl").write_text('{"task_id": "x"}\n')
    for name, message in (
        ("human_eval", "human_eval: x: no 'code' in its line"),
        ("mbpp", "no mbpp.jsonl in it"),
        ("mini_contests/nothing", "'nothing' is none of"),
    ):
        with pytest.raises(ConfigError, match=message):
            benchmarks.load(name, tmp_path, runner=runner_of(pool))
