"""Where examples come from: which episodes and responses, their tokens, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from rlef_jax.data import mini_contests
from rlef_jax.data.jsonl.schema import line_of
from rlef_jax.dialog.chat import TINY, SystemMessageError
from rlef_jax.dialog.load import load_chat
from rlef_jax.dialog.prompts import first_message
from rlef_jax.errors import ConfigError
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.supervised.examples import spans
from rlef_jax.supervised.programs import RightPrograms
from rlef_jax.supervised.sources import collected, dialogue, messages, repairs, sequences_of, solutions, successes
from rlef_jax.training.episode_io import episodes_path, write_episodes
from rlef_jax.training.failures import repair_prompt
from rlef_jax.training.rollout import RolloutSettings, collect
from rlef_jax.training.tally import PassedOver
from rlef_jax.types import FunctionTest, Limits, Problem, TestCase
from tests.helpers.scripted_sampler import ScriptedSampler

CHAT = load_chat("package:tokenizer", "", "")
SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=CHAT.stop_ids, max_new_tokens=400)
LIMITS = Limits(wall_s=10.0, memory_bytes=512 << 20)
SETTINGS = RolloutSettings(SAMPLING, context=4000, limits=LIMITS, max_failures=1)
WRONG = "```python\nprint('?')\n```"


def right(problem):
    return f"```python\n{problem.solutions[0]}\n```"


@pytest.fixture(scope="module")
def made(pool):
    """Five episodes: solved at once, at the second and at the third response, and twice not."""
    problems = [mini_contests.problem_at("train", 5, i) for i in range(5)]

    def script(index, turn):
        return right(problems[index]) if turn >= (0, 1, 2, 9, 9)[index] else WRONG

    return collect(ScriptedSampler(CHAT, script), CHAT, pool, problems, seed=5, step=0, settings=SETTINGS)


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_episodes(episodes_path(folder, 0), made[:2])
    write_episodes(episodes_path(folder, 3), made[2:])
    write_episodes(folder / "episodes" / "valid_000001.jsonl.gz", made)  # a run's evaluations aren't learned from
    return folder


def split(found):
    """(examples with their problems, how many were passed over by reason)."""
    found = list(found)
    examples = [one for one in found if not isinstance(one, PassedOver)]
    return examples, dict(Counter(one.reason for one in found if isinstance(one, PassedOver)))


def responses(example):
    return [example.ids[a:b].tolist() for a, b in spans(example.learned)]


def test_the_last_responses_of_successful_episodes_are_learned(run, made):
    found, left_out = split(successes([run], CHAT, "", all_responses=False))
    assert left_out == {"not_solved": 2}
    assert [name for _, name in found] == [episode.problem.name for episode in made[:3]]
    for (example, _), episode in zip(found, made, strict=False):
        assert example.ids.tolist() == list(episode.token_ids)
        assert responses(example) == [list(episode.turns[-1].response_ids)]


def test_all_responses_are_where_asked_for_and_an_evaluation_is_read_as_a_run(run, made, tmp_path):
    (tmp_path / "chunks").mkdir()
    write_episodes(tmp_path / "chunks" / "000000.jsonl.gz", made)
    found, left_out = split(successes([tmp_path, episodes_path(run, 3)], CHAT, "", all_responses=True))
    assert left_out == {"not_solved": 4}
    solved = [*made[:3], made[2]]
    assert [responses(e) for e, _ in found] == [[list(t.response_ids) for t in e.turns] for e in solved]


def test_a_context_that_began_anew_is_a_sequence_of_its_own(made):
    first, second = made[1].turns
    episode = dataclasses.replace(made[1], turns=(first, dataclasses.replace(second, restart=True)))
    for example, turn in zip(sequences_of(episode), (first, second), strict=True):
        assert example.ids.tolist() == [*turn.prompt_delta_ids, *turn.response_ids]
        assert responses(example) == [list(turn.response_ids)]


def test_episodes_of_another_format_are_refused(run, pool):
    file = episodes_path(run, 0)
    told = rf"config.sft.data: {file}: the episode about .* another tokenizer, .* system prompt than .*: give episodes"
    with pytest.raises(ConfigError, match=told):
        list(successes([run], CHAT, "You are somebody else.", all_responses=False))
    other = dataclasses.replace(SETTINGS, system_prompt="You are somebody else.")
    with pytest.raises(ConfigError, match=told):
        list(repairs([run], CHAT, other, RightPrograms(pool, LIMITS), seed=0))


def test_paths_without_episodes_are_named(tmp_path):
    with pytest.raises(ConfigError, match=rf"config.sft.data: {tmp_path} holds no episodes: give a file"):
        list(successes([tmp_path], CHAT, "", all_responses=False))
    (tmp_path / "broken").write_text("no")
    with pytest.raises(ConfigError, match=r"config.sft.data: .*broken cannot be read as episodes"):
        list(successes([tmp_path / "broken"], CHAT, "", all_responses=False))


def test_a_failed_response_and_its_feedback_come_before_a_right_program(run, made, pool):
    found, left_out = split(repairs([run], CHAT, SETTINGS, RightPrograms(pool, LIMITS), seed=0))
    assert left_out == {"no_failure": 1}
    assert [name for _, name in found] == [episode.problem.name for episode in made[1:]]
    for (example, _), episode in zip(found, made[1:], strict=True):
        failed = dataclasses.replace(episode, turns=episode.turns[:1], end="")
        prompt = repair_prompt(failed, CHAT, SETTINGS)
        assert example.ids[: len(prompt)].tolist() == prompt
        assert responses(example) == [CHAT.response(right(episode.problem))]
        assert example.ids[len(prompt) :].tolist() == CHAT.response(right(episode.problem))


def test_failures_without_a_right_program_or_room_are_counted(run, made, pool, tmp_path):
    problem = dataclasses.replace(made[3].problem, name="another", solutions=("print('?')",))
    unsolvable = dataclasses.replace(made[3], problem=problem)
    write_episodes(episodes_path(tmp_path, 0), [*made[:2], unsolvable])
    lengths = [len(repair_prompt(dataclasses.replace(e, turns=e.turns[:1]), CHAT, SETTINGS)) for e in made[1:]]
    right_programs = RightPrograms(pool, LIMITS)
    for context, fitting in ((4000, 4), (min(lengths) + 1, lengths.count(min(lengths))), (min(lengths), 0)):
        settings = dataclasses.replace(SETTINGS, context=context)
        found, left_out = split(repairs([run, tmp_path], CHAT, settings, right_programs, seed=0))
        again = int(context == 4000 or lengths[0] < context)  # made[1] is in both folders
        expected = {"no_failure": 2, "no_program": 1, "no_room": 5 - fitting - again}
        assert len(found) == fitting + again and left_out == {k: n for k, n in expected.items() if n}
    with pytest.raises(ConfigError, match="nothing to learn from; left out: 2 epis.* 1 failures .* 5 failures that"):
        collected(repairs([run, tmp_path], CHAT, settings, right_programs, seed=0), 4000)


def test_which_right_program_depends_on_the_seed_alone_and_wrong_ones_never_come(made, pool, tmp_path):
    problem = made[3].problem
    several = (problem.solutions[0], problem.solutions[0] + "\n# the same", "print('?')", "print 2")
    episodes = [dataclasses.replace(made[3], problem=dataclasses.replace(problem, solutions=several))] * 12
    write_episodes(episodes_path(tmp_path, 0), episodes)

    def chosen(seed):
        found = repairs([tmp_path], CHAT, SETTINGS, RightPrograms(pool, LIMITS), seed)
        return [CHAT.response_text(responses(example)[0]) for example, _ in found]

    assert chosen(0) == chosen(0) != chosen(1)
    assert {f"```python\n{program}\n```" for program in several[:2]} == set(chosen(0))


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def said(*texts, roles=("user", "assistant")):
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]


def test_messages_become_the_tokens_that_a_rollout_has(tmp_path):
    system = [{"role": "system", "content": "Be brief."}]
    path = write(tmp_path / "m.jsonl", {"messages": system + said("a?", "b", "c?", "d"), "problem": "p"}, "",
                 {"messages": said("a?", "b")})  # fmt: skip
    (every, name), (alone, _) = messages([path], CHAT, "", all_responses=True)
    first, answer = CHAT.first_prompt("a?", "Be brief."), CHAT.response("b")
    rest = [*CHAT.next_prompt("c?", closed=True), *CHAT.response("d")]
    assert every.ids.tolist() == [*first, *answer, *rest] and name == "p"
    assert responses(every) == [answer, CHAT.response("d")]
    assert alone.ids.tolist() == [*CHAT.first_prompt("a?"), *answer]
    (last, _), _ = messages([path], CHAT, "", all_responses=False)
    assert responses(last) == [CHAT.response("d")] and last.ids.tolist() == every.ids.tolist()
    assert responses(dialogue([("user", "a?"), ("assistant", "b")], CHAT)) == [answer]


def test_white_space_inside_of_texts_ends_no_line_and_no_problem_is_its_own(tmp_path):
    rows = [json.dumps({"messages": said("a\u2028b\u0085", "c"), "problem": None}, ensure_ascii=False)] * 2
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8-sig")
    found = list(messages([path], CHAT, "Be brief.", all_responses=True))
    assert [name for _, name in found] == [f"{path}:1", f"{path}:2"]
    assert found[0][0].ids.tolist() == [*CHAT.first_prompt("a\u2028b\u0085", "Be brief."), *CHAT.response("c")]


@pytest.mark.parametrize(
    "row, fault",
    [
        ("{", "no JSON"),
        ("[]", "an object with"),
        ({}, '"messages" must be a list'),
        ({"messages": []}, '"messages" must be a list'),
        ("[" * 200_000, "no JSON"),
        ({"messages": said("a", "b"), "problem": ["x"]}, '"problem" must be a text'),
        ({"messages": ["a"]}, 'message 1 must have a "role" and a "content"'),
        ({"messages": said("a") + [{"role": "assistant"}]}, 'message 2 must have a "role"'),
        ({"messages": said("a")}, "to an assistant at the end.*they are user"),
        ({"messages": said("a", "b", roles=("assistant", "user"))}, "they are assistant, user"),
        ({"messages": said("a", "b", roles=("user", "tool"))}, "they are user, tool"),
        ({"messages": [{"role": "system", "content": "s"}]}, "they are system"),
        ({"messages": said("a", "b\ud83d")}, "message 2 holds half a character"),
    ],
)
def test_a_line_of_another_kind_is_named(tmp_path, row, fault):
    path = write(tmp_path / "m.jsonl", {"messages": said("a", "b")}, row)
    with pytest.raises(ConfigError, match=rf"config.sft.data: {path}, line 2: .*{fault}|{path}, line 2: {fault}"):
        list(messages([path], CHAT, "", all_responses=True))


def no_switches(system):
    if system.endswith("/no_think"):
        raise SystemMessageError("a template: it takes it for more than text")


@pytest.mark.parametrize(
    "chat, fault",
    [
        (dataclasses.replace(CHAT, style=dataclasses.replace(TINY, first_with_system=None)),
         "the model's chat template takes no system message: leave it out, or let the first user message begin with"),
        (dataclasses.replace(CHAT, check_system=no_switches), "a template: it takes it for more than text"),
    ],
)  # fmt: skip
def test_a_system_message_that_the_template_does_not_take_is_named_where_it_is(tmp_path, chat, fault):
    """In the file, or in the configuration for lines without one."""
    system = [{"role": "system", "content": "Be brief. /no_think"}]
    path = write(tmp_path / "m.jsonl", {"messages": said("a", "b")}, {"messages": system + said("a", "b")})
    found = messages([path], chat, "", all_responses=True)
    next(found)
    with pytest.raises(ConfigError) as raised:
        next(found)
    assert str(raised.value).startswith(f"config.sft.data: {path}, line 2: its system message: {fault}")
    with pytest.raises(ConfigError) as raised:
        next(messages([path], chat, "Be careful. /no_think", all_responses=True))
    assert str(raised.value).startswith(f"config.episode.system_prompt: {fault}")


def test_what_is_too_long_is_left_out_and_told(tmp_path):
    path = write(tmp_path / "m.jsonl", {"messages": said("a", "b")}, {"messages": said("a" * 300, "b")})
    kept = collected(messages([path], CHAT, "", all_responses=True), 64)
    words = "1 examples longer than the longest of config.ppo.buckets"
    assert str(kept) == f"1 examples about 1 problems, {len(kept.ids)} tokens; left out: {words}"
    assert kept.tally.metrics("examples") == {"examples/used": 1.0, "examples/left_out/too_long": 1.0}
    with pytest.raises(ConfigError, match="nothing to learn from; left out: 2 examples longer than"):
        collected(messages([path], CHAT, "", all_responses=True), 4)
    assert np.array_equal(kept[0].ids, next(messages([path], CHAT, "", all_responses=True))[0].ids)


def test_right_solutions_of_own_problems_are_learned(pool, tmp_path):
    tests = (TestCase("1\n", "2\n"),), (TestCase("4\n", "8\n"),)
    right, again, wrong = "print(2 * int(input()))", "n = int(input())\nif n:\n  print(n + n)", "print(2)"
    function = (FunctionTest("f", ((1,),), (2,)),), (FunctionTest("f", ((3,),), (6,)),)
    of_function = "def f(n): return 2 * n"
    twice = Problem("twice", "Read n, print 2 n", *tests, solutions=(right, wrong, again, right))
    own = [
        (twice, ""),
        (Problem("f", "Write f(n): 2 n", *function, solutions=(of_function,), style="function"), "train"),
        (dataclasses.replace(twice, name="elsewhere"), "test"),
        (dataclasses.replace(twice, name="begun", start="n = "), ""),
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(line_of(problem, split) + "\n" for problem, split in own))
    reported = []
    programs = RightPrograms(pool, LIMITS)
    every = list(solutions([file], CHAT, "", programs, lambda *a: reported.append(a)))
    assert [one.reason for one in every if isinstance(one, PassedOver)] == ["wrong", "wrong", *["begun"] * 2]
    found = [one for one in every if not isinstance(one, PassedOver)]
    assert [name for _, name in found] == ["twice", "twice", "f"]
    learned = [(twice, right), (twice, again.replace("  ", "    ")), (own[1][0], of_function)]
    for (example, _), (problem, program) in zip(found, learned, strict=True):
        prompt = CHAT.first_prompt(first_message(problem), "")
        assert example.ids.tolist() == [*prompt, *CHAT.response(f"```python\n{program}\n```")]
        assert responses(example) == [example.ids.tolist()[len(prompt) :]]
    assert reported == [("solutions of problems", 3, 3)]
    file.write_text("{}\n")
    with pytest.raises(ConfigError, match="config.sft.data: .*own.jsonl:1: name: missing"):
        list(solutions([file], CHAT, "", programs))
