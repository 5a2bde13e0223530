"""A session: a sampler at work, from its first dialogue to its last."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from rlef_jax.errors import StoppedError
from rlef_jax.model.transformer import Params
from rlef_jax.sampling.prefixes import Prefixes
from rlef_jax.sampling.programs import Programs
from rlef_jax.sampling.request import Dialogue, Job, Sample, SamplingConfig
from rlef_jax.sampling.worker import Clock, SamplerWorker


@dataclasses.dataclass(frozen=True)
class SamplerStats:
    """What a session has done so far.

    Attributes:
      tokens: drawn; `row_steps`: rows times steps of all dispatches, so that 1 - tokens / row_steps had no work.
      prefilled_tokens: of prompts, run; `prefill_places`: with padding; `shared_tokens`: copied instead.
      dispatches: of decoding; `saved`: how often a dialogue's keys and values were moved to the host for others.
      live_slots: slots of the cache with tokens of dialogues, summed over the dispatches during which somebody waited
        for a row or for pages; `all_slots`: all slots, the same.
      busy_s: seconds in which some worker worked; `wall_s`: since the session began.
    """

    tokens: int
    row_steps: int
    prefilled_tokens: int
    prefill_places: int
    shared_tokens: int
    dispatches: int
    saved: int
    busy_s: float
    wall_s: float
    live_slots: int = 0
    all_slots: int = 0

    @property
    def cache_use(self) -> float:
        """Share of the cache's slots that hold tokens while somebody waits; 1 if nobody ever did."""
        return self.live_slots / self.all_slots if self.all_slots else 1.0

    @property
    def idle_rows(self) -> float:
        """Share of rows without work, over all decoding steps."""
        return 1.0 - self.tokens / self.row_steps if self.row_steps else 0.0


class Session:
    """Caches and threads of a sampler at work; use as a context manager. Its methods may be called from any thread."""

    def __init__(
        self, programs: Programs, weights: Callable[[], tuple[Params, int]], workers: int, min_ready_fraction: float
    ) -> None:
        weights()  # or nothing can be sampled
        self._programs = programs
        self._clock, self._began = Clock(), time.perf_counter()
        self._prefixes = Prefixes(self._wake)
        self._workers = [
            SamplerWorker(programs, weights, self._prefixes, self._clock, min_ready_fraction) for _ in range(workers)
        ]
        self._open = [0] * workers
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name=f"sampler-{i}", daemon=True)
            for i, worker in enumerate(self._workers)
        ]
        self._error: BaseException | None = None

    def dialogue(self, *, seed: int, step: int, episode: int) -> Dialogue:
        """A new, empty dialogue."""
        with self._lock:
            worker = self._open.index(min(self._open))
            self._open[worker] += 1
        return Dialogue(seed, step, episode, worker)

    def respond(
        self,
        dialogue: Dialogue,
        prompt: Sequence[int],
        sampling: SamplingConfig,
        *,
        turn: int,
        max_new: int | None = None,
        last: bool = False,
    ) -> Future[Sample]:
        """Appends a prompt to a dialogue whose last response is complete, and samples the next.

        Args:
          turn: names the random numbers, with the dialogue's own names.
          max_new: most tokens to sample, on top of `sampling.max_new_tokens` and of the row's length.
          last: the dialogue ends with this response.
        Raises ValueError for an empty prompt, one that leaves no room for a token, or more stop ids than were compiled
        for. The future raises what ended the session, if anything did.
        """
        shapes = self._programs.shapes
        length = dialogue.length + (dialogue.pending is not None) + len(prompt)
        asked = sampling.max_new_tokens if max_new is None else min(max_new, sampling.max_new_tokens)
        room = min(asked, shapes.max_len - length)
        if len(prompt) == 0 or room < 1:
            raise ValueError(
                f"dialogue {dialogue.episode} has {length} of {shapes.max_len} tokens with its prompt of {len(prompt)}"
                f" and may sample {asked}: no room for a response"
            )
        if len(sampling.stop_ids) > shapes.stop_ids:
            raise ValueError(f"{len(sampling.stop_ids)} stop ids, compiled for {shapes.stop_ids}")
        job = Job(dialogue, turn, tuple(map(int, prompt)), room, sampling, last, Future())
        job.opens = turn == 0 and dialogue.length == 0
        with self._lock:
            if self._error is not None:
                job.future.set_exception(self._error)
                return job.future
            if last:  # just after who waits for the response goes on: the next dialogue may still be dealt without it
                job.future.add_done_callback(lambda _: self._count_out(dialogue))
            if job.opens:
                self._prefixes.want(job.prompt)
            self._workers[dialogue.worker].inbox.put(job)
        return job.future

    def end(self, dialogue: Dialogue) -> None:
        """The dialogue, whose last response is complete, won't go on."""
        self._count_out(dialogue)
        self._workers[dialogue.worker].inbox.put(dialogue)

    def _count_out(self, dialogue: Dialogue) -> None:
        with self._lock:
            self._open[dialogue.worker] -= 1

    def stats(self) -> SamplerStats:
        """What was done so far."""

        def count(name: str) -> int:
            return sum(worker.counts[name] for worker in self._workers)

        return SamplerStats(
            tokens=count("tokens"),
            row_steps=count("row_steps"),
            prefilled_tokens=count("prefilled_tokens"),
            prefill_places=count("prefill_places"),
            shared_tokens=count("shared_tokens"),
            dispatches=count("dispatches"),
            saved=count("saved"),
            busy_s=self._clock.seconds(),
            wall_s=time.perf_counter() - self._began,
            live_slots=count("live_slots"),
            all_slots=count("all_slots"),
        )

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends the threads after the dispatch that they are in; what is unfinished gets StoppedError."""
        for worker in self._workers:
            worker.closing = True
        self._wake()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.release()

    def _wake(self) -> None:
        for worker in self._workers:
            worker.inbox.put(None)

    def _run(self, worker: SamplerWorker) -> None:
        try:
            worker.run()
        except BaseException as error:
            with self._lock:  # from now on nothing is put into an inbox that nobody reads
                self._error = error
            for other in self._workers:
                other.closing = True
            self._wake()
        worker.abandon(self._error or StoppedError("while it sampled"))
