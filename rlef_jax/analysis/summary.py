"""`summary.json`: what a run learned, as data and as a table.

    {"warm_start": {"1@1", "1@3", "1@3_ci": [lo, hi], "repaired_at_2"}, "rlef": {...},
     "warm_start_random_feedback": {...}, "rlef_random_feedback": {...},
     "bounds": {"no_feedback", "pass_fail", "full"}}

All in percent, on the problems of one split, one rollout a problem; intervals by resampling the problems. An evaluation
that a run left out is missing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE_NAME = "summary.json"

Summary = Mapping[str, Mapping[str, Any]]

EVALUATIONS = {
    "warm_start": "warm start",
    "rlef": "after RLEF",
    "warm_start_random_feedback": "warm start, random feedback",
    "rlef_random_feedback": "after RLEF, random feedback",
}
BOUNDS = {
    "no_feedback": "best without feedback",
    "pass_fail": "best knowing pass or fail only",
    "full": "best with the feedback",
}


def write_summary(workdir: Path, summary: Summary) -> None:
    """Writes `summary.json`, whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    part = workdir / (FILE_NAME + ".part")
    part.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(part, workdir / FILE_NAME)


def read_summary(workdir: Path) -> dict[str, dict[str, Any]]:
    """Reads `summary.json`; raises FileNotFoundError where the run hasn't written it."""
    path = workdir / FILE_NAME
    if not path.exists():
        raise FileNotFoundError(f"no {FILE_NAME} in {workdir}: the run writes it when it ends")
    return json.loads(path.read_text())


def gains(summary: Summary) -> dict[str, float]:
    """What training changed, in percentage points; an entry is missing where an evaluation is.

    Returns:
      1@3: after RLEF minus before. turns: how much 1@3 minus 1@1 grew. repaired_at_2: after minus before.
      random_drop: 1@3 with true minus with random feedback, after RLEF; random_drop_warm_start: the same before.
      1@3_apart, random_apart: 1.0 where the two intervals compared don't overlap, else 0.0.
    """
    before, after = summary.get("warm_start"), summary.get("rlef")
    before_random, after_random = summary.get("warm_start_random_feedback"), summary.get("rlef_random_feedback")
    found: dict[str, float] = {}
    if before and after:
        found["1@3"] = after["1@3"] - before["1@3"]
        found["1@3_apart"] = _apart(before, after)
        found["turns"] = (after["1@3"] - after["1@1"]) - (before["1@3"] - before["1@1"])
        found["repaired_at_2"] = after["repaired_at_2"] - before["repaired_at_2"]
    if after and after_random:
        found["random_drop"] = after["1@3"] - after_random["1@3"]
        found["random_apart"] = _apart(after, after_random)
    if before and before_random:
        found["random_drop_warm_start"] = before["1@3"] - before_random["1@3"]
    return found


def summary_table(summary: Summary) -> str:
    """The summary as text: evaluations, bounds, and what training changed."""
    lines = [f"{'percent of problems':<32}{'1@1':>7}{'1@3':>7}   {'95 % interval':<15}{'repaired at turn 2':>19}"]
    for key, label in EVALUATIONS.items():
        if key in summary:
            e = summary[key]
            interval = "{:.1f} to {:.1f}".format(*e["1@3_ci"])
            lines.append(f"{label:<32}{e['1@1']:7.1f}{e['1@3']:7.1f}   {interval:<15}{e['repaired_at_2']:19.1f}")
    for key, label in BOUNDS.items():
        if key in summary.get("bounds", {}):
            lines.append(f"{label:<32}{'':7}{summary['bounds'][key]:7.1f}")
    return "\n".join([*lines, *_gain_lines(gains(summary))])


def _gain_lines(found: Mapping[str, float]) -> list[str]:
    lines = []
    if "1@3" in found:
        apart = "intervals apart" if found["1@3_apart"] else "intervals overlap"
        lines.append(
            f"RLEF: 1@3 {found['1@3']:+.1f} ({apart}), 1@3 minus 1@1 {found['turns']:+.1f}, "
            f"repaired at turn 2 {found['repaired_at_2']:+.1f}"
        )
    if "random_drop" in found:
        apart = "intervals apart" if found["random_apart"] else "intervals overlap"
        before = f"; warm start {-found['random_drop_warm_start']:+.1f}" if "random_drop_warm_start" in found else ""
        lines.append(f"random instead of true feedback: 1@3 {-found['random_drop']:+.1f} ({apart}){before}")
    return lines


def _apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    (a_low, a_high), (b_low, b_high) = a["1@3_ci"], b["1@3_ci"]
    return float(a_high < b_low or b_high < a_low)
