"""Right programs of problems, for a repairer to learn (B.4): a data set's solutions that pass, evenly indented."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Sequence

from rlef_jax.errors import RunError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for
from rlef_jax.types import Limits, Problem, Status


class RightPrograms:
    """The solutions of problems that pass all of their tests, public and hidden, as the judge finds them.

    The paper makes sure of that, and unifies their indentation (B.4). A problem is judged once.
    """

    def __init__(self, pool: ExecutionPool, limits: Limits, max_wall_s: float | None = None) -> None:
        """`limits` are of a test whose problem has none of its own; `max_wall_s` caps its time (seconds)."""
        self._pool, self._limits, self._max_wall_s = pool, limits, max_wall_s
        self._known: dict[tuple[str, str], tuple[str, ...]] = {}

    def judge(self, problems: Sequence[Problem]) -> None:
        """Runs the solutions of those that haven't been judged, all at a time.

        Raises RunError where the judge broke on a solution, which says nothing about it.
        """
        fresh = {_key(problem): problem for problem in problems if _key(problem) not in self._known}
        running = {}
        for key, problem in fresh.items():
            limits = limits_for(problem, self._limits, self._max_wall_s)
            programs = list(dict.fromkeys(evenly_indented(solution) for solution in problem.solutions))
            running[key] = [
                (p, self._pool.run(p, problem.tests, limits, stop_at_first_failure=True, frame=problem.frame))
                for p in programs
            ]
        for key, started in running.items():
            passed = []
            for program, future in started:
                statuses = {result.status for result in future.result()}
                if Status.INFRA_ERROR in statuses:
                    raise RunError(f"the judge broke on a solution of {fresh[key].name!r}: run it again")
                if statuses <= {Status.PASSED}:
                    passed.append(program)
            self._known[key] = tuple(passed)

    def of(self, problem: Problem) -> tuple[str, ...]:
        """The right programs of a problem that has been judged; () for none."""
        return self._known[_key(problem)]


def _key(problem: Problem) -> tuple[str, str]:
    return problem.name, problem.description


def evenly_indented(program: str) -> str:
    """A program with four spaces for each level; as it is where it doesn't parse, or would mean something else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # published solutions have invalid escape sequences
        try:
            before = ast.dump(ast.parse(program))
            changed = "".join(_indented(program.splitlines(keepends=True)))
            return changed if ast.dump(ast.parse(changed)) == before else program
        except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
            return program


def _indented(lines: list[str]) -> list[str]:
    """The lines with those that begin a statement, or hold a comment alone, at four spaces for each level.

    Lines inside of brackets and of strings stay as they are. A comment is at the level of the statement that it was
    indented as, of those around it; else at that of the next one.
    """
    lines, level, begins = list(lines), 0, True
    levels: dict[str, int] = {}  # by white space, those that are open
    comments: list[int] = []  # numbers of the lines since the last statement
    for token in tokenize.generate_tokens(io.StringIO("".join(lines)).readline):
        number = token.start[0] - 1
        if token.type == tokenize.INDENT:
            level += 1
        elif token.type == tokenize.DEDENT:
            level -= 1
        elif token.type == tokenize.NEWLINE:
            begins = True
        elif token.type == tokenize.COMMENT and begins:
            comments.append(number)
        elif token.type != tokenize.NL and begins:
            levels[_white(lines[number]) if number < len(lines) else ""] = level
            for comment in comments:
                _place(lines, comment, levels.get(_white(lines[comment]), level))
            if number < len(lines):
                _place(lines, number, level)
            comments, begins = [], False
            levels = {white: open_level for white, open_level in levels.items() if open_level <= level}
    return lines


def _white(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t\f"))]


def _place(lines: list[str], number: int, level: int) -> None:
    """Puts a line, counted from 0, at a level."""
    lines[number] = "    " * level + lines[number].lstrip(" \t\f")
