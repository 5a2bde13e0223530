"""Function problems: calls go in, results come out as plain data, and the comparison happens here."""

import ast
import concurrent.futures
import dataclasses
import gzip
import json
import math
import pathlib
import struct
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlef_jax.data import evalplus
from rlef_jax.data.running import runner_of
from rlef_jax.execution import calls
from rlef_jax.execution.functions import compare
from rlef_jax.execution.isolation import Level
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for
from rlef_jax.execution.worker_factory import trial
from rlef_jax.types import FunctionTest, Limits, Status

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data" / "evalplus"
LIMITS = Limits(wall_s=300.0)
ADD = FunctionTest("add", ((1, 2), (3, 4)), (3, 7))

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
plain = st.recursive(
    leaves | st.complex_numbers(allow_nan=False) | st.frozensets(st.integers()) | st.sets(st.text()),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


def same(a, b):
    """Equal and of the same types throughout; the order of a set's text doesn't matter."""
    if type(a) is not type(b) or a != b:
        return False
    if isinstance(a, dict):
        return list(map(type, a)) == list(map(type, b)) and all(same(a[k], b[k]) for k in a)
    return not isinstance(a, (list, tuple)) or all(map(same, a, b))


@given(plain)
def test_plain_data_arrives_as_it_was(value):
    decoded = calls.decode(calls.encode(value, 1 << 20))
    assert same(decoded, value)


@given(st.binary(max_size=60))
def test_other_bytes_are_an_error_and_no_crash(data):
    try:
        value = calls.decode(data)
    except calls.CodecError:
        return
    assert calls.encode(value, 1 << 20) is not None or isinstance(value, calls.Opaque)


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "\ud800"]), min_size=2) | st.lists(st.integers(), min_size=2), max_size=9
    )
)
def test_lists_of_one_kind_go_as_one_piece(value):
    assert same(calls.decode(calls.encode(value, 1 << 20)), value)


@given(st.integers(8, 12).flatmap(lambda n: st.lists(st.lists(leaves, min_size=n, max_size=n), min_size=2, max_size=9)))
def test_rows_go_together(rows):
    for value in (rows, tuple(rows), [tuple(row) for row in rows], [[str(x) for x in row] for row in rows]):
        assert same(calls.decode(calls.encode(value, 1 << 20)), value)


def test_many_rows_take_a_byte_for_a_string():
    value = [tuple("abcdefgh"[i % n] for i in range(20)) for n in range(1, 9)] * 2000
    data = calls.encode(value, 1 << 30)
    assert len(data) < 20 * len(value) + 200 and same(calls.decode(data), value)
    for cut in (1, 19, len(data) // 2):
        with pytest.raises(calls.CodecError):
            calls.decode(data[:-cut])


@given(st.lists(st.sampled_from([None, True, 1, 1.0, 0, False, -0.0, b"x", 2j]), min_size=calls.MIN_REPEATED))
def test_few_values_over_and_over(items):
    data = calls.encode(items, 1 << 20)
    assert len(data) < len(items) * (1 if len(set(map(type, items))) > 1 else 9) + 200
    assert list(map(repr, calls.decode(data))) == list(map(repr, items))


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.lists(st.floats(), min_size=1), st.randoms())
def test_integers_and_floats_among_each_other_go_as_one_piece(integers, floats, rng):
    items = integers + floats
    rng.shuffle(items)
    data = calls.encode(items, 1 << 20)
    assert len(data) <= 9 * len(items) + 7
    assert list(map(repr, calls.decode(data))) == list(map(repr, items))
    for broken in (data[:-1], data[:7] + b"\2" + data[8:]):
        with pytest.raises(calls.CodecError):
            calls.decode(broken)


def test_lists_in_themselves_are_no_leaves():
    one = b"PLV" + struct.pack("!II", 64, 1)
    with pytest.raises(calls.CodecError, match="not a leaf"):
        calls.decode(one + one + b"N" + bytes(64) + bytes(64))


def test_rows_that_would_take_more_memory_than_they_were_sent_in_are_refused():
    for width in (0, 1, 7):
        rows = b"RLU" + struct.pack("!II", 1000, width) + b"S" + struct.pack("!III", 1000, 1, 1) + b"a" + bytes(1000)
        with pytest.raises(calls.CodecError, match="no rows"):
            calls.decode(rows)


