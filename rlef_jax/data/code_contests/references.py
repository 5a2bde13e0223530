"""Results of the reference solutions on their problems' own tests: the judge's error rate.

`judge_check` writes one report per split, judge_check_SPLIT.json in the data folder. `error_rate_line` summarises it
in one line, which is printed beside scores.
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
    """A problem's checked references: `reasons` has PASSED or one of REASONS per reference, () if it has none."""

    name: str
    reasons: tuple[str, ...]

    @property
    def fails(self) -> bool:
        """Whether it has references and none passes, so that verdicts on this problem are unreliable."""
        return PASSED not in self.reasons and any(reason != "judge" for reason in self.reasons)

    @property
    def outcome(self) -> str:
        """PASSED if any passes, NO_REFERENCE, or the first reference's reason."""
        if not self.reasons:
            return NO_REFERENCE
        return PASSED if PASSED in self.reasons else self.reasons[0]


@dataclasses.dataclass(frozen=True)
class Report:
    """A split's checked problems in order, and the settings they were judged with."""

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
        return "python 2"  # labelled Python 3 by mistake
    if problem.tags["input_file"] or problem.tags["output_file"]:
        return "files"
    if failed.status in _LIMITS:
        return "limits"
    if failed.status is Status.WRONG_ANSWER:
        return "several answers" if several_answers(problem.description) else "wrong answer"
    return "crash"


def report_path(folder: Path, split: str) -> Path:
    """The path of a split's report."""
    return folder / f"judge_check_{split}.json"


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON; the counts, for human readers, come first."""
    return {
        "split": report.split,
        "judged_with": dict(report.judged_with),
        "counts": counts(report),
        "problems": [[p.name, list(p.reasons)] for p in report.problems],
    }


def read_report(folder: Path, split: str) -> Report | None:
    """A split's report; None if there is none. Raises ConfigError if it can't be read."""
    path = report_path(folder, split)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        problems = tuple(Checked(name, tuple(reasons)) for name, reasons in content["problems"])
        return Report(content["split"], content["judged_with"], problems)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no report of judge_check ({error!r}): delete it and run the check again"
        ) from error


def counts(report: Report) -> dict[str, Any]:
    """The numbers of problems and solutions, how many fail, and why."""
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
    """One line to print beside scores on a split: how often the judge fails solutions known to be correct."""
    report = read_report(folder, split)
    if report is None:
        return (
            f"judge's own errors on {split}: not measured; do python -m rlef_jax.data.code_contests.judge_check"
            f" --data={folder} --split={split}"
        )
    totals = counts(report)
    count = totals["problems"] - totals["without_reference"]
    why = ", ".join(f"{number} {reason}" for reason, number in totals["problems_failing_why"].items())
    failing = totals["problems_failing"]
    share = 100 * failing / max(count, 1)
    return (
        f"judge's own errors on {split}: no reference solution passes on {failing} of {count} problems"
        f" ({share:.1f} %{': ' + why if why else ''}); {totals['without_reference']} have none"
    )
