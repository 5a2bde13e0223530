"""The program in a response: the last complete fenced block tagged python, else the last complete one (ours).

A fence is a line of three or more backticks, as in CommonMark. A second opening fence with a tag inside an open
block means that the writer began anew: the first block is not complete. If no line is a fence, blocks written
within a line (as the format sentence itself writes one) are looked for.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

from rlef_jax.types import Problem

_FENCE = re.compile(r"^([ \t]*)(`{3,})[ \t]*([^\s`]*)[^`]*$")
_INLINE = re.compile(r"```(?:(python3?|py)\b)?(.*?)```", re.DOTALL | re.IGNORECASE)
_TAGS = frozenset({"python", "python3", "py"})


def extract_code(text: str) -> str | None:
    """The program in `text`, or None if there is no complete fenced block with anything in it."""
    blocks = [block for block in _fenced_blocks(text) or _inline_blocks(text) if block[1].strip()]
    tagged = [code for tag, code in blocks if tag.lower() in _TAGS]
    if tagged:
        return tagged[-1]
    return blocks[-1][1] if blocks else None


def program_of(problem: Problem, response: str) -> str | None:
    """The program that a response submits, or None if it holds none.

    Where responses begin with a given text (`problem.start`, HumanEval's prompt) the response goes on from there
    without a fence, and the program is both together; see `continued`. Elsewhere it is in a fenced block.
    """
    return continued(problem.start, response) if problem.start else extract_code(response)


def framed(problem: Problem, program: str | None) -> str | None:
    """What the judge runs of a program: itself, or with what the benchmark puts around it (`problem.frame`)."""
    if program is None or not problem.frame:
        return program
    before, after = problem.frame
    return before + program + after


def continued(start: str, response: str) -> str | None:
    """`start` and what a response goes on with, or None for a blank one. Ours: the paper says no more than that.

    Models don't stop at the end of a function: they close a fence that nobody opened, explain, or begin anew in a
    fenced block. Taken is the first of these that parses: the whole response; what stands before the first fence; the
    longest part that ends before a line without indentation; the program in a fenced block, below `start`. If none
    does, it is what stands before the first fence.
    """
    if not response.strip():
        return None
    for part in _parts(response):
        if part.strip() and _parses(start + part):
            return start + part
    head = _before_fence(response)
    return start + (head if head.strip() else response)


def _parts(response: str) -> Iterator[str]:
    yield response
    head = _before_fence(response)
    yield head
    lines = head.splitlines(keepends=True)
    for end in range(len(lines) - 1, 0, -1):
        if lines[end].strip() and not lines[end][0].isspace():
            yield "".join(lines[:end])
    if (block := extract_code(response)) is not None:
        yield "\n" + block


def _before_fence(text: str) -> str:
    lines = text.splitlines(keepends=True)
    fence = next((i for i, line in enumerate(lines) if _FENCE.match(line.rstrip("\n"))), len(lines))
    return "".join(lines[:fence])


def _parses(program: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a program's own odd escapes
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(tag, content) of each complete block, in order."""
    blocks: list[tuple[str, str]] = []
    opening: re.Match[str] | None = None
    content: list[str] = []
    for line in text.split("\n"):
        fence = _FENCE.match(line)
        if fence is None:
            content.append(line)
        elif opening is None or (fence[3] and len(fence[2]) >= len(opening[2])):
            opening, content = fence, []
        elif len(fence[2]) >= len(opening[2]):
            indent = len(opening[1])
            blocks.append((opening[3], "\n".join(_outdent(line, indent) for line in content)))
            opening = None
        else:  # a shorter run of backticks is part of the block
            content.append(line)
    return blocks


def _outdent(line: str, indent: int) -> str:
    """Takes at most `indent` leading blanks away: a fence within a list item indents its whole block."""
    blanks = len(line) - len(line.lstrip(" \t"))
    return line[min(blanks, indent) :]


def _inline_blocks(text: str) -> list[tuple[str, str]]:
    return [(match[1] or "", match[2].strip()) for match in _INLINE.finditer(text)]
