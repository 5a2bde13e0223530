"""Few-shot prompting, the paper's baseline (appendix C.3): successful dialogues in front of each first prompt.

They are dialogues of two and of three responses about other problems, taken out of saved episodes, with an empty
assistant message after each. Their tokens are those that were prompted and sampled, never encoded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.prompts import first_message
from rlef_jax.errors import ConfigError
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.types import Episode, Problem

LENGTHS = (2, 3)  # responses of a dialogue that may be shown


def choose(path: Path, count: int, evaluated: Sequence[Problem]) -> list[Episode]:
    """`count` solved dialogues, of two and three responses by turns as long as there are both, each of another problem.

    Args:
      path: a file of episodes, or an evaluation's folder. Its order decides.
      count: how many.
      evaluated: problems of which none may be shown.

    Raises ConfigError where there are fewer, or nothing that can be read.
    """
    taken = {(p.name, p.description) for p in evaluated}
    found: dict[int, list[Episode]] = {length: [] for length in LENGTHS}
    for episode in (e for file in _files(path) for e in _read(file)):
        problem = episode.problem.name, episode.problem.description
        if episode.solved and len(episode.turns) in found and problem not in taken and episode.token_ids:
            taken.add(problem)
            found[len(episode.turns)].append(episode)
    there = sum(map(len, found.values()))
    if there < count:
        raise ConfigError(
            f"--few-shot={path}: {there} problems, none of them evaluated here, were solved at the second or third"
            f" response; --shots={count} needs as many: give another file, or fewer shots"
        )
    chosen: list[Episode] = []
    while len(chosen) < count:
        for length in LENGTHS:
            if found[length] and len(chosen) < count:
                chosen.append(found[length].pop(0))
    return chosen


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if files := sorted((path / "chunks").glob("*.jsonl.gz")):
        return files
    raise ConfigError(
        f"--few-shot={path}: give a file of episodes (such as RUN/episodes/000012.jsonl.gz), or an evaluation's folder"
    )


def _read(path: Path) -> list[Episode]:
    try:
        return read_episodes(path)
    except ConfigError as error:
        raise ConfigError(f"--few-shot: {error}") from error


def opening(chat: ChatFormat, shots: Sequence[Episode], system: str = "") -> tuple[int, ...]:
    """Tokens up to the end of the last dialogue's last response; `ChatFormat.another_prompt` goes on from there.

    Args:
      chat: of the model that is evaluated, and that made the dialogues.
      shots: see `choose`.
      system: message that opens it all.

    Raises ConfigError for dialogues of another tokenizer or chat format.
    """
    ids: list[int] = []
    for shot in shots:
        problem, turns = shot.problem, shot.turns
        message = first_message(problem)
        own = chat.user_turn(message, start=problem.start)
        if list(turns[0].prompt_delta_ids[-len(own) :]) != own:
            raise ConfigError(
                f"--few-shot: the dialogue about {problem.name!r} was made with another tokenizer, chat format or"
                " wording than this model's: give one that this model, or another with its tokenizer, has made"
            )
        if ids:
            ids += chat.another_prompt(message, start=problem.start)
        else:
            ids += chat.first_prompt(message, system, start=problem.start)
        ids += turns[0].response_ids
        for turn in turns[1:]:
            ids += (*turn.prompt_delta_ids, *turn.response_ids)
        if turns[-1].finish_reason != "stop":
            ids.append(chat.stop_ids[0])
    return tuple(ids)
