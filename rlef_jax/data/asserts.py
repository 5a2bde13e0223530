"""Asserts of function problems as tests (`FunctionTest`): what is judged is what the published assert says.

One that compares a call with a literal is taken apart into arguments and the expected result. Any other one (`assert
abs(f(x) - 2) < 1e-6`, `assert f(2) in (1, 2)`, a loop over random inputs) becomes a test with a `check`, which decides
by itself on the program's results (`execution.checks`). The reference solution says which calls it makes. Names that
such an assert uses beside the function are the reference's and the test code's own.

An assert that can't be judged on results alone is left out, and counted: its arguments are objects of classes that the
program defines, it looks at what the function does to its arguments, it expects an exception, it runs a result as code.
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
    """The tests that asserts became, in their order, and how many asserts were left out."""

    tests: tuple[FunctionTest, ...] = ()
    left_out: int = 0


@dataclasses.dataclass(frozen=True)
class _Case:
    """An assert, or a statement with asserts, that decides by itself: its names and its code, as `check` has them."""

    names: tuple[str, ...]
    code: ast.Module
    text: str


def check_tests(code: str, solution: str, entry_point: str) -> Reading[Tests]:
    """A test for each assert of HumanEval's `def check(candidate)`, and for each loop of asserts, in order.

    Asserts that don't call the function make none. Raises ValueError where the reference solution fails.
    """
    module = ast.parse(code)
    check = next((n for n in module.body if isinstance(n, ast.FunctionDef) and n.name == "check"), None)
    if check is None or not check.args.args:
        raise ValueError("its test code has no function check(candidate)")
    called = check.args.args[0].arg
    rest = ast.Module([node for node in module.body if node is not check], [])
    names = solution, ast.unparse(_Claims().visit(rest))
    found: list[FunctionTest | _Case] = []
    before: list[ast.stmt] = []  # statements that those behind them may build on
    for node in check.body:
        known, text = _compared(node, called, entry_point), _source(code, node, called, entry_point)
        if known is not None:
            found.append(dataclasses.replace(known, text=text))
        elif not _judges(node, called):
            before.append(node)
        elif not (isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant)):
            own = copy.deepcopy(check)
            own.body = copy.deepcopy([*before, node])
            call = ast.Expr(ast.Call(ast.Name(own.name), [ast.Name(entry_point)], []))
            found.append(_Case(names, ast.Module([own, call], []), text))
    return (yield from _decided(found, entry_point))


def listed_tests(asserts: Sequence[str], solution: str, entry_point: str, setup: str = "") -> Reading[Tests]:
    """A test for each of MBPP's asserts (`test_list`), shown as it is; those that don't call the function make none.

    Raises ValueError where the reference solution fails.
    """
    found: list[FunctionTest | _Case] = []
    broken = 0
    for text in map(str.strip, asserts):
        try:
            code = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            broken += 1
            continue
        known = _compared(code.body[0], entry_point, entry_point) if len(code.body) == 1 else None
        case = _Case((solution, setup), code, text)
        found.append(case if known is None else dataclasses.replace(known, text=text))
    decided = yield from _decided(found, entry_point)
    return dataclasses.replace(decided, left_out=decided.left_out + broken)


def _decided(found: Sequence[FunctionTest | _Case], entry_point: str) -> Reading[Tests]:
    """The tests: each case with the calls that the reference makes of it, if it then says of their results, alone in
    its process, what it said of the reference."""
    cases = {i: (*c.names, _claims(c.code)) for i, c in enumerate(found) if isinstance(c, _Case) and not _runs_code(c)}
    if not cases:
        return Tests(tuple(t for t in found if isinstance(t, FunctionTest)), sum(isinstance(t, _Case) for t in found))
    made = yield [Run(checker(), "record", ((case, entry_point),)) for case in cases.values()]
    recorded = {i: _recorded(*values(result, "its reference solution")) for i, result in zip(cases, made, strict=True)}
    asked = {i: known for i, known in recorded.items() if known}
    said = yield [Run(checker(), "verdict", ((cases[i], entry_point, known),)) for i, known in asked.items()]
    holds = {i: isinstance(r, Answer) and r.values == (["passed"],) for i, r in zip(asked, said, strict=True)}
    tests, left_out = [], 0
    for i, test in enumerate(found):
        if isinstance(test, FunctionTest):
            tests.append(test)
        elif holds.get(i):
            made_calls = () if any(named for _, named, _ in asked[i]) else tuple(tuple(a) for a, _, _ in asked[i])
            tests.append(FunctionTest(entry_point, made_calls, (), text=test.text, check=cases[i]))
        else:
            left_out += recorded.get(i) != []  # what doesn't call the function is no test of it
    return Tests(tuple(tests), left_out)


def _recorded(said: list[Any]) -> list[list[Any]] | None:
    """The calls in an answer of `checker.record`; None where the assert can't be judged on results alone.

    Raises ValueError where the reference solution itself fails.
    """
    kind, told = said
    if kind == "failed":
        raise ValueError(f"its reference solution fails its own asserts: {told}")
    if kind == "raised":
        raise ValueError(f"its reference solution fails: {told}")
    return None if kind == "other" or any(unknown_type(arguments) for *arguments, _ in told) else told


def _compared(node: ast.stmt, called: str, entry_point: str) -> FunctionTest | None:
    """`assert f(1, 2) == 3`, `assert set(f(1)) == set([1])`, `assert not f(1)` as tests; None for another form."""
    if not isinstance(node, ast.Assert):
        return None
    claim, negated = node.test, False
    if isinstance(claim, ast.UnaryOp) and isinstance(claim.op, ast.Not):
        claim, negated = claim.operand, True
    try:
        if (said := _arguments(claim, called)) is not None:
            return FunctionTest(entry_point, (tuple(map(value, said)),), (not negated,), compare="truth")
        if negated or not isinstance(claim, ast.Compare) or [type(op) for op in claim.ops] != [ast.Eq]:
            return None
        left, right, compare = claim.left, claim.comparators[0], "equal"
        sets = _arguments(left, "set"), _arguments(right, "set")
        if all(sets) and sets[0] and sets[1]:
            left, right, compare = sets[0][0], sets[1][0], "set"
        if (said := _arguments(left, called)) is None:
            return None
        return FunctionTest(entry_point, (tuple(map(value, said)),), (value(right),), compare=compare)
    except NoLiteralError:
        return None


def _arguments(node: ast.expr, name: str) -> list[ast.expr] | None:
    """Those of a call of `name`, none of them named; None if it is something else."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != name:
        return None
    return None if node.keywords else node.args


