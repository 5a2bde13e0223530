"""The rollout driver: sampler + judge + turn machine -> finished episodes.

Episodes are sampled in groups of as many rows as the sampler has, each group in lockstep by turn with its own
KV cache. A group is a coroutine that gives way whenever it waits, for its samples or for the judge, so that while its
programs run, other groups are sampled (in threads: decoding one group keeps no more than one core busy). What an
episode becomes is a function of (weights, seed, step, index) alone: the order in which groups take turns, and how long
a program took, decide nothing but time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from rlef_jax import episode as machine
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.extract import extract_code
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.dialog.prompts import problem_prompt
from rlef_jax.errors import ConfigError, StoppedError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for, submit_hidden, submit_public
from rlef_jax.training.random_feedback import RandomFeedback
from rlef_jax.types import Episode, Limits, Problem, Turn, Verdict


class SampleLike(Protocol):
    """One response: its ids, their log-probabilities under the distribution sampled from, and whose weights."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def behavior_logp(self) -> Sequence[float]: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def version(self) -> int: ...


class SamplerLike(Protocol):
    """What the driver needs of a sampler (`rlef_jax.sampling.sampler.Sampler`)."""

    @property
    def batch_size(self) -> int: ...

    def start_group(self) -> Any: ...

    def generate(
        self,
        state: Any,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int,
        step: int,
        episode_indices: Sequence[int],
        turn: int,
        max_new: Sequence[int],
    ) -> tuple[Any, Sequence[SampleLike]]: ...


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How episodes are made.

    Attributes:
      max_turns: the turn limit (3.1).
      context: tokens of a whole episode; one whose next prompt doesn't fit ends there.
      max_new_tokens: of one response.
      feedback: "true" (C.1), "random" (C.2: failures of another problem's program), "none" (B.5: nothing is shown
        and passing the public tests ends nothing).
      max_failures: failed tests named in one message; 0 names all.
      max_chars: of each text in a message; 0 cuts nothing.
      system_prompt: opens the dialogue where not empty.
      limits: of one test, where the problem has none of its own.
      max_wall_s: caps the problem's own time limit (seconds); None or 0 never does.
      stop_hidden_at_first_failure: enough for the reward; off where all hidden results are wanted.
      groups_in_flight: groups that take turns, each with a KV cache of its own.
      sampling_threads: groups that are sampled at the same time.
    """

    max_turns: int = 3
    context: int = 256
    max_new_tokens: int = 96
    feedback: str = "true"
    max_failures: int = 0
    max_chars: int = 0
    system_prompt: str = ""
    limits: Limits = Limits()
    max_wall_s: float | None = None
    stop_hidden_at_first_failure: bool = True
    groups_in_flight: int = 2
    sampling_threads: int = 1

    def __post_init__(self) -> None:
        if self.feedback not in ("true", "random", "none"):
            raise ValueError(f"feedback must be true, random or none, not {self.feedback!r}")
        for name in ("max_turns", "context", "max_new_tokens", "groups_in_flight", "sampling_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class RolloutProgress:
    """Where a collection stands. Seconds that it has waited: `sampling_s` for samples, `waiting_s` for the judge."""

    ended: int
    total: int
    sampled_tokens: int
    sampling_s: float
    waiting_s: float
    wall_s: float


def collect(
    sampler: SamplerLike,
    chat: ChatFormat,
    pool: ExecutionPool,
    problems: Sequence[Problem],
    *,
    seed: int,
    step: int,
    settings: RolloutSettings,
    first_index: int = 0,
    donors: Sequence[Problem] | None = None,
    on_progress: Callable[[RolloutProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Episode]:
    """Makes one episode for each entry of `problems` (repeat a problem for several), judged and in that order.

    Args:
      sampler: holds the weights that act.
      chat: the sampler's tokenizer and chat format.
      pool: runs the programs.
      problems: entry i becomes the episode with index `first_index + i`.
      seed, step: with the index, all that an episode's randomness depends on.
      settings: see `RolloutSettings`.
      first_index: of the first episode.
      donors: where random feedback comes from; by default `problems`. Unused otherwise.
      on_progress: called after each turn of each group, and at the end, in this thread.
      should_stop: asked between turns and while the judge is waited for.

    Raises:
      ConfigError: a problem's first prompt leaves no room for a response.
      StoppedError: `should_stop` said so; what was begun is dropped.
    """
    meter = _Meter(len(problems), on_progress, should_stop)
    random_feedback = None
    if settings.feedback == "random":
        random_feedback = RandomFeedback(
            pool, problems if donors is None else donors, settings.limits, settings.max_wall_s
        )
    with ThreadPoolExecutor(settings.sampling_threads, "sampling") as threads:
        driver = _Driver(sampler, chat, pool, settings, random_feedback, meter, threads)
        return driver.run(problems, seed=seed, step=step, first_index=first_index)


# Gives way where it is about to wait; returns the group's finished episodes.
type _Coroutine = Generator[None, None, list[Episode]]


@dataclasses.dataclass(frozen=True)
class _Driver:
    """What the groups of one collection share."""

    sampler: SamplerLike
    chat: ChatFormat
    pool: ExecutionPool
    settings: RolloutSettings
    random_feedback: RandomFeedback | None
    meter: _Meter
    threads: ThreadPoolExecutor

    def run(self, problems: Sequence[Problem], *, seed: int, step: int, first_index: int) -> list[Episode]:
        """All episodes, in order. Groups take turns round robin; a waiting group's turn comes after the others'."""
        episodes = [machine.start(p, seed=seed, step=step, index=first_index + i) for i, p in enumerate(problems)]
        prompts = self.first_prompts(episodes)
        size = self.sampler.batch_size
        waiting = deque(range(0, len(episodes), size))
        active: deque[tuple[int, _Coroutine]] = deque()
        finished: dict[int, list[Episode]] = {}
        while waiting or active:
            while waiting and len(active) < self.settings.groups_in_flight:
                at = waiting.popleft()
                active.append((at, self.run_group(episodes[at : at + size], prompts[at : at + size])))
            self.meter.check()
            at, group = active.popleft()
            try:
                next(group)
                active.append((at, group))
            except StopIteration as stop:
                finished[at] = stop.value
        self.meter.report()
        return [episode for at in sorted(finished) for episode in finished[at]]

    def first_prompts(self, episodes: Sequence[Episode]) -> list[list[int]]:
        """Turn 1's tokens of each episode. Raises ConfigError where they leave no room for a response."""
        prompts = []
        for episode in episodes:
            user = problem_prompt(episode.problem.description)
            prompts.append(self.chat.first_prompt(user, self.settings.system_prompt))
            if self._room(episode, prompts[-1]) < 1:
                raise ConfigError(
                    f"problem {episode.problem.name!r}: its prompt of {len(prompts[-1])} tokens leaves no room for a"
                    f" response; raise config.episode.context, which is {self.settings.context}"
                )
        return prompts

    def run_group(self, episodes: list[Episode], prompts: list[list[int]]) -> _Coroutine:
        """Takes a group from its first prompts to its last verdicts. An empty prompt leaves its row idle."""
        state = self.sampler.start_group()
        programs: dict[int, str | None] = {}
        hidden: dict[int, Future[Verdict]] = {}
        while any(prompts):
            sampling = self.threads.submit(self._sample, state, list(episodes), prompts)
            yield
            with self.meter.sampling():
                state, turns = sampling.result()
            self.meter.count_tokens(sum(len(turn.response_ids) for turn in turns.values()))
            programs |= {row: extract_code(self.chat.response_text(turn.response_ids)) for row, turn in turns.items()}
            public = {row: self._submit_public(programs[row], episodes[row].problem) for row in turns}
            yield
            for row, turn in turns.items():
                judged = dataclasses.replace(turn, verdict=self.meter.wait(public[row]))
                episodes[row] = self._step(episodes[row], judged)
            prompts = self._next_prompts(episodes)
            hidden |= {
                row: self._submit_hidden(programs[row], episodes[row])
                for row in turns
                if episodes[row].end not in ("", "infra")
            }
            self.meter.count_ended(sum(bool(episodes[row].end) for row in turns))
        yield
        for row, future in hidden.items():
            episodes[row] = machine.judge_last(episodes[row], self.meter.wait(future))
        return episodes

    def _sample(
        self, state: Any, episodes: Sequence[Episode], prompts: Sequence[Sequence[int]]
    ) -> tuple[Any, dict[int, Turn]]:
        """One turn of the rows that have a prompt, not judged yet."""
        rows = self.sampler.batch_size
        idle = rows - len(episodes)
        live = [row for row, prompt in enumerate(prompts) if prompt]
        number = len(episodes[live[0]].turns)  # in lockstep: the same for every live row
        room = [self._room(e, prompt) if prompt else 0 for e, prompt in zip(episodes, prompts)]
        state, samples = self.sampler.generate(
            state,
            [*map(list, prompts), *([] for _ in range(idle))],
            seed=episodes[0].seed,
            step=episodes[0].step,
            episode_indices=[*(e.index for e in episodes), *[0] * idle],
            turn=number,
            max_new=[*(min(self.settings.max_new_tokens, r) for r in room), *[0] * idle],
        )
        return state, {row: _turn(prompts[row], samples[row]) for row in live}

    def _step(self, episode: Episode, turn: Turn) -> Episode:
        return machine.step(
            episode, turn, max_turns=self.settings.max_turns, stop_on_pass=self.settings.feedback != "none"
        )

    def _next_prompts(self, episodes: list[Episode]) -> list[list[int]]:
        """The next tokens of each row, [] where its episode is over; ends those that can't go on, in place."""
        live = [row for row, e in enumerate(episodes) if not e.end]
        prompts: list[list[int]] = [[] for _ in episodes]
        for row, message in zip(live, self._messages([episodes[row] for row in live])):
            episode = episodes[row]
            if message is None:
                episodes[row] = machine.end_by_infra(episode)
                continue
            prompt = self.chat.next_prompt(message, closed=episode.turns[-1].finish_reason == "stop")
            if self._room(episode, prompt) < 1:
                episodes[row] = machine.end_by_context(episode)
            else:
                prompts[row] = prompt
        return prompts

    def _messages(self, episodes: Sequence[Episode]) -> list[str | None]:
        """What the user says next in each; None where the judge broke."""
        cuts = dict(max_failures=self.settings.max_failures, max_chars=self.settings.max_chars)
        if self.random_feedback is not None:
            with self.meter.waiting():
                return self.random_feedback.messages(episodes, **cuts)
        kind = self.settings.feedback
        return [feedback_message(e.problem, machine.last_verdict(e), kind=kind, **cuts) for e in episodes]

    def _room(self, episode: Episode, prompt: Sequence[int]) -> int:
        return machine.room(episode, len(prompt), self.settings.context)

    def _limits(self, problem: Problem) -> Limits:
        return limits_for(problem, self.settings.limits, self.settings.max_wall_s)

    def _submit_public(self, program: str | None, problem: Problem) -> Future[Verdict]:
        return submit_public(self.pool, program, problem, self._limits(problem))

    def _submit_hidden(self, program: str | None, episode: Episode) -> Future[Verdict]:
        return submit_hidden(
            self.pool,
            program,
            episode.problem,
            machine.last_verdict(episode),
            self._limits(episode.problem),
            stop_at_first_failure=self.settings.stop_hidden_at_first_failure,
        )


