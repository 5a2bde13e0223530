"""Few-shot prompting, the paper's baseline (appendix C.3): successful dialogues in front of each first prompt.

These are dialogues with two or three responses about other problems, from saved episodes, each followed by an empty
assistant message. Their tokens are the prompted and sampled ones, never tokenized again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.prompts import first_message
from rlef_jax.dialog.same_format import check_same_format
from rlef_jax.errors import ConfigError
from rlef_jax.training.episode_io import episode_files, read_episodes
from rlef_jax.types import Episode, Problem

LENGTHS = (2, 3)  # numbers of responses of the dialogues shown


@dataclasses.dataclass(frozen=True)
class Shots:
    """Dialogues to show, and the file or folder that they are from."""

    path: Path
    dialogues: Sequence[Episode]

    @property
    def names(self) -> list[str]:
        """Of the problems that they are about."""
        return [dialogue.problem.name for dialogue in self.dialogues]


def choose(path: Path, count: int, evaluated: Sequence[Problem]) -> Shots:
    """`count` solved dialogues about different problems, alternately with two and three responses while both last.

    Args:
      path: a file of episodes, or the folder of a run or an evaluation; earlier episodes come first.
      count: the number of dialogues.
      evaluated: problems whose dialogues must not be shown.

    Raises ConfigError if there are fewer, or nothing can be read.
    """
    excluded = {(p.name, p.description) for p in evaluated}
    by_length: dict[int, list[Episode]] = {length: [] for length in LENGTHS}
    for episode in _episodes(path):
        problem = episode.problem.name, episode.problem.description
        usable = episode.solved and len(episode.turns) in by_length and problem not in excluded
        if usable and episode.token_ids and len(episode.stretches) == 1:  # whose turns saw each other
            excluded.add(problem)
            by_length[len(episode.turns)].append(episode)
    available = sum(map(len, by_length.values()))
    if available < count:
        raise ConfigError(
            f"--few-shot={path}: {available} problems, none of them evaluated here, were solved at the second or third"
            f" response; --shots={count} needs as many: give another file, or fewer shots"
        )
    chosen: list[Episode] = []
    while len(chosen) < count:
        for length in LENGTHS:
            if by_length[length] and len(chosen) < count:
                chosen.append(by_length[length].pop(0))
    return Shots(path, chosen)


def _episodes(path: Path) -> Iterator[Episode]:
    try:
        for file in episode_files(path):
            yield from read_episodes(file)
    except ConfigError as error:
        raise ConfigError(f"--few-shot: {error}") from error


def opening(chat: ChatFormat, shots: Shots, system: str = "") -> tuple[int, ...]:
    """Tokens of all dialogues, up to the end of the last response; `ChatFormat.another_prompt` continues them.

    Args:
      chat: the chat format of the evaluated model; the dialogues must have been sampled with the same.
      shots: dialogues from `choose`.
      system: the system message at the beginning.

    Raises ConfigError for dialogues of another tokenizer or chat format.
    """
    ids: list[int] = []
    for shot in shots.dialogues:
        check_same_format(shot, chat, None, f"--few-shot: {shots.path}")  # whatever stood in front is left out
        problem, turns = shot.problem, shot.turns
        message = first_message(problem)
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
