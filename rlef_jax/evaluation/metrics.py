"""What an evaluation prints, computed from its episodes and their programs. docs/evaluation.md has the formulas.

All shares are in percent. A sample is a response; `turns` of them make a rollout, which submits its last program.
Rollouts that the judge broke on count in `infra` alone, and a problem with too few others for a k is left out of that
n@k.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlef_jax.evaluation.chrf import chrf
from rlef_jax.metrics.n_at_k import Counts, mean_n_at_k, n_at_k, resampled_interval, rollouts_for
from rlef_jax.metrics.summary import by_problem, error_kinds, first_responses_known, last_passed_public
from rlef_jax.types import Episode


def n_at_k_table(
    episodes: Sequence[Episode],
    asked: Sequence[tuple[int, int]],
    *,
    turns: int,
    resamplings: int = 200,
    problem_resamplings: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """{"1@3": {...}} for each (n, k): the estimate, its intervals, and independent samples at the same k.

    `percent`; `samples_ci`: the paper's interval, resampling each problem's results; `problems_ci`: resampling the
    problems; `pass@k`: submitting all of the k; `independent`: the same n@k where each of the k responses is the first
    of a rollout, if there are k rollouts and it is known whether first responses are right; `rollouts`: how many the k
    responses are; `problems` and `left_out`. All but counts are None where no problem has enough rollouts.
    """
    groups = by_problem(episodes)
    judged = [[e for e in group if e.end != "infra"] for group in groups]
    known = first_responses_known([e for group in judged for e in group])
    table: dict[str, Any] = {}
    for n, k in asked:
        rollouts = rollouts_for(k, turns)
        counts = [_counts(group) for group in judged if len(group) >= rollouts]
        row: dict[str, Any] = {"rollouts": rollouts, "problems": len(counts), "left_out": len(groups) - len(counts)}
        row |= dict.fromkeys(("percent", "samples_ci", "problems_ci", f"pass@{k}", "independent"))
        if counts:
            row |= {
                "percent": 100 * mean_n_at_k(counts, n, rollouts),
                "samples_ci": _percent(resampled_interval(counts, n, rollouts, resamplings=resamplings, seed=seed)),
                "problems_ci": _problems_interval(counts, n, rollouts, problem_resamplings, seed),
                f"pass@{k}": 100 * mean_n_at_k(counts, rollouts, rollouts),
            }
        first = [_first_counts(group) for group in judged if len(group) >= k]
        if known and len(first) == len(counts) and first:
            row["independent"] = 100 * mean_n_at_k(first, n, k)
        table[f"{n}@{k}"] = row
    return table


def over_turns(episodes: Sequence[Episode], programs: Sequence[Sequence[str | None]]) -> dict[str, Any]:
    """What happens from turn to turn, over all judged rollouts.

    Args:
      episodes: finished ones.
      programs: each one's programs, turn by turn.

    Returns:
      `solved_by_turn`: share of rollouts solved within so many turns (None in all but the last where passing the public
        tests ends nothing, so that nobody knows). `responses`: how many there were at each turn.
      `error_kinds`: at each turn, how many responses of each status.
      `transitions`: from each turn to the next, {status: {next status: count}}.
      `unchanged_chrf`: at each change of turn, the mean chrF of a program against the one before it, where both hold
        code; `code_changed`: 100 - that. `pairs`: how many there were.
      `response_tokens`: at each turn mean, median and longest, and the share that was cut by length; None without
        tokens.
    """
    kept = [(e, p) for e, p in zip(episodes, programs, strict=True) if e.end != "infra"]
    judged = [e for e, _ in kept]
    longest = max((len(e.turns) for e in judged), default=0)
    known = first_responses_known(judged)
    solved = [100 * float(np.mean([e.solved and len(e.turns) <= t for e in judged])) for t in range(1, longest + 1)]
    pairs = [
        [(a, b) for e, p in kept if len(e.turns) > t + 1 and (a := p[t]) is not None and (b := p[t + 1]) is not None]
        for t in range(longest - 1)
    ]
    same = [
        float(np.mean([100 * chrf(after, before) for before, after in found])) if found else None for found in pairs
    ]
    return {
        "solved_by_turn": solved if known else [*[None] * (longest - 1), *solved[-1:]],
        "responses": [sum(len(e.turns) > t for e in judged) for t in range(longest)],
        "error_kinds": error_kinds(judged),
        "transitions": [transitions(judged, t) for t in range(longest - 1)],
        "unchanged_chrf": same,
        "code_changed": [None if s is None else 100 - s for s in same],
        "pairs": [len(found) for found in pairs],
        "response_tokens": [_lengths(judged, t) for t in range(longest)],
    }


def transitions(episodes: Sequence[Episode], turn: int) -> dict[str, dict[str, int]]:
    """{status of turn `turn` (from 0): {status of the next one: how many}}, most frequent first."""
    counts = Counter(
        (_status(e, turn), _status(e, turn + 1)) for e in episodes if len(e.turns) > turn + 1
    ).most_common()
    found: dict[str, dict[str, int]] = {}
    for (before, after), count in counts:
        found.setdefault(before, {})[after] = count
    return found


def _status(episode: Episode, turn: int) -> str:
    verdict = episode.turns[turn].verdict
    return str(verdict.status) if verdict is not None else "NOT_JUDGED"


def _lengths(episodes: Sequence[Episode], turn: int) -> dict[str, float] | None:
    made = [e.turns[turn] for e in episodes if len(e.turns) > turn]
    lengths = [len(t.response_ids) for t in made]
    if not any(lengths):
        return None
    return {
        "mean": float(np.mean(lengths)),
        "median": float(np.median(lengths)),
        "longest": float(max(lengths)),
        "cut": 100 * float(np.mean([t.finish_reason == "length" for t in made])),
    }


def _counts(group: Sequence[Episode]) -> Counts:
    """(samples, those that pass the public tests, those that pass all) of a problem's rollouts."""
    return len(group), sum(map(last_passed_public, group)), sum(e.solved for e in group)


