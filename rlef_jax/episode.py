"""The turn machine of an episode (RLEF, sections 2.1 and C.1): pure, it neither samples nor judges.

start -> step -> ... -> step            ends: every public test passed, the turn limit, or the judge broke
                  \\-> end_by_context    ends: the next prompt doesn't fit the context
then judge_last with the hidden results, where `needs_hidden` says that they decide anything
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
      episode: one that goes on.
      turn: judged on the public tests.
      max_turns: the turn limit; 3 in the paper.
      stop_on_pass: end once every public test passes; off without feedback (B.5), where all turns are taken.

    Raises:
      ValueError: the episode is over, or the turn wasn't judged.
    """
    _must_go_on(episode)
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


def room(episode: Episode, prompt_delta_length: int, context: int) -> int:
    """How many tokens may follow the next prompt within `context`; none left (<= 0) means that it doesn't fit."""
    return context - len(episode.token_ids) - prompt_delta_length


def end_by_context(episode: Episode) -> Episode:
    """Ends an episode whose next prompt, with one token of a response, doesn't fit: it is judged as it stands."""
    _must_go_on(episode)
    if not episode.turns:
        raise ValueError(
            f"the first prompt of {_name(episode)} doesn't fit the context: drop the problem from the data"
        )
    return dataclasses.replace(episode, end="context")


def end_by_infra(episode: Episode) -> Episode:
    """Ends an episode that can't go on because the judge broke elsewhere than on its own program."""
    _must_go_on(episode)
    return dataclasses.replace(episode, end="infra")


def last_verdict(episode: Episode) -> Verdict:
    """The verdict on the latest response. Raises ValueError where there is none."""
    verdict = episode.turns[-1].verdict if episode.turns else None
    if verdict is None:
        raise ValueError(f"{_name(episode)} has no judged response")
    return verdict


def judge_last(episode: Episode, verdict: Verdict) -> Episode:
    """Puts the verdict with hidden results in place of the last turn's. If the judge broke, the episode ends so."""
    if not episode.end:
        raise ValueError(f"{_name(episode)} goes on: hidden tests are for the last response only")
    last = dataclasses.replace(episode.turns[-1], verdict=verdict)
    end = "infra" if verdict.status is Status.INFRA_ERROR else episode.end
    return dataclasses.replace(episode, turns=(*episode.turns[:-1], last), end=end)


def _must_go_on(episode: Episode) -> None:
    if episode.end:
        raise ValueError(f"{_name(episode)} is over ({episode.end})")


def _name(episode: Episode) -> str:
    return f"episode {episode.index} of step {episode.step} ({episode.problem.name})"
