"""Asserts of function problems, taken apart into calls and expected results (`FunctionTest`).

An assert that compares a call with a literal is read. Of any other one (`assert abs(f(x) - 2) < 1e-6`, a loop over
random inputs) the reference solution, which is part of the data set, is run in this process: its calls are recorded,
and what it returned is what is expected. Random inputs are drawn from a fixed seed.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import math
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlef_jax.execution import calls
from rlef_jax.types import FunctionTest

LITERALS = {"__builtins__": {}, "inf": math.inf, "nan": math.nan, "set": set, "frozenset": frozenset}
MOST_OF_A_LOOP = 5  # calls made by a loop that become tests: their asserts are shown to the model one by one
_MOST_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class _Call:
    line: int
    arguments: tuple[Any, ...]
    result: Any


def value(node: ast.expr) -> Any:
    """A literal's value; beyond `ast.literal_eval`, infinities and sets by name, and arithmetic."""
    return eval(compile(ast.Expression(node), "<inputs>", "eval"), dict(LITERALS))


def reference(solution: str, entry_point: str) -> Callable[..., Any]:
    """The reference solution's function. It may change its arguments: give it copies."""
    names: dict[str, Any] = {}
    exec(compile(solution, "<reference>", "exec"), names)
    return names[entry_point]


def check_tests(code: str, solution: str, entry_point: str) -> tuple[FunctionTest, ...]:
    """A test for each assert of HumanEval's `def check(candidate)`, in order, and for the first calls of each loop.

    Asserts that don't call the function, and calls with anything but plain data, make none.
    """
    check = next(n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == "check")
    parsed = {n.lineno: _compared(n, "candidate", entry_point) for n in check.body if isinstance(n, ast.Assert)}
    recorded: list[_Call] = []
    if any(test is None for test in parsed.values()) or any(isinstance(n, ast.For) for n in check.body):
        recorded = _recorded(code, solution, entry_point, lambda names, call: names["check"](call))
    tests: list[FunctionTest] = []
    for node in check.body:
        known = parsed.get(node.lineno)
        if known is not None:
            text = f"assert {_source(code, node, entry_point)}"
            tests.append(dataclasses.replace(known, text=text))
            continue
        made = [c for c in recorded if node.lineno <= c.line <= (node.end_lineno or node.lineno)]
        if isinstance(node, ast.Assert) and len(made) == 1:
            tests += _plain(made, entry_point, f"assert {_source(code, node, entry_point)}")
        else:
            tests += _plain(made[:MOST_OF_A_LOOP], entry_point)
    return tuple(tests)


def listed_tests(asserts: Sequence[str], solution: str, entry_point: str, setup: str = "") -> tuple[FunctionTest, ...]:
    """A test for each of MBPP's asserts (`test_list`) that calls the function once, with plain data; shown as it is."""
    tests: list[FunctionTest] = []
    for text in map(str.strip, asserts):
        try:
            node = ast.parse(text).body[0]
        except SyntaxError:
            continue
        known = _compared(node, entry_point, entry_point) if isinstance(node, ast.Assert) else None
        if known is not None:
            tests.append(dataclasses.replace(known, text=text))
            continue
        code = f"{setup}\n{text}"

        def run(names: dict[str, Any], call: Callable[..., Any], code: str = code) -> None:
            names[entry_point] = call
            exec(compile(code, "<assert>", "exec"), names)

        made = _recorded("", solution, entry_point, run)
        if len(made) == 1:
            tests += _plain(made, entry_point, text)
    return tuple(tests)


def _compared(node: ast.Assert, called: str, entry_point: str) -> FunctionTest | None:
    """`assert f(1, 2) == 3`, `assert set(f(1)) == set([1])`, `assert not f(1)` as tests; None for another form."""
    negated = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
    claim = node.test.operand if isinstance(node.test, ast.UnaryOp) and negated else node.test
    if said := _arguments(claim, called):
        try:
            arguments = tuple(map(value, said))
        except (NameError, TypeError):
            return None
        return FunctionTest(entry_point, (arguments,), (not negated,), compare="truth")
    if not isinstance(node.test, ast.Compare) or len(node.test.ops) != 1 or not isinstance(node.test.ops[0], ast.Eq):
        return None
    left, right, compare = node.test.left, node.test.comparators[0], "equal"
    sets = _arguments(left, "set"), _arguments(right, "set")
    if all(sets):
        left, right, compare = sets[0][0], sets[1][0], "set"
    called_with = _arguments(left, called)
    if not called_with:
        return None
    try:
        arguments = tuple(map(value, called_with))
        return FunctionTest(entry_point, (arguments,), (value(right),), compare=compare)
    except (NameError, TypeError):
        return None


def _arguments(node: ast.expr, name: str) -> list[ast.expr]:
    """Those of a call of `name`; none if it is something else."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != name:
        return []
    return [] if node.keywords else node.args


def _recorded(
    code: str, solution: str, entry_point: str, run: Callable[[dict[str, Any], Callable[..., Any]], None]
) -> list[_Call]:
    """The calls that `run` makes of the reference solution; `code` is run first, in the same names."""
    names: dict[str, Any] = {}
    exec(compile(solution, "<reference>", "exec"), names)
    function, made = names[entry_point], list[_Call]()

    def call(*arguments: Any) -> Any:
        given = copy.deepcopy(arguments)
        result = function(*arguments)
        made.append(_Call(sys._getframe(1).f_lineno, given, copy.deepcopy(result)))
        return result

    before = random.getstate()
    random.seed(0)
    try:
        apart = dict(names)  # a reference that calls itself is not recorded
        exec(compile(code, "<asserts>", "exec"), apart)
        run(apart, call)
    except AssertionError as error:
        raise ValueError(f"the reference solution fails its own asserts: {error}") from error
    finally:
        random.setstate(before)
    return made


def _plain(made: Sequence[_Call], entry_point: str, text: str = "") -> Iterator[FunctionTest]:
    for call in made:
        try:
            sent = calls.decode(calls.encode([list(call.arguments), call.result], _MOST_BYTES))
        except calls.CodecError:
            continue
        if _opaque(sent):
            continue
        shown = text or f"assert {entry_point}({', '.join(map(repr, call.arguments))}) == {call.result!r}"
        yield FunctionTest(entry_point, (call.arguments,), (call.result,), text=shown)


def _opaque(sent: Any) -> bool:
    if isinstance(sent, dict):
        return any(map(_opaque, (*sent, *sent.values())))
    return isinstance(sent, calls.Opaque) or (
        isinstance(sent, (list, tuple, set, frozenset)) and any(map(_opaque, sent))
    )


def _source(code: str, node: ast.stmt, entry_point: str) -> str:
    """What an assert says, without its message, with the function's own name."""
    assert isinstance(node, ast.Assert)
    segment = ast.get_source_segment(code, node.test) or ast.unparse(node.test)
    return re.sub(r"\bcandidate\b", entry_point, segment)
