"""The program in a response: the last complete fenced block tagged python, else the last complete one (ours).

Blocks are CommonMark's, of backticks or tildes: a fence ends a block only if it is of the block's kind, at least as
long and indented by less than four blanks, so that a fence in a docstring is part of the program. A block that doesn't
parse, with a further opening fence in it, is one whose writer began anew. If no line is a fence, blocks written within
a line (as the format sentence itself writes one) are looked for. What a model has thought counts for nothing: see
`answer`.
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Iterator

from markdown_it import MarkdownIt

from rlef_jax.types import Problem

_FENCE = re.compile(r" {0,3}(`{3,}[^`]*$|~{3,})")
_FENCE_AND_RETURN = re.compile(r"^([\s>]*(?:`{3,}[^`\n]*|~{3,}[^\n]*))\r$", re.MULTILINE)
_INDENTED_FENCE = re.compile(r"\s*(`{3,}[^`]*$|~{3,})")
_INLINE = re.compile(r"```(?:(python3?|py)\b)?(.*?)```", re.DOTALL | re.IGNORECASE)
_TAGS = frozenset({"python", "python3", "py"})
_THOUGHT_END = "</think>"
_THOUGHT = re.compile(r"^[ \t]*<think>", re.MULTILINE)
_DOES_SOMETHING = re.compile(r"^\s*(async\s+def|def|class)\b|\binput\s*\(|\bstdin\b|\bopen\s*\(", re.MULTILINE)


def extract_code(text: str) -> str | None:
    """The program in `text`, or None if there is no complete fenced block with anything in it."""
    blocks = _blocks(answer(text))
    return blocks[-1] if blocks else None


def answer(text: str) -> str:
    """What follows a response's last `</think>`, up to a line that opens a thought which doesn't end."""
    said = text.rpartition(_THOUGHT_END)[2]
    unfinished = _THOUGHT.search(said)
    return said[: unfinished.start()] if unfinished else said


def ends_in_example(text: str) -> bool:
    """Whether the program taken is probably an example of how to use another block's: a metric, no rule.

    That is where the last block neither defines anything nor reads input, and one before it does.
    """
    *before, last = _blocks(answer(text)) or [""]
    return not _DOES_SOMETHING.search(last) and any(map(_DOES_SOMETHING.search, before))


def program_of(problem: Problem, response: str) -> str | None:
    """The program that a response submits, or None if it holds none.

    Where responses begin with a given text (`problem.start`, HumanEval's prompt) the response goes on from there
    without a fence, and the program is both together; see `continued`. Elsewhere it is in a fenced block.
    """
    return continued(problem.start, answer(response)) if problem.start else extract_code(response)


def continued(start: str, response: str) -> str | None:
    """`start` and what a response goes on with, or None for a blank one. Ours: the paper says no more than that.

    Models don't stop at the end of a function: they close a fence that nobody opened, explain, or begin anew in a
    fenced block. Taken is the first of these that parses: the whole response; what stands before the first fence; the
    longest part that ends before a line without indentation; the program in a fenced block, below `start`. If none
    does, it is what stands before the first fence.
    """
    response = response.removeprefix("\ufeff")
    if not response.strip():
        return None
    for program in _programs(start, response):
        if _parses(program):
            return program
    head = _before(_FENCE, response)
    return start + (head if head.strip() else response)


def _programs(start: str, response: str) -> Iterator[str]:
    parts = [response, _before(_FENCE, response), _before(_INDENTED_FENCE, response)]
    lines = _lines(parts[1])
    for end in range(len(lines) - 1, 0, -1):
        if lines[end].strip() and not lines[end][0].isspace():
            parts.append("".join(lines[:end]))
    yield from (start + part for part in parts if part.strip())
    if (block := extract_code(response)) is not None:
        future, rest = _without_future(block.removeprefix("\ufeff"))
        yield f"{future}{start}\n{rest}"


def _without_future(program: str) -> tuple[str, str]:
    """The imports from __future__ of a program, which must stand first, and the program with blanks in their place."""
    try:
        nodes = [n for n in _tree(program).body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "", program
    lines = _lines(program)
    for node in nodes:
        last = (node.end_lineno or node.lineno) - 1
        before, after = lines[node.lineno - 1].encode()[: node.col_offset], lines[last].encode()[node.end_col_offset :]
        rest = after.decode().lstrip(" \t").removeprefix(";").lstrip(" \t")
        lines[node.lineno - 1 : last + 1] = [before.decode() + rest, *["\n"] * (last + 1 - node.lineno)]
    return "".join(f"{ast.unparse(node)}\n" for node in nodes), "".join(lines)


def _lines(text: str) -> list[str]:
    """Lines with their ends. Only a newline ends one: `str.splitlines` knows ten more, which may stand in a string."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _before(fence: re.Pattern[str], text: str) -> str:
    lines = _lines(text)
    first = next((i for i, line in enumerate(lines) if fence.match(line.rstrip("\r\n"))), len(lines))
    return "".join(lines[:first])


def _parses(program: str) -> bool:
    try:
        _tree(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _tree(program: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a program's own odd escapes
        return ast.parse(program)


def _blocks(text: str) -> list[str]:
    """The complete blocks that aren't blank, of those tagged python where there are any, in order."""
    blocks = [block for block in _fenced_blocks(text) or _inline_blocks(text) if block[1].strip()]
    return [code for tag, code in blocks if tag.lower() in _TAGS] or [code for _, code in blocks]


@functools.cache
def _commonmark() -> MarkdownIt:
    """A parser of what fences stand in, or look like. HTML isn't: a line with a tag would hide the fence behind it."""
    return MarkdownIt("zero").enable(["blockquote", "code", "fence", "hr", "list"]).disable(["inline", "normalize"])


def _fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(tag, content) of each complete block, in order."""
    blocks = []
    # What is in a block stays as it was written, so nothing is normalized but fences of lines that end with \r\n.
    text = _FENCE_AND_RETURN.sub(r"\1", text) + "\n"
    for token in _commonmark().parse(text):
        if token.type != "fence" or token.map is None:
            continue
        # One whose end is missing ends with its list item, quotation or text: it has a line less than with two fences.
        whole = token.map[1] - token.map[0] == token.content.count("\n") + 2
        content: str | None = token.content.removesuffix("\n")
        if not whole:
            content = _out_of_its_list(text, token.map[0], token.markup) if token.level else None
        if content is not None:
            blocks.append(_begun_last(_tag(token.info), content, token.markup))
    return blocks


def _out_of_its_list(text: str, opening: int, markup: str) -> str | None:
    """What stands between the fence in line `opening` and its end, where lines in between have left a list (ours)."""
    lines = text.split("\n")
    indent = len(lines[opening]) - len(lines[opening].lstrip(" "))
    end = re.compile(rf" {{0,{indent + 3}}}{markup[0]}{{{len(markup)},}}[ \t]*")
    closing = next((i for i in range(opening + 1, len(lines)) if end.fullmatch(lines[i])), None)
    if closing is None:
        return None
    return "\n".join(line[min(indent, len(line) - len(line.lstrip(" "))) :] for line in lines[opening + 1 : closing])


def _tag(info: str) -> str:
    return next(iter(info.split()), "")


def _begun_last(tag: str, content: str, markup: str) -> tuple[str, str]:
    """(tag, content) of a block; if it doesn't parse, of what begins in it with an opening fence like its own."""
    lines = content.split("\n")
    opened = [i for i, line in enumerate(lines) if (found := _FENCE.match(line)) and found[1].startswith(markup)]
    if not opened or _parses(content):
        return tag, content
    return _tag(lines[opened[-1]].strip().lstrip(markup[0])), "\n".join(lines[opened[-1] + 1 :])


def _inline_blocks(text: str) -> list[tuple[str, str]]:
    """(tag, content) of each block one of whose ends stands behind text in its line, in order."""
    found = []
    for match in _INLINE.finditer(text):
        line_starts = (text.rfind("\n", 0, end) + 1 for end in (match.start(), match.end() - 3))
        before = [text[start:end] for start, end in zip(line_starts, (match.start(), match.end() - 3))]
        if any(words.strip() for words in before):
            found.append((match[1] or "", match[2].strip()))
    return found
