"""A worker: one cache and the thread that fills and decodes its rows. All of its state is its thread's own."""

from __future__ import annotations

import bisect
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
from rlef_jax.sampling.programs import Programs, empty_rows
from rlef_jax.sampling.request import Dialogue, Job

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
        shapes = programs.shapes
        self.inbox: queue.SimpleQueue[Job | Dialogue | None] = queue.SimpleQueue()
        self.closing = False
        self.counts: collections.Counter[str] = collections.Counter()
        self._min_ready_fraction = min_ready_fraction
        self._programs, self._weights, self._prefixes, self._clock = programs, weights, prefixes, clock
        self._table = empty_rows(shapes.rows, shapes.stop_ids)
        self._cache = programs.new_cache()
        self._free = list(range(shapes.rows))[::-1]
        self._parked: dict[Dialogue, None] = {}  # they hold a row and wait for their next prompt; oldest first
        self._waiting: list[Job] = []  # for a row, in the order of `_turn_in_line`
        self._stuck = True  # no waiting job can be given a row before something comes in
        self._quiet = False  # nothing has come for a while
        self._filling: list[Job] = []
        self._decoding: dict[int, Job] = {}
        self._unfinished: dict[int, Job] = {}  # all that were received, by identity

    def run(self) -> None:
        """Works until it is closed. What is unfinished then, or if it fails, is `abandon`'s."""
        while self._read_inbox():
            with self._clock.busy():
                self._now, self._version = self._weights()
                self._admit()
                if self._due() or self._quiet:
                    self._fill()
                    # Who came meanwhile decodes along, instead of a dispatch later, while there are rows for more.
                    if not self._free or self.inbox.empty():
                        self._decode()
                        self._quiet = False

    def abandon(self, error: BaseException) -> None:
        """Ends with `error` what was asked for and isn't finished. `run` must have returned or failed."""
        while not self.inbox.empty():
            item = self.inbox.get()
            if isinstance(item, Job):
                self._unfinished[id(item)] = item
        while self._unfinished:
            self._unfinished.popitem()[1].future.set_exception(error)

    def _read_inbox(self) -> bool:
        """Takes what has come; waits where there is nothing to do or too little, and a moment for the next of a burst.

        False once it should end.
        """
        burst = False
        while not self.closing:
            due, ready = self._due() or self._quiet, bool(self._filling or self._decoding)
            wait = (_BURST_S if burst else 0.0) if due else _QUIET_S if ready else None
            try:
                item = self.inbox.get(block=wait != 0.0, timeout=wait)
            except queue.Empty:
                self._quiet = self._quiet or not due
                return True
            if isinstance(item, Dialogue):
                self._end(item)
            elif item is not None:
                self._receive(item)
                burst = len(self._free) > len(self._waiting)
            self._stuck = False
        return False

    def _due(self) -> bool:
        """Whether to go on: a job waits that may be given a row, or enough of the rows in use have work."""
        if self._waiting and not self._stuck:
            return True
        ready = len(self._filling) + len(self._decoding)
        in_use = self._programs.shapes.rows - len(self._free)
        return ready > 0 and ready >= self._min_ready_fraction * in_use

    def _receive(self, job: Job) -> None:
        self._unfinished[id(job)] = job
        dialogue = job.dialogue
        job.tokens = [*([] if dialogue.pending is None else [dialogue.pending]), *job.prompt]
        job.chunks = self._programs.shapes.split(len(job.tokens) - 1)
        if dialogue.row >= 0:
            del self._parked[dialogue]
            self._filling.append(job)
        else:
            bisect.insort(self._waiting, job, key=_turn_in_line)

    def _end(self, dialogue: Dialogue) -> None:
        if self._parked.pop(dialogue, 0) is None:
            self._free.append(dialogue.row)
        dialogue.row, dialogue.saved = -1, None

    # Rows for those who wait.

    def _admit(self) -> None:
        """Gives rows to waiting jobs, as long as there are any to give; saves what dialogues that wait leave behind."""
        held_back: list[Job] = []
        while self._waiting and (self._free or self._parked):
            job = self._waiting.pop(0)
            copied = None
            if job.first:
                what, copied = self._prefixes.claim(job.prompt, self._version)
                if what == "wait":
                    held_back.append(job)
                    continue
                job.leads = what == "lead"
            if not self._free:
                self._save(next(iter(self._parked)))
            self._seat(job, job.dialogue.saved if copied is None else copied)
            if copied is not None:
                job.chunks, job.filled = [], len(job.tokens) - 1
                self.counts["shared_tokens"] += job.filled
        self._stuck = not self._waiting  # all that is left waits for another's prompt
        self._waiting[:0] = held_back

    def _save(self, dialogue: Dialogue) -> None:
        del self._parked[dialogue]
        dialogue.saved = self._programs.take(self._cache, dialogue.row, dialogue.length)
        self._free.append(dialogue.row)
        dialogue.row = -1
        self.counts["saved"] += 1

    def _seat(self, job: Job, contents: np.ndarray | None) -> None:
        dialogue = job.dialogue
        dialogue.row, dialogue.saved = self._free.pop(), None
        if contents is not None:
            self._cache = self._programs.put(self._cache, dialogue.row, contents)
        self._table.room[dialogue.row] = 0
        self._table.lengths[dialogue.row] = dialogue.length
        self._filling.append(job)

    # Prompts.

    def _fill(self) -> None:
        """Prefills all chunks of all jobs that have a row, and lets them decode."""
        while self._filling:
            ready = [job for job in self._filling if not job.chunks]
            self._filling = [job for job in self._filling if job.chunks]
            for job in ready:
                self._start(job)
            kinds: dict[tuple[int, bool], list[Job]] = {}
            for job in self._filling:
                first = job.dialogue.length + job.filled == 0
                kinds.setdefault((job.chunks[0][1], first), []).append(job)
            for (chunk, _), jobs in kinds.items():
                together = self._programs.shapes.chunk_rows(chunk)
                for at in range(0, len(jobs), together):
                    self._prefill(chunk, jobs[at : at + together])

    def _prefill(self, chunk: int, jobs: list[Job]) -> None:
        shapes = self._programs.shapes
        count = shapes.chunk_rows(chunk)
        # Places that no job needs belong to rows that the cache hasn't got.
        rows = np.arange(shapes.rows, shapes.rows + count, dtype=np.int32)
        tokens, starts = np.zeros((count, chunk), np.int32), np.zeros(count, np.int32)
        for place, job in enumerate(jobs):
            size = job.chunks.pop(0)[0]
            rows[place], starts[place] = job.dialogue.row, job.dialogue.length + job.filled
            tokens[place, :size] = job.tokens[job.filled : job.filled + size]
            job.filled += size
            self._table.lengths[rows[place]] = starts[place] + size
            self.counts["prefilled_tokens"] += size
        self.counts["prefill_places"] += tokens.size
        self._cache = self._programs.prefill(self._now, self._cache, rows, tokens, starts)

    def _start(self, job: Job) -> None:
        """All but the last token of the prompt is in the cache: the next dispatch begins with that."""
        dialogue, table, row = job.dialogue, self._table, job.dialogue.row
        dialogue.length += job.filled
        if job.leads:
            taken = self._programs.take(self._cache, row, dialogue.length)
            self._prefixes.publish(job.prompt, self._version, taken)
        how = job.sampling
        for name, value in (
            ("tokens", job.tokens[-1]), ("lengths", dialogue.length), ("room", job.max_new), ("seed", dialogue.seed),
            ("step", dialogue.step), ("episode", dialogue.episode), ("turn", job.turn), ("drawn", 0),
            ("temperature", how.temperature), ("top_k", how.top_k), ("top_p", how.top_p),
        ):  # fmt: skip
            getattr(table, name)[row] = value
        table.stop_ids[row] = -1
        table.stop_ids[row, : len(how.stop_ids)] = how.stop_ids
        self._decoding[row] = job

    # Responses.

    def _decode(self) -> None:
        """One dispatch, after which some responses are complete."""
        if not self._decoding:
            return
        self._cache, out = self._programs.decode(self._now, self._cache, self._table)
        out = jax.device_get(out)
        self.counts["row_steps"] += out.ids.shape[0] * int(out.steps)
        self.counts["dispatches"] += 1
        counts, ids = out.counts.tolist(), out.ids.tolist()
        behavior, policy, stopped = out.behavior_logp.tolist(), out.policy_logp.tolist(), out.stopped.tolist()
        table, rows = self._table, np.fromiter(self._decoding, np.int64)
        made = out.counts[rows]
        self._check_finite(rows, made, out)
        table.tokens[rows] = out.ids[rows, made - 1]
        table.lengths[rows] += made
        table.drawn[rows] += made
        table.room[rows] -= made
        self.counts["tokens"] += int(made.sum())
        for row in rows.tolist():
            job, n = self._decoding[row], counts[row]
            job.ids += ids[row][:n]
            job.behavior_logp += behavior[row][:n]
            job.policy_logp += policy[row][:n]
            job.versions += [self._version] * n
            if stopped[row] or table.room[row] == 0:
                self._finish(row, stopped[row])

    def _check_finite(self, rows: np.ndarray, made: np.ndarray, out: Drawn) -> None:
        """Raises RunError where a drawn token's log-probability is no number.

        A logit that is NaN or +inf makes those under the unmodified distribution NaN, whatever was drawn and greedily
        too: they are relative to the sum over the vocabulary.
        """
        drawn = np.arange(out.ids.shape[1]) < made[:, None]
        both = out.policy_logp[rows] + out.behavior_logp[rows]
        if (bad := drawn & ~np.isfinite(both)).any():
            job = self._decoding[int(rows[np.argmax(bad.any(axis=1))])]
            raise RunError(
                f"the policy's log-probabilities are not finite (weights of version {self._version}, episode"
                f" {job.dialogue.episode}, turn {job.turn + 1}): what it samples means nothing. Look for NaN or inf"
                " in its weights, or for activations that config.model.compute_dtype can't hold"
            )

    def _finish(self, row: int, stopped: bool) -> None:
        job = self._decoding.pop(row)
        del self._unfinished[id(job)]
        dialogue = job.dialogue
        self._table.room[row] = 0
        dialogue.length, dialogue.pending = int(self._table.lengths[row]), job.ids[-1]
        if job.last:
            dialogue.row = -1
            self._free.append(row)
        else:
            self._parked[dialogue] = None
        job.future.set_result(job.sample(stopped))


def _turn_in_line(job: Job) -> tuple[bool, int]:
    """Those that go on before those that begin, and among them the longest first: rows idle less at the end."""
    return job.first, -job.max_new


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
