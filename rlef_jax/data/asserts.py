"""Turns the published asserts of function problems into tests (`FunctionTest`).

An assert that compares a call with a literal is split into the call's arguments and the expected result. Any other
assert (`assert abs(f(x) - 2) < 1e-6`, `assert f(2) in (1, 2)`, a loop over random inputs) becomes a test with a
`check`: the assert itself, evaluated on the results of the program's calls (`execution.checks`). Running it on the
reference solution records which calls it makes. Other names that it uses come from the reference solution and the
test code, never from the program.

An assert that can't be judged from results alone is left out and counted: its arguments are objects of classes that the
program defines, it inspects arguments that the function changed, it expects an exception, or it runs a result as code.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from rlef_jax.data.literals import NoLiteralError, value
from rlef_jax.data.running import Reading, Run, values
from rlef_jax.execution.checks import checker
from rlef_jax.execution.functions import unknown_type
from rlef_jax.execution.results import Answer
from rlef_jax.types import FunctionTest

_RUN_CODE = frozenset({"eval", "exec", "compile", "__import__", "pickle", "marshal"})
_SIGNS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.NotEq: "!=", ast.Is: "is", ast.IsNot: "is not",
    ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tests:
    """The tests made from asserts, in order, and the number of asserts left out."""

    tests: tuple[FunctionTest, ...] = ()
    left_out: int = 0


@dataclasses.dataclass(frozen=True)
class _Case:
    """An assert, or a statement with asserts, that becomes a `check`.

    `names` are sources that define the names it uses, `code` is the statement, `text` is shown in prompts.
    """

    names: tuple[str, ...]
    code: ast.Module
    text: str


def check_tests(code: str, solution: str, entry_point: str) -> Reading[Tests]:
    """A test for each assert, and for each loop of asserts, of HumanEval's `def check(candidate)`, in order.

    Asserts that don't call the function give no test. Raises ValueError if the reference solution fails.
    """
    module = ast.parse(code)
    check = next((n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == "check"), None)
    if check is None or not check.args.args:
        raise ValueError("its test code has no function check(candidate)")
    called = check.args.args[0].arg
    rest = ast.Module([node for node in module.body if node is not check], [])
    names = solution, ast.unparse(_AssertsAsCalls().visit(rest))
    cases: list[FunctionTest | _Case] = []
    preamble: list[ast.stmt] = []  # statements without asserts, which later ones may depend on
    for node in check.body:
        direct, text = _direct_test(node, called, entry_point), _shown_text(code, node, called, entry_point)
        if direct is not None:
            cases.append(dataclasses.replace(direct, text=text))
        elif not _is_test(node, called):
            preamble.append(node)
        elif not (isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant)):
            single_check = copy.deepcopy(check)
            single_check.body = copy.deepcopy([*preamble, node])
            call = ast.Expr(ast.Call(ast.Name(single_check.name), [ast.Name(entry_point)], []))
            cases.append(_Case(names, ast.Module([single_check, call], []), text))
    return (yield from _resolve(cases, entry_point))


def listed_tests(asserts: Sequence[str], solution: str, entry_point: str, setup: str = "") -> Reading[Tests]:
    """A test for each of MBPP's asserts (`test_list`), shown unchanged. Asserts that don't call the function give none.

    Raises ValueError if the reference solution fails.
    """
    cases: list[FunctionTest | _Case] = []
    broken = 0
    for text in map(str.strip, asserts):
        try:
            code = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            broken += 1
            continue
        direct = _direct_test(code.body[0], entry_point, entry_point) if len(code.body) == 1 else None
        case = _Case((solution, setup), code, text)
        cases.append(case if direct is None else dataclasses.replace(direct, text=text))
    decided = yield from _resolve(cases, entry_point)
    return dataclasses.replace(decided, left_out=decided.left_out + broken)


def _resolve(candidates: Sequence[FunctionTest | _Case], entry_point: str) -> Reading[Tests]:
    """Tests from direct comparisons and cases, in order.

    Each case first runs with the reference solution, which records its calls, then alone on the recorded results. It
    becomes a test only if it passes the second time too: otherwise its outcome depends on more than those results.
    """
    cases = {
        i: (*c.names, _checked_source(c.code))
        for i, c in enumerate(candidates)
        if isinstance(c, _Case) and not _runs_code(c)
    }
    if not cases:
        return Tests(
            tuple(t for t in candidates if isinstance(t, FunctionTest)), sum(isinstance(t, _Case) for t in candidates)
        )
    results = yield [Run(checker(), "record", ((case, entry_point),)) for case in cases.values()]
    recorded = {
        i: _recorded_calls(*values(result, "its reference solution")) for i, result in zip(cases, results, strict=True)
    }
    judged = {i: calls for i, calls in recorded.items() if calls}
    answers = yield [Run(checker(), "verdict", ((cases[i], entry_point, calls),)) for i, calls in judged.items()]
    holds = {i: isinstance(r, Answer) and r.values == (["passed"],) for i, r in zip(judged, answers, strict=True)}
    tests, left_out = [], 0
    for i, test in enumerate(candidates):
        if isinstance(test, FunctionTest):
            tests.append(test)
        elif holds.get(i):
            arguments = () if any(named for _, named, _ in judged[i]) else tuple(tuple(a) for a, _, _ in judged[i])
            tests.append(FunctionTest(entry_point, arguments, (), text=test.text, check=cases[i]))
        else:
            left_out += recorded.get(i) != []  # []: it doesn't call the function, so it is no test of it
    return Tests(tuple(tests), left_out)


def _recorded_calls(answer: list[Any]) -> list[list[Any]] | None:
    """The calls in an answer of `checker.record`; None if the assert can't be judged from results alone.

    Raises ValueError if the reference solution itself fails.
    """
    kind, detail = answer
    if kind == "failed":
        raise ValueError(f"its reference solution fails its own asserts: {detail}")
    if kind == "raised":
        raise ValueError(f"its reference solution fails: {detail}")
    return None if kind == "other" or any(unknown_type(arguments) for *arguments, _ in detail) else detail


def _direct_test(node: ast.stmt, called: str, entry_point: str) -> FunctionTest | None:
    """`assert f(1, 2) == 3`, `assert set(f(1)) == set([1])`, `assert not f(1)` as tests; None for another form."""
    if not isinstance(node, ast.Assert):
        return None
    claim, negated = node.test, False
    if isinstance(claim, ast.UnaryOp) and isinstance(claim.op, ast.Not):
        claim, negated = claim.operand, True
    try:
        if (arguments := _arguments(claim, called)) is not None:
            return FunctionTest(entry_point, (tuple(map(value, arguments)),), (not negated,), compare="truth")
        if negated or not isinstance(claim, ast.Compare) or [type(op) for op in claim.ops] != [ast.Eq]:
            return None
        left, right, compare = claim.left, claim.comparators[0], "equal"
        sets = _arguments(left, "set"), _arguments(right, "set")
        if all(sets) and sets[0] and sets[1]:
            left, right, compare = sets[0][0], sets[1][0], "set"
        if (arguments := _arguments(left, called)) is None:
            return None
        return FunctionTest(entry_point, (tuple(map(value, arguments)),), (value(right),), compare=compare)
    except NoLiteralError:
        return None


def _arguments(node: ast.expr, name: str) -> list[ast.expr] | None:
    """The positional arguments of a call of `name`; None for another expression or a call with keyword arguments."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != name:
        return None
    return None if node.keywords else node.args


