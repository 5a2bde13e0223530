"""The problems that iterations begin with, found in a process beside. Imported there too: without JAX, which takes
seconds of a core."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future

from rlef_jax.data.sources import Source, training_problems
from rlef_jax.training.actor import FindStarts, RolloutRequest, Starts
from rlef_jax.training.interrupt import helper_process


@dataclasses.dataclass(frozen=True)
class TrainingProblems:
    """Finds the problems of an iteration in a source: a function of the request's seed, step and indexes."""

    source: Source

    def __call__(self, request: RolloutRequest) -> Starts:
        """The problems of a request's episodes, and those that random feedback may come from: all of its iteration."""
        every = request.settings.needs_donors
        indexes = range(request.count) if every else request.indexes
        problems = training_problems(
            self.source, request.split, request.seed, request.step, request.count, indexes, request.group_size
        )
        return Starts(problems[request.indexes.start : request.indexes.stop] if every else problems, problems)


class ProblemFeed:
    """Finds what each iteration begins with, the next one's in a process beside while this one's is in use."""

    def __init__(self, find: FindStarts, *, last: int) -> None:
        """Args: find: a function of plain data that can be sent to a process. last: iteration."""
        self._find, self._last = find, last
        self._pool = helper_process()
        self._ahead: dict[int, Future[Starts]] = {}

    def __call__(self, request: RolloutRequest) -> Starts:
        """What `find` says of a request. Starts on the next iteration's, of requests that differ in nothing else."""
        for step in range(request.step, min(request.step + 1, self._last) + 1):
            if step not in self._ahead:
                self._ahead[step] = self._pool.submit(self._find, dataclasses.replace(request, step=step))
        return self._ahead.pop(request.step).result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
