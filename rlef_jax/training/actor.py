"""The actor: what makes episodes, and the thread in which it works ahead of the learner.

A `RolloutRequest` names episodes, says how they are made, and with which weights at least; a `RolloutResult` holds
them. Both are plain data, so an `Actor` may be anywhere: `LocalActor` is a sampler and a judge in this process.

Weights have versions: the number of updates made so far. The learner publishes them at the start of each iteration; the
sampler takes them between two dispatches of a few decoding steps: a response in flight goes on with the new ones over
the KV cache that the old ones filled, and each of its tokens knows its version. Behaviour log-probabilities are those
of the distribution that each token was truly drawn from, so the importance weights are exact either way.

Admission is paced (`max_staleness`, in iterations): the rollouts of iteration k begin once the weights of iteration
k - max_staleness are published. Nothing is ever thrown away for being late. With 0 each iteration's rollouts wait for
its own weights: the synchronous run.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.errors import StoppedError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.progress import ProgressDisplay
from rlef_jax.training.rollout import RolloutProgress, RolloutSettings, SamplerLike, collect
from rlef_jax.training.tally import Tally
from rlef_jax.types import Episode, Problem

if TYPE_CHECKING:  # they import JAX, which a process that finds problems does without
    from rlef_jax.model.transformer import Params


@dataclasses.dataclass(frozen=True)
class RolloutRequest:
    """Episodes to be made: their names, and all that they depend on but the weights and the problems. Plain data.

    Attributes:
      split: of the problem source, or whatever name the actor knows the problems by.
      seed, step: the run's seed (an evaluation has one of its own) and the iteration (0 in evaluations).
      count: episodes of the whole iteration or evaluation.
      indexes: the episodes of it that are wanted; consecutive.
      settings: how they are made.
      version: of the weights that must be there when they begin; newer ones may come meanwhile.
      group_size: consecutive indexes that are of one problem.
      stage: what the progress display calls it.
      may_stop: whether a signal may end it in the middle.
    """

    split: str
    seed: int
    step: int
    count: int
    indexes: range
    settings: RolloutSettings
    version: int = 0
    stage: str = "rollouts"
    may_stop: bool = True
    group_size: int = 1

    def __post_init__(self) -> None:
        if self.indexes.step != 1 or not 0 <= self.indexes.start <= self.indexes.stop <= self.count:
            raise ValueError(f"indexes must be consecutive and within range({self.count}), not {self.indexes}")


@dataclasses.dataclass(frozen=True)
class RolloutResult:
    """A request's episodes, in the order of its indexes, what the sampler did for them, and what they were chosen from.
    Plain data."""

    episodes: list[Episode]
    progress: RolloutProgress
    tally: Tally | None = None


def shard_range(count: int, part: int, parts: int) -> range:
    """Part `part` of `parts` of range(count): consecutive, and of two parts neither has two more than the other.

    Raises ValueError for a part that there isn't.
    """
    if not 0 <= part < parts:
        raise ValueError(f"part must be from 0 to {parts - 1}, not {part}")
    return range(count * part // parts, count * (part + 1) // parts)


class Actor(Protocol):
    """What makes episodes: weights in, names of episodes in, episodes out."""

    def set_weights(self, params: Params, version: int) -> None:
        """Takes a copy of the weights, for what is being made too: their caller may donate its own afterwards."""

    def episodes(self, request: RolloutRequest) -> RolloutResult:
        """The episodes that are asked for.

        Raises StoppedError once `stop` was called, ConfigError where they can't be made as the request says,
        RuntimeError where the weights are older than those that it names.
        """

    def stop(self) -> None:
        """Ends the request that is being worked on, if any, and refuses those that come after. From any thread."""

    def judge_counters(self) -> Mapping[str, Any]:
        """What the judge has done so far (`ExecutionPool.stats`)."""


@dataclasses.dataclass(frozen=True)
class Starts:
    """What the episodes of a request begin with. Plain data.

    Attributes:
      problems: one for each of its indexes.
      donors: problems that random feedback may come from.
      prompts: their first prompts' tokens; None where the problems' own words are all of them.
      tally: of what they were chosen from; None where nothing is left out.
    """

    problems: Sequence[Problem]
    donors: Sequence[Problem] = ()
    prompts: Sequence[Sequence[int]] | None = None
    tally: Tally | None = None


type FindStarts = Callable[[RolloutRequest], Starts]


class LocalActor:
    """An `Actor` in this process: a sampler, which holds its own weights, and a judge's pool."""

    def __init__(
        self,
        sampler: SamplerLike,
        chat: ChatFormat,
        pool: ExecutionPool,
        find: FindStarts,
        *,
        display: ProgressDisplay | None = None,
        should_stop: Callable[[], bool] = bool,
    ) -> None:
        """Args:
        sampler, chat: with the same tokenizer.
        pool: runs the programs.
        find: from a request to what its episodes begin with.
        display: is told how far a request is.
        should_stop: asked now and then; true ends a request that may be stopped.
        """
        self._sampler, self._chat, self._pool, self._find = sampler, chat, pool, find
        self._display, self._should_stop = display, should_stop
        self._version: int | None = None
        self._stopped = self._told = False

    def set_weights(self, params: Params, version: int) -> None:
        self._sampler.set_weights(params, version)
        self._version = version

    def episodes(self, request: RolloutRequest) -> RolloutResult:
        if self._version is None or self._version < request.version:
            raise RuntimeError(f"weights of version {request.version} are asked for, there are {self._version}")
        starts = self._find(request)
        self._tell(request, starts.tally)
        seen: list[RolloutProgress] = []

        def report(progress: RolloutProgress) -> None:
            seen[:] = [progress]
            self._show(request.stage, progress.ended, progress.total)

        made = collect(
            self._sampler, self._chat, self._pool, starts.problems, seed=request.seed, step=request.step,
            settings=request.settings, indexes=request.indexes, donors=starts.donors, prompts=starts.prompts,
            on_progress=report,
            on_compile=lambda done, programs: self._show("compiling the sampler", done, programs),
            should_stop=lambda: self._stopped or (request.may_stop and self._should_stop()),
        )  # fmt: skip
        return RolloutResult(made, seen[0], starts.tally)

    def stop(self) -> None:
        self._stopped = True

    def judge_counters(self) -> Mapping[str, Any]:
        return self._pool.stats()

    def _tell(self, request: RolloutRequest, tally: Tally | None) -> None:
        """Once, of what the first request was chosen from; metrics tell of each."""
        if tally is not None and self._display is not None and not self._told:
            self._told = True
            line = f"iteration {request.step} begins with {tally.used} failed responses; left out: {tally.reasons}"
            self._display.message(f"{line} (failures/... in metrics.jsonl tells of each iteration)")

    def _show(self, stage: str, done: int, total: int) -> None:
        if self._display is not None:
            self._display.stage(stage, done, total)


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """One iteration's episodes. `idle_s`: seconds that the actor waited for weights before it could begin. `tally`: of
    what the episodes were chosen from, see `Starts`."""

    step: int
    episodes: list[Episode]
    progress: RolloutProgress
    idle_s: float
    tally: Tally | None = None


