"""A worker: one cache and the thread that fills and decodes its rows. All of its state is its thread's own."""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from rlef_jax.errors import RunError
from rlef_jax.model.transformer import Params
from rlef_jax.sampling.decode import Drawn
from rlef_jax.sampling.prefixes import Prefixes
from rlef_jax.sampling.programs import Programs
from rlef_jax.sampling.request import Dialogue, Job
from rlef_jax.sampling.seats import Seats, by_shard, idle_tables

# A worker that gathers goes on with what it has once nothing came for so long.
_QUIET_S = 0.5
# Prompts seldom come alone: while there are rows for more, the next is waited for so long, a small part of a dispatch.
_BURST_S = 0.002


class SamplerWorker:
    """Rows of dialogues. `inbox` takes jobs, dialogues that are over, and None to look again (or to close)."""

    def __init__(
        self,
        programs: Programs,
        weights: Callable[[], tuple[Params, int]],
        prefixes: Prefixes,
        clock: Clock,
        min_ready_fraction: float,
    ) -> None:
        self.inbox: queue.SimpleQueue[Job | Dialogue | None] = queue.SimpleQueue()
        self.closing = False
        self.counts: collections.Counter[str] = collections.Counter()
        self._min_ready_fraction = min_ready_fraction
        self._programs, self._weights, self._prefixes, self._clock = programs, weights, prefixes, clock
        self._seats = Seats(programs, prefixes)
        self._stuck = True  # no waiting job can be given a row before something comes in or ends
        self._quiet = False  # nothing has come for a while
        self._unfinished: dict[int, Job] = {}  # all that were received, by identity

    def run(self) -> None:
        """Works until it is closed. What is unfinished then, or if it fails, is `abandon`'s."""
        while self._read_inbox():
            with self._clock.busy():
                self.advance()

    def advance(self) -> None:
        """Rows for those who wait, prompts, and one dispatch, unless too few have work or more has come meanwhile."""
        self._now, self._version = self._weights()
        self._admit()
        if self._due() or self._quiet:
            self._fill()
            # Who came meanwhile decodes along, instead of a dispatch later, while there are rows for more.
            if not self._seats.free_rows or self.inbox.empty():
                self._decode()
                self._quiet = False

    def take_in(self, item: Job | Dialogue) -> None:
        """A job has come, or a dialogue is over."""
        self._stuck = False
        if isinstance(item, Dialogue):
            self._seats.end(item)
        else:
            self._receive(item)

    def abandon(self, error: BaseException) -> None:
        """Ends with `error` what was asked for and isn't finished. `run` must have returned or failed."""
        while not self.inbox.empty():
            item = self.inbox.get()
            if isinstance(item, Job):
                self._unfinished[id(item)] = item
        while self._unfinished:
            self._unfinished.popitem()[1].future.set_exception(error)

    def release(self) -> None:
        """Lets go of the cache and the weights, whoever still refers to this worker. `run` must have ended."""
        del self._seats
        vars(self).pop("_now", None)

    def _read_inbox(self) -> bool:
        """Takes what has come; waits where there is nothing to do or too little, and a moment for the next of a burst.

        False once it should end.
        """
        burst = False
        while not self.closing:
            due, ready = self._due() or self._quiet, bool(self._seats.filling or self._seats.decoding)
            wait = (_BURST_S if burst else 0.0) if due else _QUIET_S if ready else None
            try:
                item = self.inbox.get(block=wait != 0.0, timeout=wait)
            except queue.Empty:
                self._quiet = self._quiet or not due
                return True
            self._stuck = False
            if item is not None:
                self.take_in(item)
                burst = isinstance(item, Job) and self._seats.free_rows > len(self._seats.waiting)
        return False

    def _due(self) -> bool:
        """Whether to go on: a job waits that may be given a row, or enough of the dialogues in the cache have work."""
        seats = self._seats
        if seats.waiting and not self._stuck:
            return True
        ready = len(seats.filling) + len(seats.decoding)
        return ready > 0 and ready >= self._min_ready_fraction * seats.in_use

    def _receive(self, job: Job) -> None:
        self._unfinished[id(job)] = job
        dialogue = job.dialogue
        job.tokens = [*([] if dialogue.pending is None else [dialogue.pending]), *job.prompt]
        job.chunks = self._programs.shapes.split(len(job.tokens) - 1)
        self._seats.receive(job)

    def _admit(self) -> None:
        for _, copied in self._seats.admit(self._version):
            self.counts["shared_tokens"] += copied
        self.counts["saved"] = self._seats.pages.moved_out
        self._stuck = True

    # Prompts.

    def _fill(self) -> None:
        """Prefills all chunks of all jobs that have a row, and lets them decode."""
        seats, programs = self._seats, self._programs
        while seats.filling:
            ready = [job for job in seats.filling if not job.chunks]
            seats.filling = [job for job in seats.filling if job.chunks]
            for job in ready:
                self._start(job)
            kinds: dict[tuple[int, bool], list[Job]] = {}
            for job in seats.filling:
                kinds.setdefault((job.chunks[0][1], job.dialogue.length == 0), []).append(job)
            for (chunk, _), jobs in kinds.items():
                together = programs.shapes.chunk_rows(chunk, programs.shards)
                for batch in by_shard(jobs, together // programs.shards):
                    self._prefill(chunk, together, batch)

    def _prefill(self, chunk: int, count: int, batch: list[tuple[int, Job]]) -> None:
        tables = idle_tables(self._programs, count)  # places that no job needs have no pages
        tokens, starts = np.zeros((count, chunk), np.int32), np.zeros(count, np.int32)
        for place, job in batch:
            size = job.chunks.pop(0)[0]
            dialogue = job.dialogue
            tables[place], starts[place] = self._seats.table.tables[dialogue.row], dialogue.length
            tokens[place, :size] = job.tokens[job.filled : job.filled + size]
            job.filled += size
            dialogue.length += size
            self._seats.table.lengths[dialogue.row] = dialogue.length
            self.counts["prefilled_tokens"] += size
        self.counts["prefill_places"] += tokens.size
        pages = self._seats.pages
        pages.cache = self._programs.prefill(self._now, pages.cache, tables, tokens, starts)

    def _start(self, job: Job) -> None:
        """All but the last token of the prompt is in the cache: the next dispatch begins with that, or goes on."""
        dialogue, table, row = job.dialogue, self._seats.table, job.dialogue.row
        if job.leads:
            self._prefixes.publish(job.prompt, self._version, self._seats.pages.copy(dialogue))
            job.leads = False
        how = job.sampling
        for name, value in (
            ("tokens", (job.ids or job.tokens)[-1]), ("lengths", dialogue.length),
            ("room", job.max_new - len(job.ids)), ("drawn", len(job.ids)), ("seed", dialogue.seed),
            ("step", dialogue.step), ("episode", dialogue.episode), ("turn", job.turn),
            ("temperature", how.temperature), ("top_k", how.top_k), ("top_p", how.top_p),
        ):  # fmt: skip
            getattr(table, name)[row] = value
        table.stop_ids[row] = -1
        table.stop_ids[row, : len(how.stop_ids)] = how.stop_ids
        self._seats.decoding[row] = job

    # Responses.

    def _decode(self) -> None:
        """One dispatch, after which some responses are complete."""
        seats = self._seats
        seats.grow()
        if not seats.decoding:
            return
        if seats.waiting:
            for name, count in zip(("live_slots", "all_slots"), seats.slots(), strict=True):
                self.counts[name] += count
        seats.pages.cache, out = self._programs.decode(self._now, seats.pages.cache, seats.table)
        out = jax.device_get(out)
        self.counts["row_steps"] += out.ids.shape[0] * int(out.steps)
        self.counts["dispatches"] += 1
        counts, ids = out.counts.tolist(), out.ids.tolist()
        behavior, policy, stopped = out.behavior_logp.tolist(), out.policy_logp.tolist(), out.stopped.tolist()
        table, rows = seats.table, np.fromiter(seats.decoding, np.int64)
        made = out.counts[rows]
        self._check_finite(rows, made, out)
        table.tokens[rows] = out.ids[rows, made - 1]
        table.lengths[rows] += made
        table.drawn[rows] += made
        table.room[rows] -= made
        self.counts["tokens"] += int(made.sum())
        for row in rows.tolist():
            job, n = seats.decoding[row], counts[row]
            job.dialogue.length += n
            job.ids += ids[row][:n]
            job.behavior_logp += behavior[row][:n]
            job.policy_logp += policy[row][:n]
            job.versions += [self._version] * n
            if stopped[row] or table.room[row] == 0:
                self._finish(job, stopped[row])

    def _check_finite(self, rows: np.ndarray, made: np.ndarray, out: Drawn) -> None:
        """Raises RunError where a drawn token's log-probability is no number.

        A logit that is NaN or +inf makes those under the unmodified distribution NaN, whatever was drawn and greedily
        too: they are relative to the sum over the vocabulary.
        """
        drawn = np.arange(out.ids.shape[1]) < made[:, None]
        both = out.policy_logp[rows] + out.behavior_logp[rows]
        if (bad := drawn & ~np.isfinite(both)).any():
            job = self._seats.decoding[int(rows[np.argmax(bad.any(axis=1))])]
            raise RunError(
                f"the policy's log-probabilities are not finite (weights of version {self._version}, episode"
                f" {job.dialogue.episode}, turn {job.turn + 1}): what it samples means nothing. Look for NaN or inf"
                " in its weights, or for activations that config.model.compute_dtype can't hold"
            )

    def _finish(self, job: Job, stopped: bool) -> None:
        del self._unfinished[id(job)]
        job.dialogue.pending = job.ids[-1]
        self._seats.finish(job)
        self._stuck = False
        job.future.set_result(job.sample(stopped))


class Clock:
    """Seconds in which at least one of several threads worked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = 0
        self._since = self._total = 0.0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """This thread works."""
        with self._lock:
            if self._busy == 0:
                self._since = time.perf_counter()
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1
                if self._busy == 0:
                    self._total += time.perf_counter() - self._since

    def seconds(self) -> float:
        with self._lock:
            return self._total + (time.perf_counter() - self._since if self._busy else 0.0)
