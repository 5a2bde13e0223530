"""The rollout driver: sampler + judge + turn machine -> finished episodes.

Every episode goes its own way: its prompt is sampled, its program runs on the public tests, the failures come back as
the next prompt, until it ends and the hidden tests run. The driver is one thread that takes these events as they come,
so that no episode waits for another; the sampler and the judge see to it that their work is shared out. What an episode
becomes is a function of (weights, seed, step, index) alone: the order of the events decides nothing but time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rlef_jax import episode as machine
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.context import next_prompt
from rlef_jax.dialog.extract import program_of
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.dialog.prompts import first_message
from rlef_jax.errors import ConfigError, StoppedError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import limits_for, submit_hidden, submit_public
from rlef_jax.sampling.request import Sample, SamplingConfig
from rlef_jax.training.random_feedback import RandomFeedback, check_donors
from rlef_jax.types import Episode, Limits, Problem, Status, Turn, Verdict

if TYPE_CHECKING:  # they import JAX, which a process that finds problems does without
    from rlef_jax.model.transformer import Params
    from rlef_jax.sampling.session import SamplerStats


class SessionLike(Protocol):
    """What the driver needs of a sampler at work (`rlef_jax.sampling.session.Session`)."""

    def dialogue(self, *, seed: int, step: int, episode: int) -> Any: ...

    def respond(
        self,
        dialogue: Any,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        *,
        turn: int,
        max_new: int,
        last: bool,
    ) -> Future[Sample]: ...

    def end(self, dialogue: Any) -> None: ...

    def stats(self) -> SamplerStats: ...


class SamplerLike(Protocol):
    """What the driver and its actor need of a sampler (`rlef_jax.sampling.sampler.Sampler`)."""

    def set_weights(self, params: Params, version: int) -> None: ...

    def session(
        self, on_compile: Callable[[int, int], None] | None = None
    ) -> contextlib.AbstractContextManager[SessionLike]: ...


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """Settings of the dialogues: sampling, length limits and feedback.

    Attributes:
      sampling: how tokens are drawn, and how many at most.
      max_turns: the turn limit (3.1).
      context: tokens of a whole episode; one whose next prompt doesn't fit ends there.
      feedback: "true" (C.1), "random" (C.2: failures of another problem's program), "none" (B.5: nothing is shown
        and passing the public tests ends nothing).
      max_failures: failed tests named in one message; 0 names all.
      max_chars: of each text in a message; 0 cuts nothing.
      syntax_errors: told "once", or as the stack trace of each test ("per_test", C.1).
      system_prompt: opens the dialogue where not empty.
      cut_thinking: later turns don't see the thinking of earlier responses: their context begins anew.
      opening: tokens in front of each first prompt, the system message included: other dialogues (C.3), see
        `evaluation.few_shot`.
      temperature_range: (low, high): each response's temperature is drawn uniformly from it (A.3), by the names of
        episode and turn alone; () is `sampling`'s.
      limits: of one test, where the problem has none of its own.
      max_wall_s: caps the problem's own time limit (seconds); None or 0 never does.
      stop_hidden_at_first_failure: enough for the reward; off where all hidden results are wanted.
    """

    sampling: SamplingConfig
    max_turns: int = 3
    context: int = 256
    feedback: str = "true"
    max_failures: int = 0
    max_chars: int = 0
    syntax_errors: str = "once"
    system_prompt: str = ""
    cut_thinking: bool = False
    opening: tuple[int, ...] = ()
    temperature_range: tuple[float, ...] = ()
    limits: Limits = Limits()
    max_wall_s: float | None = None
    stop_hidden_at_first_failure: bool = True

    @property
    def kind(self) -> str:
        """The kind of distribution that all responses are drawn from (`sampling.request.KINDS`)."""
        low, _ = self.temperature_range or (self.sampling.temperature,) * 2
        return dataclasses.replace(self.sampling, temperature=low).kind

    @property
    def needs_donors(self) -> bool:
        """Whether feedback comes from other problems: single-turn episodes see none."""
        return self.feedback == "random" and self.max_turns > 1

    def __post_init__(self) -> None:
        if self.feedback not in ("true", "random", "none"):
            raise ValueError(f"feedback must be true, random or none, not {self.feedback!r}")
        for name in ("max_turns", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class RolloutProgress:
    """Where a collection stands: episodes that have ended, of how many, and what the sampler has done for them."""

    ended: int
    total: int
    sampler: SamplerStats


def collect(
    sampler: SamplerLike,
    chat: ChatFormat,
    pool: ExecutionPool,
    problems: Sequence[Problem],
    *,
    seed: int,
    step: int,
    settings: RolloutSettings,
    indexes: Sequence[int] | None = None,
    donors: Sequence[Problem] | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    on_progress: Callable[[RolloutProgress], None] | None = None,
    on_compile: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Episode]:
    """Makes one episode for each entry of `problems` (repeat a problem for several), judged and in that order.

    Args:
      sampler: holds the weights that act.
      chat: the sampler's tokenizer and chat format.
      pool: runs the programs.
      problems: entry i becomes the episode with index `indexes[i]`.
      seed, step: with the index, all that an episode's randomness depends on.
      settings: see `RolloutSettings`.
      indexes: of the episodes; by default 0, 1, ...
      donors: where random feedback comes from; by default `problems`. Unused otherwise.
      prompts: each episode's first prompt, which leaves room for a response (`whole_prompt`); by default the problem's.
      on_progress: called now and then, and at the end, in this thread.
      on_compile: see `Sampler.session`.
      should_stop: asked while something is waited for.

    Raises:
      ConfigError: a problem's first prompt leaves no room for a response, or there is no other problem that random
        feedback could come from.
      StoppedError: `should_stop` said so; what was begun is dropped.
    """
    random_feedback = None
    if settings.needs_donors:
        donors = problems if donors is None else donors
        check_donors(problems, donors)
        random_feedback = RandomFeedback(pool, donors, settings.limits, settings.max_wall_s)
    indexes = range(len(problems)) if indexes is None else indexes
    episodes = [machine.start(p, seed=seed, step=step, index=i) for i, p in zip(indexes, problems, strict=True)]
    if prompts is None:
        prompts = [_first_prompt(episode, chat, settings) for episode in episodes]
    with sampler.session(on_compile) as session:
        driver = _Driver(session, chat, pool, settings, random_feedback, episodes, on_progress, should_stop)
        return driver.run(prompts)


_TEMPERATURES = 0x7E3B  # keeps these draws apart from any other use of (seed, step, index, turn)


def sampling_of(settings: RolloutSettings, episode: Episode) -> SamplingConfig:
    """How the next response of an episode is sampled."""
    if not settings.temperature_range:
        return settings.sampling
    names = [_TEMPERATURES, episode.seed, episode.step, episode.index, len(episode.turns)]
    low, high = settings.temperature_range
    drawn = float(np.random.default_rng(names).uniform(low, high))
    return dataclasses.replace(settings.sampling, temperature=drawn)


def _first_prompt(episode: Episode, chat: ChatFormat, settings: RolloutSettings) -> list[int]:
    """Turn 1's tokens. Raises ConfigError where they leave no room for a response."""
    problem = episode.problem
    message, opening = first_message(problem), settings.opening
    if settings.cut_thinking and chat.thinking_ids and problem.start:
        raise ConfigError(
            f"problem {problem.name!r} begins the response, which leaves no place for thinking before it: set"
            ' config.episode.thinking="keep"'
        )
    if opening:
        prompt = [*opening, *chat.another_prompt(message, start=problem.start)]
    else:
        prompt = chat.first_prompt(message, settings.system_prompt, start=problem.start)
    if machine.room(episode, len(prompt), settings.context) < 1:
        shots = f" ({len(opening)} of them few-shot dialogues)" if opening else ""
        raise ConfigError(
            f"problem {problem.name!r}: its prompt of {len(prompt)} tokens{shots} leaves no room for a"
            f" response; raise config.episode.context, which is {settings.context}, or leave such problems out:"
            " config.data.max_prompt_tokens"
        )
    return prompt


