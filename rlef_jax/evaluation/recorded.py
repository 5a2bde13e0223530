"""Judges responses that were made elsewhere, with the same judge and turn rules as sampled ones.

The file has JSON lines, one per rollout:

    {"task_id": "HumanEval/0", "completion": "    return ..."}     HumanEval's format: the text after the prompt
    {"task_id": "Mbpp/2", "solution": "def f(): ..."}              a whole program ("problem" may replace "task_id")
    {"problem": "1575_A. Another ...", "responses": ["...", "..."]}  responses of a dialogue, as text with code

For a problem without `start`, a `completion` is a whole program too.
"""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rlef_jax import episode as machine
from rlef_jax.data import foreign
from rlef_jax.dialog.extract import program_of
from rlef_jax.errors import ConfigError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for, submit_hidden, submit_public
from rlef_jax.types import Episode, Limits, Problem, Turn, Verdict


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One rollout: the program of each response, None for a response without one."""

    problem: Problem
    programs: tuple[str | None, ...]


def read_recorded(path: Path, problems: Sequence[Problem], left_out: Collection[str] = ()) -> list[Recorded]:
    """The rollouts in a file, grouped by problem, in the order of `problems`.

    Rollouts of problems whose names are in `left_out` are skipped. Raises ConfigError, with the sample's number, for a
    line in another format or an unknown problem.
    """
    by_name: dict[str, Problem] = {}
    for problem in problems:
        by_name.setdefault(problem.name, problem)  # names aren't unique in CodeContests: the first counts
    by_problem: dict[str, list[Recorded]] = {name: [] for name in by_name}
    for number, row in enumerate(_rows(path), start=1):
        try:
            name = row["task_id"] if "task_id" in row else row["problem"]
            if name not in by_name and name in left_out:
                continue
            if name not in by_name:
                raise ValueError(f"the benchmark has no problem {name!r}")
            by_problem[name].append(Recorded(by_name[name], _programs(row, by_name[name])))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--judge-only: {path}, sample {number}: {error or type(error).__name__}") from error
    return [rollout for rollouts in by_problem.values() for rollout in rollouts]


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        yield from (row for _, row in foreign.records(path))
    except ConfigError as error:
        raise ConfigError(f"--judge-only: {error}") from error


def _programs(row: Mapping[str, Any], problem: Problem) -> tuple[str | None, ...]:
    keys = [key for key in ("completion", "solution", "responses") if key in row]
    if len(keys) != 1:
        raise ValueError('give one of "completion", "solution" and "responses"')
    texts = row[keys[0]]
    if keys[0] != "responses":
        if not isinstance(texts, str):
            raise ValueError(f"{keys[0]!r} is no text")
        return (problem.start + texts if keys[0] == "completion" else texts,)
    if not texts or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError('"responses" is no list of texts')
    return tuple(program_of(problem, text) for text in texts)


def judge_recorded(
    pool: ExecutionPool,
    rollouts: Sequence[Recorded],
    limits: Limits,
    *,
    max_turns: int,
    max_wall_s: float | None = None,
    stop_at_first_failure: bool = True,
    first_index: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Episode]:
    """Each rollout as an episode: its programs are run until one passes the public tests; the last one is judged fully.

    The turns have no tokens. `limits` apply to problems without limits of their own; entry i has the index
    `first_index + i`.
    """
    events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    episodes = [machine.start(r.problem, seed=0, step=0, index=first_index + i) for i, r in enumerate(rollouts)]
    own_limits = [limits_for(r.problem, limits, max_wall_s) for r in rollouts]
    ended = [0]

    def when_done(future: Future[Verdict], act: Callable[[Verdict], None]) -> None:
        future.add_done_callback(lambda done: events.put(lambda: act(done.result())))

    def try_next(row: int) -> None:
        program = rollouts[row].programs[len(episodes[row].turns)]
        public = submit_public(pool, program, rollouts[row].problem, own_limits[row])
        when_done(public, lambda verdict: on_public(row, program, verdict))

    def on_public(row: int, program: str | None, verdict: Verdict) -> None:
        turns = min(max_turns, len(rollouts[row].programs))
        turn = Turn((), (), (), (), "stop", verdict)
        episodes[row] = machine.step(episodes[row], turn, max_turns=turns)
        if not episodes[row].end:
            return try_next(row)
        if episodes[row].end == "infra":
            return finish(row)
        hidden = submit_hidden(
            pool, program, rollouts[row].problem, verdict, own_limits[row], stop_at_first_failure=stop_at_first_failure
        )
        when_done(hidden, lambda judged: on_hidden(row, judged))

    def on_hidden(row: int, verdict: Verdict) -> None:
        episodes[row] = machine.judge_last(episodes[row], verdict)
        finish(row)

    def finish(row: int) -> None:
        ended[0] += 1
        if on_progress is not None:
            on_progress(ended[0], len(rollouts))

    for row in range(len(rollouts)):
        try_next(row)
    while ended[0] < len(rollouts):
        events.get()()
    return episodes
