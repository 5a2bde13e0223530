"""Episodes and batches for the tests of the update, built from the production vocabulary."""

import dataclasses
import itertools

import numpy as np
import pytest

from rlef_jax.model.transformer import ModelConfig
from rlef_jax.ppo.pack import empty_arrays
from rlef_jax.ppo.token_batch import TokenBatch
from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict

CASE = TestCase("1", "1")
PROBLEM = Problem(name="p", description="", public_tests=(CASE,), private_tests=(CASE,))


def verdict_of(status: Status, *, last: bool = False) -> Verdict:
    """A verdict as the judge would give it: PASSED passes public tests, and hidden ones if it ended the episode."""
    if status in (Status.NO_CODE,):
        return Verdict(status)
    results = (TestResult(status),)
    return Verdict(status, public=results, hidden=results if last and status is Status.PASSED else ())


def build_episode(turns, *, end="turn_limit", index=0, behavior=None):
    """An episode from [(prompt ids, response ids, status)]; `behavior` gives log-probabilities by turn."""
    made = []
    for number, (prompt, response, status) in enumerate(turns):
        logp = tuple(behavior[number]) if behavior else (-1.0,) * len(response)
        verdict = verdict_of(status, last=number == len(turns) - 1)
        made.append(Turn(tuple(prompt), tuple(response), logp, (0,) * len(response), "stop", verdict))
    return Episode(PROBLEM, seed=0, step=0, index=index, turns=tuple(made), end=end)


def random_episodes(count, *, vocab=11, seed=0, longest=14, restarts=False):
    """Finished episodes of one to three turns with random tokens and verdicts; every fifth one is infra.

    `restarts`: every second turn, counted over all of them, begins its context anew.
    """
    rng = np.random.default_rng(seed)
    statuses = [Status.WRONG_ANSWER, Status.NO_CODE, Status.RUNTIME_ERROR, Status.PASSED]
    episodes = []
    for index in range(count):
        turns, behavior = [], []
        for _ in range(rng.integers(1, 4)):
            sizes = rng.integers(1, max(2, longest // 6) + 1, size=2)
            prompt, response = (rng.integers(1, vocab, size=n).tolist() for n in sizes)
            turns.append((prompt, response, statuses[rng.integers(4)]))
            behavior.append((-2.4 + 0.3 * rng.standard_normal(len(response))).tolist())
        end = "infra" if index % 5 == 4 else "turn_limit"
        episodes.append(build_episode(turns, end=end, index=index, behavior=behavior))
    if restarts:
        count = itertools.count()
        episodes = [
            dataclasses.replace(e, turns=tuple(dataclasses.replace(t, restart=next(count) % 2 == 1) for t in e.turns))
            for e in episodes
        ]
    return episodes


@pytest.fixture(scope="module", autouse=True)
def quickly(quick_compilation):
    """All tests here compile much and compute little."""


@pytest.fixture(scope="session")
def tiny_model():
    return ModelConfig(vocab_size=11, d_model=8, n_layers=2, n_heads=2, n_kv_heads=1, d_head=4, d_ff=16)


@pytest.fixture(scope="session")
def make_episode():
    return build_episode


@pytest.fixture(scope="session")
def make_episodes():
    return random_episodes


@pytest.fixture(scope="session")
def make_batch():
    """A TokenBatch of padding with the given fields in place of zeros."""

    def make(rows, length, turns, **fields):
        return TokenBatch(**{**empty_arrays(rows, length, turns), **fields})

    return make
