"""A policy's first response and a repairer's later ones (B.4): who says what, what each sees, how episodes end."""

from __future__ import annotations

import dataclasses

import pytest

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.evaluation.repair import pair_episodes
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.metrics.outcome import outcome_of
from rlef_jax.metrics.summary import summarise
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.training.rollout import RolloutSettings, collect
from rlef_jax.types import Limits, Problem, Status, TestCase, TestResult
from tests.helpers.scripted_sampler import ScriptedSampler
from tests.helpers.tiny_tokenizer import tiny_tokenizer

CHAT = ChatFormat(tiny_tokenizer())
SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=CHAT.stop_ids, max_new_tokens=200)
SETTINGS = RolloutSettings(SAMPLING, context=1000, limits=Limits(wall_s=5.0, memory_bytes=512 << 20))
ADD, SUBTRACT, CONSTANT = "print(a + b)", "print(a - b)", "print(3)"
PROBLEMS = [
    Problem(f"add{i}", f"Add two numbers ({i})", (TestCase("1 2", "3"),), (TestCase("40 2", "42"),)) for i in range(5)
]
# Per model (0 the policy, 1 the repairer): the responses of each episode, one for each time that it is asked.
SCRIPTS = {
    0: [[ADD], [SUBTRACT], [SUBTRACT], [SUBTRACT], [CONSTANT]],
    1: [[], [ADD], [SUBTRACT, ADD], [SUBTRACT, SUBTRACT], []],
}


class TwoModels:
    """A sampler whose script depends on its weights; `streams` are {(model, index, how often before): tokens}."""

    def __init__(self, scripts=SCRIPTS):
        self.scripts, self.streams, self.names = scripts, {}, []
        self._model, self._asked = None, {}

    def set_weights(self, params, version):
        assert params == f"model {version}"
        self._model = version

    def session(self, on_compile=None):
        made = ScriptedSampler(CHAT, self._text)
        both, model = self, self._model

        class Noted(ScriptedSampler):
            def dialogue(self, *, seed, step, episode):
                both.names.append((model, seed, step, episode))
                return super().dialogue(seed=seed, step=step, episode=episode)

            def respond(self, dialogue, prompt, sampling, **kwargs):
                future = super().respond(dialogue, prompt, sampling, **kwargs)
                times = both._asked[model, dialogue.index] - 1
                both.streams[model, dialogue.index, times] = [*prompt, *future.result().ids]
                return future

        made.__class__ = Noted
        return made

    def _text(self, index, turn):
        assert turn == 0  # each response is a dialogue of its own
        times = self._asked.get((self._model, index), 0)
        self._asked[self._model, index] = times + 1
        return f"```python\na, b = map(int, input().split())\n{self.scripts[self._model][index][times]}\n```"


@pytest.fixture(scope="module")
def pool():
    with ExecutionPool(1, find_python("3.10")) as running:
        yield running


