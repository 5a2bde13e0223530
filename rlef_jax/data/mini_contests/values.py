"""Families whose answer is one value, a yes or no, a position, an average, or groups."""

from __future__ import annotations

from rlef_jax.data.mini_contests import draft as d
from rlef_jax.data.mini_contests.draft import Draft, Family, Rng, pick
from rlef_jax.data.mini_contests.lists import condition, integer, simple

_PICKS = (
    ("first", "c[0] if c else None"), ("last", "c[-1] if c else None"), ("largest", "max(c) if c else None"),
    ("smallest", "min(c) if c else None"), ("second", "c[1] if len(c) > 1 else None"),
)  # fmt: skip


def _find(rng: Rng) -> Draft:
    words, test, k, name = condition(rng)
    which, code = pick(rng, _PICKS)
    return Draft(f"Among the numbers that {words}, find the {which}.", d.list_layout(rng),
                 (f"c = [x for x in a if {test}]", f"r = {code}"), "maybe", d.numbers(), f"{name}|{code}",
                 (k,))  # fmt: skip


def _position(rng: Rng) -> Draft:
    words, test, k, name = condition(rng)
    return Draft(f"Find a position whose number is one of those that {words}.", d.list_layout(rng),
                 (f"p = [i for i, x in enumerate(a) if {test}]",), "positions", d.numbers(shortest=4), name,
                 (k,))  # fmt: skip


def _average(rng: Rng) -> Draft:
    words, test, k, name = condition(rng)
    kind = pick(rng, ("all", "some", "others"))
    layout = d.list_layout(rng)
    task, line = {
        "all": ("Find the average of the numbers.", "c = a"),
        "some": (f"Find the average of 1 and the numbers that {words}.", f"c = [1] + [x for x in a if {test}]"),
        "others": ("Find the average of the different numbers.", "c = list(set(a))"),
    }[kind]
    return Draft(task, layout, (line, "s = sum(c)", "t = len(c)"), "ratio", d.numbers(), f"{kind}|{name}",
                 (k if kind == "some" else 0,))  # fmt: skip


_REDUCES = (
    ("add them up", "sum(c)"), ("take the largest or 0", "max(c, default=0)"),
    ("take the smallest or 0", "min(c, default=0)"), ("count them", "len(c)"),
    ("count the different ones", "len(set(c))"), ("add up their squares", "sum(x * x for x in c)"),
)  # fmt: skip


def _reduce(rng: Rng) -> Draft:
    words, test, k, name = condition(rng)
    task, code = pick(rng, _REDUCES)
    return Draft(f"Of the numbers that {words}, {task}.", d.list_layout(rng),
                 (f"c = [x for x in a if {test}]", f"r = {code}"), "number", d.numbers(shortest=4),
                 f"{name}|{code}", (k,))  # fmt: skip


