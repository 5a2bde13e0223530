"""The metrics of an evaluation, from what is known of its rollouts. docs/evaluation.md has the formulas.

All shares are in percent. A sample is a response; a rollout has `turns` of them and submits its last program. Rollouts
on which the judge broke count only in `infra`. A problem with too few other rollouts for a k is left out of that n@k.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlef_jax.metrics.n_at_k import Counts, mean_n_at_k, n_at_k, resampled_interval, rollouts_for
from rlef_jax.metrics.outcome import Outcome, Rollout, by_problem, judged_only, known_at, outcomes_of
from rlef_jax.metrics.summary import counts_of, error_kinds, hidden_kinds


def n_at_k_table(
    rollouts: Sequence[Rollout],
    pairs: Sequence[tuple[int, int]],
    *,
    turns: int,
    resamplings: int = 200,
    problem_resamplings: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """{"1@3": {...}} for each (n, k): the estimate, its intervals, and that of independent samples at the same k.

    k counts responses. Entries: `percent`, the estimate; `samples_ci`, the paper's interval, from resampling each
    problem's results; `problems_ci`, from resampling the problems; `pass@R_rollouts`, where all of the R rollouts that
    k responses make are submitted; `independent`, the same n@k with k first responses, if there are k rollouts and it
    is known whether first responses are right, with `independent_samples_ci` and `independent_problems_ci`;
    `rollouts`, R; `problems` and `left_out`, counts. If no problem has enough rollouts, all but counts are None.
    """
    groups = by_problem(outcomes_of(rollouts))
    judged = [judged_only(group) for group in groups]
    first_known = known_at([o for group in judged for o in group], 0)
    table: dict[str, Any] = {}
    for n, k in pairs:
        needed = rollouts_for(k, turns)
        counts = [counts_of(group) for group in judged if len(group) >= needed]
        row: dict[str, Any] = {"rollouts": needed, "problems": len(counts), "left_out": len(groups) - len(counts)}
        every, resampling = pass_name(needed), (resamplings, problem_resamplings, seed)
        row |= _estimate(counts, n, needed, *resampling)
        row[every] = 100 * mean_n_at_k(counts, needed, needed) if counts else None
        first = [_first_counts(group) for group in judged if len(group) >= k]
        usable = first if first_known and len(first) == len(counts) else []
        alone = _estimate(usable, n, k, *resampling)
        row["independent"] = alone.pop("percent")
        row |= {f"independent_{name}": interval for name, interval in alone.items()}
        table[f"{n}@{k}"] = row
    return table


def pass_name(rollouts: int) -> str:
    """What the share of problems with a right one among so many rollouts is called."""
    return f"pass@{rollouts}_rollouts"


def first_responses(
    rollouts: Sequence[Rollout], *, resamplings: int = 200, problem_resamplings: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """`percent` of first responses that are right (1@1), with `samples_ci` and `problems_ci`; all None if unknown."""
    judged = judged_only(outcomes_of(rollouts))
    counts = [_first_counts(group) for group in by_problem(judged)] if known_at(judged, 0) else []
    return _estimate(counts, 1, 1, resamplings, problem_resamplings, seed)


def over_turns(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Metrics over turns, for all judged rollouts.

    Returns:
      `solved_by_turn`: share of rollouts solved, had they ended at that turn. None where that is unknown: a response
        that passed the public tests wasn't the last, so no hidden test was run on it (feedback "none").
      `responses`: number of responses at each turn. `error_kinds`: {status on the public tests: count} at each turn;
        `hidden_kinds`: the same on the hidden tests, of the responses that these were run on.
      `transitions`: from each turn to the next, {status: {next status: count}}, both on the public tests.
      `unchanged_chrf`: from each turn to the next, the mean chrF of a program against the one before it, if both
        responses have code; `code_changed`: 100 minus that; `pairs`: the number of such pairs.
      `response_tokens`: at each turn the mean, median and longest length, and the share cut by length; None without
        tokens.
    """
    judged = judged_only(outcomes_of(rollouts))
    longest = max((o.turns for o in judged), default=0)
    solved = [100 * float(np.mean([o.solved and o.turns <= t + 1 for o in judged])) for t in range(longest)]
    pairs = [[c for o in judged if len(o.changed) > t and (c := o.changed[t]) is not None] for t in range(longest - 1)]
    changed = [float(np.mean(changes)) if changes else None for changes in pairs]
    return {
        "solved_by_turn": [share if known_at(judged, t) else None for t, share in enumerate(solved)],
        "responses": [sum(o.turns > t for o in judged) for t in range(longest)],
        "error_kinds": error_kinds(judged),
        "hidden_kinds": hidden_kinds(judged),
        "transitions": [transitions(judged, t) for t in range(longest - 1)],
        "unchanged_chrf": [None if c is None else 100 - c for c in changed],
        "code_changed": changed,
        "pairs": [len(changes) for changes in pairs],
        "response_tokens": [_lengths(judged, t) for t in range(longest)],
    }


def transitions(outcomes: Sequence[Outcome], turn: int) -> dict[str, dict[str, int]]:
    """{status on the public tests at `turn` (from 0): {that at the next turn: count}}, most frequent first."""
    counts = Counter((_name(o.public[turn]), _name(o.public[turn + 1])) for o in outcomes if o.turns > turn + 1)
    table: dict[str, dict[str, int]] = {}
    for (status, next_status), count in counts.most_common():
        table.setdefault(status, {})[next_status] = count
    return table


def _name(status: str | None) -> str:
    return "NOT_JUDGED" if status is None else str(status)