def _judges(node: ast.stmt, called: str) -> bool:
    """Whether a statement says something of the function, rather than that others build on it."""
    calls_it = any(isinstance(n, ast.Name) and n.id == called for n in ast.walk(node))
    asserts = any(isinstance(n, ast.Assert) for n in ast.walk(node))
    return not isinstance(node, ast.FunctionDef) and (asserts or (isinstance(node, ast.Expr) and calls_it))


def _runs_code(case: _Case) -> bool:
    """Whether an assert might run a result as code: then a program could write its own verdict."""
    return any(isinstance(node, ast.Name) and node.id in _RUN_CODE for node in ast.walk(case.code))


class _Claims(ast.NodeTransformer):
    """Asserts as calls of what `execution.checker` has for them, which know the values that don't agree."""

    def visit_Assert(self, node: ast.Assert) -> ast.Expr:
        """The claim in an assert's place; its message is left out, since it may show what nobody is to see."""
        test = node.test
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            sides = [test.left, test.comparators[0]]
            if isinstance(test.ops[0], ast.Eq):
                return _call("_equal_", sides)
            return _call("_compared_", [ast.Constant(_SIGNS[type(test.ops[0])]), *sides])
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return _call("_false_", [test.operand])
        return _call("_true_", [test])


def _call(name: str, arguments: list[ast.expr]) -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(name), arguments, []))


def _claims(code: ast.Module) -> str:
    return ast.unparse(_Claims().visit(copy.deepcopy(code)))


def _source(code: str, node: ast.stmt, called: str, entry_point: str) -> str:
    """What a statement says, an assert without its message, with the function's own name."""
    if isinstance(node, ast.Assert):
        text = f"assert {ast.get_source_segment(code, node.test) or ast.unparse(node.test)}"
    else:
        first, *rest = (ast.get_source_segment(code, node) or ast.unparse(node)).split("\n")
        text = "\n".join([first, *(line[min(node.col_offset, len(line) - len(line.lstrip())) :] for line in rest)])
    return re.sub(rf"\b{called}\b", entry_point, text)
