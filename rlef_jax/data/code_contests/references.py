"""What became of the reference solutions on their own tests: the judge's own error rate.

`judge_check` writes one report a split, judge_check_SPLIT.json in the data folder; `error_rate_line` sums it up for
whoever prints a score.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.data.code_contests.counts import several_answers
from rlef_jax.errors import ConfigError
from rlef_jax.types import Problem, Status, TestResult

PASSED, NO_REFERENCE = "passed", "no reference"
# Why a reference solution fails its problem's own tests, in the order of the report.
REASONS = ("several answers", "wrong answer", "limits", "python 2", "files", "crash", "judge")
_LIMITS = (Status.TIME_LIMIT, Status.MEMORY_LIMIT, Status.OUTPUT_LIMIT)
_PYTHON2 = ("name 'raw_input'", "name 'xrange'", "name 'unicode'", "name 'reduce'", "name 'long'", "name 'unichr'")


@dataclasses.dataclass(frozen=True)
class Checked:
    """A problem's references, run: `reasons` has PASSED or one of REASONS for each. Empty: it has none."""

    name: str
    reasons: tuple[str, ...]

    @property
    def fails(self) -> bool:
        """Whether it has references and none passes: then nothing that the judge says of it is worth much."""
        return PASSED not in self.reasons and any(reason != "judge" for reason in self.reasons)

    @property
    def outcome(self) -> str:
        """PASSED if any passes, NO_REFERENCE, or the first reference's reason."""
        if not self.reasons:
            return NO_REFERENCE
        return PASSED if PASSED in self.reasons else self.reasons[0]


@dataclasses.dataclass(frozen=True)
class Report:
    """A split's problems in its order, and how they were judged."""

    split: str
    judged_with: Mapping[str, Any]
    problems: tuple[Checked, ...]


def reason(problem: Problem, results: Sequence[TestResult]) -> str:
    """Why a reference with these results fails; PASSED if every test passed."""
    failed = next((r for r in results if r.status is not Status.PASSED), None)
    if failed is None:
        return PASSED
    if failed.status is Status.INFRA_ERROR:
        return "judge"
    if failed.status is Status.SYNTAX_ERROR or any(name in failed.error for name in _PYTHON2):
        return "python 2"  # labelled Python 3, and isn't
    if problem.tags["input_file"] or problem.tags["output_file"]:
        return "files"
    if failed.status in _LIMITS:
        return "limits"
    if failed.status is Status.WRONG_ANSWER:
        return "several answers" if several_answers(problem.description) else "wrong answer"
    return "crash"


def report_path(folder: Path, split: str) -> Path:
    """Where a split's report lies."""
    return folder / f"judge_check_{split}.json"


def to_json(report: Report) -> dict[str, Any]:
    """The report as it is written, with its counts in front for people."""
    return {
        "split": report.split,
        "judged_with": dict(report.judged_with),
        "counts": counts(report),
        "problems": [[p.name, list(p.reasons)] for p in report.problems],
    }


def read_report(folder: Path, split: str) -> Report | None:
    """A split's report; None where there is none. Raises ConfigError where it can't be read."""
    path = report_path(folder, split)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        problems = tuple(Checked(name, tuple(reasons)) for name, reasons in found["problems"])
        return Report(found["split"], found["judged_with"], problems)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no report of judge_check ({error!r}): delete it and run the check again"
        ) from error


def counts(report: Report) -> dict[str, Any]:
    """Problems and solutions, how many fail, and why."""
    outcomes = collections.Counter(problem.outcome for problem in report.problems)
    each = collections.Counter(reason for problem in report.problems for reason in problem.reasons)
    failing = sum(problem.fails for problem in report.problems)
    return {
        "problems": len(report.problems),
        "without_reference": outcomes[NO_REFERENCE],
        "problems_failing": failing,
        "problems_failing_why": {why: outcomes[why] for why in REASONS if outcomes[why]},
        "solutions": each.total(),
        "solutions_failing": each.total() - each[PASSED],
        "solutions_failing_why": {why: each[why] for why in REASONS if each[why]},
    }


def error_rate_line(folder: Path, split: str) -> str:
    """One line to print beside every score on a split: how often the judge fails solutions known to be right."""
    report = read_report(folder, split)
    if report is None:
        return (
            f"judge's own errors on {split}: not measured; do python -m rlef_jax.data.code_contests.judge_check"
            f" --data={folder} --split={split}"
        )
    found = counts(report)
    have = found["problems"] - found["without_reference"]
    why = ", ".join(f"{count} {reason}" for reason, count in found["problems_failing_why"].items())
    share = 100 * found["problems_failing"] / max(have, 1)
    return (
        f"judge's own errors on {split}: no reference solution passes on {found['problems_failing']} of {have} problems"
        f" ({share:.1f} %{': ' + why if why else ''}); {found['without_reference']} have none"
    )
