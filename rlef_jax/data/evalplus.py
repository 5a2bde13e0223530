"""HumanEval+ and MBPP+, HumanEval and MBPP: problems from the lines of their published files.

EvalPlus's test code (`OriginFmt` files) is taken apart, not run: inputs, results, tolerance and the way to compare are
read off it. Only a reference solution is run, in this process, where test code calls it for the expected results.

| set | public tests | hidden tests |
| --- | --- | --- |
| HumanEval+ | HumanEval's asserts, one by one | all plus inputs |
| MBPP+ | `test_list`, one by one | all plus inputs |
| HumanEval | its asserts, one by one | the same |
| MBPP | `test_list`, one by one | the same |
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from rlef_jax.data.asserts import check_tests, listed_tests, reference, value
from rlef_jax.types import FunctionTest, Problem

_HUMAN_EVAL_ROOT_ATOL = 1e-4
_CALLS = (
    10  # of a plus test's calls go into one of ours, whose time limit is for these: EvalPlus gives each call its own
)
_MEMORY_BYTES = 4 << 30  # EvalPlus's own limit (its docs/execution.md); HumanEval and MBPP have none


def problem(row: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Problem:
    """A problem from a line of HumanEvalPlus-OriginFmt, MbppPlus-OriginFmt, HumanEval or (sanitized) MBPP.

    Args:
      row: the line.
      base: for HumanEval+, whose OriginFmt file has no base tests: the same task's line in HumanEval's file, or in
        HumanEvalPlus.jsonl. Without it there are no public tests.

    Raises:
      ValueError: a line of another form, or one none of whose asserts could be taken apart.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of the solutions' own odd escapes
            return _human_eval(row, base) if "entry_point" in row else _mbpp(row)
    except KeyError as missing:
        raise ValueError(f"{row.get('task_id')}: no {missing} in its line") from missing


def _human_eval(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> Problem:
    entry_point, prompt = row["entry_point"], row["prompt"]
    solution = prompt + row["canonical_solution"]
    plus = _is_plus(row["test"])
    check = row["test"] if not plus else "" if base is None else base["test"]
    public = check_tests(check, solution, entry_point) if check else ()
    if "poly(" in check:  # other roots than the reference's are right too
        public = tuple(dataclasses.replace(t, atol=_HUMAN_EVAL_ROOT_ATOL, compare="root") for t in public)
    hidden = _plus_tests(row["test"], solution, entry_point) if plus else public
    if not hidden:
        raise ValueError(f"{row['task_id']}: none of its asserts could be taken apart")
    return Problem(
        row["task_id"], prompt, public, hidden, solutions=(solution,), tags={"entry_point": entry_point},
        style="human_eval", start=prompt, memory_limit_bytes=_MEMORY_BYTES if plus else None,
    )  # fmt: skip


def _mbpp(row: Mapping[str, Any]) -> Problem:
    name, solution = f"Mbpp/{row['task_id']}", row["code"]
    plus = _is_plus(row.get("test", ""))
    entry_point = _called(ast.parse(row["test"])) if plus else _tested(row["test_list"], solution)
    setup = "\n".join(row.get("test_imports", ())) or row.get("test_setup_code", "")
    public = listed_tests(row["test_list"], solution, entry_point, setup)
    hidden = _plus_tests(row["test"], solution, entry_point) if plus else public
    if not hidden:
        raise ValueError(f"{name}: none of its asserts could be taken apart")
    return Problem(
        name, row["prompt"] if "prompt" in row else row["text"], public, hidden, solutions=(solution,),
        tags={"entry_point": entry_point}, style="mbpp", shown_tests=tuple(row["test_list"][:1]),
        memory_limit_bytes=_MEMORY_BYTES if plus else None,
    )  # fmt: skip


def _is_plus(test: str) -> bool:
    """Whether this is EvalPlus's test code: a list of inputs and a loop."""
    return "def assertion(" in test or "assert _poly(" in test


def _plus_tests(code: str, solution: str, entry_point: str) -> tuple[FunctionTest, ...]:
    """The calls of EvalPlus's test code, in its order, `_CALLS` to a test."""
    tree = ast.parse(code)
    values = _assigned(tree)
    inputs = [tuple(arguments) for arguments in values["inputs"]]
    if "results" in values:
        expected = values["results"]
    else:
        function = reference(solution, entry_point)
        expected = [function(*copy.deepcopy(arguments)) for arguments in inputs]
    compare, atol = _comparison(code, tree)
    return tuple(
        FunctionTest(entry_point, tuple(inputs[at : at + _CALLS]), tuple(expected[at : at + _CALLS]), atol, compare)
        for at in range(0, len(inputs), _CALLS)
    )


def _assigned(tree: ast.AST) -> dict[str, Any]:
    """The values of `inputs` and `results`, wherever in the code they are assigned."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ("inputs", "results"):
                found[node.targets[0].id] = value(node.value)
    if "inputs" not in found:
        raise ValueError("test code without inputs")
    return found


def _called(tree: ast.AST) -> str:
    """The function that MBPP+'s loop calls: `assertion(NAME(*inp), ...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "assertion":
            if isinstance(node.args[0], ast.Call) and isinstance(node.args[0].func, ast.Name):
                return node.args[0].func.id
    raise ValueError("test code that calls no function")


def _tested(asserts: list[str], solution: str) -> str:
    """The function of the solution that MBPP's asserts call."""
    own = {node.name for node in ast.parse(solution).body if isinstance(node, ast.FunctionDef)}
    for text in asserts:
        for node in ast.walk(ast.parse(text.strip())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in own:
                return node.func.id
    raise ValueError("asserts that call no function of the solution")


def _comparison(text: str, tree: ast.AST) -> tuple[str, float]:
    """How results are compared (`execution.functions`), and the tolerance given."""
    if "_poly(" in text:
        return "root", _HUMAN_EVAL_ROOT_ATOL
    atol = 0.0
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "assertion":
            atol = float(value(node.args[2]))
    if "out = set(out)" in text:
        return "set", atol
    return ("presence" if "exp == (out is not None)" in text else "equal"), atol
