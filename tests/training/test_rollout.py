"""The rollout driver with the real judge: what is fed, sampled, judged and kept."""

from __future__ import annotations

import dataclasses
import random
import threading
import warnings
from concurrent.futures import Future

import pytest

from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.prompts import FORMAT_SENTENCE
from rlef_jax.errors import ConfigError
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.training.rollout import RolloutSettings, collect
from rlef_jax.types import Limits, Problem, Status, TestCase, TestResult
from tests.helpers.scripted_sampler import ScriptedSampler
from tests.helpers.tiny_tokenizer import tiny_tokenizer

CHAT = ChatFormat(tiny_tokenizer())
SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=CHAT.stop_ids, max_new_tokens=200)
SETTINGS = RolloutSettings(SAMPLING, context=2000, limits=Limits(wall_s=5.0, memory_bytes=512 << 20))

ADD, SUBTRACT, CONSTANT, CRASH = "print(a + b)", "print(a - b)", "print(3)", "print(1 / 0)"


def response(body: str) -> str:
    return f"```python\na, b = map(int, input().split())\n{body}\n```"


def add_problem(name: str = "add", **kwargs) -> Problem:
    return Problem(
        name,
        f"Add two numbers ({name})",
        public_tests=(TestCase("1 2", "3"),),
        private_tests=(TestCase("40 2", "42"), TestCase("770 7", "777")),
        **kwargs,
    )


@pytest.fixture(scope="module")
def pool():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another Python than 3.10 serves here
        interpreter = find_python()
    with ExecutionPool(2, interpreter) as running:
        yield running


def run(pool, script, problems, *, settings=SETTINGS, **kwargs):
    """Episodes and the sampler; `script` maps (index, turn) or turn to a program's body."""
    bodies = script if callable(script) else lambda index, turn: script[turn]
    sampler = ScriptedSampler(CHAT, lambda index, turn: response(bodies(index, turn)))
    return collect(sampler, CHAT, pool, problems, seed=1, step=2, settings=settings, **kwargs), sampler


def shown(episode, turn: int) -> str:
    return CHAT.tokenizer.show(episode.turns[turn].prompt_delta_ids)


def statuses(episode) -> list[str]:
    return [str(t.verdict.status) for t in episode.turns]


def test_wrong_then_crash_then_right(pool):
    [episode], sampler = run(pool, [SUBTRACT, CRASH, ADD], [add_problem()])
    assert (episode.end, episode.solved) == ("public_passed", True)
    assert statuses(episode) == ["WRONG_ANSWER", "RUNTIME_ERROR", "PASSED"]
    assert [len(t.verdict.hidden) for t in episode.turns] == [0, 0, 2]
    assert shown(episode, 1) == (
        "<|user|>Your code failed the following tests:\n\n- input `1 2` failed:\nExpected output `3` but got `-1\n`\n\n"
        f"Give it another try.\n{FORMAT_SENTENCE}<|end|><|assistant|>"
    )
    assert "ZeroDivisionError: division by zero\n\nGive it another try." in shown(episode, 2)
    assert episode.turns[0].finish_reason == "stop" and episode.turns[0].policy_version[0] == 7
    assert episode.turns[2].behavior_logp[2] == -1.0


def test_token_in_token_out(pool):
    """What is trained on is what was fed and sampled, in order: never what its text would be encoded as."""
    episodes, sampler = run(pool, [SUBTRACT, CRASH, ADD], [add_problem(str(i)) for i in range(3)])
    for episode in episodes:
        assert list(episode.token_ids) == sampler.streams[episode.index]
        for turn in episode.turns:
            assert len(turn.response_ids) == len(turn.behavior_logp) == len(turn.policy_version)
            assert list(turn.response_ids) != CHAT.response(CHAT.response_text(turn.response_ids))


