"""Builds a `Problem` from a draft and a reading: statement, tests that distinguish the readings, wrong solutions."""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence

from rlef_jax.data.mini_contests.draft import Draft, Family, Rng, pick
from rlef_jax.data.mini_contests.lists import FAMILIES as LIST_FAMILIES
from rlef_jax.data.mini_contests.readings import QUESTIONS, Question
from rlef_jax.data.mini_contests.trusted import run_readings, run_trusted
from rlef_jax.data.mini_contests.values import FAMILIES as VALUE_FAMILIES
from rlef_jax.execution.judge import outputs_match
from rlef_jax.types import Problem, TestCase

FAMILIES: tuple[Family, ...] = LIST_FAMILIES + VALUE_FAMILIES
TIME_LIMIT_S = 0.5  # correct programs need a hundredth of it; only endless ones reach it
OPEN_SHARE = 0.86  # share of ambiguous statements among problems whose output has several readings
_PUBLIC_CHARS = 34  # with longer public tests, three turns wouldn't fit in 256 tokens
_ATTEMPTS = 40

# (old, new) edits that make a correct program wrong; `slip` tries them in random order.
_SLIPS = (
    (" > ", " >= "), (" < ", " <= "), (" == ", " != "), (" + ", " - "), (" - ", " + "), ("max(", "min("),
    ("min(", "max("), ("[0]", "[-1]"), ("[-1]", "[0]"), (" % ", " // "), (" // ", " % "), (" * ", " + "),
    ("sum(", "len("), ("[::-1]", ""), ("range(1, ", "range("), ("range(2, ", "range("), (" not in ", " in "),
    ("x, y", "y, x"), ("sorted(", "list("), ("a[1:]", "a"), (" + 1", ""), (" and ", " or "), ("len(a)", "len(a) - 1"),
)  # fmt: skip
_FOREVER = ("while True:", "    pass")
_MEMORY = ("m = [0] * 10 ** 10",)


@dataclasses.dataclass(frozen=True)
class Spec:
    """A draft with its reading: a problem without its tests."""

    family: Family
    draft: Draft
    question: Question
    reading: int
    is_open: bool

    def program(self, reading: int, body: tuple[str, ...] | None = None) -> str:
        """The program that prints the output by the `reading`-th reading."""
        lines = self.draft.layout.read + (self.draft.body if body is None else body)
        return "\n".join(lines + self.question.readings[reading].code)

    @property
    def open_question(self) -> str:
        """The name of what the statement leaves open; "" for nothing."""
        return self.question.name if self.is_open else ""

    @property
    def programs(self) -> tuple[str, ...]:
        """One program per reading. If not `is_open`, the statement says which reading is correct."""
        return tuple(self.program(i) for i in range(len(self.question.readings)))


def normalise(program: str) -> str:
    """The program's syntax tree as text, without its names and constants."""
    tree = ast.parse(program)
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = "_"
        elif isinstance(node, ast.arg):
            node.arg = "_"
        elif isinstance(node, ast.Constant):
            node.value = 0
            node.kind = None
    return ast.dump(tree)


def stable_hash(text: str) -> int:
    """A hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def structure_held_out(spec: Spec) -> bool:
    """Whether no training problem has a program of this shape; the lines that print are ignored."""
    if not spec.family.composed:
        return False
    return _shape_held_out(re.sub(r"\d+", "1", "\n".join(spec.draft.layout.read + spec.draft.body)))


@functools.cache
def _shape_held_out(code: str) -> bool:
    return stable_hash(normalise(code)) % 8 == 0


def draw_spec(rng: Rng, families: Sequence[Family]) -> Spec:
    """Draws a family by weight, a draft, a question, a reading (uniformly), and whether the statement is ambiguous."""
    weights = [f.weight for f in families]
    family = families[int(rng.choice(len(families), p=[w / sum(weights) for w in weights]))]
    draft = family.draw(rng)
    questions = QUESTIONS[draft.kind]
    total = sum(q.weight for q in questions)
    question = questions[int(rng.choice(len(questions), p=[q.weight / total for q in questions]))]
    is_open = len(question.readings) > 1 and rng.random() < OPEN_SHARE
    return Spec(family, draft, question, int(rng.integers(len(question.readings))), bool(is_open))


def describe(spec: Spec, example: TestCase) -> str:
    """The statement's text."""
    stated = "" if spec.is_open else spec.question.readings[spec.reading].words
    return (
        f"{spec.draft.task}\n\nInput\n\n{spec.draft.layout.words}\n\nOutput\n\n{spec.question.text.format(stated)}"
        f"\n\nExample\n\nInput\n\n{example.input}\n\nOutput\n\n{example.output}"
    )