class ActorThread:
    """Asks an actor for the episodes of iterations `first` to `last` in a thread; use as a context manager.

    Its end stops the actor.
    """

    def __init__(self, actor: Actor, request: RolloutRequest, *, first: int, last: int, max_staleness: int) -> None:
        """Args: request: an iteration's, whichever: its step and version are filled in."""
        self._actor, self._request = actor, request
        self._steps, self._max_staleness = range(first, last + 1), max_staleness
        self._changed = threading.Condition()
        self._published: tuple[int, int] | None = None  # (iteration, version of the weights that it starts with)
        self._ready: collections.deque[Rollouts] = collections.deque()
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="actor", daemon=True)

    def publish(self, step: int, params: Params, version: int) -> None:
        """Gives the actor a copy of the weights that iteration `step` starts with, and lets it go on."""
        self._actor.set_weights(params, version)
        with self._changed:
            self._published = step, version
            self._changed.notify_all()

    def get(self, step: int, should_stop: Callable[[], bool] = bool) -> Rollouts:
        """Waits for an iteration's rollouts; they come in order.

        Raises what the actor raised, with its traceback, or StoppedError once `should_stop` says so.
        """
        with self._changed:
            while not self._ready:
                if self._error is not None:
                    raise self._error
                if should_stop():
                    raise StoppedError("while it waited for rollouts")
                self._changed.wait(0.2)
            rollouts = self._ready.popleft()
        if rollouts.step != step:
            raise RuntimeError(f"iteration {step} asked for rollouts, those of {rollouts.step} came")
        return rollouts

    def close(self) -> None:
        """Ends the thread, dropping what it was making."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._actor.stop()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            for step in self._steps:
                began = time.perf_counter()
                version = self._admitted(step)
                if version is None:
                    return
                idle_s = time.perf_counter() - began
                result = self._actor.episodes(dataclasses.replace(self._request, step=step, version=version))
                with self._changed:
                    self._ready.append(Rollouts(step, result.episodes, result.progress, idle_s, result.tally))
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _admitted(self, step: int) -> int | None:
        """Waits until the weights are new enough for `step`: their version; None if the thread should end instead."""

        def new_enough() -> bool:
            return self._published is not None and self._published[0] >= step - self._max_staleness

        with self._changed:
            self._changed.wait_for(lambda: self._closing or new_enough())
            return None if self._closing or self._published is None else self._published[1]