def test_hidden_tests_decide_and_never_show(pool):
    [episode], sampler = run(pool, [SUBTRACT, CONSTANT], [add_problem()])
    assert (episode.end, episode.solved) == ("public_passed", False)
    assert statuses(episode) == ["WRONG_ANSWER", "WRONG_ANSWER"]
    dialogue = CHAT.tokenizer.show(episode.token_ids)
    assert "`1 2`" in dialogue and "40 2" not in dialogue and "42" not in dialogue and "777" not in dialogue
    assert len(episode.turns[-1].verdict.hidden) == 1  # stopped at the first failure
    every = dataclasses.replace(SETTINGS, stop_hidden_at_first_failure=False, max_turns=1)
    [failed], _ = run(pool, [SUBTRACT], [add_problem()], settings=every)
    assert failed.end == "turn_limit" and len(failed.turns[-1].verdict.hidden) == 2


def test_turn_limit_and_no_code(pool):
    sampler = ScriptedSampler(CHAT, lambda index, turn: ["I can't.", "```python\nx = = 1\n```", "no"][turn])
    [episode] = collect(sampler, CHAT, pool, [add_problem()], seed=0, step=0, settings=SETTINGS)
    assert (episode.end, episode.solved, len(episode.turns)) == ("turn_limit", False, 3)
    assert statuses(episode) == ["NO_CODE", "SYNTAX_ERROR", "NO_CODE"]
    assert "Your response has no code block." in shown(episode, 1)
    assert "SyntaxError: invalid syntax\n\nGive it" in shown(episode, 2)


def test_a_program_that_does_not_parse_as_the_settings_say(pool):
    sampler = ScriptedSampler(CHAT, lambda index, turn: "```python\nx = = 1\n```")
    settings = dataclasses.replace(SETTINGS, syntax_errors="per_test")
    [episode] = collect(sampler, CHAT, pool, [add_problem()], seed=0, step=0, settings=settings)
    trace = '  File "solution.py", line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax\n\nGive it'
    assert f"Your code failed the following tests:\n\n- input `1 2` failed:\n{trace}" in shown(episode, 1)


def test_the_order_of_events_changes_nothing(pool):
    """How long a program takes leaves no trace; indices and order are the problems' own."""

    def bodies(index, turn):
        return [SUBTRACT, ADD, CRASH, CONSTANT][(index + 2 * turn) % 4]

    problems = [add_problem(str(i)) for i in range(7)]
    whole, _ = run(pool, bodies, problems, indexes=range(10, 17))
    assert [e.index for e in whole] == list(range(10, 17))
    assert [e.problem.name for e in whole] == [str(i) for i in range(7)]
    assert len({(e.end, e.solved, len(e.turns)) for e in whole}) >= 3  # the comparison is about something
    for seed in range(3):
        split, sampler = run(Late(pool, random.Random(seed)), bodies, problems, indexes=range(10, 17))
        assert [timeless(e) for e in split] == [timeless(e) for e in whole]
        assert all(dialogue.over for dialogue in sampler.dialogues.values())


class Late:
    """The pool, whose answers come after a random time."""

    def __init__(self, pool, rng):
        self._pool, self._rng = pool, rng

    def run(self, program, tests, limits, *, stop_at_first_failure=False):
        late, wait_s = Future(), self._rng.uniform(0.0, 0.3)

        def pass_on(done):
            threading.Timer(wait_s, lambda: late.set_result(done.result())).start()

        self._pool.run(program, tests, limits, stop_at_first_failure=stop_at_first_failure).add_done_callback(pass_on)
        return late


def timeless(episode):
    """The episode without what a clock or a memory meter measured."""

    def still(results):
        return tuple(dataclasses.replace(r, cpu_s=0.0, wall_s=0.0, memory_bytes=0) for r in results)

    turns = []
    for turn in episode.turns:
        verdict = dataclasses.replace(
            turn.verdict, public=still(turn.verdict.public), hidden=still(turn.verdict.hidden)
        )
        turns.append(dataclasses.replace(turn, verdict=verdict))
    return dataclasses.replace(episode, turns=tuple(turns))


def test_no_episode_waits_for_another(pool):
    def bodies(index, turn):
        return "import time; time.sleep(0.5); print(0)" if index == 0 and turn == 0 else [SUBTRACT, SUBTRACT, ADD][turn]

    _, sampler = run(pool, bodies, [add_problem(str(i)) for i in range(2)])
    assert sampler.calls == [(0, 0), (1, 0), (1, 1), (1, 2), (0, 1), (0, 2)]


