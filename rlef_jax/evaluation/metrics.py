"""The metrics of an evaluation, from its episodes and their programs. docs/evaluation.md has the formulas.

All shares are in percent. A sample is a response; a rollout has `turns` of them and submits its last program. Rollouts
on which the judge broke count only in `infra`. A problem with too few other rollouts for a k is left out of that n@k.
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
    pairs: Sequence[tuple[int, int]],
    *,
    turns: int,
    resamplings: int = 200,
    problem_resamplings: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """{"1@3": {...}} for each (n, k): the estimate, its intervals, and that of independent samples at the same k.

    Entries: `percent`, the estimate; `samples_ci`, the paper's interval, from resampling each problem's results;
    `problems_ci`, from resampling the problems; `pass@k`, if all k are submitted; `independent`, the same n@k with k
    first responses, if there are k rollouts and it is known whether first responses are correct; `rollouts`, their
    number for k responses; `problems` and `left_out`, counts. If no problem has enough rollouts, all but counts are
    None.
    """
    groups = by_problem(episodes)
    judged = [[e for e in group if e.end != "infra"] for group in groups]
    first_known = first_responses_known([e for group in judged for e in group])
    table: dict[str, Any] = {}
    for n, k in pairs:
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
        if first_known and len(first) == len(counts) and first:
            row["independent"] = 100 * mean_n_at_k(first, n, k)
        table[f"{n}@{k}"] = row
    return table


def over_turns(episodes: Sequence[Episode], programs: Sequence[Sequence[str | None]]) -> dict[str, Any]:
    """Metrics over turns, for all judged rollouts.

    Args:
      episodes: finished episodes.
      programs: the programs of each episode, by turn; None for a response without code.

    Returns:
      `solved_by_turn`: share of rollouts solved within that number of turns. None for all but the last turn if passing
        the public tests doesn't end a rollout, since then it is unknown.
      `responses`: number of responses at each turn. `error_kinds`: {status: count} at each turn.
      `transitions`: from each turn to the next, {status: {next status: count}}.
      `unchanged_chrf`: from each turn to the next, the mean chrF of a program against the one before it, if both
        responses have code; `code_changed`: 100 minus that; `pairs`: the number of such pairs.
      `response_tokens`: at each turn the mean, median and longest length, and the share cut by length; None without
        tokens.
    """
    judged_pairs = [(e, p) for e, p in zip(episodes, programs, strict=True) if e.end != "infra"]
    judged = [e for e, _ in judged_pairs]
    longest = max((len(e.turns) for e in judged), default=0)
    first_known = first_responses_known(judged)
    solved = [100 * float(np.mean([e.solved and len(e.turns) <= t for e in judged])) for t in range(1, longest + 1)]
    pairs = [
        [
            (a, b)
            for e, p in judged_pairs
            if len(e.turns) > t + 1 and (a := p[t]) is not None and (b := p[t + 1]) is not None
        ]
        for t in range(longest - 1)
    ]
    similarity = [
        float(np.mean([100 * chrf(next_program, program) for program, next_program in turn_pairs]))
        if turn_pairs
        else None
        for turn_pairs in pairs
    ]
    return {
        "solved_by_turn": solved if first_known else [*[None] * (longest - 1), *solved[-1:]],
        "responses": [sum(len(e.turns) > t for e in judged) for t in range(longest)],
        "error_kinds": error_kinds(judged),
        "transitions": [transitions(judged, t) for t in range(longest - 1)],
        "unchanged_chrf": similarity,
        "code_changed": [None if s is None else 100 - s for s in similarity],
        "pairs": [len(turn_pairs) for turn_pairs in pairs],
        "response_tokens": [_lengths(judged, t) for t in range(longest)],
    }


def transitions(episodes: Sequence[Episode], turn: int) -> dict[str, dict[str, int]]:
    """{status at `turn` (from 0): {status at the next turn: count}}, most frequent first."""
    counts = Counter(
        (_status(e, turn), _status(e, turn + 1)) for e in episodes if len(e.turns) > turn + 1
    ).most_common()
    table: dict[str, dict[str, int]] = {}
    for (status, next_status), count in counts:
        table.setdefault(status, {})[next_status] = count
    return table


def _status(episode: Episode, turn: int) -> str:
    verdict = episode.turns[turn].verdict
    return str(verdict.status) if verdict is not None else "NOT_JUDGED"


def _lengths(episodes: Sequence[Episode], turn: int) -> dict[str, float] | None:
    reached = [e.turns[turn] for e in episodes if len(e.turns) > turn]
    lengths = [len(t.response_ids) for t in reached]
    if not any(lengths):
        return None
    return {
        "mean": float(np.mean(lengths)),
        "median": float(np.median(lengths)),
        "longest": float(max(lengths)),
        "cut": 100 * float(np.mean([t.finish_reason == "length" for t in reached])),
    }


def _counts(group: Sequence[Episode]) -> Counts:
    """(rollouts of a problem, number that pass the public tests, number that pass all tests)."""
    return len(group), sum(map(last_passed_public, group)), sum(e.solved for e in group)


def _first_counts(group: Sequence[Episode]) -> Counts:
    """The same for a problem's first responses."""
    public = [e for e in group if (v := e.turns[0].verdict) is not None and v.public_passed]
    return len(group), len(public), sum(e.solved for e in public)


