"""Drafts of problems, which families pass to the builder: words, code and a generator of inputs.

A draft is a problem without its reading: the statement's task, the lines that read the input and compute the
answer, and the *kind* of that answer. The kind says in which variable the code leaves the answer and which readings of
the output are possible (`readings.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Rng = np.random.Generator
# (rng, size) -> the values of an input; size is 0 for a degenerate one, 1 for a small one, 2 for a larger one.
MakeInput = Callable[[Rng, int], Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """An input's format: described in words, read by code, rendered as text."""

    words: str
    read: tuple[str, ...]
    render: Callable[[Any], str]


@dataclasses.dataclass(frozen=True)
class Draft:
    """A problem without its reading. `structure` identifies the program's shape, `constants` are the values in it."""

    task: str
    layout: Layout
    body: tuple[str, ...]
    kind: str
    make_input: MakeInput
    structure: str
    constants: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of algorithm: `draw` makes a draft. Some structures of `composed` families never occur in training."""

    name: str
    draw: Callable[[Rng], Draft]
    weight: float = 1.0
    composed: bool = False
    held_out: bool = False


def pick(rng: Rng, options: Sequence[Any]) -> Any:
    """One of `options`, uniformly."""
    return options[int(rng.integers(len(options)))]


def ints(values: Sequence[int], separator: str = " ") -> str:
    """Integers as text."""
    return separator.join(map(str, values))


_READ_LIST = "a = list(map(int, input().split()))"
LIST_LAYOUTS = (
    Layout("The first line holds n, the second n integers.", ("n = int(input())", _READ_LIST),
           lambda a: f"{len(a)}\n{ints(a)}"),
    Layout("One line of integers.", (_READ_LIST,), lambda a: ints(a)),
    Layout("One line of integers with commas between them.", ('a = list(map(int, input().split(",")))',),
           lambda a: ints(a, ",")),
    Layout("The first line holds n, then come n lines with an integer each.",
           ("n = int(input())", "a = [int(input()) for _ in range(n)]"),
           lambda a: f"{len(a)}\n" + ints(a, "\n")),
)  # fmt: skip
TWO_LISTS = Layout(
    "Two lines of integers: a, then b.",
    (_READ_LIST, "b = list(map(int, input().split()))"),
    lambda ab: f"{ints(ab[0])}\n{ints(ab[1])}",
)
NUMBER = Layout("One integer n.", ("n = int(input())",), str)
TWO_NUMBERS = Layout("Two integers n and k.", ("n, k = map(int, input().split())",), ints)
STRING = Layout("One word of lower-case letters.", ("s = input()",), str)
BRACKETS = Layout("One line of round brackets.", ("s = input()",), str)
WORDS = Layout("One line of words.", ("a = input().split()",), " ".join)
TWO_STRINGS = Layout("Two lines with a word each.", ("s = input()", "t = input()"), "\n".join)
GRID = Layout(
    "The first line holds h, then come h lines of integers.",
    ("h = int(input())", "g = [list(map(int, input().split())) for _ in range(h)]"),
    lambda g: f"{len(g)}\n" + "\n".join(map(ints, g)),
)
MAZE = Layout(
    "The first line holds h, then come h lines of dots and hashes.",
    ("h = int(input())", "g = [input() for _ in range(h)]", "w = len(g[0])"),
    lambda g: f"{len(g)}\n" + "\n".join(g),
)
QUERIES = Layout(
    "The first line is a list, then come lines with l and r each, closed by a line 0 0.",
    (_READ_LIST, "q = []", "l, r = map(int, input().split())", "while l > 0:", "    q.append((l, r))",
     "    l, r = map(int, input().split())"),
    lambda aq: f"{ints(aq[0])}\n" + "".join(f"{x} {y}\n" for x, y in aq[1]) + "0 0",
)  # fmt: skip


def list_layout(rng: Rng) -> Layout:
    """A random layout of a list, the common ones more often."""
    return LIST_LAYOUTS[int(rng.choice(4, p=(0.35, 0.35, 0.15, 0.15)))]


def numbers(low: int = 1, high: int = 20, shortest: int = 3) -> MakeInput:
    """Lists of integers: 1 to 2 for size 0, a few for size 1, longer and larger for size 2."""

    def make(rng: Rng, size: int) -> list[int]:
        length = (rng.integers(1, 3), rng.integers(shortest, shortest + 3), rng.integers(shortest + 1, 13))[size]
        top = high if size < 2 else high * 3
        values = rng.integers(low, top + 1, length)
        if rng.random() < 0.3:  # repeats matter to several families
            values = rng.choice(values, length)
        return [int(x) for x in values]

    return make


def letters(alphabet: str = "abc", shortest: int = 3) -> MakeInput:
    """Words over a small alphabet, so that letters repeat."""

    def make(rng: Rng, size: int) -> str:
        length = (rng.integers(1, 3), rng.integers(shortest, shortest + 4), rng.integers(shortest + 2, 14))[size]
        return "".join(rng.choice(list(alphabet), length))

    return make