class _Tester:
    """Runs a spec's programs on inputs drawn for it."""

    def __init__(self, spec: Spec, rng: Rng):
        self.spec, self.rng = spec, rng
        readings = spec.question.readings if spec.is_open else (spec.question.readings[spec.reading],)
        self.prefix = "\n".join(spec.draft.layout.read + spec.draft.body)
        self.tails = tuple("\n".join(r.code) for r in readings)
        self.right = spec.reading if spec.is_open else 0

    def outputs(self, size: int) -> tuple[str, list[str]] | None:
        """(input, each reading's output on it); None if a reading fails or a text is too long."""
        text = self.spec.draft.layout.render(self.spec.draft.make_input(self.rng, size))
        results = run_readings(self.prefix, self.tails, text)
        if any(r.error for r in results) or (size < 2 and len(text) > _PUBLIC_CHARS):
            return None
        outputs = [r.output.removesuffix("\n") for r in results]
        return None if size < 2 and max(map(len, outputs)) > _PUBLIC_CHARS else (text, outputs)

    def find(self, sizes: Sequence[int], accept: Callable[[list[str]], bool], used_inputs: set[str]) -> TestCase | None:
        """A test with an input not in `used_inputs` and outputs that satisfy `accept`; None after too many attempts."""
        for attempt in range(_ATTEMPTS):
            drawn = self.outputs(sizes[attempt % len(sizes)])
            if drawn is None or drawn[0] in used_inputs or not accept(drawn[1]):
                continue
            used_inputs.add(drawn[0])
            return TestCase(drawn[0], drawn[1][self.right])
        return None


def _all_equal(outputs: list[str]) -> bool:
    return len(set(outputs)) == 1 and outputs[0] != ""


def _all_differ(outputs: list[str]) -> bool:
    if len(outputs) == 1:
        return outputs[0] != ""
    return not any(outputs_match(x, y) for i, x in enumerate(outputs) for y in outputs[:i])


def slip(spec: Spec, rng: Rng, tests: Sequence[TestCase], reading: int) -> str | None:
    """A program with one slip in its computation that fails a public test; None if there is no such slip."""
    body = "\n".join(spec.draft.body)
    for i in rng.permutation(len(_SLIPS)):
        old, new = _SLIPS[i]
        if old not in body:
            continue
        program = spec.program(reading, tuple(body.replace(old, new, 1).split("\n")))
        if "list(set(s))" in program:  # the order of a set of str differs between processes
            continue
        guard = "while" in program or ".append" in program  # only these can have become endless by a slip
        results = [run_trusted(program, t.input, guard=guard) for t in tests]
        if any("Endless" in r.error for r in results):
            continue
        if any(r.error or not outputs_match(t.output, r.output) for r, t in zip(results, tests, strict=True)):
            return program
    return None


def _fails(program: str, test: TestCase) -> bool:
    result = run_trusted(program, test.input)
    return bool(result.error) or not outputs_match(test.output, result.output)


def _wrong_layout(spec: Spec) -> str:
    """A program that reads the input as a single number, which raises on most layouts."""
    return "\n".join(("n = int(input())", "a = [n]") + spec.draft.body + spec.question.readings[spec.reading].code)


def _incorrect(spec: Spec, rng: Rng, tests: Sequence[TestCase]) -> tuple[str, ...]:
    """Wrong programs: those of the other readings, up to two with slips, and one that crashes or never ends."""
    others = [p for i, p in enumerate(spec.programs) if i != spec.reading] if spec.is_open else []
    slips = [s for s in (slip(spec, rng, tests, spec.reading) for _ in range(2)) if s]
    broken = pick(rng, ("layout", "layout", "forever", "memory"))
    if broken == "layout":
        candidate = _wrong_layout(spec)
        extra = [candidate] if any(_fails(candidate, t) for t in tests) else []
    else:
        extra = [spec.program(spec.reading, (_FOREVER if broken == "forever" else _MEMORY) + spec.draft.body)]
    return tuple(dict.fromkeys(others + slips + extra))


def build_problem(spec: Spec, rng: Rng, accept_description: Callable[[str], bool]) -> Problem | None:
    """The problem of a spec; None if its tests can't be generated or its statement isn't accepted.

    If the statement is ambiguous, all readings agree on the example. On two more public tests and at least two hidden
    ones, each reading has a different output.
    """
    tester, used_inputs = _Tester(spec, rng), set[str]()
    example = (
        tester.find((0, 1), _all_equal, used_inputs) if spec.is_open else tester.find((1,), _all_differ, used_inputs)
    )
    if example is None or not accept_description(describe(spec, example)):
        return None
    tests = [example]
    wanted = [((1,), _all_differ)] * 2 + [((1, 2), _all_differ), ((2, 1), _all_differ)] + [((2, 1), bool)] * 2
    for sizes, accept in wanted:
        test = tester.find(sizes, accept, used_inputs)
        if test is None:
            return None
        tests.append(test)
    public, private = tests[:3], tests[3:]
    readings = spec.programs if spec.is_open else (spec.program(spec.reading),)
    return Problem(
        name=f"{spec.family.name}-{stable_hash(describe(spec, example)):016x}",
        description=describe(spec, example),
        public_tests=tuple(public),
        private_tests=tuple(private[:2]),
        generated_tests=tuple(private[2:]),
        solutions=(spec.program(spec.reading),),
        incorrect_solutions=_incorrect(spec, rng, public),
        time_limit_s=TIME_LIMIT_S,
        memory_limit_bytes=256 << 20,
        tags={
            "family": spec.family.name,
            "question": spec.question.name,
            "surface": spec.question.surface,
            "open": spec.is_open,
            "readings": readings,
            "reading": spec.reading if spec.is_open else 0,
            "structure_held_out": structure_held_out(spec),
        },
    )
