"""The turns of an episode as pure functions (RLEF, sections 2.1 and C.1). Sampling and judging happen elsewhere.

start -> step -> ... -> step            ends: every public test passed, the turn limit, or the judge broke
                  \\-> end_by_context    ends: the next prompt doesn't fit the context
then judge_last with the results of the hidden tests
"""

from __future__ import annotations

import dataclasses

from rlef_jax.types import Episode, Problem, Status, Turn, Verdict


def start(problem: Problem, *, seed: int, step: int, index: int) -> Episode:
    """An episode without turns."""
    return Episode(problem, seed, step, index)


def step(episode: Episode, turn: Turn, *, max_turns: int, stop_on_pass: bool = True) -> Episode:
    """Appends a turn whose verdict holds the results of the public tests, and ends the episode if it is over.

    Args:
      episode: an unfinished episode.
      turn: a turn judged on the public tests.
      max_turns: the turn limit; 3 in the paper.
      stop_on_pass: end once every public test passes. False without feedback (B.5), where all turns are taken.

    Raises:
      ValueError: the episode is over, or the turn wasn't judged.
    """
    _require_unfinished(episode)
    if turn.verdict is None:
        raise ValueError(f"turn {len(episode.turns) + 1} of {_name(episode)} was not judged")
    turns = (*episode.turns, turn)
    if turn.verdict.status is Status.INFRA_ERROR:
        end = "infra"
    elif stop_on_pass and turn.verdict.public_passed:
        end = "public_passed"
    elif len(turns) >= max_turns:
        end = "turn_limit"
    else:
        end = ""
    return dataclasses.replace(episode, turns=turns, end=end)


def room(episode: Episode, prompt_length: int, context: int, *, restart: bool = False) -> int:
    """The number of tokens left in `context` after the next prompt; <= 0 means that the prompt doesn't fit.

    With `restart` the context begins with that prompt.
    """
    return context - (0 if restart else len(episode.context_ids)) - prompt_length


def end_by_context(episode: Episode) -> Episode:
    """Ends an episode whose next prompt and one response token don't fit the context. Its last response is judged.

    Raises ValueError if the episode is over or has no turn.
    """
    _require_unfinished(episode)
    if not episode.turns:
        raise ValueError(
            f"the first prompt of {_name(episode)} doesn't fit the context: drop the problem from the data"
        )
    return dataclasses.replace(episode, end="context")


def end_by_infra(episode: Episode) -> Episode:
    """Ends an episode that can't continue because the judge broke on another program. Raises ValueError if over."""
    _require_unfinished(episode)
    return dataclasses.replace(episode, end="infra")


def last_verdict(episode: Episode) -> Verdict:
    """The verdict on the latest response. Raises ValueError if there is none."""
    verdict = episode.turns[-1].verdict if episode.turns else None
    if verdict is None:
        raise ValueError(f"{_name(episode)} has no judged response")
    return verdict


def judge_last(episode: Episode, verdict: Verdict) -> Episode:
    """Replaces the last turn's verdict by one with hidden results; `end` becomes "infra" if the judge broke.

    Raises ValueError for an unfinished episode.
    """
    if not episode.end:
        raise ValueError(f"{_name(episode)} goes on: hidden tests are for the last response only")
    last = dataclasses.replace(episode.turns[-1], verdict=verdict)
    end = "infra" if verdict.status is Status.INFRA_ERROR else episode.end
    return dataclasses.replace(episode, turns=(*episode.turns[:-1], last), end=end)


def _require_unfinished(episode: Episode) -> None:
    if episode.end:
        raise ValueError(f"{_name(episode)} is over ({episode.end})")


def _name(episode: Episode) -> str:
    return f"episode {episode.index} of step {episode.step} ({episode.problem.name})"
