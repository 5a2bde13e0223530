"""The program in a response: the last complete fenced block tagged python, else the last complete one (ours).

A fence is a line of three or more backticks, as in CommonMark. A second opening fence with a tag inside an open
block means that the writer began anew: the first block is not complete. If no line is a fence, blocks written
within a line (as the format sentence itself writes one) are looked for.
"""

from __future__ import annotations

import re

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