_REPEATS = (
    ("Find the first number that occurred before.",
     ("c = [x for i, x in enumerate(a) if x in a[:i]]", "r = c[0] if c else None")),
    ("Find the first number that occurs once.",
     ("c = [x for x in a if a.count(x) == 1]", "r = c[0] if c else None")),
    ("Find the number that makes up more than half of the list.",
     ("c = [x for x in a if a.count(x) * 2 > len(a)]", "r = c[0] if c else None")),
    ("Find the largest number that occurs at least twice.",
     ("c = [x for x in a if a.count(x) > 1]", "r = max(c) if c else None")),
)  # fmt: skip
_PAIRS = tuple(
    (f"Two different places hold numbers with {w}; find the largest {p} of such two.",
     (f"c = [{pc} for i, x in enumerate(a) for y in a[:i] if {wc}]", "r = max(c) if c else None"))
    for w, wc in (("sum <k>", "x + y == <k>"), ("distance <k>", "abs(x - y) == <k>"),
                  ("a sum divisible by <k>", "(x + y) % <k> == 0"))
    for p, pc in (("product", "x * y"), ("sum", "x + y"), ("one", "max(x, y)"))
)  # fmt: skip
_COINS = tuple(
    (f"The numbers are coins, each to be used as often as you like. Find the {w} coins that pay <k>.",
     ("d = [0] + [None] * <k>", "for i in range(1, <k> + 1):", "    for x in a:",
      "        if x <= i and d[i - x] is not None:",
      f"            d[i] = {c}(d[i - x] + 1, d[i] or d[i - x] + 1)", "r = d[<k>]"))
    for w, c in (("fewest", "min"), ("most", "max"))
)  # fmt: skip
_PARTS = tuple(
    (f"Find the length of the {w} run of neighbours with sum {s}.",
     (f"c = [j - i for i in range(len(a)) for j in range(i + 1, len(a) + 1) if {t}]",
      f"r = {f}(c) if c else None"))
    for w, f in (("longest", "max"), ("shortest", "min"))
    for s, t in (("<k>", "sum(a[i:j]) == <k>"), ("divisible by <k>", "sum(a[i:j]) % <k> == 0"))
)  # fmt: skip
_MAZE = tuple(
    (f"A robot walks over dots from the top left to the bottom right, {w}. Find the fewest steps.",
     ("d = {(0, 0): 0}", "t = [(0, 0)]", "for i, j in t:", f"    for y, x in {c}:",
      '        if 0 <= y < h and 0 <= x < w and g[y][x] == "." and (y, x) not in d:',
      "            d[y, x] = d[i, j] + 1", "            t.append((y, x))", "r = d.get((h - 1, w - 1))"))
    for w, c in (("one step in any of four directions", "((i + 1, j), (i, j + 1), (i - 1, j), (i, j - 1))"),
                 ("one step to the right or down", "((i + 1, j), (i, j + 1))"),
                 ("one step in any direction or diagonally",
                  "[(i + e, j + f) for e in (-1, 0, 1) for f in (-1, 0, 1)]"))
)  # fmt: skip
_DEPTH = (
    ("Find how deep the brackets are nested.",
     ("t = 0", "r = 0", "for c in s:", '    t += 1 if c == "(" else -1', "    if t < 0:", "        break",
      "    r = max(r, t)", "if t:", "    r = None")),
    ("Find how many pairs of brackets there are.",
     ("t = 0", "r = 0", "for c in s:", '    t += 1 if c == "(" else -1', "    if t < 0:", "        break",
      '    r += c == ")"', "if t:", "    r = None")),
)  # fmt: skip
_DIVIDE = (
    ("Find the smallest divisor of n above 1 and below n.",
     ("c = [x for x in range(2, n) if n % x == 0]", "r = c[0] if c else None")),
    ("Find the largest divisor of n above 1 and below n.",
     ("c = [x for x in range(2, n) if n % x == 0]", "r = max(c) if c else None")),
    ("Find the whole number whose square is n.",
     ("c = [x for x in range(n + 1) if x * x == n]", "r = c[0] if c else None")),
    ("Find the exponent that makes n a power of <k>.",
     ("c = [x for x in range(n) if <k> ** x == n]", "r = c[0] if c else None")),
)  # fmt: skip
_CHECK = (
    ("Check that the list is sorted.", ("r = a == sorted(a)",)),
    ("Check that the list is the same when reversed.", ("r = a == a[::-1]",)),
    ("Check that no number occurs twice.", ("r = len(set(a)) == len(a)",)),
    ("Check that some number equals <k>.", ("r = <k> in a",)),
    ("Check that all numbers are at least <k>.", ("r = min(a) >= <k>",)),
    ("Check that the sum is divisible by <k>.", ("r = sum(a) % <k> == 0",)),
    ("Check that the numbers alternate between even and odd.",
     ("r = all((x + y) % 2 for x, y in zip(a, a[1:]))",)),
)  # fmt: skip
_STRING_CHECK = (
    ("Check that the two words hold the same letters.", ("r = sorted(s) == sorted(t)",)),
    ("Check that the first word is in the second.", ("r = s in t",)),
    ("Check that the second word is the first one reversed.", ("r = s == t[::-1]",)),
    ("Check that the second word is the first one rotated.", ("r = len(s) == len(t) and s in t + t",)),
)
_RANGES = (
    ("Group the different numbers into ranges of consecutive ones.",
     ("w = []", "for x in sorted(set(a)):", "    if w and w[-1][1] == x - 1:", "        w[-1][1] = x", "    else:",
      "        w.append([x, x])")),
    ("Split the list into its rising runs and give each one's first and last number.",
     ("w = []", "for x in a:", "    if w and w[-1][1] < x:", "        w[-1][1] = x", "    else:",
      "        w.append([x, x])")),
    ("Merge the different numbers into ranges with gaps of at most <k>.",
     ("w = []", "for x in sorted(set(a)):", "    if w and w[-1][1] >= x - <k>:", "        w[-1][1] = x", "    else:",
      "        w.append([x, x])")),
)  # fmt: skip
_RUNS = (
    ("Group equal neighbours.",
     ("z = []", "for c in s:", "    if z and z[-1][0] == c:", "        z[-1][1] += 1", "    else:",
      "        z.append([c, 1])")),
    ("Group equal letters from a to z.", ("z = [[c, s.count(c)] for c in sorted(set(s))]",)),
    ("Group equal letters in the order of their first copies.",
     ("z = [[c, s.count(c)] for c in dict.fromkeys(s)]",)),
)  # fmt: skip
_COUNTS = (
    ("Find the greatest sum of neighbours, at least one of them.",
     ("r = t = a[0]", "for x in a[1:]:", "    t = max(x, t + x)", "    r = max(r, t)")),
    ("Count the pairs in which the earlier number is larger.",
     ("r = sum(x > y for i, y in enumerate(a) for x in a[:i])",)),
    ("Find the length of the longest rising subsequence.",
     ("d = []", "for i, x in enumerate(a):", "    d.append(1 + max([d[j] for j in range(i) if a[j] < x], default=0))",
      "r = max(d)")),
    ("Find the number of ways to choose numbers with sum <k>.",
     ("d = [1] + [0] * <k>", "for x in a:", "    for i in range(<k>, x - 1, -1):", "        d[i] += d[i - x]",
      "r = d[<k>]")),
)  # fmt: skip
_TWO = (
    ("Find the greatest common divisor.", ("while k > 0:", "    n, k = k, n % k", "r = n")),
    ("Find the least common multiple.", ("r = n", "while r % k > 0:", "    r += n")),
    ("Find n to the power k modulo 100.", ("r = pow(n, k, 100)",)),
    ("Count the ones in n times k in base 2.", ('r = bin(n * k).count("1")',)),
)
_COMMON = (
    ("Find the length of the longest common subsequence of the two words.",
     ("d = [[0] * (len(t) + 1) for _ in range(len(s) + 1)]", "for i, x in enumerate(s):",
      "    for j, y in enumerate(t):",
      "        d[i + 1][j + 1] = d[i][j] + 1 if x == y else max(d[i][j + 1], d[i + 1][j])",
      "r = d[-1][-1]")),
)  # fmt: skip


