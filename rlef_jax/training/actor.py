"""The actor: what makes episodes, and the thread in which it works ahead of the learner.

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
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rlef_jax.errors import StoppedError
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.model.transformer import Params
from rlef_jax.progress import ProgressDisplay
from rlef_jax.sampling.sampler import Sampler
from rlef_jax.training.build import Policy
from rlef_jax.training.rollout import RolloutProgress, RolloutSettings, collect
from rlef_jax.types import Episode, Problem


@dataclasses.dataclass(frozen=True)
class Actor:
    """What makes episodes: a sampler (which holds its own weights), the chat format and the judge's pool."""

    sampler: Sampler
    policy: Policy
    pool: ExecutionPool

    def episodes(
        self,
        problems: Sequence[Problem],
        *,
        seed: int,
        step: int,
        settings: RolloutSettings,
        first_index: int = 0,
        display: ProgressDisplay | None = None,
        stage: str = "rollouts",
        donors: Sequence[Problem] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> tuple[list[Episode], RolloutProgress]:
        """One episode per problem, numbered from `first_index`, and where the time went; `donors` as in `collect`.

        Raises StoppedError once `should_stop` says so.
        """
        seen: list[RolloutProgress] = []

        def report(progress: RolloutProgress) -> None:
            seen[:] = [progress]
            if display is not None:
                display.stage(stage, progress.ended, progress.total)

        def report_compiling(done: int, programs: int) -> None:
            if display is not None:
                display.stage("compiling the sampler", done, programs)

        made = collect(
            self.sampler, self.policy.chat, self.pool, problems, seed=seed, step=step, settings=settings,
            first_index=first_index, donors=donors, on_progress=report, on_compile=report_compiling,
            should_stop=should_stop,
        )  # fmt: skip
        return made, seen[0]


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """One iteration's episodes. `idle_s`: seconds that the actor waited for weights before it could begin."""

    step: int
    episodes: list[Episode]
    progress: RolloutProgress
    idle_s: float


class ActorThread:
    """Makes the episodes of iterations `first` to `last` in a thread; use as a context manager.

    `make(step, should_stop)` gives an iteration's episodes, and raises StoppedError soon after `should_stop()` is true.
    """

    def __init__(
        self,
        make: Callable[[int, Callable[[], bool]], tuple[list[Episode], RolloutProgress]],
        sampler: Sampler,
        *,
        first: int,
        last: int,
        max_staleness: int,
    ) -> None:
        self._make, self._sampler = make, sampler
        self._steps, self._max_staleness = range(first, last + 1), max_staleness
        self._changed = threading.Condition()
        self._published: int | None = None
        self._ready: collections.deque[Rollouts] = collections.deque()
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="actor", daemon=True)

    def publish(self, step: int, params: Params, version: int) -> None:
        """Gives the sampler a copy of the weights that iteration `step` starts with, and lets the actor go on."""
        self._sampler.set_weights(params, version)
        with self._changed:
            self._published = step
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
                if not self._admitted(step):
                    return
                idle_s = time.perf_counter() - began
                episodes, progress = self._make(step, lambda: self._closing)
                with self._changed:
                    self._ready.append(Rollouts(step, episodes, progress, idle_s))
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _admitted(self, step: int) -> bool:
        """Waits until the weights are new enough for `step`; False if the thread should end instead."""

        def new_enough() -> bool:
            return self._published is not None and self._published >= step - self._max_staleness

        with self._changed:
            self._changed.wait_for(lambda: self._closing or new_enough())
            return not self._closing
