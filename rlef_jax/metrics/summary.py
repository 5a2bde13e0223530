"""Summary statistics of finished rollouts, in percent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlef_jax.metrics.n_at_k import Counts, mean_n_at_k, rollouts_for
from rlef_jax.metrics.outcome import Outcome, Rollout, by_problem, judged_only, known_at, outcomes_of


def summarise(
    rollouts: Sequence[Rollout], *, max_turns: int = 3, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Solve rates of finished rollouts, with 95 % intervals from resampling the problems.

    Those on which the judge broke ("infra") count only in `infra`. With several rollouts per problem, a rate is the
    mean over problems of each problem's rate, so that an infra error doesn't shift weight between problems.

    Args:
      rollouts: finished episodes or their outcomes, any number per problem.
      max_turns: their turn limit N, for the key `1@N`.
      bootstrap_samples: number of resamplings of the problems for the intervals.
      seed: seed of the resampling.

    Returns:
      `1@1`: share solved by the first response. `1@N`: share solved at the end. `1@1_ci`, `1@N_ci`: [low, high].
      `repaired_at_2`: of the rollouts whose first response failed a public test and was followed by a second one, the
        share whose second response was right; `repaired_at_2_ci`; `second_turns`: the number of these rollouts.
      `turns`: mean number of responses.
      `error_kinds`: per turn, the count of each status on the public tests; `hidden_kinds`: per turn, that on the
        hidden tests, of the responses that these were run on.
      `problems`, `episodes`, `infra`: counts.

      Hidden tests are run on last responses only. Under feedback "none", where passing the public tests ends nothing,
      `1@1` and `repaired_at_2` are None where a response that passed them was not the last (`outcome.known_at`).

    Raises:
      ValueError: an episode is unfinished, or the judge broke on all of them.
    """
    outcomes = outcomes_of(rollouts)
    judged = judged_only(outcomes)
    if not judged:
        raise ValueError(f"none of {len(outcomes)} episodes was judged")
    problems = by_problem(judged)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(problems), size=(bootstrap_samples, len(problems)))
    final, failed_first = f"1@{max_turns}", list(filter(_failed_first, judged))
    summary: dict[str, Any] = {}
    measures = {"1@1": solved_at_first, final: lambda o: o.solved} if max_turns > 1 else {final: lambda o: o.solved}
    for name, measure in measures.items():
        _add_rate(summary, name, problems, draws, measure, lambda o: True, over_problems=True)
    _add_rate(summary, "repaired_at_2", problems, draws, lambda o: o.solved_at(1), _failed_first, over_problems=False)
    for name, known in {"1@1": known_at(judged, 0), "repaired_at_2": known_at(failed_first, 1)}.items():
        if not known:
            summary[name] = summary[f"{name}_ci"] = None
    summary |= {
        "second_turns": len(failed_first),
        "turns": float(np.mean([o.turns for o in judged])),
        "error_kinds": error_kinds(judged),
        "hidden_kinds": hidden_kinds(judged),
        "problems": len(problems),
        "episodes": len(judged),
        "infra": len(outcomes) - len(judged),
    }
    return summary


def solved_at_first(outcome: Outcome) -> bool:
    """Whether the first response was the last and right."""
    return outcome.solved_at(0)


def n_at_k_percent(rollouts: Sequence[Rollout], n: int, k: int, *, turns: int) -> tuple[float, int]:
    """(n@k in percent, number of problems left out because the judge broke on too many of their rollouts).

    `k` counts responses; each rollout counts as `turns` of them. Raises ValueError if no problem is left.
    """
    needed, groups = rollouts_for(k, turns), by_problem(outcomes_of(rollouts))
    judged = map(judged_only, groups)
    counts = [counts_of(group) for group in judged if len(group) >= needed]
    if not counts:
        raise ValueError(f"none of {len(groups)} problems has {needed} judged rollouts")
    return 100.0 * mean_n_at_k(counts, n, needed), len(groups) - len(counts)


def counts_of(group: Sequence[Outcome]) -> Counts:
    """(rollouts of a problem, those whose last program passes the public tests, those that pass all tests)."""
    return len(group), sum(o.passed_public(-1) for o in group), sum(o.solved for o in group)


def error_kinds(outcomes: Sequence[Outcome]) -> list[dict[str, int]]:
    """{status on the public tests: number of responses} per turn, most frequent first. Index 0 is turn 1.

    A response that passes them and fails a hidden one counts as PASSED here: it is `hidden_kinds` that tells.
    """
    return _counted([o.public for o in outcomes])


def hidden_kinds(outcomes: Sequence[Outcome]) -> list[dict[str, int]]:
    """{status on the hidden tests: number of responses that they were run on} per turn, most frequent first."""
    return _counted([o.hidden for o in outcomes], missing=None)


def _counted(statuses: Sequence[Sequence[str | None]], missing: str | None = "NOT_JUDGED") -> list[dict[str, int]]:
    longest = max(map(len, statuses), default=0)
    turns = [[s[t] or missing for s in statuses if len(s) > t] for t in range(longest)]
    return [dict(Counter(str(status) for status in turn if status is not None).most_common()) for turn in turns]


def _add_rate(
    summary: dict[str, Any],
    name: str,
    problems: Sequence[Sequence[Outcome]],
    draws: np.ndarray,
    hit: Callable[[Outcome], bool],
    included: Callable[[Outcome], bool],
    *,
    over_problems: bool,
) -> None:
    """Adds `name` and `name_ci`: the percentage of hits among the included rollouts; None if there are none.

    `over_problems`: every problem has the same weight, else every rollout. `draws`: [samples, problems] resampled
    indices.
    """
    hits = np.array([sum(hit(o) for o in group if included(o)) for group in problems], float)
    trials = np.array([sum(map(included, group)) for group in problems], float)
    if over_problems:
        hits, trials = hits / trials, np.ones_like(trials)
    if not trials.sum():
        summary[name] = summary[f"{name}_ci"] = None
        return
    totals = trials[draws].sum(axis=1)
    rates = 100.0 * hits[draws].sum(axis=1)[totals > 0] / totals[totals > 0]
    summary[name] = float(100.0 * hits.sum() / trials.sum())
    # A few resamplings may contain none of the included problems.
    summary[f"{name}_ci"] = [float(x) for x in np.percentile(rates, [2.5, 97.5])] if rates.size else None


def _failed_first(outcome: Outcome) -> bool:
    """Whether the first response failed a public test, and another one followed."""
    return outcome.turns > 1 and not outcome.passed_public(0)
