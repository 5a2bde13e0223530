"""HumanEval+, MBPP+, HumanEval and MBPP: problems from the lines of their published files.

EvalPlus's test code (`OriginFmt` files) is parsed, not run: inputs, results, tolerance and comparison are read from its
syntax tree. Where it computes expected results with the reference solution, that solution runs in the judge.

| set | public tests | hidden tests |
| --- | --- | --- |
| HumanEval+ | HumanEval's asserts, one by one | all plus inputs |
| MBPP+ | `test_list`, one by one | all plus inputs |
| HumanEval | its asserts, one by one | the same |
| MBPP | `test_list`, one by one | the same |
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlef_jax.data.asserts import Tests, check_tests, listed_tests
from rlef_jax.data.literals import value
from rlef_jax.data.missing_tests import LEFT_OUT
from rlef_jax.data.running import Reading, Run, Runner, finished, values
from rlef_jax.execution.functions import unknown_type
from rlef_jax.types import FunctionTest, Problem

_HUMAN_EVAL_ROOT_ATOL = 1e-4
# Calls of a plus test that are grouped into one of our tests, which share its time limit (EvalPlus limits each call).
_CALLS = 10
_MEMORY_BYTES = 4 << 30  # EvalPlus's own limit (in its documentation); HumanEval and MBPP have none


def problems(rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]], runner: Runner) -> list[Problem]:
    """The problems of (row, base) pairs (see `problem`). Their reference solutions run concurrently in `runner`."""
    return finished([problem(row, base) for row, base in rows], runner)


def problem(row: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> Reading[Problem]:
    """A problem from a line of HumanEvalPlus-OriginFmt, MbppPlus-OriginFmt, HumanEval or (sanitized) MBPP.

    Args:
      row: the line.
      base: for HumanEval+, whose OriginFmt file has no base tests: the same task's line in HumanEval's file, or in
        HumanEvalPlus.jsonl. Without it the problem has no public tests.

    Raises:
      ValueError: the line has another format, or the reference solution fails; the message names the task.
    """
    name = row.get("task_id")
    try:
        return (yield from _human_eval(row, base) if "entry_point" in row else _mbpp(row))
    except KeyError as missing:
        raise ValueError(f"{name}: no {missing} in its line") from missing
    except (ValueError, TypeError, LookupError, AttributeError, SyntaxError, RecursionError, MemoryError) as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name if 'entry_point' in row else f'Mbpp/{name}'}: {line}") from error


def _human_eval(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> Reading[Problem]:
    entry_point, prompt = row["entry_point"], row["prompt"]
    solution = prompt + row["canonical_solution"]
    plus = _is_plus(row["test"])
    check = row["test"] if not plus else "" if base is None else base["test"]
    public = (yield from check_tests(check, solution, entry_point)) if check else Tests()
    hidden = (
        (yield from _plus_tests(row["test"], ast.parse(row["test"]), solution, entry_point)) if plus else public.tests
    )
    return Problem(
        row["task_id"], prompt, public.tests, hidden, solutions=(solution,), tags=_tags(entry_point, public),
        style="human_eval", start=prompt, memory_limit_bytes=_MEMORY_BYTES if plus else None,
    )  # fmt: skip


def _mbpp(row: Mapping[str, Any]) -> Reading[Problem]:
    solution = row["code"]
    plus = _is_plus(row.get("test", ""))
    tree = ast.parse(row["test"]) if plus else ast.Module([], [])
    entry_point = _called(tree) if plus else _tested(row["test_list"], solution)
    setup = "\n".join(row.get("test_imports", ())) or row.get("test_setup_code", "")
    public = yield from listed_tests(row["test_list"], solution, entry_point, setup)
    hidden = (yield from _plus_tests(row["test"], tree, solution, entry_point)) if plus else public.tests
    return Problem(
        f"Mbpp/{row['task_id']}", row["prompt"] if "prompt" in row else row["text"], public.tests, hidden,
        solutions=(solution,), tags=_tags(entry_point, public), style="mbpp", shown_tests=tuple(row["test_list"][:1]),
        memory_limit_bytes=_MEMORY_BYTES if plus else None,
    )  # fmt: skip


def _tags(entry_point: str, public: Tests) -> dict[str, Any]:
    return {"entry_point": entry_point} | ({LEFT_OUT: public.left_out} if public.left_out else {})


def _is_plus(test: str) -> bool:
    """Whether this is EvalPlus's test code: a list of inputs and a loop."""
    return "def assertion(" in test or "assert _poly(" in test


def _plus_tests(code: str, tree: ast.Module, solution: str, entry_point: str) -> Reading[tuple[FunctionTest, ...]]:
    """The calls of EvalPlus's test code in order, `_CALLS` per test."""
    assigned = _assigned(tree)
    inputs = [tuple(arguments) for arguments in assigned["inputs"]]
    starts = range(0, len(inputs), _CALLS)
    if "results" in assigned:
        expected = [tuple(assigned["results"][at : at + _CALLS]) for at in starts]
    else:
        runs = yield [Run(solution, entry_point, tuple(inputs[at : at + _CALLS])) for at in starts]
        expected = [values(result, "its reference solution") for result in runs]
        if name := unknown_type(expected):
            raise ValueError(f"its reference solution returns a value of type {name}, which nothing is equal to")
    compare, atol = _comparison(code, tree)
    return tuple(
        FunctionTest(entry_point, tuple(inputs[at : at + _CALLS]), results, atol, compare)
        for at, results in zip(starts, expected, strict=True)
    )


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements, nested ones too. Expressions aren't visited: a literal may have a million nodes."""
    for node in body:
        yield node
        for part in ("body", "orelse"):
            yield from _statements(getattr(node, part, ()))


def _assigned(tree: ast.Module) -> dict[str, Any]:
    """The values assigned to `inputs` and `results` anywhere in the code."""
    assigned = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id in ("inputs", "results"):
                assigned[node.targets[0].id] = value(node.value)
    if "inputs" not in assigned:
        raise ValueError("test code without inputs")
    return assigned


def _assertion(tree: ast.Module) -> ast.Call | None:
    """The call of `assertion(...)` in EvalPlus's loop; HumanEval/32 has none."""
    for node in _statements(tree.body):
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "assertion":
            return call
    return None


def _called(tree: ast.Module) -> str:
    """The function that MBPP+'s loop calls: `assertion(NAME(*inp), ...)`."""
    call = _assertion(tree)
    if call is not None and isinstance(call.args[0], ast.Call) and isinstance(call.args[0].func, ast.Name):
        return call.args[0].func.id
    raise ValueError("test code that calls no function")


def _tested(asserts: Sequence[str], solution: str) -> str:
    """The function of the solution that MBPP's asserts call."""
    try:
        defined = {node.name for node in ast.parse(solution).body if isinstance(node, ast.FunctionDef)}
    except SyntaxError as error:
        raise ValueError(f"its reference solution fails: {type(error).__name__}: {error}") from error
    for text in asserts:
        for node in (n for statement in _parsed(text.strip()) for n in ast.walk(statement)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
                return node.func.id
    raise ValueError("asserts that call no function of its reference solution")


def _parsed(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except SyntaxError:
        return []


def _comparison(text: str, tree: ast.Module) -> tuple[str, float]:
    """(comparison, absolute tolerance): a comparison of `execution.functions`."""
    if "_poly(" in text:
        return "root", _HUMAN_EVAL_ROOT_ATOL
    call = _assertion(tree)
    atol = float(value(call.args[2])) if call is not None else 0.0
    if "out = set(out)" in text:
        return "set", atol
    return ("presence" if "exp == (out is not None)" in text else "plus"), atol
