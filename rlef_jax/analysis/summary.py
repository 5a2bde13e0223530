"""`summary.json`: the results of a run's evaluations, as data and as a table.

    {"warm_start": {"1@1", "1@3", "1@3_ci": [lo, hi], "repaired_at_2"}, "rlef": {...},
     "warm_start_random_feedback": {...}, "rlef_random_feedback": {...},
     "bounds": {"no_feedback", "pass_fail", "full"}}

All in percent, on the problems of one split, one rollout per problem; intervals by resampling the problems.
`split_left_out` is there where rules of `config.data` leave out problems of that split: {"of", "kept", "rules"}.
Evaluations that weren't run are missing; unknown numbers are null (1@1 without an early stop).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlef_jax.data.sources import LeftOut
from rlef_jax.files import write_json

FILE_NAME = "summary.json"

Summary = Mapping[str, Mapping[str, Any]]

EVALUATIONS = {
    "warm_start": "warm start",
    "rlef": "after RLEF",
    "warm_start_random_feedback": "warm start, random feedback",
    "rlef_random_feedback": "after RLEF, random feedback",
}
# The best possible scores with three responses (data/mini_contests/bounds.py). For "no_feedback" the last response is
# judged even if an earlier one passed; a policy that stops at a pass, as in the evaluations above, may score higher.
BOUNDS = {
    "no_feedback": "best 1@3, no feedback, no early stop",
    "pass_fail": "best 1@3, pass or fail known",
    "full": "best 1@3, feedback read",
}


def write_summary(workdir: Path, summary: Summary) -> None:
    """Writes `summary.json` atomically."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / FILE_NAME, summary)


def read_summary(workdir: Path) -> dict[str, dict[str, Any]]:
    """Reads `summary.json`. Raises FileNotFoundError if the run hasn't written it."""
    path = workdir / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"no {FILE_NAME} in {workdir}: the run writes it when it ends")
    return json.loads(path.read_text())


def gains(summary: Summary) -> dict[str, float]:
    """Changes by training, in percentage points; entries of missing evaluations are left out.

    Returns:
      1@3, repaired_at_2: after RLEF minus before. turns: the change of 1@3 minus 1@1.
      random_drop: 1@3 with true feedback minus with random feedback, after RLEF; random_drop_warm_start: before it.
      1@3_apart, random_apart: 1.0 if the two intervals don't overlap, else 0.0.
    """
    warm_start, rlef = summary.get("warm_start", {}), summary.get("rlef", {})
    warm_start_random = summary.get("warm_start_random_feedback", {})
    rlef_random = summary.get("rlef_random_feedback", {})
    differences = {
        "1@3": _minus(rlef.get("1@3"), warm_start.get("1@3")),
        "1@3_apart": _apart(warm_start.get("1@3_ci"), rlef.get("1@3_ci")),
        "turns": _minus(_minus(rlef.get("1@3"), rlef.get("1@1")), _minus(warm_start.get("1@3"), warm_start.get("1@1"))),
        "repaired_at_2": _minus(rlef.get("repaired_at_2"), warm_start.get("repaired_at_2")),
        "random_drop": _minus(rlef.get("1@3"), rlef_random.get("1@3")),
        "random_apart": _apart(rlef.get("1@3_ci"), rlef_random.get("1@3_ci")),
        "random_drop_warm_start": _minus(warm_start.get("1@3"), warm_start_random.get("1@3")),
    }
    return {name: value for name, value in differences.items() if value is not None}


def summary_table(summary: Summary) -> str:
    """The summary as text: evaluations, bounds, and changes by training."""
    lines = [f"{'percent of problems':<38}{'1@1':>7}{'1@3':>7}   {'95 % interval':<15}{'repaired at turn 2':>19}"]
    for key, label in EVALUATIONS.items():
        if key in summary:
            e = summary[key]
            interval = "{:.1f} to {:.1f}".format(*e["1@3_ci"]) if e.get("1@3_ci") else "-"
            numbers = f"{_cell(e.get('1@1')):>7}{_cell(e.get('1@3')):>7}"
            lines.append(f"{label:<38}{numbers}   {interval:<15}{_cell(e.get('repaired_at_2')):>19}")
    lines += list(dict.fromkeys(_denominator(e) for e in summary.values() if e.get("split_left_out")))
    for key, label in BOUNDS.items():
        if key in summary.get("bounds", {}):
            lines.append(f"{label:<38}{'':7}{summary['bounds'][key]:7.1f}")
    return "\n".join([*lines, *_gain_lines(gains(summary))])


def _denominator(evaluation: Mapping[str, Any]) -> str:
    """What percentages are of, where the source's rules left out some problems of the split."""
    return f"percentages are of {evaluation['problems']} problems: {LeftOut(**evaluation['split_left_out'])}"


def _gain_lines(changes: Mapping[str, float]) -> list[str]:
    lines = []
    if "1@3" in changes:
        parts = [f"1@3 {changes['1@3']:+z.1f} ({_verdict(changes['1@3_apart'])})"]
        parts += [f"1@3 minus 1@1 {changes['turns']:+z.1f}"] if "turns" in changes else []
        parts += [f"repaired at turn 2 {changes['repaired_at_2']:+z.1f}"] if "repaired_at_2" in changes else []
        lines.append("RLEF: " + ", ".join(parts))
    if "random_drop" in changes:
        warm_start = (
            f"; warm start {-changes['random_drop_warm_start']:+z.1f}" if "random_drop_warm_start" in changes else ""
        )
        change = f"{-changes['random_drop']:+z.1f} ({_verdict(changes['random_apart'])})"
        lines.append(f"random instead of true feedback: 1@3 {change}{warm_start}")
    return lines


def _verdict(apart: float) -> str:
    return "intervals apart" if apart else "intervals overlap"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _apart(a: Sequence[float] | None, b: Sequence[float] | None) -> float | None:
    return None if a is None or b is None else float(a[1] < b[0] or b[1] < a[0])