def test_a_string_is_sent_once_however_often_it_stands_there():
    words = ["w" * 1000 + str(i) for i in range(300)]  # more than a byte can index
    value = [(word,) * 50 for word in words] + [words]
    data = calls.encode(value, 1 << 30)
    assert len(data) < 1001 * 300 + 2 * 51 * 400 + 20 * 301 and same(calls.decode(data), value)


def test_what_is_too_large_or_too_deep_is_refused():
    deep = []
    for _ in range(300):
        deep = [deep]
    for value in (deep, "x" * 1000):
        with pytest.raises(calls.CodecError):
            calls.encode(value, 500)
    with pytest.raises(calls.CodecError, match="nested"):
        calls.decode(b"L\0\0\0\1" * 300 + b"N")


def judge(pool, program, test=ADD, limits=LIMITS):
    (result,) = pool.run(program, [test], limits).result(120)
    return result


def test_right_and_wrong_functions(pool):
    assert judge(pool, "def add(a, b): return a + b").status is Status.PASSED
    wrong = judge(pool, "def add(a, b): return a - b")
    assert wrong.status is Status.WRONG_ANSWER and wrong.error == "AssertionError: -1 != 3"
    crash = judge(pool, "def add(a, b): return a / 0")
    assert crash.status is Status.RUNTIME_ERROR and crash.error.endswith("ZeroDivisionError: division by zero")
    assert judge(pool, "def sub(a, b): return a").error.endswith("NameError: name 'add' is not defined")
    assert judge(pool, "def add(a, b: return").status is Status.SYNTAX_ERROR
    assert judge(pool, "def add(a, b):\n  while True: pass", limits=Limits(wall_s=1.0)).status is Status.TIME_LIMIT
    assert (
        judge(pool, "if __name__ == '__main__': input()\ndef add(a, b): print('x'); return a + b").status
        is Status.PASSED
    )


def test_failures_are_shown_as_unittest_shows_them(pool):
    lists = FunctionTest("f", ((),), ([1, 2, 3],))
    assert judge(pool, "def f(): return [1, 2, 4]", lists).error == (
        "AssertionError: Lists differ: [1, 2, 4] != [1, 2, 3]\n\nFirst differing element 2:\n4\n3\n\n"
        "- [1, 2, 4]\n?        ^\n\n+ [1, 2, 3]\n?        ^\n"
    )
    assert judge(pool, "def f(): return 0", FunctionTest("f", ((),), (True,))).error == "AssertionError: 0 is not true"


LONG = {
    "pairs": ([[1, i] for i in range(4000)], [[i, 2] for i in range(4000)]),
    "more of them": ([[1]] * 1_000_000, [[1]] * 1000),
    "lines": ("\n".join(f"{i} 1" for i in range(4000)), "\n".join(f"1 {i}" for i in range(4000))),
    "a set": ({(1, i) for i in range(4000)}, {(i, 2) for i in range(4000)}),
    "a dict": ({i: [1, i] for i in range(4000)}, {i: [i, 2] for i in range(4000)}),
    "a string of few": (["ab" * 2000] * 4000, ["ba" * 2000] * 4000),
    "an integer": (1 << 1_000_000, 3),
}


@pytest.mark.parametrize("name", LONG)
def test_long_wrong_results_are_told_apart_without_a_diff(name):
    """For a tenth of these values `unittest` takes 25 s, and its time grows with the cube of their length."""
    result, expected = LONG[name]
    text = compare(result, expected, FunctionTest("f", ((),), (expected,)), ())
    assert text.startswith("AssertionError: ") and len(text) < 10_000
    if name == "pairs":
        assert "Lists differ: [[1, 0], [1, 1], " in text and text.endswith("First differing element 0:\n[1, 0]\n[0, 2]")


