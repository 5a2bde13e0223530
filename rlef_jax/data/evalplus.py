"""HumanEval+ and MBPP+ tasks from EvalPlus's `OriginFmt` files: calls and expected results out of their test code.

The files' own test code is taken apart, not run: inputs, results, tolerance and the way to compare are read off it.
Only a reference solution is run, in this process, where a task's test code calls it for the expected results.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from rlef_jax.types import FunctionTest

_LITERALS = {"__builtins__": {}, "inf": math.inf, "nan": math.nan, "set": set, "frozenset": frozenset}
_HUMAN_EVAL_ROOT_ATOL = 1e-4


@dataclasses.dataclass(frozen=True)
class FunctionTask:
    """A function problem. `solution` is a whole program, prompt included. `public` has a test per assert shown."""

    name: str
    prompt: str
    entry_point: str
    solution: str
    public: tuple[FunctionTest, ...]
    plus: FunctionTest


def task(row: Mapping[str, Any]) -> FunctionTask:
    """A task from a line of HumanEvalPlus-OriginFmt or MbppPlus-OriginFmt. ValueError for another form."""
    tree = ast.parse(row["test"])
    values = _assigned(tree)
    if "entry_point" in row:
        name, entry_point = row["task_id"], row["entry_point"]
        solution = row["prompt"] + row["canonical_solution"]
        shown: list[str] = []
    else:
        name, solution, shown = f"Mbpp/{row['task_id']}", row["code"], list(row["test_list"])
        entry_point = _called(tree)
    inputs = [tuple(arguments) for arguments in values["inputs"]]
    expected = values["results"] if "results" in values else _reference(solution, entry_point, inputs)
    compare, atol = _comparison(row["test"], tree)
    if compare == "root":
        atol = _HUMAN_EVAL_ROOT_ATOL
    public = [_assert_test(text, entry_point) for text in shown]
    return FunctionTask(
        name,
        row["prompt"],
        entry_point,
        solution,
        tuple(test for test in public if test is not None),
        FunctionTest(entry_point, tuple(inputs), tuple(expected), atol, compare),
    )


def _assigned(tree: ast.AST) -> dict[str, Any]:
    """The values of `inputs` and `results`, wherever in the code they are assigned."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ("inputs", "results"):
                found[node.targets[0].id] = _value(node.value)
    if "inputs" not in found:
        raise ValueError("test code without inputs")
    return found


def _value(node: ast.expr) -> Any:
    """A literal's value; beyond `ast.literal_eval`, infinities and sets by name."""
    return eval(compile(ast.Expression(node), "<inputs>", "eval"), dict(_LITERALS))


def _called(tree: ast.AST) -> str:
    """The function that MBPP+'s loop calls: `assertion(NAME(*inp), ...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "assertion":
            if isinstance(node.args[0], ast.Call) and isinstance(node.args[0].func, ast.Name):
                return node.args[0].func.id
    raise ValueError("test code that calls no function")


def _comparison(text: str, tree: ast.AST) -> tuple[str, float]:
    """How results are compared (`execution.functions`), and the tolerance given."""
    if "_poly(" in text:
        return "root", 0.0
    atol = 0.0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "assertion":
            atol = float(_value(node.args[2]))
    if "out = set(out)" in text:
        return "set", atol
    return ("presence" if "exp == (out is not None)" in text else "equal"), atol


def _assert_test(text: str, entry_point: str) -> FunctionTest | None:
    """`assert f(1, 2) == 3` as a test; None for an assert of another form."""
    try:
        statement = ast.parse(text.strip()).body[0]
    except SyntaxError:
        return None
    if not isinstance(statement, ast.Assert) or not isinstance(statement.test, ast.Compare):
        return None
    left, right, compare = statement.test.left, statement.test.comparators[0], "equal"
    sets = _arguments(left, "set"), _arguments(right, "set")
    if all(sets):
        left, right, compare = sets[0][0], sets[1][0], "set"
    called_with = _arguments(left, entry_point)
    if not called_with or not isinstance(statement.test.ops[0], ast.Eq):
        return None
    try:
        arguments = tuple(map(_value, called_with))
        return FunctionTest(entry_point, (arguments,), (_value(right),), compare=compare, text=text)
    except NameError:
        return None


def _arguments(node: ast.expr, name: str) -> list[ast.expr]:
    """Those of a call of `name`; none if it is something else."""
    called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    return node.args if called and isinstance(node, ast.Call) else []


def _reference(solution: str, entry_point: str, inputs: list[tuple[Any, ...]]) -> list[Any]:
    """What the reference solution, part of the data set, returns."""
    names: dict[str, Any] = {}
    exec(compile(solution, "<reference>", "exec"), names)
    return [names[entry_point](*copy.deepcopy(arguments)) for arguments in inputs]