def test_context_ends_by_rule(pool):
    [free], _ = run(pool, [SUBTRACT, SUBTRACT, SUBTRACT], [add_problem()])
    first, second = free.turns[:2]
    fits = len(first.prompt_delta_ids) + len(first.response_ids) + len(second.prompt_delta_ids) + 1
    every = dataclasses.replace(SETTINGS, context=fits - 1, stop_hidden_at_first_failure=False)
    [ended], _ = run(pool, [SUBTRACT, ADD], [add_problem()], settings=every)
    assert (ended.end, len(ended.turns), ended.solved) == ("context", 1, False)
    assert len(ended.turns[0].verdict.hidden) == 2  # judged as it stands
    [longer], _ = run(pool, [SUBTRACT, ADD], [add_problem()], settings=dataclasses.replace(every, context=fits))
    assert len(longer.turns) == 2 and len(longer.token_ids) == fits  # one token was left for the response
    assert longer.turns[1].finish_reason == "length" and longer.end == "context"


def test_a_response_cut_by_length_is_closed_by_the_next_prompt(pool):
    short = dataclasses.replace(SETTINGS, sampling=dataclasses.replace(SAMPLING, max_new_tokens=5))
    [episode], sampler = run(pool, [SUBTRACT, SUBTRACT, SUBTRACT], [add_problem()], settings=short)
    assert [t.finish_reason for t in episode.turns] == ["length"] * 3
    assert all(len(t.response_ids) == 5 and CHAT.stop_ids[0] not in t.response_ids for t in episode.turns)
    assert episode.turns[1].prompt_delta_ids[:2] == (CHAT.stop_ids[0], CHAT.tokenizer.user_id)
    assert list(episode.token_ids) == sampler.streams[0]


def test_first_prompt_too_long_is_refused_by_name(pool):
    with pytest.raises(ValueError, match=r"problem 'long': its prompt of \d+ tokens .*config.episode.context"):
        run(pool, [ADD], [add_problem(), dataclasses.replace(add_problem("long"), description="y" * 3000)])


def test_no_feedback_takes_all_turns(pool):
    blind = dataclasses.replace(SETTINGS, feedback="none")
    [episode], _ = run(pool, [ADD, ADD, CONSTANT], [add_problem()], settings=blind)
    assert (episode.end, len(episode.turns), episode.solved) == ("turn_limit", 3, False)
    assert shown(episode, 1) == f"<|user|>Give it another try.\n{FORMAT_SENTENCE}<|end|><|assistant|>"
    assert [len(t.verdict.hidden) for t in episode.turns] == [0, 0, 1]
    [right], _ = run(pool, [CONSTANT, SUBTRACT, ADD], [add_problem()], settings=blind)
    assert right.solved


RANDOM = dataclasses.replace(SETTINGS, feedback="random")


def donor(name: str, *bodies: str) -> Problem:
    programs = tuple(f"n = input()\n{body}" for body in bodies)
    return Problem(
        name, name, (TestCase(f"in-{name}", f"out-{name}"),), (TestCase("", ""),), incorrect_solutions=programs
    )


def test_random_feedback_is_another_problems(pool):
    donors = [donor(str(i), "print(n)", "print('out-' + n[3:])", f"print('wrong-{i}')") for i in range(5)]
    problems = [add_problem(str(i)) for i in range(6)]
    episodes, _ = run(pool, [SUBTRACT, SUBTRACT, ADD], problems, settings=RANDOM, donors=donors)
    assert all(e.solved and len(e.turns) == 3 for e in episodes)  # still ends on true success
    messages = [shown(e, t) for e in episodes for t in (1, 2)]
    assert not any("1 2" in message for message in messages)
    assert all("- input `in-" in message and "but got `" in message for message in messages)
    assert len(set(messages)) > 4
    assert any("wrong-" in message for message in messages) and any("but got `in-" in message for message in messages)
    again, _ = run(pool, [SUBTRACT, SUBTRACT, ADD], problems, settings=RANDOM, donors=donors)
    assert [e.token_ids for e in again] == [e.token_ids for e in episodes]