EQUAL_TO_ALL = """
class E(BASE):
    def __eq__(self, o): return True
    def __ne__(self, o): return False
    def __iter__(self): return iter([7391])
    def __len__(self): return 1 << 62
    __hash__ = None
def add(a, b): return E()
"""
FORGERIES = {
    "equal to all": EQUAL_TO_ALL.replace("BASE", "object"),
    "an int equal to all": EQUAL_TO_ALL.replace("BASE", "int"),
    "a list equal to all": EQUAL_TO_ALL.replace("BASE", "list"),
    "a dict equal to all": EQUAL_TO_ALL.replace("BASE", "dict"),
    "exits at once": "import os\nos._exit(0)",
    "exits in the call": "import sys\ndef add(a, b): sys.exit(0)",
    "exits in the call at once": "import os\ndef add(a, b): os._exit(0)",
    "writes results": "import os\nos.write(3, b'VL\\0\\0\\0\\1I\\0\\0\\0\\1\\3')\nos._exit(0)",
    "writes garbage": "import os\nos.write(3, b'V' + bytes(100))\nos._exit(0)",
    "writes before the judge": "import os\nos.write(3, b'V')\ndef add(a, b): return a + b",
    "replaces builtins": """
import builtins
builtins.len = lambda x: 2
builtins.type = lambda x: int
builtins.isinstance = lambda *a: True
def add(a, b): return 9
""",
    "looks for what is expected": """
import gc, sys
def add(a, b):
    f = sys._getframe(1)
    while f:
        for v in list(f.f_locals.values()) + list(f.f_globals.values()):
            if isinstance(v, (list, tuple)) and 7391 in v: return 7391
        f = f.f_back
    return 7391 if any(7391 in o for o in gc.get_objects() if type(o) in (list, tuple, dict) and len(o) < 9) else 0
""",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_results_cannot_be_forged(pool, name):
    test = FunctionTest("add", ((1, 2), (3, 4)), (7391, 7391))
    result = judge(pool, FORGERIES[name], test, Limits(wall_s=10.0))
    assert result.status not in (Status.PASSED, Status.INFRA_ERROR), result
    assert judge(pool, "def add(a, b): return a + b").status is Status.PASSED


@pytest.mark.parametrize("level", [Level.FULL, Level.PROCESS])
def test_long_claims_do_not_break_the_worker(interpreter, level):
    """They may need more than a program's memory: then the program fails, not the judge."""
    if isinstance(reason := trial(level, interpreter), str):
        pytest.skip(f"level {level} is not available here: {reason}")
    flood = "import os\nfor _ in range(200):\n    for fd in (1, 3): os.write(fd, b'V' * (1 << 20))\nos._exit(0)"
    limits = Limits(wall_s=60.0, memory_bytes=100 << 20, output_bytes=256 << 20)
    with ExecutionPool(1, interpreter, level=level.value) as pool:
        assert judge(pool, flood, limits=limits).status not in (Status.PASSED, Status.INFRA_ERROR)
        assert judge(pool, "def add(a, b): return a + b").status is Status.PASSED
        assert pool.stats()["retries"] == 0


@pytest.mark.parametrize(
    ("result", "expected", "comparison", "passes"),
    [
        (1.0000001, 1.0, {}, False),  # published asserts compare with ==
        (1.001, 1.0, {"atol": 0.01}, False),
        ((1.0,), [1.0], {}, False),
        ((), [], {}, False),
        (1, 1.0, {}, True),
        ((1, 2), [1, 2], {"compare": "sequence"}, True),  # LiveCodeBench: JSON has no tuples
        ([(1, 2)], [[1, 2]], {"compare": "sequence"}, False),
        (1.0000001, 1.0, {"compare": "sequence"}, False),
        (1.0000001, 1.0, {"compare": "plus"}, True),
        (1.001, 1.0, {"compare": "plus"}, False),
        (1.001, 1.0, {"compare": "plus", "atol": 0.01}, True),
        ([1.0, 2.0], [1.0], {"compare": "plus"}, False),
        ([1.0], 1.0, {"compare": "plus"}, False),
        ("a", 1.0, {"compare": "plus"}, False),
        ((1.0,), [1.0], {"compare": "plus"}, True),
        ((), [], {"compare": "plus"}, True),  # as the plus tests have it
        ((1,), [1], {"compare": "plus"}, False),
        (Fraction(10**17 + 1), 1e17, {"compare": "plus"}, True),
        (Decimal("1.0000000001"), 1.0, {"compare": "plus"}, False),  # NumPy can't subtract a float from it
        ([range(10**9)] * 10**4, [[1.0]], {"compare": "plus", "atol": 0.1}, False),
        (range(1, 3), [1.0, 2.0], {"compare": "plus"}, True),
        (range(10**18), {1, 2}, {"compare": "set"}, False),
        (range(1, 3), {1, 2}, {"compare": "set"}, True),
        ([1, 2], (2, 1, 1), {"compare": "set"}, True),
        ([1, 3], (2, 1), {"compare": "set"}, False),
        (5, [1], {"compare": "set"}, False),
        ("match", True, {"compare": "presence"}, True),
        (None, True, {"compare": "presence"}, False),
        (False, False, {"compare": "presence"}, True),
        (math.nan, 1.0, {}, False),
        (math.nan, 1.0, {"compare": "plus"}, False),
        (True, 1, {}, True),
    ],
)
def test_comparisons(result, expected, comparison, passes):
    test = FunctionTest("f", ((),), (expected,), **comparison)
    assert (compare(result, expected, test, ()) is None) == passes


def tasks(pool, name, step):
    """Every `step`-th task, since reading a task takes as long as judging it."""
    path = DATA / f"{name}-OriginFmt.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with gzip.open(path, "rt") as lines:
        rows = [(json.loads(line), None) for i, line in enumerate(lines) if i % step == 0]
    return evalplus.problems(rows, runner_of(pool))


def mutants(task):
    """Versions of the solution with one change: to a constant, a comparison, arithmetic, or finally the result."""
    tree = ast.parse(task.solutions[0])
    swaps = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
    swaps |= {
        ast.In: ast.NotIn,
        ast.NotIn: ast.In,
        ast.Add: ast.Sub,
        ast.Sub: ast.Add,
        ast.Mult: ast.Add,
        ast.Mod: ast.Mult,
    }
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
    for node in [n for function in reversed(functions) for n in ast.walk(function)]:
        if isinstance(node, ast.Compare) and type(node.ops[0]) in swaps:
            old, node.ops[0] = node.ops[0], swaps[type(node.ops[0])]()
            yield ast.unparse(tree)
            node.ops[0] = old
        elif isinstance(node, ast.BinOp) and type(node.op) in swaps:
            old, node.op = node.op, swaps[type(node.op)]()
            yield ast.unparse(tree)
            node.op = old
        elif isinstance(node, ast.Return) and node.value is not None:
            old, node.value = node.value, ast.List([node.value], ast.Load())
            yield ast.unparse(tree)
            node.value = old


# A user has 10 s. What is right is asked here, not how fast this machine is, or how busy.
PATIENT = Limits(wall_s=60.0, wall_patience=10.0)


def check_references(pool, problems):
    """Reference solutions pass all their tests within a user's limits, and some mutant of each fails."""
    wrong = {}
    limits = {task.name: limits_for(task, PATIENT) for task in problems}
    futures = {
        task.name: pool.run(task.solutions[0], [*task.public_tests, *task.hidden_tests], limits[task.name])
        for task in problems
    }
    for task in problems:
        if any(r.status is not Status.PASSED for r in futures[task.name].result(900)):
            wrong[task.name] = [(r.status, r.error[-300:]) for r in futures[task.name].result()]
    assert not wrong

    def survives(task):
        """Whether none of the first mutants fails. Some are equivalent, so one failing mutant per task is enough."""
        for mutant, _ in zip(mutants(task), range(12)):
            quick = dataclasses.replace(limits[task.name], wall_s=30.0)
            judged = pool.run(mutant, task.hidden_tests, quick, stop_at_first_failure=True).result(900)
            if any(r.status is not Status.PASSED for r in judged):
                return False
        return True

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        survivors = [task.name for task, lives in zip(problems, threads.map(survives, problems)) if lives]
    assert not survivors


@pytest.mark.parametrize("name", ["HumanEvalPlus", "MbppPlus"])
def test_some_reference_solutions_pass_and_mutants_fail(pool, name):
    check_references(pool, tasks(pool, name, 16))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence:SyntaxWarning")  # in some of the solutions
@pytest.mark.parametrize(("name", "count"), [("HumanEvalPlus", 164), ("MbppPlus", 378)])
def test_all_reference_solutions_pass_and_mutants_fail(pool, name, count):
    problems = tasks(pool, name, 1)
    assert len(problems) == count
    check_references(pool, problems)


def test_every_stored_solution_that_is_known_to_pass_passes_its_public_tests(pool):
    folder = DATA.parent / "code_contests"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    pytest.importorskip("pyarrow")
    from rlef_jax.data.problem_files import problems

    expected = json.loads((folder / "solution_check.json").read_text())
    stored = [
        p
        for path in sorted(folder.glob("*.parquet"))
        for p in problems(str(path), runner_of(pool))
        if expected.get(p.name) == "pass"
    ]
    assert len(stored) > 150
    futures = [(p, pool.run(p.solutions[0], p.public_tests, limits_for(p, PATIENT))) for p in stored]
    wrong = {p.name: f.result(600) for p, f in futures if any(r.status is not Status.PASSED for r in f.result(600))}
    assert not wrong
