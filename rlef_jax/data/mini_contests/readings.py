"""The readings of an output: the ways to understand an ambiguous statement, in words and as code.

A *kind* is the type of the computed answer (a list `v`, a number or nothing `r`, positions `p`, ...). For each kind
there are one or more questions that a statement may leave open, each with five or six readings. A statement either
says which reading is correct (`words`) or doesn't; then all readings agree on the example, and only a failed test
shows the correct one. No program can satisfy two readings, since their outputs differ on such a test.

No reading is about letter case, which the judge of CodeContests ignores.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Reading:
    """One way to understand the output: `words` for the statement, and `code` that prints it."""

    words: str
    code: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Question:
    """A question that a statement may leave open. `surface`: the expected output shows the answer directly."""

    name: str
    text: str
    readings: tuple[Reading, ...]
    weight: float
    surface: bool = True


def _separators(symbols: str) -> tuple[Reading, ...]:
    names = {" ": "spaces", ",": "commas", "-": "hyphens", "+": "plus signs", ":": "colons", "/": "slashes",
             ";": "semicolons", "|": "bars", "~": "tildes", ">": "arrows", "=": "equals signs"}  # fmt: skip
    return tuple(Reading(f" with {names[s]} between them", (f'print("{s}".join(map(str, v)))',)) for s in symbols)


_JOIN = 'print(" ".join(map(str, v)))'
_WORDS_FOR_NONE = ("-1", "NONE", "EMPTY", "*", "X", "?")
_WORDS_FOR_NO = ("NO", "BAD", "FAIL", "FALSE", "NEVER", "NOT")
_RUN_FORMATS = ("{c}{k}", "{k}{c}", "{c}*{k}", "{c}:{k}", "{c}^{k}", "({c}{k})")
_ROUNDINGS = (
    ("rounded down", "print(s // t)"),
    ("rounded up", "print(-(-s // t))"),
    ("with one decimal unless it is whole", 'print(f"{s / t:.1f}" if s % t else s // t)'),
    ("as a fraction of sum and count unless it is whole", 'print(f"{s}/{t}" if s % t else s // t)'),
    ("with the remainder after an r unless it is whole", 'print(f"{s // t}r{s % t}" if s % t else s // t)'),
)
_ORDERS = (
    ("in the order found", ()),
    ("in reverse order", ("v = v[::-1]",)),
    ("from the smallest to the largest", ("v = sorted(v)",)),
    ("from the largest to the smallest", ("v = sorted(v)[::-1]",)),
    ("by last digit", ("v = sorted(v, key=lambda x: x % 10)",)),
)
_INDEXES = (
    ("the first, counted from 0", "p[0]"),
    ("the first, counted from 1", "p[0] + 1"),
    ("the last, counted from 0", "p[-1]"),
    ("the last, counted from 1", "p[-1] + 1"),
    ("how many there are", "len(p)"),
    ("all of them added up, counted from 1", "sum(p) + len(p)"),
)

QUESTIONS: dict[str, tuple[Question, ...]] = {
    "list": (
        Question("separator", "Print the resulting values{}.", _separators(" ,-+:/"), weight=8.0),
        Question("order", "Print the resulting values{} and with spaces between them.",
                 tuple(Reading(f" {w}", (*c, _JOIN)) for w, c in _ORDERS), weight=1.0, surface=False),
    ),
    "maybe": (
        Question("none", "Print the result{}.",
                 tuple(Reading(f", or {w} if there is none", (f'print("{w}" if r is None else r)',))
                       for w in _WORDS_FOR_NONE), weight=1.0),
    ),
    "bool": (
        Question("no", "Print YES if so{}.",
                 tuple(Reading(f" and {w} if not", (f'print("YES" if r else "{w}")',)) for w in _WORDS_FOR_NO),
                 weight=1.0),
    ),
    "positions": (
        Question("index", "Print the position{}, or -1 if there is none.",
                 tuple(Reading(f" ({w})", (f"print({c} if p else -1)",)) for w, c in _INDEXES), weight=1.0,
                 surface=False),
    ),
    "ratio": (
        Question("rounding", "Print the average{}.",
                 tuple(Reading(f" {w}", (c,)) for w, c in _ROUNDINGS), weight=1.0),
    ),
    "ranges": (
        Question("range", "Print the ranges{} and with spaces between them, a range of one as its value.",
                 tuple(Reading(f" as low{j}high", (f'print(*[l if l == r else f"{{l}}{j}{{r}}" for l, r in w])',))
                       for j in ("-", "..", ":", "~", ">", "/")), weight=1.0),
    ),
    "runs": (
        Question("run", "Print the groups{} and without spaces, a group of one as its letter.",
                 tuple(Reading(" like " + f.format(c="x", k="3"),
                               (f'print("".join(c if k == 1 else f"{f}" for c, k in z))',))
                       for f in _RUN_FORMATS), weight=1.0),
    ),
    "number": (Question("", "Print the result{}.", (Reading("", ("print(r)",)),), weight=1.0),),
}  # fmt: skip

OPEN_QUESTIONS = tuple(dict.fromkeys(q.name for questions in QUESTIONS.values() for q in questions if q.name))
"""The names of all that a statement can leave open."""
