"""Where examples come from: successful episodes (A.3), failures before right programs (B.4), solutions, messages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlef_jax.data.dialogues import respond
from rlef_jax.data.jsonl.reader import open_split
from rlef_jax.data.sources import Report
from rlef_jax.dialog.chat import ChatFormat, SystemMessageError
from rlef_jax.dialog.prompts import first_message
from rlef_jax.dialog.same_format import check_same_format
from rlef_jax.errors import ConfigError
from rlef_jax.supervised.examples import Example, ExampleSet, last_response
from rlef_jax.supervised.programs import RightPrograms, evenly_indented
from rlef_jax.training.episode_io import episode_files, read_episodes
from rlef_jax.training.failures import failed_first, repair_prompt
from rlef_jax.training.rollout import RolloutSettings
from rlef_jax.training.tally import PassedOver, Tally
from rlef_jax.types import Episode

_TOGETHER = 64  # problems whose solutions are judged at a time
_PICK = 0xB4  # keeps the draws of right programs apart from any other use of (seed, number)

# An example and the name of the problem that it is of; or what gives none.
type Found = tuple[Example, str] | PassedOver


def successes(
    paths: Sequence[Path], chat: ChatFormat, system_prompt: str, *, all_responses: bool, report: Report | None = None
) -> Iterator[Found]:
    """Successful episodes of runs and evaluations: those whose last program passed all tests, public and hidden (A.3).

    Their tokens are the prompted and sampled ones. Learned are those of the last response, as the paper found better,
    or with `all_responses` those of every one.

    Args:
      paths: folders of runs or evaluations, or files of episodes.
      chat, system_prompt: of the model that learns from them.
      report: told of the files that have been read.

    Raises ConfigError for files that can't be read, or episodes of another tokenizer, chat format or system prompt.
    """
    for file in _files(paths, report):
        for episode in _read(file):
            if not episode.solved:
                yield PassedOver("not_solved")
                continue
            check_same_format(episode, chat, system_prompt, f"config.sft.data: {file}")
            sequences = list(sequences_of(episode))
            if not all_responses:
                sequences = [Example(sequences[-1].ids, last_response(sequences[-1].learned))]
            for sequence in sequences:
                yield sequence, episode.problem.name


def sequences_of(episode: Episode) -> Iterator[Example]:
    """The sequences of tokens that an episode is made of (`Episode.stretches`), sampled ones learned."""
    ids: list[int] = []
    learned: list[bool] = []
    for turn in episode.turns:
        if turn.restart and ids:
            yield Example(np.array(ids, np.int32), np.array(learned, bool))
            ids, learned = [], []
        ids += (*turn.prompt_delta_ids, *turn.response_ids)
        learned += [False] * len(turn.prompt_delta_ids) + [True] * len(turn.response_ids)
    yield Example(np.array(ids, np.int32), np.array(learned, bool))


def repairs(
    paths: Sequence[Path], chat: ChatFormat, settings: RolloutSettings, programs: RightPrograms, seed: int,
    report: Report | None = None,
) -> Iterator[Found]:  # fmt: skip
    """First responses that failed the public tests, their feedback, and a random right program of the problem (B.4).

    The right program alone is learned. Passed over are other responses, failures of problems without one, and those
    behind which there is no room for a response.

    Args:
      paths, report: as `successes`.
      chat, settings: of the model that learns to repair.
      programs: the right programs of problems.
      seed: of which one is taken, with the number of the failure.

    Raises ConfigError as `successes`.
    """
    number = 0
    for file in _files(paths, report):
        episodes = _read(file)
        failed = list(filter(None, map(failed_first, episodes)))
        yield from [PassedOver("no_failure")] * (len(episodes) - len(failed))
        for episode in failed:
            check_same_format(episode, chat, settings.system_prompt, f"config.sft.data: {file}")
        programs.judge([f.problem for f in failed])
        for episode in failed:
            number += 1
            right = programs.of(episode.problem)
            prompt = repair_prompt(episode, chat, settings) if right else None
            if prompt is None:
                yield PassedOver("no_room" if right else "no_program")
                continue
            chosen = right[int(np.random.default_rng([_PICK, seed, number]).integers(len(right)))]
            yield _answered(prompt, chosen, chat), episode.problem.name


def _answered(prompt: Sequence[int], program: str, chat: ChatFormat) -> Example:
    """A prompt and the response of a program, which alone is learned."""
    response = chat.response(respond(program))
    learned = np.arange(len(prompt) + len(response)) >= len(prompt)
    return Example(np.array([*prompt, *response], np.int32), learned)


def solutions(
    paths: Sequence[Path], chat: ChatFormat, system_prompt: str, programs: RightPrograms, report: Report | None = None
) -> Iterator[Found]:
    """Every right program among the solutions of one's own problems, as the response to its problem's first prompt.

    Problems are those of the split "train" (`data.jsonl`). Passed over are solutions that fail a test, and those of
    problems that begin the response themselves.

    Args:
      chat, system_prompt: of the model that learns from them.
      programs: which solutions are right.
      report: told of the problems that have been judged.

    Raises ConfigError for faults in the files.
    """
    try:
        problems = open_split([str(path) for path in paths], "train")
    except ConfigError as error:
        raise ConfigError(f"config.sft.data: {error}") from error
    for first in range(0, len(problems), _TOGETHER):
        some = problems[first : first + _TOGETHER]
        programs.judge(some)
        for problem in some:
            right = programs.of(problem)
            wrong = len(set(map(evenly_indented, problem.solutions))) - len(right)
            yield from [PassedOver("wrong")] * wrong
            if problem.start:
                yield from [PassedOver("begun")] * len(right)
                continue
            prompt = chat.first_prompt(first_message(problem), system_prompt)
            for program in right:
                yield _answered(prompt, program, chat), problem.name
        if report is not None:
            report("solutions of problems", first + len(some), len(problems))


def messages(paths: Sequence[Path], chat: ChatFormat, system_prompt: str, *, all_responses: bool) -> Iterator[Found]:
    """Dialogues of JSON lines, one an object with "messages", [{"role": ..., "content": ...}, ...].

    A system message may come first, and `system_prompt` stands in its place where there is none; then user and
    assistant take turns, and the assistant has the last word. An optional "problem" names what a dialogue is about: of
    one name all are held out or none.

    Raises ConfigError, naming file and line, for anything else.
    """
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            fix = "give a text file in UTF-8, a JSON object a line"
            raise ConfigError(f"config.sft.data: {path} cannot be read: {error}; {fix}") from error
        for number, line in enumerate(lines, start=1):
            where = f"config.sft.data: {path}, line {number}"
            if line.strip():
                row = _object(line, where)
                turns = _checked(row.get("messages"), where)
                try:
                    example = dialogue(turns, chat, system_prompt)
                except SystemMessageError as error:
                    if turns[0][0] != "system":
                        raise  # it is the configuration's
                    raise ConfigError(f"{where}: its system message: {error.fault}") from error
                if not all_responses:
                    example = dataclasses.replace(example, learned=last_response(example.learned))
                problem = row.get("problem")
                if problem is not None and not isinstance(problem, str | int):
                    raise ConfigError(f'{where}: "problem" must be a text, not {problem!r:.40}')
                yield example, f"{path}:{number}" if problem is None else str(problem)


def dialogue(turns: Sequence[tuple[str, str]], chat: ChatFormat, system_prompt: str = "") -> Example:
    """The tokens of (role, text) messages in the order that `messages` describes; the assistant's are learned."""
    system, turns = (turns[0][1], turns[1:]) if turns[0][0] == "system" else (system_prompt, turns)
    ids: list[int] = []
    learned: list[bool] = []
    for role, text in turns:
        if role == "assistant":
            more = chat.response(text)
        else:
            more = chat.next_prompt(text, closed=True) if ids else chat.first_prompt(text, system)
        ids += more
        learned += [role == "assistant"] * len(more)
    return Example(np.array(ids, np.int32), np.array(learned, bool))


