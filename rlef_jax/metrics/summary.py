"""Episodes -> the numbers that people look at, in percent."""

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

    Episodes that the judge broke on ("infra") count in `infra` alone. With several rollouts a problem, each rate is
    the mean over problems of the problem's own rate, so that an infra error doesn't shift weight between problems.

    Args:
      episodes: all judged; any number a problem.
      max_turns: the turn limit that they were made under; names the keys `1@1` and `1@{max_turns}`.
      bootstrap_samples: resamplings of the problems for the intervals.
      seed: of the resampling.

    Returns:
      `1@1`: share solved by their first response (one that passed its public tests, which ended the episode, and
        all hidden tests). Under feedback "none", where passing ends nothing, it is None.
      `1@N`: share solved in the end. `1@1_ci`, `1@N_ci`: [low, high].
      `repaired_at_2`: of the episodes with a second response, all of whose first ones failed, the share (over
        episodes) whose second response was right; `repaired_at_2_ci`; `second_turns`: how many there were.
      `turns`: mean number of responses. `error_kinds`: per turn, the count of each status.
      `problems`, `episodes`, `infra`: counts.

    Raises:
      ValueError: an episode goes on, or none can be counted.
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
    last = f"1@{max_turns}"
    summary: dict[str, Any] = {}
    measures = {"1@1": solved_at_first, last: lambda e: e.solved} if max_turns > 1 else {last: lambda e: e.solved}
    for name, measure in measures.items():
        _add_rate(summary, name, problems, draws, measure, lambda e: True, over_problems=True)
    _add_rate(summary, "repaired_at_2", problems, draws, solved_at_second, _has_second, over_problems=False)
    if not first_responses_known(judged):
        # Without an early stop a first response is never judged on hidden tests, so nobody knows.
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
    """Whether the first response was right. It then ended the episode: passing the public tests does."""
    return len(episode.turns) == 1 and episode.solved


def solved_at_second(episode: Episode) -> bool:
    """Whether a second response was right."""
    return len(episode.turns) == 2 and episode.solved


def n_at_k_percent(episodes: Sequence[Episode], n: int, k: int, *, turns: int) -> tuple[float, int]:
    """n@k in percent, and how many problems are left out of it: the judge broke on too many of their rollouts.

    `k` counts responses: each rollout of up to `turns` of them costs `turns`. Raises ValueError if no problem is left.
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
    """Per turn, how many responses got each status, most frequent first. Index 0 is turn 1."""
    longest = max((len(e.turns) for e in episodes), default=0)
    return [
        dict(Counter(str(_verdict_status(e.turns[t])) for e in episodes if len(e.turns) > t).most_common())
        for t in range(longest)
    ]


def by_problem(episodes: Sequence[Episode]) -> list[list[Episode]]:
    """Episodes of the same problem together. Names needn't be unique, so name and description tell them apart."""
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
    counts: Callable[[Episode], bool],
    *,
    over_problems: bool,
) -> None:
    """Adds `name` and `name_ci`: hits among what counts, in percent; None where nothing counts.

    `over_problems` weighs each problem alike, else each episode. `draws` is [samples, problems] of indices.
    """
    hits = np.array([sum(hit(e) for e in group if counts(e)) for group in problems], float)
    trials = np.array([sum(map(counts, group)) for group in problems], float)
    if over_problems:
        hits, trials = hits / trials, np.ones_like(trials)
    if not trials.sum():
        summary[name] = summary[f"{name}_ci"] = None
        return
    totals = trials[draws].sum(axis=1)
    rates = 100.0 * hits[draws].sum(axis=1)[totals > 0] / totals[totals > 0]
    summary[name] = float(100.0 * hits.sum() / trials.sum())
    # Few resamplings may all miss the few problems that count.
    summary[f"{name}_ci"] = [float(x) for x in np.percentile(rates, [2.5, 97.5])] if rates.size else None


def first_responses_known(episodes: Sequence[Episode]) -> bool:
    """Whether every first response that passes its public tests was judged on the hidden ones: it ended its episode."""
    return not any(len(e.turns) > 1 and _first_passed_public(e) for e in episodes)


def _has_second(episode: Episode) -> bool:
    return len(episode.turns) > 1


def _first_passed_public(episode: Episode) -> bool:
    verdict = episode.turns[0].verdict
    return verdict is not None and verdict.public_passed


def last_passed_public(episode: Episode) -> bool:
    """Whether what a rollout submits passes the public tests: the selection of n@k."""
    verdict = episode.turns[-1].verdict
    return verdict is not None and verdict.public_passed


def _verdict_status(turn: Turn) -> str:
    return turn.verdict.status if turn.verdict is not None else "NOT_JUDGED"
