"""Tests with a `check`: an assert decides on a program's results in a separate process (real judge)."""

import concurrent.futures
import time

import pytest

from rlef_jax.data.asserts import listed_tests
from rlef_jax.data.running import finished, runner_of
from rlef_jax.execution import checks
from rlef_jax.types import FunctionTest, Limits, Status

LIMITS = Limits(wall_s=20.0, memory_bytes=256 << 20, output_bytes=64 << 20)


@pytest.fixture
def tests_of(pool):
    """make(solution, assert, ...) -> the tests made of the asserts with a reference solution."""

    def make(solution, *texts, setup="import math"):
        result = finished([listed_tests(texts, solution, "f", setup)], runner_of(pool))[0]
        assert len(result.tests) == len(texts) and result.left_out == 0
        return result.tests

    return make


@pytest.fixture
def judge(pool):
    def call(program, *tests, limits=LIMITS, stop=False):
        return pool.run(program, tests, limits, stop_at_first_failure=stop).result(120)

    return call


SQUARE = "def f(x=3, *, plus=0):\n    return x * x + plus\n"
# An assert that holds for x * x; another program for which it holds, and one for which it doesn't.
CASES = [
    ("assert math.isclose(f(2), 4.002, rel_tol=0.001)", "lambda x: 4.001", "lambda x: 4.1"),
    ("assert abs(f(2) - 4) < 0.5", "lambda x: 4.4", "lambda x: 4.5"),
    ("assert f(2) in (4, 5)", "lambda x: 5", "lambda x: 6"),
    ("assert f(2) not in [1, 2]", "lambda x: 3", "lambda x: 2"),
    ("assert 3 <= f(2) <= 5", "lambda x: 3.5", "lambda x: 6"),
    ("assert f(2) > 3 and f(1) == 1", "lambda x: 9 if x == 2 else 1", "lambda x: 9"),
    ("assert f(2) == 5 or f(3) == 9", "lambda x: {2: 5, 3: 0}[x]", "lambda x: 5 + x"),  # f(3) isn't always called
    ("assert f(2) is not None and not f(0)", "lambda x: x", "lambda x: None"),
    ("assert f(f(2)) == 16", "lambda x: {2: 7, 7: 16}[x]", "lambda x: 4"),  # the next call depends on the result
    ("assert f(f(2)) in range(10, 20)", "lambda x: x + 4", "lambda x: x"),
    ("assert sorted([f(2), f(-1)]) == [1, 4]", "lambda x: 5 - x * x", "lambda x: 4"),
    ("assert len(str(f(10))) == 3", "lambda x: 'abc'", "lambda x: 10"),
    ("assert all(f(x) >= 0 for x in range(5))", "lambda x: x", "lambda x: 3 - x"),
    ("assert [f(x) for x in (1, 2)] == [1, 4]", "lambda x: 3 * x - 2", "lambda x: x"),
    ("assert sum(map(f, [1, 2])) == 5", "lambda x: 2.5", "lambda x: x"),
    ("for i in range(30):\n    assert f(i) == i ** 2", "lambda x: x ** 2.0", "lambda x: min(x * x, 100)"),
    ("x = f(3)\ny = f(4)\nassert x + y == 25", "lambda x: {3: 20, 4: 5}[x]", "lambda x: x"),
    ("assert f(2, plus=1) == 5 and f() == 9", "lambda x=0, plus=0: 5 if plus else 9", "lambda x=0, plus=0: 5"),
    ("assert f(2) is not True and isinstance(f(2), (int, float))", "lambda x: 1.5", "lambda x: True"),
    ("assert 4 == f(2)", "lambda x: 4.0", "lambda x: 5"),
    ("assert f(float('nan')) != 0", "lambda x: 1", "lambda x: 0"),
    ("import random\nx = random.random()\nassert f(x) <= x", "lambda x: x / 2", "lambda x: x + 1"),
    ("assert float(f(3)) == 9", "lambda x: __import__('decimal').Decimal(9)", "lambda x: 'x'"),
    ("assert max([f(1)], key=abs) == 1", "lambda x: True", "lambda x: [1]"),
]


