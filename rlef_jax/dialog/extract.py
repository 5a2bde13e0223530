"""Extracts the program of a response: the last complete fenced block tagged python, else the last complete one (ours).

Blocks follow CommonMark, with backticks or tildes: a closing fence has the same character, is at least as long and is
indented by less than four spaces, so a fence in a docstring is part of the program. If a block doesn't parse and has
another opening fence in it, the writer started again: the program begins after that fence. If no line is a fence,
inline blocks are used (the format sentence itself shows one). A model's thoughts are ignored: see `answer`.
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
_HAS_LOGIC = re.compile(r"^\s*(async\s+def|def|class)\b|\binput\s*\(|\bstdin\b|\bopen\s*\(", re.MULTILINE)


def extract_code(text: str) -> str | None:
    """The program in `text`; None if it has no complete fenced block that isn't blank."""
    blocks = _blocks(answer(text))
    return blocks[-1] if blocks else None


def answer(text: str) -> str:
    """The text after a response's last `</think>`, up to a `<think>` line that is never closed."""
    text_after = text.rpartition(_THOUGHT_END)[2]
    unfinished = _THOUGHT.search(text_after)
    return text_after[: unfinished.start()] if unfinished else text_after


def ends_in_example(text: str) -> bool:
    """Whether the extracted program is probably only a usage example for an earlier block. Used as a metric only.

    True if the last block neither defines anything nor reads input, and an earlier block does.
    """
    *earlier, last = _blocks(answer(text)) or [""]
    return not _HAS_LOGIC.search(last) and any(map(_HAS_LOGIC.search, earlier))


def program_of(problem: Problem, response: str) -> str | None:
    """The program that a response submits; None if it has none.

    If `problem.start` is set (HumanEval's prompt), the response continues that text without a fence, and the program is
    both together (see `continued`). Otherwise the program is in a fenced block.
    """
    return continued(problem.start, answer(response)) if problem.start else extract_code(response)


def continued(start: str, response: str) -> str | None:
    """`start` followed by a response's code; None for a blank response. The rules below are ours.

    Models don't stop at the end of a function: they close a fence that was never opened, explain, or start again in a
    fenced block. The program is `start` and the first of these with which it parses: the whole response; the text
    before the first fence; the longest prefix that ends before an unindented line; the program in a fenced block. If
    none parses, it is the text before the first fence.
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
    """(imports from __future__, the program with empty lines in their place). Such imports must come first."""
    try:
        nodes = [n for n in _tree(program).body if isinstance(n, ast.ImportFrom) and n.module == "__future__"]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "", program
    lines = _lines(program)
    for node in nodes:
        last = (node.end_lineno or node.lineno) - 1
        left, right = lines[node.lineno - 1].encode()[: node.col_offset], lines[last].encode()[node.end_col_offset :]
        rest = right.decode().lstrip(" \t").removeprefix(";").lstrip(" \t")
        lines[node.lineno - 1 : last + 1] = [left.decode() + rest, *["\n"] * (last + 1 - node.lineno)]
    return "".join(f"{ast.unparse(node)}\n" for node in nodes), "".join(lines)


def _lines(text: str) -> list[str]:
    """Lines with their newlines. `str.splitlines` would also split at ten other characters, even in strings."""
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
        warnings.simplefilter("ignore")  # invalid escape sequences in the program
        return ast.parse(program)


def _blocks(text: str) -> list[str]:
    """The complete blocks that aren't blank, in order: those tagged python if there are any, else all."""
    blocks = [block for block in _fenced_blocks(text) or _inline_blocks(text) if block[1].strip()]
    return [code for tag, code in blocks if tag.lower() in _TAGS] or [code for _, code in blocks]


@functools.cache
def _commonmark() -> MarkdownIt:
    """A parser of fences and of the blocks around them. HTML is off: a line with a tag would hide later fences."""
    return MarkdownIt("zero").enable(["blockquote", "code", "fence", "hr", "list"]).disable(["inline", "normalize"])


def _fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(tag, content) of each complete block, in order."""
    blocks = []
    # Nothing is normalised except fence lines that end with \r\n: the program itself must stay unchanged.
    text = _FENCE_AND_RETURN.sub(r"\1", text) + "\n"
    for token in _commonmark().parse(text):
        if token.type != "fence" or token.map is None:
            continue
        # A block without a closing fence ends with its list item, quotation or text, and has one line less.
        is_closed = token.map[1] - token.map[0] == token.content.count("\n") + 2
        content: str | None = token.content.removesuffix("\n")
        if not is_closed:
            content = _closed_after_list(text, token.map[0], token.markup) if token.level else None
        if content is not None:
            blocks.append(_last_restart(_tag(token.info), content, token.markup))
    return blocks


def _closed_after_list(text: str, opening: int, markup: str) -> str | None:
    """The content of a block whose lines are indented less than its list item; None without a closing fence (ours)."""
    lines = text.split("\n")
    indent = len(lines[opening]) - len(lines[opening].lstrip(" "))
    end = re.compile(rf" {{0,{indent + 3}}}{markup[0]}{{{len(markup)},}}[ \t]*")
    closing = next((i for i in range(opening + 1, len(lines)) if end.fullmatch(lines[i])), None)
    if closing is None:
        return None
    return "\n".join(line[min(indent, len(line) - len(line.lstrip(" "))) :] for line in lines[opening + 1 : closing])


def _tag(info: str) -> str:
    return next(iter(info.split()), "")


def _last_restart(tag: str, content: str, markup: str) -> tuple[str, str]:
    """(tag, content) of a block. If it doesn't parse: those after the last opening fence in it with the same mark."""
    lines = content.split("\n")
    opened = [i for i, line in enumerate(lines) if (fence := _FENCE.match(line)) and fence[1].startswith(markup)]
    if not opened or _parses(content):
        return tag, content
    return _tag(lines[opened[-1]].strip().lstrip(markup[0])), "\n".join(lines[opened[-1] + 1 :])


def _inline_blocks(text: str) -> list[tuple[str, str]]:
    """(tag, content) of each block whose opening or closing fence follows text on the same line, in order."""
    blocks = []
    for match in _INLINE.finditer(text):
        line_starts = (text.rfind("\n", 0, end) + 1 for end in (match.start(), match.end() - 3))
        prefixes = [text[start:end] for start, end in zip(line_starts, (match.start(), match.end() - 3))]
        if any(prefix.strip() for prefix in prefixes):
            blocks.append((match[1] or "", match[2].strip()))
    return blocks
