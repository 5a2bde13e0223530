"""Function problems: their asserts as tests, and their dialogues byte for byte (C.4, C.5)."""

from pathlib import Path

import pytest

from rlef_jax.data import asserts, benchmarks, evalplus
from rlef_jax.errors import ConfigError
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
        assert candidate(x) == f(x)
"""


def test_asserts_become_tests():
    tests = asserts.check_tests(CHECK, SOLUTION, "f")
    assert tests[:4] == (
        FunctionTest("f", ((1,),), ([1],), text="assert f(1) == [1]"),
        FunctionTest(
            "f", ((1,),), ([1.0],), text="assert f(1) == [1.0]"
        ),  # what it says counts, not what the reference does
        FunctionTest("f", ((0,),), (False,), compare="truth", text="assert not f(0)"),
        FunctionTest("f", ((5,),), ([2],), text="assert tuple(f(5)) == (2,)"),  # what the reference returned
    )
    assert len(tests) == 4 + asserts.MOST_OF_A_LOOP
    for test in tests[4:]:  # the reference calls itself: only the loop's own calls are recorded
        ((x,),) = test.calls
        assert 3 <= x <= 9 and test.expected == ([2],) and test.text == f"assert f({x}) == [2]"
    assert isinstance(tests[1].expected[0][0], float)
    assert asserts.check_tests(CHECK, SOLUTION, "f") == tests  # random inputs from a fixed seed


def test_a_reference_that_fails_its_own_asserts():
    with pytest.raises(ValueError, match="the reference solution fails its own asserts"):
        asserts.check_tests(CHECK.replace("not candidate(0)", "candidate(0) is None"), SOLUTION, "f")


def test_listed_asserts_become_tests():
    listed = ["assert f(1) == [1] ", "assert math.isclose(f(2)[0], 2, rel_tol=0.1)", "assert f(1) + f(2)", "assert (",
              "assert f(object)"]  # fmt: skip
    tests = asserts.listed_tests(listed[:4], SOLUTION, "f", "import math")
    assert [t.text for t in tests] == ["assert f(1) == [1]", "assert math.isclose(f(2)[0], 2, rel_tol=0.1)"]
    assert tests[1].expected == ([2],)


HUMAN_EVAL = {
    "task_id": "HumanEval/x",
    "prompt": 'def f(x):\n    """Says x."""\n',
    "canonical_solution": "    return x\n",
    "entry_point": "f",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n    assert candidate('a') == 'a'\n",
}


def test_a_human_eval_line():
    problem = evalplus.problem(HUMAN_EVAL)
    assert problem.style == "human_eval" and problem.start == problem.description == HUMAN_EVAL["prompt"]
    assert [t.text for t in problem.public_tests] == ["assert f(1) == 1", "assert f('a') == 'a'"]
    assert problem.hidden_tests == problem.public_tests
    with pytest.raises(ValueError, match="HumanEval/x: none of its asserts could be taken apart"):
        evalplus.problem(HUMAN_EVAL | {"test": "def check(candidate):\n    pass\n"})
    with pytest.raises(ValueError, match="HumanEval/x: no 'prompt'"):
        evalplus.problem({k: v for k, v in HUMAN_EVAL.items() if k != "prompt"})


def test_an_mbpp_line():
    row = {"task_id": 12, "text": "Say x.", "code": SOLUTION, "test_list": ["assert f(1) == [1]", "assert f(2) == [2]"]}
    problem = evalplus.problem(row)
    assert (problem.name, problem.style, problem.start) == ("Mbpp/12", "mbpp", "")
    assert problem.shown_tests == ("assert f(1) == [1]",)
    assert [t.text for t in problem.public_tests] == row["test_list"]


def loaded(name, count=0):
    if not DATA.is_dir():
        pytest.skip(f"no {DATA}")
    return benchmarks.load(name, DATA, count)


def test_published_files_are_read():
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
    assert {t.compare for t in (*root.public_tests, *root.hidden_tests)} == {"root"} and len(root.public_tests) == 5
    (first, *_) = loaded("mbpp_plus", 2)
    assert first.name == "Mbpp/2" and len(first.public_tests) == 3 and first.hidden_tests[0].compare == "set"
    assert first.description == "Write a function to find the shared elements from the given two lists."


def test_whole_sets_that_are_read_quickly():
    human_eval = loaded("human_eval")
    assert len(human_eval) == 164 and all(p.public_tests and p.start for p in human_eval)
    assert sum(len(p.public_tests) for p in human_eval) == 1153
    root = next(p for p in human_eval if p.name == "HumanEval/32")
    assert {t.compare for t in root.public_tests} == {"root"}
    assert len(loaded("mbpp")) == 499  # Mbpp/367 calls with objects of a class of its own
    assert len(loaded("mbpp_sanitized")) == 257


def test_files_of_another_kind_are_one_line(tmp_path):
    (tmp_path / "HumanEval.jsonl").write_text('{"task_id": "x"}\n')
    for name, message in (
        ("human_eval", "not the files of human_eval"),
        ("mbpp", "no mbpp.jsonl in it"),
        ("mini_contests/nothing", "'nothing' is none of"),
    ):
        with pytest.raises(ConfigError, match=message):
            benchmarks.load(name, tmp_path)