def _problems_interval(counts: Sequence[Counts], n: int, k: int, resamplings: int, seed: int) -> list[float]:
    """95 % interval of the mean, from resampling the problems with replacement; their results stay fixed."""
    values = np.array([n_at_k(*c, n, k) for c in counts])
    draws = np.random.default_rng(seed).integers(len(values), size=(resamplings, len(values)))
    return _percent(np.percentile(values[draws].mean(axis=1), [2.5, 97.5]))


def _percent(interval: Any) -> list[float]:
    return [100 * float(x) for x in interval]


def text_report(report: dict[str, Any]) -> str:
    """The report as text: n@k, then the metrics over turns."""
    lines = [
        f"{'n@k':>8} {'%':>7} {'samples 95 %':>15} {'problems 95 %':>15} {'pass@k':>7} {'independent':>12} problems"
    ]
    for name, row in report["n_at_k"].items():
        k = name.split("@")[1]
        cells = [_number(row["percent"], 7), _interval(row["samples_ci"]), _interval(row["problems_ci"])]
        cells += [_number(row[f"pass@{k}"], 7), _number(row["independent"], 12)]
        left_out = f" ({row['left_out']} left out)" if row["left_out"] else ""
        lines.append(" ".join([f"{name:>8}", *cells, f"{row['problems']}{left_out}"]))
    turns = report["over_turns"]
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
        for status, next_statuses in table.items():
            lines.append(f"  {status:14} -> " + ", ".join(f"{kind} {n}" for kind, n in next_statuses.items()))
    lines += [
        "",
        f"{report['problems']} problems, {report['rollouts']} rollouts, {report['infra']} broken by the judge",
    ]
    return "\n".join(lines)


def _number(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.1f}':>{width}}"


def _interval(values: Sequence[float] | None) -> str:
    return f"{'-' if values is None else f'{values[0]:.1f} to {values[1]:.1f}':>15}"


def whole_report(
    episodes: Sequence[Episode],
    programs: Sequence[Sequence[str | None]],
    pairs: Sequence[tuple[int, int]],
    *,
    turns: int,
    problem_resamplings: int,
) -> dict[str, Any]:
    """All metrics above, as JSON data. Raises ValueError if the judge broke on all episodes."""
    judged = [e for e in episodes if e.end != "infra"]
    if not judged:
        raise ValueError(f"none of {len(episodes)} rollouts was judged")
    return {
        "n_at_k": n_at_k_table(episodes, pairs, turns=turns, problem_resamplings=problem_resamplings),
        "over_turns": over_turns(episodes, programs),
        "problems": len(by_problem(episodes)),
        "rollouts": len(episodes),
        "infra": len(episodes) - len(judged),
    }