def _first_counts(group: Sequence[Episode]) -> Counts:
    """The same of its first responses."""
    public = [e for e in group if (v := e.turns[0].verdict) is not None and v.public_passed]
    return len(group), len(public), sum(e.solved for e in public)


def _problems_interval(counts: Sequence[Counts], n: int, k: int, resamplings: int, seed: int) -> list[float]:
    """95 % interval of the mean where the problems are drawn anew with replacement, their results as they are."""
    values = np.array([n_at_k(*c, n, k) for c in counts])
    draws = np.random.default_rng(seed).integers(len(values), size=(resamplings, len(values)))
    return _percent(np.percentile(values[draws].mean(axis=1), [2.5, 97.5]))


def _percent(interval: Any) -> list[float]:
    return [100 * float(x) for x in interval]


def text_report(found: dict[str, Any]) -> str:
    """The numbers for a person: n@k, then what happens over turns."""
    lines = [
        f"{'n@k':>8} {'%':>7} {'samples 95 %':>15} {'problems 95 %':>15} {'pass@k':>7} {'independent':>12} problems"
    ]
    for name, row in found["n_at_k"].items():
        k = name.split("@")[1]
        cells = [_number(row["percent"], 7), _interval(row["samples_ci"]), _interval(row["problems_ci"])]
        cells += [_number(row[f"pass@{k}"], 7), _number(row["independent"], 12)]
        left_out = f" ({row['left_out']} left out)" if row["left_out"] else ""
        lines.append(" ".join([f"{name:>8}", *cells, f"{row['problems']}{left_out}"]))
    turns = found["over_turns"]
    lines += [
        "",
        f"{'turn':>8} {'responses':>9} {'solved by':>9} {'tokens':>7} {'cut %':>6} {'changed %':>9}  statuses",
    ]
    for t, count in enumerate(turns["responses"]):
        tokens = turns["response_tokens"][t] or {}
        changed = turns["code_changed"][t - 1] if t else None
        kinds = ", ".join(f"{kind} {n}" for kind, n in turns["error_kinds"][t].items())
        lines.append(
            f"{t + 1:>8} {count:>9} {_number(turns['solved_by_turn'][t], 9)} {_number(tokens.get('mean'), 7)}"
            f" {_number(tokens.get('cut'), 6)} {_number(changed, 9)}  {kinds}"
        )
    for t, table in enumerate(turns["transitions"], start=1):
        lines += ["", f"from turn {t} to turn {t + 1}"]
        for before, after in table.items():
            lines.append(f"  {before:14} -> " + ", ".join(f"{kind} {n}" for kind, n in after.items()))
    lines += ["", f"{found['problems']} problems, {found['rollouts']} rollouts, {found['infra']} broken by the judge"]
    return "\n".join(lines)


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.1f}':>{width}}"


def _interval(values: Sequence[float] | None) -> str:
    return f"{'-' if values is None else f'{values[0]:.1f} to {values[1]:.1f}':>15}"


def whole_report(
    episodes: Sequence[Episode],
    programs: Sequence[Sequence[str | None]],
    asked: Sequence[tuple[int, int]],
    *,
    turns: int,
    problem_resamplings: int,
) -> dict[str, Any]:
    """All of the above. Raises ValueError where there is no episode that the judge didn't break on."""
    judged = [e for e in episodes if e.end != "infra"]
    if not judged:
        raise ValueError(f"none of {len(episodes)} rollouts was judged")
    return {
        "n_at_k": n_at_k_table(episodes, asked, turns=turns, problem_resamplings=problem_resamplings),
        "over_turns": over_turns(episodes, programs),
        "problems": len(by_problem(episodes)),
        "rollouts": len(episodes),
        "infra": len(episodes) - len(judged),
    }
