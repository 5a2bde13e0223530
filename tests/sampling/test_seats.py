"""Rows and pages for those who wait: nobody is lost or starved, no page has two owners, memory is full of tokens."""

import collections
import heapq
from concurrent.futures import Future

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rlef_jax.sampling.prefixes import Prefixes
from rlef_jax.sampling.programs import Shapes
from rlef_jax.sampling.request import Dialogue, Job, SamplingConfig
from rlef_jax.sampling.worker import Clock, SamplerWorker
from tests.helpers.paper_pages import PaperPrograms

TURNS = 3
HOW = SamplingConfig(1.0, 1.0, 0, (9,), 10**6)


class Run:
    """Dialogues of TURNS turns through a worker, in time that is counted in dispatches."""

    def __init__(self, shapes, prompts, lengths, arrivals, delays, shards=1):
        """prompts, lengths, delays [dialogues, turns]: tokens of prompts, of responses, dispatches of the judge."""
        self.programs = PaperPrograms(shapes, lengths, shards)
        self.worker = SamplerWorker(self.programs, lambda: ({}, 0), Prefixes(lambda: None), Clock(), 0.0)
        self.prompts, self.lengths, self.delays = prompts, lengths, delays
        self.due = [(int(at), e, 0) for e, at in enumerate(arrivals)]
        heapq.heapify(self.due)
        self.dialogues = [Dialogue(0, 0, e, 0) for e in range(len(prompts))]
        self.asked, self.done, self.waited = {}, {}, collections.Counter()
        self.now = 0

    def finish(self, most):
        """Runs until all is done, which must take fewer than `most` dispatches."""
        while self.due or self.asked:
            assert self.now < most, (len(self.done), self.asked.keys())
            while self.due and self.due[0][0] <= self.now:
                _, episode, turn = heapq.heappop(self.due)
                self.ask(episode, turn)
            if self.asked:
                self.worker.advance()
            self.now += 1
            for key in [key for key, (future, _) in self.asked.items() if future.done()]:
                future, began = self.asked.pop(key)
                self.done[key] = future.result()
                self.waited[key] = self.now - began
                if key[1] + 1 < TURNS:
                    heapq.heappush(self.due, (self.now + int(self.delays[key]), key[0], key[1] + 1))
                else:
                    self.worker.take_in(self.dialogues[key[0]])
        return self.worker.counts

    def ask(self, episode, turn):
        dialogue, prompt = self.dialogues[episode], (episode + 1,) * int(self.prompts[episode, turn])
        room = self.programs.shapes.max_len - dialogue.length - (dialogue.pending is not None) - len(prompt)
        if room < 1:  # the next prompt doesn't fit: the dialogue ends here
            self.worker.take_in(dialogue)
            return
        job = Job(dialogue, turn, prompt, room, HOW, False, Future(), opens=turn == 0)
        self.asked[episode, turn] = job.future, self.now
        self.worker.take_in(job)

    def check(self):
        """Every response is there, as long as it should be; and all pages and rows are free again."""
        for (episode, turn), sample in self.done.items():
            assert set(sample.ids) == {episode + 1}
            assert len(sample.ids) == self.lengths[episode, turn] or sample.finish_reason == "length"
        assert {episode for episode, turn in self.done if turn == 0} == set(range(len(self.prompts)))
        seats = self.worker._seats
        assert all(sorted(free) == list(range(self.programs.pages)) for free in seats.pages.free)
        assert seats.free_rows == self.programs.shapes.rows and not seats.parked
        assert all(d.saved is None and not d.pages for d in self.dialogues)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6), st.sampled_from([1, 2, 3]), st.integers(0, 12))
def test_all_finish_whatever_comes(seed, rows, shards, spare):
    """Any arrivals, lengths and judges, with hardly more memory than the longest dialogue needs on each shard."""
    rng = np.random.default_rng(seed)
    shapes = Shapes(
        rows=rows * shards, max_len=60, cache_lengths=(), prefill_chunks=(4, 8), prefill_tokens=16, decode_steps=4,
        page_slots=int(rng.choice([4, 7, 16])),
    )  # fmt: skip
    shapes = Shapes(**(shapes.__dict__ | {"pages": shapes.row_pages + spare}))
    count = int(rng.integers(1, 25))
    run = Run(
        shapes,
        prompts=rng.integers(1, 15, (count, TURNS)),
        lengths=rng.integers(1, 40, (count, TURNS)),
        arrivals=rng.integers(0, 30, count) * rng.integers(0, 2),
        delays=rng.integers(0, 10, (count, TURNS)),
        shards=shards,
    )
    run.finish(most=3000)
    run.check()


def test_a_stream_of_longer_ones_does_not_starve_a_short_one():
    """Those that may take longest go first, but not for ever: two short ones wait in a stream that never ends."""
    shapes = Shapes(
        rows=2, max_len=64, cache_lengths=(), prefill_chunks=(8,), prefill_tokens=16, decode_steps=4, page_slots=8,
        pages=10,
    )  # fmt: skip
    count = 300
    prompts = np.full((count, TURNS), 2)
    prompts[:2, 0] = 50  # little room for a response: last in any line
    lengths = np.full((count, TURNS), 12)
    run = Run(shapes, prompts, lengths, np.arange(count) // 2, np.zeros((count, TURNS)))
    run.finish(most=4000)
    run.check()
    # Sixteen jobs may overtake it for each of its turns, at four dispatches or so each, two at a time.
    assert max(run.waited[0, 0], run.waited[1, 0]) < 60
    assert max(run.waited.values()) < 1000


def paper_like(count, seed=0):
    """(prompts, lengths) of dialogues: responses are log-normal with median 1,500, cut at 8,192; feedback of 100 to 400
    tokens, first prompts of 200 to 1,000."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(1500), 0.8, (count, TURNS))).astype(int), 1, 8192)
    prompts = rng.integers(100, 401, (count, TURNS))
    prompts[:, 0] = rng.integers(200, 1001, count)
    return prompts, lengths, rng.integers(1, 25, (count, TURNS))


def test_memory_is_full_of_tokens_while_requests_wait():
    """The 8B's 40 GiB of an H100, 5,120 pages of 64 tokens, for 240 dialogues that all come at once."""
    shapes = Shapes(
        rows=128, max_len=8192, cache_lengths=(), prefill_chunks=(512,), prefill_tokens=2048, decode_steps=16,
        page_slots=64, pages=5120,
    )  # fmt: skip
    prompts, lengths, delays = paper_like(240)
    run = Run(shapes, prompts, lengths, np.zeros(240), delays)
    counts = run.finish(most=20_000)
    run.check()
    share, idle = counts["live_slots"] / counts["all_slots"], 1 - counts["tokens"] / counts["row_steps"]
    print(
        f"{len(run.done)} responses in {run.now} dispatches: {share:.3f} of the slots hold tokens while somebody waits;"
    )
    print(f"{counts['saved']} moves to the host, {idle:.3f} of the rows idle")
    assert share >= 0.85