def pairs(pool, sampler, rows=range(5), settings=SETTINGS):
    return pair_episodes(
        sampler, CHAT, pool, [PROBLEMS[i] for i in rows], seed=3, indexes=rows, settings=settings,
        first="model 0", repairer="model 1",
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(pool):
    sampler = TwoModels()
    return pairs(pool, sampler), sampler


def test_repairs_follow_what_failed_the_public_tests_and_nothing_else(made):
    episodes, _ = made
    assert [(e.index, len(e.turns), e.end, e.solved) for e in episodes] == [
        (0, 1, "public_passed", True),
        (1, 2, "public_passed", True),
        (2, 3, "public_passed", True),
        (3, 3, "turn_limit", False),
        (4, 1, "public_passed", False),  # wrong on the hidden test, of which nobody is told
    ]
    for episode in episodes:  # hidden results are of last responses alone
        assert [bool(t.verdict.hidden) for t in episode.turns[:-1]] == [False] * (len(episode.turns) - 1)
    assert [bool(e.turns[-1].verdict.hidden) for e in episodes] == [True, True, True, False, True]
    summary = summarise([outcome_of(e) for e in episodes], max_turns=3, bootstrap_samples=5)
    assert (summary["1@1"], summary["1@3"], summary["turns"]) == (20.0, 60.0, 2.0)
    assert summary["second_turns"] == 3 and summary["repaired_at_2"] == pytest.approx(100 / 3)


def test_a_repair_sees_the_first_response_and_not_the_repair_before_it(made):
    episodes, sampler = made
    for episode in episodes:
        models = [(0, 0), (1, 0), (1, 1)]
        streams = [sampler.streams[model, episode.index, times] for model, times in models[: len(episode.turns)]]
        assert list(episode.token_ids) == [i for stream in streams for i in stream]  # what was fed and sampled
        assert [t.restart for t in episode.turns] == [False, True, True][: len(episode.turns)]
        assert episode.stretches == tuple(map(len, streams))
        first, *repairs = episode.turns
        assert all(
            r.prompt_delta_ids[: len(streams[0])] == (*first.prompt_delta_ids, *first.response_ids) for r in repairs
        )
    one, two = episodes[2].turns[1:]
    assert one.prompt_delta_ids == two.prompt_delta_ids and one.response_ids != two.response_ids
    assert "Expected output `3` but got `-1\n`" in CHAT.tokenizer.show(one.prompt_delta_ids)


def test_each_response_has_random_numbers_of_its_own_name(made, pool):
    """By model, attempt and index: not by which other episodes there are."""
    episodes, sampler = made
    assert len(set(sampler.names)) == len(sampler.names)
    assert {name[1] for name in sampler.names} == {3}
    assert sorted(name[2:] for name in sampler.names) == sorted(
        [(0, i) for i in range(5)] + [(1, i) for i in (1, 2, 3)] + [(2, i) for i in (2, 3)]
    )
    split = [e for rows in (range(2), range(2, 5)) for e in pairs(pool, TwoModels(), rows)]
    assert [(e.index, e.token_ids, e.end) for e in split] == [(e.index, e.token_ids, e.end) for e in episodes]


def test_without_room_for_a_repair_the_first_response_stands(pool, made):
    length = made[0][1].stretches[0]
    [episode] = pairs(pool, TwoModels(), range(1, 2), dataclasses.replace(SETTINGS, context=length + 1))
    assert (len(episode.turns), episode.end, episode.solved) == (1, "context", False)
    assert episode.turns[0].verdict.status is Status.WRONG_ANSWER


class Broken:
    """The pool, except that it breaks on the n-th program that is run on public tests."""

    def __init__(self, pool, number):
        self._pool, self._left = pool, number

    def run(self, program, tests, limits, **kwargs):
        self._left -= not kwargs
        future = self._pool.run(program, tests, limits, **kwargs)
        if self._left or kwargs:
            return future
        future.result()
        failed = type(future)()
        failed.set_result(tuple(TestResult(Status.INFRA_ERROR) for _ in tests))
        return failed


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_broken_judge_ends_the_episode_whoever_has_spoken(pool, number):
    [episode] = pairs(Broken(pool, number), TwoModels(), range(3, 4))
    assert (len(episode.turns), episode.end) == (number, "infra")


def test_one_model_as_both_makes_the_same_first_responses(pool, made):
    alone = collect(
        ScriptedSampler(CHAT, lambda i, _: f"```python\na, b = map(int, input().split())\n{SCRIPTS[0][i][0]}\n```"),
        CHAT, pool, PROBLEMS, seed=3, step=0, settings=dataclasses.replace(SETTINGS, max_turns=1),
    )  # fmt: skip
    assert [e.turns[0].response_ids for e in alone] == [e.turns[0].response_ids for e in made[0]]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--turns=1", "--samples=1"], "--repairer: makes the second response and those after it, and --turns=1"),
        (["--feedback=none"], "--repairer: is for --feedback=true, not none"),
        (["--few-shot=x"], "--repairer: can't go with --few-shot"),
        (["--judge-only=x"], "--repairer: can't go with --judge-only"),
    ],
)
def test_what_a_repairer_cannot_go_with(flags, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(parsed(["--config=configs/tiny.py", "--repairer=runs/none", *flags]))
