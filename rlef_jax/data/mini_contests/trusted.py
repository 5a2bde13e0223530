"""Runs our own generated programs in this process, thousands per second, to make tests and dialogues.

Never use it for a model's programs: those run in the sandboxed pool (`rlef_jax.execution`).
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import sys
from types import CodeType
from typing import Any

from rlef_jax.execution.traceback_text import format_exception


@dataclasses.dataclass(frozen=True)
class TrustedResult:
    """What a program printed, and the text of its exception ("" if it had none)."""

    output: str
    error: str


@functools.lru_cache(maxsize=4096)
def _compiled(program: str) -> CodeType:
    return compile(program, "solution.py", "exec")


def run_trusted(program: str, text: str, *, guard: bool = False) -> TrustedResult:
    """Runs `program` with `text` as standard input. Of input and output it may use only `input` and `print`.

    Args:
      guard: stop endless programs with an `Endless` exception (makes programs 20 times slower).
    """
    return run_readings(program, ("",), text, guard=guard)[0]


def run_readings(prefix: str, tails: tuple[str, ...], text: str, *, guard: bool = False) -> list[TrustedResult]:
    """Runs programs that differ in their last lines only: `prefix` once, then each of `tails` with its variables."""
    lines = iter(text.split("\n"))
    printed: list[str] = []

    def read() -> str:
        for line in lines:
            return line
        raise EOFError("EOF when reading a line")

    def show(*values: object) -> None:
        printed.append(" ".join(map(str, values)) + "\n")

    scope = {"__name__": "__main__", "__builtins__": {**_BUILTINS, "input": read, "print": show}}
    if guard:
        sys.settrace(_line_counter())
    try:
        exec(_compiled(prefix), scope)
        results = []
        for tail in tails:
            if tail:
                exec(_compiled(tail), dict(scope))
            results.append(TrustedResult("".join(printed), ""))
            printed.clear()
        return results
    except Exception as error:
        sys.settrace(None)  # otherwise the lines of format_exception would count too
        return [TrustedResult("".join(printed), format_exception(error, prefix))] * len(tails)
    finally:
        sys.settrace(None)


_BUILTINS = vars(builtins)
_MAX_LINES = 2000


class Endless(Exception):
    """Raised inside a program that has executed more lines than any correct program of ours needs."""


def _line_counter() -> Any:
    left = _MAX_LINES

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Endless
        return trace

    return trace