def test_what_the_assert_says_is_what_counts(tests_of, judge):
    tests = tests_of(SQUARE, *(text for text, _, _ in CASES))
    assert all(test.check and not test.expected for test in tests)
    assert {r.status for r in judge(SQUARE, *tests)} == {Status.PASSED}
    for test, (text, right, wrong) in zip(tests, CASES, strict=True):
        (result,) = judge(f"f = {right}", test)
        assert result.status is Status.PASSED, (text, result)
        (result,) = judge(f"f = {wrong}", test)
        assert result.status is Status.WRONG_ANSWER, (text, result)


def test_a_failure_shows_the_result_and_not_the_references(tests_of, judge):
    texts = {
        "assert math.isclose(f(10), 100, rel_tol=0.001)": "AssertionError: False is not true : f(10) returned 20",
        "assert abs(f(2) - 4.5) < 0.6": "AssertionError: 16.5 not less than 0.6 : f(2) returned -12",
        "assert f(3) in (9, 10)": "AssertionError: -9 not found in (9, 10) : f(3) returned -9",
        "assert not f(0)": "AssertionError: 20 is not false",
        "assert list(map(f, [1, 10])) == [1, 100]": "AssertionError: Lists differ: [-15, 20] != [1, 100]",
        "assert f(2) + f(1) == 5": "AssertionError: -27 != 5 : f(2) returned -12, f(1) returned -15",
        "assert f(4).bit_length() == 5": "AttributeError: 'NoneType' object has no attribute 'bit_length'",
    }
    wrong = "def f(x):\n    return {2: -12, 3: -9, 1: -15, 4: None}.get(x, 20)\n"
    for (text, error), result in zip(texts.items(), judge(wrong, *tests_of(SQUARE, *texts)), strict=True):
        first = result.error.split("\n")[0]
        assert (result.status, first) == (Status.WRONG_ANSWER, error), text


# Results that aren't plain data, in asserts that make something of them.
KINDS = """
from collections import *
def f(x):
    return {0: (i for i in (1, 2)), 1: {1: 2}.keys(), 2: map(str, [1]), 3: Counter("aab"), 4: deque([1, 2]),
            5: range(10 ** 12), 6: {"a": 1}.values(), 7: iter(int, 1), 8: OrderedDict(b=1, a=2)}[x]
"""
OF_KINDS = (
    "assert list(f(0)) == [1, 2]", "assert sorted(f(1)) == [1]", "assert next(f(2)) == '1'",
    "assert f(3).most_common(1) == [('a', 2)]", "assert f(4)[0] == 1", "assert f(5)[-1] == 10 ** 12 - 1",
    "assert sum(f(6)) == 1", "assert next(f(7)) == 0", "assert list(f(8)) == ['b', 'a']",
)  # fmt: skip


def test_results_of_the_standard_librarys_types_are_what_they_are(tests_of, judge):
    tests = tests_of(KINDS, *OF_KINDS)
    assert [r.status for r in judge(KINDS, *tests)] == [Status.PASSED] * len(tests)
    lists = "def f(x):\n    return [7, 7]\n"
    assert Status.PASSED not in {r.status for r in judge(lists, *tests)}


HANGS = "assert 2 ** f(3) > 1"


@pytest.mark.parametrize(
    "limits", [Limits(wall_s=1.0, memory_bytes=256 << 20), Limits(wall_s=20.0, memory_bytes=64 << 20)]
)
def test_a_result_that_makes_the_assert_endless_is_the_programs_failure(pool, tests_of, judge, limits):
    retries = pool.stats()["retries"]
    (test,) = tests_of(SQUARE, HANGS)
    (result,) = judge("f = lambda x: 10 ** 10", test, limits=limits)
    assert result.status in (Status.TIME_LIMIT, Status.MEMORY_LIMIT)
    assert judge(SQUARE, test)[0].status is Status.PASSED and pool.stats()["retries"] == retries


