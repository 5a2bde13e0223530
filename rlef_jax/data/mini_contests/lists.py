"""Families whose answer is a list of values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlef_jax.data.mini_contests import draft as d
from rlef_jax.data.mini_contests.draft import Draft, Family, Rng, pick

# (words, code on x, whether it holds a constant)
CONDITIONS = (
    ("are even", "x % 2 == 0"), ("are odd", "x % 2 != 0"), ("are divisible by {k}", "x % {k} == 0"),
    ("are not divisible by {k}", "x % {k} > 0"), ("are greater than {k}", "x > {k}"),
    ("are less than {k}", "x < {k}"), ("have last digit {k}", "str(x)[-1] == str({k})"),
    ("leave remainder 1 when divided by {k}", "1 == x % {k}"), ("have two digits", "len(str(x)) == 2"),
)  # fmt: skip
MAPS = (
    ("square each", "x * x"), ("multiply each by {k}", "x * {k}"), ("add {k} to each", "x + {k}"),
    ("take each one's remainder modulo {k}", "x % {k}"), ("divide each by {k}, rounding down", "x // {k}"),
    ("replace each by its digit sum", "sum(map(int, str(x)))"), ("take each one's distance to {k}", "abs(x - {k})"),
    ("cut each to at most {k}", "min(x, {k})"),
)  # fmt: skip


def condition(rng: Rng) -> tuple[str, str, int, str]:
    """A condition on x: words, code, its constant, its name."""
    k = int(rng.integers(3, 10))
    words, code = pick(rng, CONDITIONS)
    return words.format(k=k), code.format(k=k), k if "{k}" in code else 0, code


def _filter_map(rng: Rng) -> Draft:
    words, test, k, c_name = condition(rng)
    j = int(rng.integers(2, 10))
    m_words, m_code = pick(rng, MAPS)
    layout = d.list_layout(rng)
    return Draft(f"Keep the numbers that {words} and {m_words.format(k=j)}.", layout,
                 (f"v = [{m_code.format(k=j)} for x in a if {test}]",), "list", d.numbers(shortest=4),
                 f"{c_name}|{m_code}", (k, j if "{k}" in m_code else 0))  # fmt: skip


def simple(
    options: Sequence[tuple[str, tuple[str, ...]]],
    make: d.MakeInput,
    layout: d.Layout | None = None,
    kind: str = "list",
    low: int = 2,
    high: int = 5,
) -> Callable[[Rng], Draft]:
    """Draws one of (words, lines) with a constant k in [low, high] for `<k>`; any list layout unless one is given."""

    def draw(rng: Rng) -> Draft:
        k = int(rng.integers(low, high + 1))
        words, lines = pick(rng, options)
        chosen = d.list_layout(rng) if layout is None else layout
        body = tuple(line.replace("<k>", str(k)).replace("<k-1>", str(k - 1)) for line in lines)
        uses = "<k" in "".join(lines)
        return Draft(words.replace("<k>", str(k)), chosen, body, kind, make, lines[-1] + lines[0], (k if uses else 0,))

    return draw


_WINDOW = tuple(
    (f"For every <k> neighbouring numbers take their {w}.", (f"v = [{c} for i in range(len(a) - <k-1>)]",))
    for w, c in (("sum", "sum(a[i:i + <k>])"), ("largest", "max(a[i:i + <k>])"), ("smallest", "min(a[i:i + <k>])"),
                 ("range", "max(a[i:i + <k>]) - min(a[i:i + <k>])"))
)  # fmt: skip
_ADJACENT = tuple(
    (f"For every two neighbours x and y take {w}.", (f"v = [{c} for x, y in zip(a, a[1:])]",))
    for w, c in (("y minus x", "y - x"), ("their distance", "abs(x - y)"), ("their sum", "x + y"),
                 ("their product", "x * y"), ("the larger", "max(x, y)"), ("the smaller", "min(x, y)"))
)  # fmt: skip
_PREFIX = tuple(
    (f"After each number give {w} so far.", (start, "v = []", "for x in a:", f"    t = {c}", "    v.append(t)"))
    for w, start, c in (("the sum", "t = 0", "t + x"), ("the largest", "t = 0", "max(t, x)"),
                        ("the smallest", "t = a[0]", "min(t, x)"), ("the sum modulo <k>", "t = 0", "(t + x) % <k>"),
                        ("the product modulo <k>", "t = 1", "t * x % <k>"))
)  # fmt: skip
_DISTINCT = (
    ("Keep the first copy of each number.", ("v = list(dict.fromkeys(a))",)),
    ("Keep the numbers that occur once.", ("v = [x for x in a if a.count(x) == 1]",)),
    ("Give each number that occurs at least twice.", ("v = [x for x in dict.fromkeys(a) if a.count(x) > 1]",)),
    ("Give how often each different number occurs.", ("v = [a.count(x) for x in dict.fromkeys(a)]",)),
    ("Drop the numbers equal to the one before.", ("v = a[:1] + [y for x, y in zip(a, a[1:]) if x != y]",)),
)
_TWO_LISTS = (
    ("Give the numbers of a that are in b.", ("v = [x for x in a if x in b]",)),
    ("Give the numbers of a that are not in b.", ("v = [x for x in a if x not in b]",)),
    ("Add a and b place by place.", ("v = [x + y for x, y in zip(a, b)]",)),
    ("Multiply a and b place by place.", ("v = [x * y for x, y in zip(a, b)]",)),
    ("Take the larger of a and b place by place.", ("v = [max(x, y) for x, y in zip(a, b)]",)),
    ("Take the smaller of a and b place by place.", ("v = [min(x, y) for x, y in zip(a, b)]",)),
    ("Deal one of a and one of b in turn.", ("v = [z for x, y in zip(a, b) for z in (x, y)]",)),
)
_ROTATE = (
    ("Rotate the list to the left by <k>.", ("k = <k> % len(a)", "v = a[k:] + a[:k]")),
    ("Rotate the list to the right by <k>.", ("k = <k> % len(a)", "v = a[-k:] + a[:-k]")),
    ("Take every <k>th number, starting with the first.", ("v = a[::<k>]",)),
    ("Leave out every <k>th number.", ("v = [x for i, x in enumerate(a) if (i + 1) % <k> > 0]",)),
    ("Swap the two halves, the second being the longer.", ("m = len(a) // 2", "v = a[m:] + a[:m]")),
    ("Reverse the first <k> numbers.", ("v = a[:<k>][::-1] + a[<k>:]",)),
)
_DIVISORS = (
    ("Find the divisors of n.", ("v = [x for x in range(1, n + 1) if n % x == 0]",)),
    ("Find the primes up to n.", ("v = [x for x in range(2, n + 1) if all(x % y for y in range(2, x))]",)),
    ("Find the multiples of <k> up to n.", ("v = list(range(<k>, n + 1, <k>))",)),
    ("Find the squares up to n.", ("v = [x * x for x in range(1, n + 1) if x * x <= n]",)),
    ("Find the prime factors of n.",
     ("v = []", "x = 2", "while n > 1:", "    if n % x == 0:", "        v.append(x)", "        n = n // x",
      "    else:", "        x = x + 1")),
)  # fmt: skip
_DIGITS = (
    ("Find the digits of n in base <k>, the last one first.",
     ("v = []", "while n > 0:", "    v.append(n % <k>)", "    n = n // <k>")),
    ("Divide n by <k> until it is 0, giving each value.",
     ("v = []", "while n > 0:", "    v.append(n)", "    n = n // <k>")),
    ("Halve n if it is even, else triple it and add 1; stop at 1, giving each value.",
     ("v = []", "while n > 1:", "    v.append(n)", "    n = 3 * n + 1 if n % 2 else n // 2")),
    ("Subtract <k> from n while it stays positive, giving each value.",
     ("v = []", "while n > 0:", "    v.append(n)", "    n = n - <k>")),
)  # fmt: skip
_GRID = tuple(
    (f"For each {axis} take the {w}.", (f"v = [{c} for r in {rows}]",))
    for axis, rows in (("row", "g"), ("column", "zip(*g)"))
    for w, c in (("sum", "sum(r)"), ("largest", "max(r)"), ("smallest", "min(r)"),
                 ("number of different values", "len(set(r))"))
) + (
    ("Read the diagonal from the top left.", ("v = [r[i] for i, r in enumerate(g) if i < len(r)]",)),
    ("Read the grid row by row.", ("v = [x for r in g for x in r]",)),
    ("Read the grid column by column.", ("v = [x for r in zip(*g) for x in r]",)),
)  # fmt: skip
_RECURRENCE = (
    ("Start with x = <k> and give n terms, each twice the one before plus 1, modulo 100.",
     ("v = []", "x = <k>", "for _ in range(n):", "    v.append(x)", "    x = (2 * x + 1) % 100")),
    ("Start with 1 and <k> and give n terms, each the sum of the two before.",
     ("v = []", "x, y = 1, <k>", "for _ in range(n):", "    v.append(x)", "    x, y = y, x + y")),
    ("Give the first n powers of <k>.", ("v = [<k> ** i for i in range(n)]",)),
    ("Give the first n triangular numbers times <k>.", ("v = [i * (i + 1) // 2 * <k> for i in range(1, n + 1)]",)),
)  # fmt: skip
_QUERY = tuple(
    (f"For each l and r take the {w} of the numbers from place l to place r, counted from 1.",
     (f"v = [{c} for l, r in q]",))
    for w, c in (("sum", "sum(a[l - 1:r])"), ("largest", "max(a[l - 1:r])"), ("smallest", "min(a[l - 1:r])"),
                 ("number of different values", "len(set(a[l - 1:r]))"))
)  # fmt: skip
_TOP = (
    ("Take the <k> largest numbers, the smallest first.", ("v = sorted(a)[-<k>:]",)),
    ("Take the <k> smallest numbers, the smallest first.", ("v = sorted(a)[:<k>]",)),
    ("Sort the numbers by their distance to <k>.", ("v = sorted(a, key=lambda x: abs(x - <k>))",)),
    ("Sort the numbers by their remainder modulo <k>.", ("v = sorted(a, key=lambda x: x % <k>)",)),
    ("Sort the numbers by their digit sum.", ("v = sorted(a, key=lambda x: sum(map(int, str(x))))",)),
)
_WORDS = (
    ("Take the length of each word.", ("v = [len(x) for x in a]",)),
    ("Reverse each word.", ("v = [x[::-1] for x in a]",)),
    ("Take the first letter of each word.", ("v = [x[0] for x in a]",)),
    ("Keep the words with at least <k> letters.", ("v = [x for x in a if len(x) >= <k>]",)),
    ("Count the letter a in each word.", ('v = [x.count("a") for x in a]',)),
    ("Sort the words by length.", ("v = sorted(a, key=len)",)),
)
_MACHINE = tuple(
    (f"A positive number joins a {name}, a 0 takes {w} out; give those taken out.",
     ("t = []", "v = []", "for x in a:", "    if x > 0:", "        t.append(x)", "    elif t:",
      f"        v.append(t.{c})"))
    for name, w, c in (("stack", "the newest", "pop()"), ("queue", "the oldest", "pop(0)"),
                       ("heap", "the smallest", "pop(t.index(min(t)))"),
                       ("heap", "the largest", "pop(t.index(max(t)))"))
)  # fmt: skip
_CIRCLE = (
    ("The numbers 1 to n stand in a circle and every <k>th leaves; give the order of leaving.",
     ("t = list(range(1, n + 1))", "v = []", "i = 0", "while t:", "    i = (i + <k-1>) % len(t)",
      "    v.append(t.pop(i))")),
)  # fmt: skip


def integer(low: int, high: int) -> d.MakeInput:
    """A number: 1 or 2, then in [low, high), then up to three times as large."""

    return lambda rng, size: int((rng.integers(1, 3), rng.integers(low, high), rng.integers(low, 3 * high))[size])


def _two_lists(rng: Rng, size: int) -> tuple[list[int], list[int]]:
    n = int((1, rng.integers(3, 5), rng.integers(4, 9))[size])
    pool = [int(x) for x in rng.integers(1, 21, n + 2)]
    return [pick(rng, pool) for _ in range(n)], [pick(rng, pool) for _ in range(n)]


def _grid(rng: Rng, size: int) -> list[list[int]]:
    h, w = ((1, 1), (int(rng.integers(2, 4)), int(rng.integers(2, 4))), tuple(map(int, rng.integers(2, 6, 2))))[size]
    return [[int(x) for x in rng.integers(1, 10 + 30 * (size == 2), w)] for _ in range(h)]


def _queries(rng: Rng, size: int) -> tuple[list[int], list[tuple[int, ...]]]:
    a = d.numbers(high=9)(rng, max(size, 1))
    count = int((1, rng.integers(2, 4), rng.integers(3, 7))[size])
    return a, [tuple(sorted(map(int, rng.integers(1, len(a) + 1, 2)))) for _ in range(count)]


def _words(rng: Rng, size: int) -> list[str]:
    count = int((1, rng.integers(3, 5), rng.integers(4, 8))[size])
    return ["".join(rng.choice(list("abc"), rng.integers(1, 5))) for _ in range(count)]


def _commands(rng: Rng, size: int) -> list[int]:
    count = int((2, rng.integers(6, 9), rng.integers(9, 15))[size])
    return [int(x) if rng.random() < 0.6 else 0 for x in rng.integers(1, 20, count)]


FAMILIES = (
    Family("filter_map", _filter_map, weight=3.0, composed=True),
    Family("windows", simple(_WINDOW, d.numbers(shortest=5)), composed=True),
    Family("neighbours", simple(_ADJACENT, d.numbers(shortest=4)), composed=True),
    Family("prefixes", simple(_PREFIX, d.numbers(), high=9)),
    Family("distinct", simple(_DISTINCT, d.numbers(high=6, shortest=5))),
    Family("two_lists", simple(_TWO_LISTS, _two_lists, d.TWO_LISTS)),
    Family("rotate", simple(_ROTATE, d.numbers(shortest=4))),
    Family("divisors", simple(_DIVISORS, integer(12, 40), d.NUMBER)),
    Family("digits", simple(_DIGITS, integer(12, 60), d.NUMBER)),
    Family("grid", simple(_GRID, _grid, d.GRID)),
    Family("recurrence", simple(_RECURRENCE, integer(3, 6), d.NUMBER, high=9)),
    Family("queries", simple(_QUERY, _queries, d.QUERIES)),
    Family("top", simple(_TOP, d.numbers(shortest=4), high=4)),
    Family("words", simple(_WORDS, _words, d.WORDS, high=3)),
    Family("machine", simple(_MACHINE, _commands), held_out=True),
    Family("circle", simple(_CIRCLE, integer(4, 8), d.NUMBER, high=9), held_out=True),
)