def collected(found: Iterable[Found], longest: int) -> ExampleSet:
    """The examples of at most `longest` tokens as a set, with what was left out.

    Raises ConfigError where there is none.
    """
    kept: list[Example] = []
    numbers: dict[str, int] = {}
    problems: list[int] = []
    passed_over: list[PassedOver] = []
    for one in found:
        if isinstance(one, PassedOver):
            passed_over.append(one)
        elif len(one[0].ids) > longest:
            passed_over.append(PassedOver("too_long"))
        else:
            kept.append(one[0])
            problems.append(numbers.setdefault(one[1], len(numbers)))
    tally = Tally.of(len(kept), passed_over)
    if not kept:
        raise ConfigError(f"config.sft.data: there is nothing to learn from; left out: {tally.reasons}")
    return ExampleSet.of(kept, problems, tally.left_out)


def _files(paths: Sequence[Path], report: Report | None) -> Iterator[Path]:
    try:
        files = [file for path in paths for file in episode_files(path)]
    except ConfigError as error:
        raise ConfigError(f"config.sft.data: {error}") from error
    for done, file in enumerate(files):
        if report is not None:
            report("files of episodes", done, len(files))
        yield file
    if report is not None:
        report("files of episodes", len(files), len(files))


def _read(file: Path) -> list[Episode]:
    try:
        return read_episodes(file)
    except ConfigError as error:
        raise ConfigError(f"config.sft.data: {error}") from error


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f'{where}: an object with "messages" is needed')
    return row


def _checked(turns: Any, where: str) -> list[tuple[str, str]]:
    """(role, text) of each message. Raises ConfigError for others than `messages` describes."""
    if not isinstance(turns, list) or not turns:
        raise ConfigError(f'{where}: "messages" must be a list of messages')
    read: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ConfigError(f'{where}: message {number} must have a "role" and a "content", both texts')
        if any("\ud800" <= letter <= "\udfff" for letter in content):
            raise ConfigError(f"{where}: message {number} holds half a character (an escape from \\ud800 to \\udfff)")
        read.append((role, content))
    roles = [role for role, _ in read]
    spoken = roles[1:] if roles[0] == "system" else roles
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise ConfigError(
            f"{where}: roles must be user, assistant, user, assistant, ... to an assistant at the end, with a system"
            f" message before them or not; they are {', '.join(roles)}"
        )
    return read