def _maze(rng: Rng, size: int) -> list[str]:
    if size == 0:
        return [".", "#"][int(rng.integers(2)) :][:1] if rng.random() < 0.2 else ["..", ".."]
    low, high = ((1, 2), (2, 4), (3, 6))[size]
    h, w = (int(rng.integers(low, high)) for _ in range(2))
    rows = ["".join("#" if rng.random() < 0.35 else "." for _ in range(w)) for _ in range(h)]
    return ["." + rows[0][1:], *rows[1:]]


def _brackets(rng: Rng, size: int) -> str:
    pairs = int((1, rng.integers(2, 4), rng.integers(3, 6))[size])
    text = ""
    while text.count("(") < pairs or text.count("(") > text.count(")"):
        can_close = text.count("(") > text.count(")")
        text += ")" if can_close and (text.count("(") == pairs or rng.random() < 0.5) else "("
    return text if size == 0 or rng.random() < 0.5 else text[1:] + text[:1]


def _two_numbers(rng: Rng, size: int) -> list[int]:
    return [int(x) for x in rng.integers(2, (6, 20, 60)[size], 2)]


def _two_words(rng: Rng, size: int) -> tuple[str, str]:
    s = d.letters("ab", 2)(rng, size)
    kind = int(rng.integers(5))
    rotated = s[1:] + s[:1]
    return s, (s[::-1], rotated, s + "a", "".join(sorted(s)), d.letters("ab", 2)(rng, size))[kind]


def _special(rng: Rng, size: int) -> int:
    n = integer(6, 40)(rng, size)
    k = int(rng.integers(2, 6))
    return pick(rng, (n, k * k, k**3, k * (k + 1))) if size else k * k


FAMILIES = (
    Family("find", _find, weight=2.0, composed=True),
    Family("position", _position, weight=1.5),
    Family("average", _average, weight=2.0),
    Family("reduce", _reduce, weight=1.5, composed=True),
    Family("repeats", simple(_REPEATS, d.numbers(high=9), kind="maybe")),
    Family("pairs", simple(_PAIRS, d.numbers(high=9), kind="maybe", low=3, high=12)),
    Family("coins", simple(_COINS, d.numbers(low=2, high=8), kind="maybe", low=5, high=12)),
    Family("parts", simple(_PARTS, d.numbers(high=9), kind="maybe", low=3, high=12)),
    Family("maze", simple(_MAZE, _maze, d.MAZE, kind="maybe"), weight=0.7),
    Family("brackets", simple(_DEPTH, _brackets, d.BRACKETS, kind="maybe"), weight=0.7),
    Family("divide", simple(_DIVIDE, _special, d.NUMBER, kind="maybe")),
    Family("check", simple(_CHECK, d.numbers(high=9), kind="bool")),
    Family("string_check", simple(_STRING_CHECK, _two_words, d.TWO_STRINGS, kind="bool"), weight=0.7),
    Family("ranges", simple(_RANGES, d.numbers(high=12, shortest=4), kind="ranges"), weight=1.5),
    Family("runs", simple(_RUNS, d.letters(), d.STRING, kind="runs"), weight=1.5),
    Family("counts", simple(_COUNTS, d.numbers(high=12), kind="number", low=5, high=15)),
    Family("two_numbers", simple(_TWO, _two_numbers, d.TWO_NUMBERS, kind="number"), weight=0.7),
    Family("common", simple(_COMMON, _two_words, d.TWO_STRINGS, kind="number"), held_out=True),
)