def message_of(problem: Problem, verdict: Verdict, settings: RolloutSettings, *, kind: str = "true") -> str:
    """`feedback_message` with the settings' wording and cuts."""
    return feedback_message(
        problem,
        verdict,
        kind=kind,
        max_failures=settings.max_failures,
        max_chars=settings.max_chars,
        syntax_errors=settings.syntax_errors,
    )


_ASK_EVERY_S = 0.5  # how often a collection that waits asks whether to stop
_REPORT_EVERY_S = 0.1


class _Driver:
    """One collection: its episodes, and the events that take them on."""

    def __init__(
        self,
        session: SessionLike,
        chat: ChatFormat,
        pool: ExecutionPool,
        settings: RolloutSettings,
        random_feedback: RandomFeedback | None,
        episodes: list[Episode],
        on_progress: Callable[[RolloutProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._session, self._chat, self._pool, self._settings = session, chat, pool, settings
        self._random_feedback = random_feedback
        self._on_progress, self._should_stop = on_progress, should_stop
        self._episodes = episodes
        self._dialogues = [session.dialogue(seed=e.seed, step=e.step, episode=e.index) for e in episodes]
        self._programs: list[str | None] = [None] * len(episodes)
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._open, self._ended, self._reported = len(episodes), 0, 0.0

    def run(self, prompts: Sequence[Sequence[int]]) -> list[Episode]:
        """Takes all episodes from their first prompts to their last verdicts."""
        for row, prompt in enumerate(prompts):
            self._ask(row, prompt)
        while self._open:
            if self._should_stop is not None and self._should_stop():
                raise StoppedError("during rollouts")
            try:
                self._events.get(timeout=_ASK_EVERY_S)()
            except queue.Empty:
                continue
            if time.perf_counter() - self._reported > _REPORT_EVERY_S:
                self._report()
        self._report()
        return self._episodes

    def _when_done(self, future: Future[Any], act: Callable[[Any], None]) -> None:
        """Calls `act` with the future's result, in the driver's thread, which raises the future's exception."""
        future.add_done_callback(lambda done: self._events.put(lambda: act(done.result())))

    def _ask(self, row: int, prompt: Sequence[int], *, restart: bool = False) -> None:
        """The next response of an episode, in a context that begins with its prompt where `restart` says so."""
        episode, number = self._episodes[row], len(self._episodes[row].turns)
        future = self._session.respond(
            self._dialogues[row],
            prompt,
            sampling_of(self._settings, episode),
            turn=number,
            max_new=machine.room(episode, len(prompt), self._settings.context, restart=restart),
            last=number + 1 == self._settings.max_turns,
        )
        self._when_done(future, lambda sample: self._on_sample(row, prompt, sample, restart))

    def _on_sample(self, row: int, prompt: Sequence[int], sample: Sample, restart: bool) -> None:
        """A response is complete: its program runs on the public tests."""
        problem = self._episodes[row].problem
        program = self._programs[row] = program_of(problem, self._chat.response_text(sample.ids))
        turn = Turn(
            prompt_delta_ids=tuple(prompt),
            response_ids=tuple(map(int, sample.ids)),
            behavior_logp=tuple(map(float, sample.behavior_logp)),
            policy_version=tuple(map(int, sample.versions)),
            finish_reason=sample.finish_reason,
            restart=restart,
        )
        public = submit_public(self._pool, program, problem, self._limits(problem))
        self._when_done(public, lambda verdict: self._on_public(row, dataclasses.replace(turn, verdict=verdict)))

    def _on_public(self, row: int, turn: Turn) -> None:
        """The public tests have run: the episode goes on, with a message, or ends."""
        settings = self._settings
        episode = self._episodes[row] = machine.step(
            self._episodes[row], turn, max_turns=settings.max_turns, stop_on_pass=settings.feedback != "none"
        )
        if episode.end:
            self._end(row)
        elif self._random_feedback is not None:
            self._try_donor(row, self._random_feedback.donor(episode), self._random_feedback.attempts(episode))
        else:
            message = message_of(episode.problem, machine.last_verdict(episode), settings, kind=settings.feedback)
            self._go_on(row, message)

    def _try_donor(self, row: int, donor: Problem, attempts: Iterator[Future[Verdict]]) -> None:
        """Random feedback: the failures of the first of another problem's programs that has any."""

        def on_verdict(verdict: Verdict) -> None:
            if verdict.status is Status.INFRA_ERROR:
                self._go_on(row, None)
            elif verdict.public_passed:
                self._try_donor(row, donor, attempts)
            else:
                self._go_on(row, message_of(donor, verdict, self._settings))

        self._when_done(next(attempts), on_verdict)

    def _go_on(self, row: int, message: str | None) -> None:
        """The next prompt, if the judge gave a message (None: it broke) and the prompt fits."""
        episode = self._episodes[row]
        if message is None:
            self._episodes[row] = machine.end_by_infra(episode)
            return self._end(row)
        prompt, anew = next_prompt(episode, message, self._chat, cut_thinking=self._settings.cut_thinking)
        if machine.room(episode, len(prompt), self._settings.context, restart=anew) < 1:
            self._episodes[row] = machine.end_by_context(episode)
            return self._end(row)
        if anew:
            self._session.end(self._dialogues[row])
            self._dialogues[row] = self._session.dialogue(seed=episode.seed, step=episode.step, episode=episode.index)
        self._ask(row, prompt, restart=anew)

    def _end(self, row: int) -> None:
        """The episode has its last turn: the hidden tests run, where the judge works."""
        episode = self._episodes[row]
        self._ended += 1
        if len(episode.turns) < self._settings.max_turns:
            self._session.end(self._dialogues[row])
        if episode.end == "infra":
            self._open -= 1
            return
        hidden = submit_hidden(
            self._pool,
            self._programs[row],
            episode.problem,
            machine.last_verdict(episode),
            self._limits(episode.problem),
            stop_at_first_failure=self._settings.stop_hidden_at_first_failure,
        )
        self._when_done(hidden, lambda verdict: self._on_hidden(row, verdict))

    def _on_hidden(self, row: int, verdict: Verdict) -> None:
        self._episodes[row] = machine.judge_last(self._episodes[row], verdict)
        self._open -= 1

    def _limits(self, problem: Problem) -> Limits:
        return limits_for(problem, self._settings.limits, self._settings.max_wall_s)

    def _report(self) -> None:
        self._reported = time.perf_counter()
        if self._on_progress is not None:
            self._on_progress(RolloutProgress(self._ended, len(self._episodes), self._session.stats()))