def test_random_feedback_where_no_incorrect_solution_fails(pool):
    [episode], _ = run(
        pool, [SUBTRACT, ADD], [add_problem()], settings=RANDOM, donors=[donor("d", "print('out-' + n[3:])")]
    )
    assert "raise NotImplementedError()\nNotImplementedError\n\nGive it" in shown(episode, 1)


def test_random_feedback_never_from_the_same_problem(pool):
    own = add_problem(incorrect_solutions=("print(9)",))
    with pytest.raises(
        ConfigError, match="random feedback shows another problem's failures, and 'add' has none beside"
    ):
        run(pool, [SUBTRACT, ADD], [own, own], settings=RANDOM)
    [single_turn], _ = run(pool, [SUBTRACT], [own], settings=dataclasses.replace(RANDOM, max_turns=1))
    assert not single_turn.solved  # no feedback, so no donor is needed
    two = dataclasses.replace(RANDOM, max_turns=2)
    episodes, _ = run(pool, [SUBTRACT, ADD], [own] * 4 + [donor("d", "print(n)")], settings=two)
    assert all("in-d" in shown(e, 1) for e in episodes[:4]) and "`1 2`" in shown(episodes[4], 1)
    bare = add_problem("bare")  # the only problem with incorrect solutions takes its feedback from one without
    episodes, _ = run(pool, [SUBTRACT, ADD], [own, bare], settings=two)
    assert all("`1 2`" in shown(e, 1) for e in episodes)


def test_a_share_of_an_iteration_has_the_episodes_of_the_whole(pool):
    """As two processes make them: donors are the iteration's problems, whoever has the episode."""
    problems = [donor(str(i), "print(n)", f"print('wrong-{i}')") for i in range(6)]
    whole, _ = run(pool, [SUBTRACT, SUBTRACT, ADD], problems, settings=RANDOM)
    parts = (range(1), range(1, 6))
    shares = [
        run(
            pool, [SUBTRACT, SUBTRACT, ADD], [problems[i] for i in part], settings=RANDOM, donors=problems, indexes=part
        )[0]
        for part in parts
    ]
    assert [e.token_ids for share in shares for e in share] == [e.token_ids for e in whole]


class SometimesBroken:
    """The pool, except that programs that hold `marker` break the judge."""

    def __init__(self, pool, marker):
        self._pool, self._marker = pool, marker

    def run(self, program, tests, limits, *, stop_at_first_failure=False):
        if self._marker not in program:
            return self._pool.run(program, tests, limits, stop_at_first_failure=stop_at_first_failure)
        future = Future()
        future.set_result((TestResult(Status.INFRA_ERROR),) * len(tests))
        return future


def test_a_broken_judge_ends_the_episode_without_blame(pool):
    broken = SometimesBroken(pool, "a - b")
    episodes, _ = run(broken, lambda index, turn: SUBTRACT if index == 1 else ADD, [add_problem()] * 3)
    assert [e.end for e in episodes] == ["public_passed", "infra", "public_passed"]
    assert [e.solved for e in episodes] == [True, False, True]
    donors = [donor("d", "print('a - b')")]
    [episode], _ = run(broken, [CRASH, ADD], [add_problem()], settings=RANDOM, donors=donors)
    assert (episode.end, len(episode.turns)) == ("infra", 1)


def test_progress_adds_up(pool):
    reports = []
    episodes, sampler = run(pool, [SUBTRACT, ADD], [add_problem(str(i)) for i in range(5)], on_progress=reports.append)
    last = reports[-1]
    assert (last.ended, last.total) == (5, 5)
    assert last.sampler.tokens == sum(len(t.response_ids) for e in episodes for t in e.turns)
    assert [r.ended for r in reports] == sorted(r.ended for r in reports)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="feedback must be"):
        RolloutSettings(SAMPLING, feedback="sometimes")
    with pytest.raises(ValueError, match="at least 1"):
        RolloutSettings(SAMPLING, max_turns=0)