def _is_test(node: ast.stmt, called: str) -> bool:
    """Whether a statement tests the function, rather than preparing for later statements."""
    calls_it = any(isinstance(n, ast.Name) and n.id == called for n in ast.walk(node))
    asserts = any(isinstance(n, ast.Assert) for n in ast.walk(node))
    return not isinstance(node, ast.FunctionDef) and (asserts or (isinstance(node, ast.Expr) and calls_it))


def _runs_code(case: _Case) -> bool:
    """Whether an assert might run a result as code: then a program could write its own verdict."""
    return any(isinstance(node, ast.Name) and node.id in _RUN_CODE for node in ast.walk(case.code))


class _AssertsAsCalls(ast.NodeTransformer):
    """Replaces asserts by calls of `execution.checker`'s functions, which report the values that differ."""

    def visit_Assert(self, node: ast.Assert) -> ast.Expr:
        """The call that replaces an assert. The assert's message is dropped: it could reveal hidden values."""
        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            operands = [test.left, test.comparators[0]]
            if isinstance(test.ops[0], ast.Eq):
                return _call("_equal_", operands)
            return _call("_compared_", [ast.Constant(_SIGNS[type(test.ops[0])]), *operands])
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return _call("_false_", [test.operand])
        return _call("_true_", [test])


def _call(name: str, arguments: list[ast.expr]) -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(name), arguments, []))


def _checked_source(code: ast.Module) -> str:
    return ast.unparse(_AssertsAsCalls().visit(copy.deepcopy(code)))


def _shown_text(code: str, node: ast.stmt, called: str, entry_point: str) -> str:
    """A statement's source as prompts show it: an assert without its message, the function under its own name."""
    if isinstance(node, ast.Assert):
        text = f"assert {ast.get_source_segment(code, node.test) or ast.unparse(node.test)}"
    else:
        first, *rest = (ast.get_source_segment(code, node) or ast.unparse(node)).split("\n")
        text = "\n".join([first, *(line[min(node.col_offset, len(line) - len(line.lstrip())) :] for line in rest)])
    return re.sub(rf"\b{called}\b", entry_point, text)
