"""Summary statistics of finished episodes, in percent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlef_jax.metrics.n_at_k import mean_n_at_k, rollouts_for
from rlef_jax.types import Episode, Turn


def summarise(
    episodes: Sequence[Episode], *, max_turns: int = 3, bootstrap_samples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Solve rates of finished episodes, with 95 % intervals from resampling the problems.

    Episodes on which the judge broke ("infra") count only in `infra`. With several rollouts per problem, a rate is the
    mean over problems of each problem's rate, so that an infra error doesn't shift weight between problems.

    Args:
      episodes: finished episodes, any number per problem.
      max_turns: their turn limit N, for the key `1@N`.
      bootstrap_samples: number of resamplings of the problems for the intervals.
      seed: seed of the resampling.

    Returns:
      `1@1`: share solved by the first response: it passed the public tests, which ended the episode, and the hidden
        ones. None under feedback "none", where passing the public tests doesn't end an episode.
      `1@N`: share solved at the end. `1@1_ci`, `1@N_ci`: [low, high].
      `repaired_at_2`: of the episodes with a second response (their first one failed), the share whose second response
        was correct; `repaired_at_2_ci`; `second_turns`: the number of these episodes.
      `turns`: mean number of responses. `error_kinds`: per turn, the count of each status.
      `problems`, `episodes`, `infra`: counts.

    Raises:
      ValueError: an episode is unfinished, or the judge broke on all of them.
    """
    for episode in episodes:
        if not episode.end:
            raise ValueError(f"episode {episode.index} of step {episode.step} goes on")
    judged = [e for e in episodes if e.end != "infra"]
    if not judged:
        raise ValueError(f"none of {len(episodes)} episodes was judged")
    problems = by_problem(judged)
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(problems), size=(bootstrap_samples, len(problems)))
    final = f"1@{max_turns}"
    summary: dict[str, Any] = {}
    measures = {"1@1": solved_at_first, final: lambda e: e.solved} if max_turns > 1 else {final: lambda e: e.solved}
    for name, measure in measures.items():
        _add_rate(summary, name, problems, draws, measure, lambda e: True, over_problems=True)
    _add_rate(summary, "repaired_at_2", problems, draws, solved_at_second, _has_second, over_problems=False)
    if not first_responses_known(judged):
        # Without an early stop, first responses aren't judged on hidden tests, so this is unknown.
        for name in ("1@1", "repaired_at_2"):
            summary[name] = summary[f"{name}_ci"] = None
    summary |= {
        "second_turns": sum(map(_has_second, judged)),
        "turns": float(np.mean([len(e.turns) for e in judged])),
        "error_kinds": error_kinds(judged),
        "problems": len(problems),
        "episodes": len(judged),
        "infra": len(episodes) - len(judged),
    }
    return summary


def solved_at_first(episode: Episode) -> bool:
    """Whether the first response was correct; passing its public tests then ended the episode."""
    return len(episode.turns) == 1 and episode.solved


def solved_at_second(episode: Episode) -> bool:
    """Whether the second response was correct and ended the episode."""
    return len(episode.turns) == 2 and episode.solved


def n_at_k_percent(episodes: Sequence[Episode], n: int, k: int, *, turns: int) -> tuple[float, int]:
    """(n@k in percent, number of problems left out because the judge broke on too many of their rollouts).

    `k` counts responses; each rollout counts as `turns` of them. Raises ValueError if no problem is left.
    """
    rollouts, groups = rollouts_for(k, turns), by_problem(episodes)
    judged = [[e for e in group if e.end != "infra"] for group in groups]
    counts = [
        (len(group), sum(last_passed_public(e) for e in group), sum(e.solved for e in group))
        for group in judged
        if len(group) >= rollouts
    ]
    if not counts:
        raise ValueError(f"none of {len(groups)} problems has {rollouts} judged rollouts")
    return 100.0 * mean_n_at_k(counts, n, rollouts), len(groups) - len(counts)


def error_kinds(episodes: Sequence[Episode]) -> list[dict[str, int]]:
    """{status: number of responses} per turn, most frequent first. Index 0 is turn 1."""
    longest = max((len(e.turns) for e in episodes), default=0)
    return [
        dict(Counter(str(_verdict_status(e.turns[t])) for e in episodes if len(e.turns) > t).most_common())
        for t in range(longest)
    ]


def by_problem(episodes: Sequence[Episode]) -> list[list[Episode]]:
    """Groups episodes by problem, in order. Names may repeat, so name and description identify a problem."""
    groups: dict[tuple[str, str], list[Episode]] = {}
    for episode in episodes:
        groups.setdefault((episode.problem.name, episode.problem.description), []).append(episode)
    return list(groups.values())


def _add_rate(
    summary: dict[str, Any],
    name: str,
    problems: Sequence[Sequence[Episode]],
    draws: np.ndarray,
    hit: Callable[[Episode], bool],
    included: Callable[[Episode], bool],
    *,
    over_problems: bool,
) -> None:
    """Adds `name` and `name_ci`: the percentage of hits among the included episodes; None if there are none.

    `over_problems`: every problem has the same weight, else every episode. `draws`: [samples, problems] resampled
    indices.
    """
    hits = np.array([sum(hit(e) for e in group if included(e)) for group in problems], float)
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


def first_responses_known(episodes: Sequence[Episode]) -> bool:
    """Whether every first response that passed its public tests ended its episode, and so was fully judged."""
    return not any(len(e.turns) > 1 and _first_passed_public(e) for e in episodes)


def _has_second(episode: Episode) -> bool:
    return len(episode.turns) > 1


def _first_passed_public(episode: Episode) -> bool:
    verdict = episode.turns[0].verdict
    return verdict is not None and verdict.public_passed


def last_passed_public(episode: Episode) -> bool:
    """Whether a rollout's last program passes the public tests: the selection rule of n@k."""
    verdict = episode.turns[-1].verdict
    return verdict is not None and verdict.public_passed


def _verdict_status(turn: Turn) -> str:
    return turn.verdict.status if turn.verdict is not None else "NOT_JUDGED"