def _turn(prompt: Sequence[int], sample: SampleLike) -> Turn:
    return Turn(
        prompt_delta_ids=tuple(prompt),
        response_ids=tuple(map(int, sample.ids)),
        behavior_logp=tuple(map(float, sample.behavior_logp)),
        policy_version=(int(sample.version),) * len(sample.ids),
        finish_reason=sample.finish_reason,
    )


_ASK_EVERY_S = 0.5  # how often a collection that waits for the judge asks whether to stop


class _Meter:
    """Counts and seconds of one collection, and whether it should stop."""

    def __init__(
        self,
        total: int,
        on_progress: Callable[[RolloutProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._total = total
        self._should_stop = should_stop
        self._on_progress = on_progress
        self._began = time.perf_counter()
        self._ended = self._tokens = 0
        self._sampling_s = self._waiting_s = 0.0

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._sampling_s += time.perf_counter() - began

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._waiting_s += time.perf_counter() - began

    def wait(self, future: Future[Verdict]) -> Verdict:
        with self.waiting():
            while not wait([future], timeout=_ASK_EVERY_S).done:
                self.check()
            return future.result()

    def check(self) -> None:
        """Raises StoppedError if the collection should stop."""
        if self._should_stop is not None and self._should_stop():
            raise StoppedError("during rollouts")

    def count_tokens(self, count: int) -> None:
        self._tokens += count

    def count_ended(self, count: int) -> None:
        self._ended += count
        self.report()

    def report(self) -> None:
        if self._on_progress is not None:
            wall_s = time.perf_counter() - self._began
            self._on_progress(
                RolloutProgress(self._ended, self._total, self._tokens, self._sampling_s, self._waiting_s, wall_s)
            )
