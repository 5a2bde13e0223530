"""The counts of a build and the table that shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlef_jax.types import Problem

# Phrases of statements that accept more than one output. The data has no flag for this, and its judge compares with one
# expected output. The heuristic knows English only. It misses statements in other words, and matches some whose tests
# don't depend on the order or choice that they mention.
_ANSWERS = r"(?:answers?|solutions?|outputs?|ways?|options?|results?|variants?|orders?|arrays?|strings?|sequences?)"
_SEVERAL = re.compile(
    rf"(?:several|multiple|many|more than one|other)\s+(?:\w+\s+){{0,2}}{_ANSWERS}"
    rf"|(?:print|output|find|choose|display|write|report|return)\s+any\b"
    rf"|any\s+(?:one\s+)?of\s+(?:them|these|those|the\s+(?:\w+\s+)?{_ANSWERS})"
    rf"|any\s+(?:such|valid|correct|suitable|possible|optimal|appropriate)\s+{_ANSWERS}"
    rf"|in\s+(?:any|arbitrary)\s+order",
    re.IGNORECASE,
)


def several_answers(description: str) -> bool:
    """Whether the statement accepts several outputs (a heuristic: see above)."""
    return _SEVERAL.search(description) is not None


def reason_to_drop(problem: Problem, split: str) -> str:
    """Why the problem is left out, else "". Training needs public and private tests (3.1), other splits any test."""
    if not problem.tests:
        return "no tests"
    if split != "train":
        return ""
    if not problem.public_tests:
        return "no public tests"
    return "" if problem.private_tests else "no private tests"


# Counted properties of a problem, each with its label in the table.
_FACTS = {
    "no_time_limit": "without a time limit",
    "no_memory_limit": "without a memory limit",
    "no_public": "without public tests: no feedback",
    "no_hidden": "without hidden tests: public ones decide",
    "several_answers": "probably several right answers",
    "files": "reads or writes a file of its own",
    "no_solution": "without a Python 3 solution",
    "no_incorrect": "without an incorrect Python 3 program",
}
_TESTS = ("public", "private", "generated")


def count(problem: Problem, size: int) -> dict[str, Any]:
    """The counts of one kept problem; `size` is its record's size in bytes."""
    tags = problem.tags
    facts = {
        "no_time_limit": problem.time_limit_s is None,
        "no_memory_limit": problem.memory_limit_bytes is None,
        "no_public": not problem.public_tests,
        "no_hidden": not (problem.private_tests or problem.generated_tests),
        "several_answers": several_answers(problem.description),
        "files": bool(tags["input_file"] or tags["output_file"]),
        "no_solution": not problem.solutions,
        "no_incorrect": not problem.incorrect_solutions,
    }
    tests = {kind: len(getattr(problem, f"{kind}_tests")) for kind in _TESTS}
    return {
        "kept": 1,
        "bytes": size,
        "largest": size,
        "tests": tests,
        "most_tests": sum(tests.values()),
        "facts": {name: int(value) for name, value in facts.items()},
    }


def added(total: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """Two counts combined: the maximum of "largest" and "most_tests", the sum of all else."""
    result = dict(total)
    for key, value in one.items():
        if isinstance(value, Mapping):
            result[key] = added(total.get(key, {}), value)
        elif key in ("largest", "most_tests"):
            result[key] = max(total.get(key, 0), value)
        else:
            result[key] = total.get(key, 0) + value
    return result


def table(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """The counts of each split, in columns."""
    splits = list(counts)
    reasons = sorted({reason for c in counts.values() for reason in c.get("dropped", {})})
    rows: list[tuple[str, Sequence[str]]] = [
        ("", splits),
        ("problems read", [f"{c.get('read', 0):,}" for c in counts.values()]),
        *((f"dropped: {r}", [f"{c.get('dropped', {}).get(r, 0):,}" for c in counts.values()]) for r in reasons),
        ("problems kept", [f"{c.get('kept', 0):,}" for c in counts.values()]),
        *((f"{kind} tests a problem", [_mean(c, kind) for c in counts.values()]) for kind in _TESTS),
        ("most tests of a problem", [f"{c.get('most_tests', 0):,}" for c in counts.values()]),
        *((label, [f"{c.get('facts', {}).get(fact, 0):,}" for c in counts.values()]) for fact, label in _FACTS.items()),
        ("MB serialised", [f"{c.get('bytes', 0) / 1e6:,.1f}" for c in counts.values()]),
        ("largest problem, MB", [f"{c.get('largest', 0) / 1e6:,.2f}" for c in counts.values()]),
    ]
    return "\n".join(f"{label:<42}" + "".join(f"{cell:>12}" for cell in cells) for label, cells in rows)


def _mean(counts: Mapping[str, Any], kind: str) -> str:
    return f"{counts.get('tests', {}).get(kind, 0) / max(counts.get('kept', 0), 1):.1f}"