EQUAL_TO_ALL = """
from fractions import Fraction
class E(BASE):
    def __eq__(self, o): return True
    __hash__ = None
f = lambda x: E()
"""
# Each is judged by `assert f(2) in (7391, 7392)`, whose numbers must never reach a program's process.
FORGERIES = {
    "equal to all": EQUAL_TO_ALL.replace("BASE", "object"),
    "an int equal to all": EQUAL_TO_ALL.replace("BASE", "int"),
    "a Fraction equal to all": EQUAL_TO_ALL.replace("BASE", "Fraction"),
    "writes a verdict": "import os\nos.write(3, b'VL\\0\\0\\0\\1S\\0\\0\\0\\6passed')\nos._exit(0)",
    "looks around": """
import gc, os
def f(x):
    texts = [repr(o) for o in gc.get_objects() if type(o) in (list, tuple)] + [str(os.pread(0, 1 << 16, 0))]
    return 7390 + 1 if any("739" + "1" in text for text in texts) else 0
""",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_cannot_be_forged(pool, tests_of, judge, name):
    (test,) = tests_of("def f(x):\n    return 7391\n", "assert f(2) in (7391, 7392)")
    (result,) = judge(FORGERIES[name], test)
    assert result.status not in (Status.PASSED, Status.INFRA_ERROR), result


def test_a_call_that_only_the_reference_makes_is_not_held_against_a_program(tests_of, judge):
    (test,) = tests_of(SQUARE, "assert f(0) is None or f(5) == 25")
    assert len(test.calls) == 2
    alone = "def f(x):\n    if x: raise ValueError\n"
    assert judge(alone, test)[0].status is Status.PASSED
    (result,) = judge("def f(x):\n    if x: raise ValueError\n    return 1\n", test)
    assert result.status is Status.RUNTIME_ERROR and result.error.endswith("ValueError")


def test_an_assert_may_not_ask_for_ever(tests_of, judge, monkeypatch):
    monkeypatch.setattr(checks, "ROUNDS", 5)
    (test,) = tests_of(SQUARE, "n = 2\nwhile n < 100:\n    n = f(n)\nassert n > 1")
    assert judge(SQUARE, test)[0].status is Status.PASSED
    (result,) = judge("f = lambda x: x + 1", test)
    assert result.status is Status.WRONG_ANSWER and "more than 5 rounds" in result.error


def test_they_stand_among_other_tests(pool, tests_of, judge):
    plain = FunctionTest("f", ((2,),), (4,))
    (claim,) = tests_of(SQUARE, "assert f(3) > 5")
    statuses = [
        r.status for r in judge("f = lambda x: {2: 4, 3: 9, 4: 0}[x]", plain, claim, plain, claim, claim, plain)
    ]
    assert statuses == [Status.PASSED] * 6
    wrong = "f = lambda x: 4"
    assert [r.status for r in judge(wrong, plain, claim, plain, claim)] == [Status.PASSED, Status.WRONG_ANSWER] * 2
    assert len(judge(wrong, plain, claim, plain, claim, stop=True)) == 2
    assert [r.status for r in judge("def f(x) return", plain, claim, claim)] == [Status.SYNTAX_ERROR] * 3
    assert [r.status for r in judge("def f(x) return", claim, claim, stop=True)] == [Status.SYNTAX_ERROR]
    (crash,) = judge("def f(x):\n    return 1 / 0\n", claim)
    assert crash.status is Status.RUNTIME_ERROR and crash.error.endswith("ZeroDivisionError: division by zero")
    assert judge("def g(x): return 9", claim)[0].error.endswith("NameError: name 'f' is not defined")
    assert judge("import os\nos._exit(0)", claim)[0].status is Status.WRONG_ANSWER


def test_results_that_can_hardly_be_sent_are_the_programs_failure(tests_of, judge):
    (test,) = tests_of("def f(x):\n    return [x]\n", "assert len(f(3)) == 1")
    for depth, status in ((100, Status.PASSED), (198, Status.WRONG_ANSWER), (300, Status.RUNTIME_ERROR)):
        deep = f"def f(x):\n    for _ in range({depth}):\n        x = [x]\n    return x\n"
        assert judge(deep, test)[0].status is status
    (result,) = judge("def f(x):\n    return 'x' * (1 << 26)", test, limits=Limits(wall_s=20.0, output_bytes=128 << 20))
    assert result.status is Status.WRONG_ANSWER and "longer than 64 MB" in result.error


def test_one_that_runs_can_be_given_up(pool, tests_of):
    (test,) = tests_of(SQUARE, "assert f(3) > 5")
    future = pool.run("while True: pass", [test], Limits(wall_s=60.0, memory_bytes=256 << 20))
    while not future.running():
        time.sleep(0.01)
    assert pool.cancel(future)
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(20)
    assert pool.run(SQUARE, [test], LIMITS).result(60)[0].status is Status.PASSED


def test_standard_input_is_empty_where_functions_are_called(judge):
    (result,) = judge("text = input()\nf = lambda x: x", FunctionTest("f", ((1,),), (1,)))
    assert result.status is Status.RUNTIME_ERROR and "EOFError" in result.error