def _lengths(outcomes: Sequence[Outcome], turn: int) -> dict[str, float] | None:
    reached = [o for o in outcomes if len(o.tokens) > turn]
    lengths = [o.tokens[turn] for o in reached]
    if not any(lengths):
        return None
    return {
        "mean": float(np.mean(lengths)),
        "median": float(np.median(lengths)),
        "longest": float(max(lengths)),
        "cut": 100 * float(np.mean([o.cut[turn] for o in reached])),
    }


def _first_counts(group: Sequence[Outcome]) -> Counts:
    """`counts_of` of a problem's first responses."""
    return len(group), sum(o.passed_public(0) for o in group), sum(o.solved_at(0) for o in group)


def _estimate(
    counts: Sequence[Counts], n: int, k: int, resamplings: int, problem_resamplings: int, seed: int
) -> dict[str, Any]:
    """n@k in percent, k in rollouts, with both intervals; None without problems."""
    if not counts:
        return dict.fromkeys(("percent", "samples_ci", "problems_ci"))
    return {
        "percent": 100 * mean_n_at_k(counts, n, k),
        "samples_ci": _percent(resampled_interval(counts, n, k, resamplings=resamplings, seed=seed)),
        "problems_ci": _problems_interval(counts, n, k, problem_resamplings, seed),
    }


def _problems_interval(counts: Sequence[Counts], n: int, k: int, resamplings: int, seed: int) -> list[float]:
    """95 % interval of the mean, from resampling the problems with replacement; their results stay fixed."""
    values = np.array([n_at_k(*c, n, k) for c in counts])
    draws = np.random.default_rng(seed).integers(len(values), size=(resamplings, len(values)))
    return _percent(np.percentile(values[draws].mean(axis=1), [2.5, 97.5]))


def _percent(interval: Any) -> list[float]:
    return [100 * float(x) for x in interval]


def text_report(report: dict[str, Any]) -> str:
    """The report as text: n@k, then the metrics over turns."""
    heads = f"{'n@k':>8} {'%':>7} {'samples 95 %':>15} {'problems 95 %':>15} {'pass@R':>7} {'R':>4}"
    lines = [f"{heads} {'independent':>12} {'samples 95 %':>15} {'problems 95 %':>15} problems"]
    for name, row in report["n_at_k"].items():
        cells = [_number(row["percent"], 7), _interval(row["samples_ci"]), _interval(row["problems_ci"])]
        cells += [_number(row[pass_name(row["rollouts"])], 7), f"{row['rollouts']:>4}", _number(row["independent"], 12)]
        cells += [_interval(row["independent_samples_ci"]), _interval(row["independent_problems_ci"])]
        left_out = f" ({row['left_out']} left out)" if row["left_out"] else ""
        lines.append(" ".join([f"{name:>8}", *cells, f"{row['problems']}{left_out}"]))
    lines += ["k counts responses, R the rollouts that they make; pass@R submits all of them", *_turn_lines(report)]
    for t, table in enumerate(report["over_turns"]["transitions"], start=1):
        lines += ["", f"from turn {t} to turn {t + 1}, on the public tests"]
        for status, next_statuses in table.items():
            lines.append(f"  {status:14} -> " + ", ".join(f"{kind} {n}" for kind, n in next_statuses.items()))
    lines += [
        "",
        f"{report['problems']} problems, {report['rollouts']} rollouts, {report['infra']} broken by the judge",
    ]
    return "\n".join(lines)


def _turn_lines(report: dict[str, Any]) -> list[str]:
    """A line a turn, then one a turn of what hidden tests were run on."""
    turns = report["over_turns"]
    lines = [
        "",
        f"{'turn':>8} {'responses':>9} {'solved by':>9} {'tokens':>7} {'cut %':>6} {'changed %':>9}"
        "  statuses on the public tests",
    ]
    for t, count in enumerate(turns["responses"]):
        tokens = turns["response_tokens"][t] or {}
        changed = turns["code_changed"][t - 1] if t else None
        lines.append(
            f"{t + 1:>8} {count:>9} {_number(turns['solved_by_turn'][t], 9)} {_number(tokens.get('mean'), 7)}"
            f" {_number(tokens.get('cut'), 6)} {_number(changed, 9)}  {_kinds(turns['error_kinds'][t])}"
        )
    lines += ["", f"{'turn':>8} {'judged':>9}  statuses on the hidden tests, of the responses that these were run on"]
    lines += [f"{t:>8} {sum(k.values()):>9}  {_kinds(k)}" for t, k in enumerate(turns["hidden_kinds"], start=1)]
    return lines


def _kinds(counts: dict[str, int]) -> str:
    return ", ".join(f"{kind} {n}" for kind, n in counts.items())


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:z.1f}':>{width}}"


def _interval(values: Sequence[float] | None) -> str:
    return f"{'-' if values is None else f'{values[0]:z.1f} to {values[1]:z.1f}':>15}"


def whole_report(
    rollouts: Sequence[Rollout],
    pairs: Sequence[tuple[int, int]],
    *,
    turns: int,
    problem_resamplings: int,
) -> dict[str, Any]:
    """All metrics above, as JSON data. Raises ValueError if the judge broke on all rollouts."""
    outcomes = outcomes_of(rollouts)
    judged = judged_only(outcomes)
    if not judged:
        raise ValueError(f"none of {len(outcomes)} rollouts was judged")
    return {
        "n_at_k": n_at_k_table(outcomes, pairs, turns=turns, problem_resamplings=problem_resamplings),
        "first_responses": first_responses(outcomes, problem_resamplings=problem_resamplings),
        "over_turns": over_turns(outcomes),
        "problems": len(by_problem(outcomes)),
        "rollouts": len(outcomes),
        "infra": len(outcomes) - len(judged),
    }
