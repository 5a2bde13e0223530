"""Who is decoded, who waits, and whose pages go to the host: a worker's rows and pages, and the line for them.

A job is given a row, and pages for its whole prompt, once it is at the head of the line and both are there. It never
overtakes one that lacks pages, and keeps its row until its response is complete, unless pages run out: then dialogues
that wait for their judge are moved to the host, the one that has waited longest first, then those that wait for a row,
the last in line first, then those that are decoded, the youngest first, which go back to the line. So the oldest job
that has a row always goes on. And who has seen `_PATIENCE` times as many jobs as there are rows pass by is next.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator

import numpy as np

from rlef_jax.sampling.pages import Pages
from rlef_jax.sampling.prefixes import Prefixes
from rlef_jax.sampling.programs import Programs
from rlef_jax.sampling.request import Dialogue, Job

# Rows' worth of jobs that may overtake a waiting one.
_PATIENCE = 8
# A job joins only if those that have rows can go on for so many dispatches without pages of others.
_AHEAD = 4


class Seats:
    """Rows, pages and the line of a worker. One thread's own.

    Attributes:
      table: what `Programs.decode` is given; a row without a job has room 0 and no pages.
      waiting: jobs without a row, those that go on before those that begin, and among them the longest first: rows
        idle less at the end.
      filling: jobs that have a row and whose prompt isn't in the cache yet.
      decoding: the others that have a row, by row.
      parked: dialogues whose pages are in the cache and that wait for their next prompt; oldest first.
    """

    def __init__(self, programs: Programs, prefixes: Prefixes) -> None:
        self._steps, self._rows = programs.shapes.decode_steps, programs.shapes.rows // programs.shards
        self._all = programs.shards * programs.pages * programs.shapes.page_slots
        self._per_shard, self._slots = programs.pages, programs.shapes.page_slots
        self._prefixes, self.pages, self.table = prefixes, Pages(programs), programs.empty_rows()
        self._free = [[shard * self._rows + row for row in range(self._rows)][::-1] for shard in range(programs.shards)]
        self.waiting: list[Job] = []
        self.filling: list[Job] = []
        self.decoding: dict[int, Job] = {}
        self.parked: dict[Dialogue, None] = {}
        self._received = self._seated = 0

    @property
    def free_rows(self) -> int:
        """How many rows have no job."""
        return sum(map(len, self._free))

    @property
    def in_use(self) -> int:
        """How many rows there would be work for if every dialogue in the cache had some."""
        return min(len(self.filling) + len(self.decoding) + len(self.parked), len(self.table.room))

    def slots(self) -> tuple[int, int]:
        """(slots of the cache that hold a dialogue's token, all slots)."""
        held = [job.dialogue for job in (*self.waiting, *self.filling, *self.decoding.values())]
        return sum(dialogue.length for dialogue in (*held, *self.parked) if dialogue.pages), self._all

    def receive(self, job: Job) -> None:
        """A job comes to the line."""
        self.parked.pop(job.dialogue, None)
        job.arrived, job.seated_before, self._received = self._received, self._seated, self._received + 1
        bisect.insort(self.waiting, job, key=self._place)

    def end(self, dialogue: Dialogue) -> None:
        """A dialogue without a job is over."""
        self.parked.pop(dialogue, None)
        self.pages.release(dialogue)
        dialogue.saved = None

    def admit(self, version: int) -> Iterator[tuple[Job, int]]:
        """Gives rows and pages to those at the head of the line. Yields them, with how many tokens of their prompt were
        copied from another's with weights of this `version`."""
        self.waiting.sort(key=self._place)
        held_back: list[Job] = []
        while self.waiting and self.free_rows:
            job = self.waiting[0]
            shard = self._shard_for(job)
            if shard is None:
                break
            del self.waiting[0]
            contents = None
            if job.opens:
                what, contents = self._prefixes.claim(job.prompt, version)
                if what == "wait":
                    held_back.append(job)
                    continue
                job.leads = what == "lead"
            self._seat(job, shard)
            if not job.opens:
                contents = job.dialogue.saved  # read now: to take a row of another shard saves it too
            if contents is not None:
                self.pages.move_in(job.dialogue, contents)
            copied = 0
            if job.opens and contents is not None:
                job.chunks, job.filled = [], len(job.tokens) - 1
                job.dialogue.length = copied = job.filled
            job.opens = False
            yield job, copied
        self.waiting[:0] = held_back

    def grow(self) -> None:
        """Gives all that are decoded pages for the next dispatch, or moves the youngest of them out."""
        for job in sorted(self.decoding.values(), key=lambda job: job.arrived):
            dialogue = job.dialogue
            if dialogue.row < 0 or not (lacking := self.pages.lacks(dialogue, self._tokens(job, 1))):
                continue
            while dialogue.row >= 0 and not self._make_room(dialogue.shard, lacking, dialogue):
                others = [other for other in self.decoding.values() if other.dialogue.shard == dialogue.shard]
                self._back_in_line(max(others, key=lambda other: other.arrived))
            if dialogue.row >= 0:
                self.pages.give(dialogue, self._tokens(job, 1))
                self.table.tables[dialogue.row] = self.pages.table(dialogue)

    def finish(self, job: Job) -> None:
        """A response is complete: its dialogue gives up the row, and the pages too if it was the last."""
        dialogue = job.dialogue
        self._leave_row(dialogue)
        if job.last:
            self.pages.release(dialogue)
        else:
            self.parked[dialogue] = None

    def _place(self, job: Job) -> tuple[bool, int, bool, int, int]:
        overdue = self._seated - job.seated_before > _PATIENCE * len(self.table.room)
        return not overdue, job.arrived if overdue else 0, job.opens, -job.max_new, job.arrived

    def _tokens(self, job: Job, dispatches: int) -> int:
        """Tokens of its dialogue that will be in the cache after so many dispatches."""
        prompt = 0 if job.ids else len(job.tokens) - 1 - job.filled
        return job.dialogue.length + prompt + min(dispatches * self._steps, job.max_new - len(job.ids))

    def _shard_for(self, job: Job) -> int | None:
        """The shard that has a row and pages for the job, one that has its keys and values first; or None."""
        dialogue = job.dialogue
        shards = [shard for shard, rows in enumerate(self._free) if rows]
        if dialogue.pages and dialogue.shard in shards:
            shards = [dialogue.shard]
        seated = [other for other in (*self.filling, *self.decoding.values())]

        def spare(shard: int) -> int:
            """Pages that the job may have, its own apart."""
            others = [other for other in seated if other.dialogue.shard == shard]
            kept = sum(len(other.dialogue.pages) for other in others)
            own = len(dialogue.pages) if dialogue.shard == shard else 0
            return self._per_shard - kept - own - sum(map(self._ahead, others))

        shard = max(shards, key=spare)
        stays = bool(dialogue.pages) and dialogue.shard == shard
        tokens = self._tokens(job, 1)
        lacking = self.pages.lacks(dialogue, tokens) if stays else -(-tokens // self._slots)
        return shard if lacking <= spare(shard) else None

    def _ahead(self, job: Job) -> int:
        return self.pages.lacks(job.dialogue, self._tokens(job, _AHEAD))

    def _seat(self, job: Job, shard: int) -> None:
        dialogue = job.dialogue
        if dialogue.pages and dialogue.shard != shard:
            self.pages.move_out(dialogue)
        dialogue.shard, dialogue.row = shard, self._free[shard].pop()
        tokens = self._tokens(job, 1)
        self._make_room(shard, self.pages.lacks(dialogue, tokens), dialogue)
        self.pages.give(dialogue, tokens)
        self.table.room[dialogue.row], self.table.lengths[dialogue.row] = 0, dialogue.length
        self.table.tables[dialogue.row] = self.pages.table(dialogue)
        self.filling.append(job)
        self._seated += 1

    def _make_room(self, shard: int, count: int, spared: Dialogue) -> bool:
        """Moves dialogues without a row out until a shard has so many free pages; whether it has."""
        while len(self.pages.free[shard]) < count:
            parked = (dialogue for dialogue in self.parked if dialogue.shard == shard)
            in_line = (
                job.dialogue for job in reversed(self.waiting) if job.dialogue.pages and job.dialogue.shard == shard
            )
            found = next(parked, None) or next((dialogue for dialogue in in_line if dialogue is not spared), None)
            if found is None:
                return False
            self.parked.pop(found, None)
            self.pages.move_out(found)
        return True

    def _back_in_line(self, job: Job) -> None:
        self._leave_row(job.dialogue)
        self.pages.move_out(job.dialogue)
        bisect.insort(self.waiting, job, key=self._place)

    def _leave_row(self, dialogue: Dialogue) -> None:
        row = dialogue.row
        del self.decoding[row]
        self.table.room[row], self.table.lengths[row] = 0, 0
        self.table.tables[row] = self._per_shard
        self._free[dialogue.shard].append(row)
        dialogue.row = -1


def by_shard(jobs: list[Job], each: int) -> Iterator[list[tuple[int, Job]]]:
    """Jobs in batches of (place, job), of which each shard has the `each` places from `shard * each` on."""
    left = list(jobs)
    while left:
        used: dict[int, int] = {}
        batch, later = [], []
        for job in left:
            shard = job.dialogue.shard
            if (place := used.get(shard, 0)) < each:
                used[shard] = place + 1
                batch.append((shard * each + place, job))
            else:
                later.append(job)
        yield batch
        left = later


def idle_tables(programs: Programs, count: int) -> np.ndarray:
    """Tables [count, N] without pages."""
    return np.full((count, programs.shapes.row_pages), programs.pages, np.int32)
