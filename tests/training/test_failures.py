"""Failed first responses as a repairer's prompts (B.4): which ones, their tokens, and what is trained and rewarded."""

from __future__ import annotations

import dataclasses
import io
import pickle

import numpy as np
import pytest

from rlef_jax import config as config_lib
from rlef_jax.data import mini_contests
from rlef_jax.dialog.context import next_prompt, whole_prompt
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.dialog.load import load_chat
from rlef_jax.errors import ConfigError
from rlef_jax.ppo.pack import pack
from rlef_jax.progress import ProgressDisplay
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.training.actor import LocalActor, RolloutRequest, shard_range
from rlef_jax.training.episode_io import episodes_path, read_episodes, write_episodes
from rlef_jax.training.failures import FailedResponses, failed_first, repair_prompt
from rlef_jax.training.rollout import RolloutSettings, collect
from rlef_jax.training.tally import Tally
from rlef_jax.types import Limits, Problem, Status, TestCase, Verdict
from tests.helpers.scripted_sampler import ScriptedSampler

NAMES = ("package:tokenizer", "", "")
CHAT = load_chat(*NAMES)
SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=CHAT.stop_ids, max_new_tokens=400)
SETTINGS = RolloutSettings(
    SAMPLING, max_turns=1, context=2000, limits=Limits(wall_s=10.0, memory_bytes=512 << 20), max_failures=1
)
WRONG, NO_PARSE, NO_CODE = "```python\nprint('?')\n```", "```python\nx = = 1\n```", "I can't."
FILES, ROWS = 4, 6  # iterations of the run that failed, and episodes of each


def right(problem: Problem) -> str:
    return f"```python\n{problem.solutions[0]}\n```"


@pytest.fixture(scope="module")
def workdir(pool, tmp_path_factory):
    """A single-turn run's folder: of each iteration's six episodes one has passed and one has broken the judge."""
    folder = tmp_path_factory.mktemp("single")
    for step in range(FILES):
        problems = [mini_contests.problem_at("train", 5, ROWS * step + i) for i in range(ROWS)]

        def script(index, turn, problems=problems):
            return [right(problems[0]), WRONG, NO_PARSE, NO_CODE, WRONG, WRONG][index]

        episodes = collect(ScriptedSampler(CHAT, script), CHAT, pool, problems, seed=5, step=step, settings=SETTINGS)
        broken = dataclasses.replace(episodes[5].turns[0], verdict=Verdict(Status.INFRA_ERROR))
        episodes[5] = dataclasses.replace(episodes[5], turns=(broken,), end="infra")
        write_episodes(episodes_path(folder, step), episodes)
        write_episodes(folder / "episodes" / "valid_000001.jsonl.gz", episodes)  # evaluations aren't trained on
    return folder


@pytest.fixture(scope="module")
def failures(workdir):
    config = config_lib.load("configs/tiny.py:repair", overrides={"data.failures": str(workdir)})
    return FailedResponses.of(config)


def request(step=0, count=4, seed=0, settings=SETTINGS, **kwargs):
    return RolloutRequest("train", seed, step, count, kwargs.pop("indexes", range(count)), settings, **kwargs)


def saved(workdir, step):
    return read_episodes(episodes_path(workdir, step))


def names(starts):
    return [problem.name for problem in starts.problems]


def test_prompts_are_the_failed_dialogues_token_for_token(workdir, failures):
    by_name = {e.problem.name: e for step in range(FILES) for e in saved(workdir, step)[1:5]}
    starts = [failures(request(step)) for step in range(FILES)]
    assert sorted(name for s in starts for name in names(s)) == sorted(by_name)  # all that failed, and no other
    for problem, prompt in ((p, t) for s in starts for p, t in zip(s.problems, s.prompts, strict=True)):
        failed = by_name[problem.name]
        [turn] = failed.turns
        assert problem == failed.problem
        message = feedback_message(problem, turn.verdict, max_failures=1)
        assert prompt == [*turn.prompt_delta_ids, *turn.response_ids, *CHAT.next_prompt(message, closed=True)]
    texts = [CHAT.tokenizer.show(prompt) for s in starts for prompt in s.prompts]
    assert sum("failed the following tests" in t for t in texts) == sum("?" in t for t in texts) == 2 * FILES
    assert sum("does not parse" in t for t in texts) == sum("has no code block" in t for t in texts) == FILES


def test_the_order_is_a_function_of_seed_and_step(workdir, failures):
    step_of = {e.problem.name: step for step in range(FILES) for e in saved(workdir, step)}
    for seed in (0, 1):
        passes = [[failures(request(n * FILES + i, seed=seed)) for i in range(FILES)] for n in range(2)]
        files = [[{step_of[name] for name in names(s)} for s in one] for one in passes]
        for one in files:  # an iteration takes one file's, and each file comes once in a pass
            assert sorted(step for [step] in one) == list(range(FILES))
    assert files[0] != files[1] and names(failures(request(0, seed=0))) != names(failures(request(0, seed=1)))
    sent = pickle.loads(pickle.dumps(failures))  # another process finds the same, whatever was asked before
    assert sent(request(6)) == failures(request(6))


def test_shares_groups_and_more_episodes_than_failures(failures):
    whole = failures(request(3, count=10))
    assert sorted(names(whole)[:4]) == sorted(set(names(whole))) == sorted(names(whole)[4:8])  # in rounds
    parts = [failures(request(3, count=10, indexes=shard_range(10, part, 3))) for part in range(3)]
    assert [t for part in parts for t in part.prompts] == list(whole.prompts)
    grouped = failures(request(3, count=8, group_size=2))
    assert names(grouped)[::2] == names(grouped)[1::2] == names(whole)[:4]


def test_only_the_repairers_tokens_are_trained_and_it_alone_is_rewarded(pool, failures):
    """From the saved failures to the update's arrays, through the actor."""
    asked = request(1)
    problems = failures(asked).problems
    sampler = ScriptedSampler(CHAT, lambda i, turn: [right(problems[0]), WRONG, NO_CODE, NO_PARSE][i])
    said = io.StringIO()
    actor = LocalActor(sampler, CHAT, pool, failures, display=ProgressDisplay(stream=said))
    actor.set_weights(None, 0)
    result = actor.episodes(asked)
    episodes = result.episodes
    assert result.tally == failures(asked).tally == Tally(4, {"no_failure": 2})
    assert said.getvalue().startswith("iteration 1 begins with 4 failed responses; left out: 2 episodes whose first")
    assert [(e.index, len(e.turns), e.end) for e in episodes] == [
        (0, 1, "public_passed"), *((i, 1, "turn_limit") for i in (1, 2, 3))
    ]  # fmt: skip
    [batch], index = pack(episodes, buckets=(2000,), rows=4, max_turns=1)
    for row, number in enumerate(index[0][:, 0]):
        episode, failed = episodes[number], failures(asked).prompts[number]
        [turn] = episode.turns
        assert list(turn.prompt_delta_ids) == failed and sampler.streams[number] == list(episode.token_ids)
        trained = np.flatnonzero(batch.action_mask[row])
        assert trained.tolist() == list(range(len(failed), len(failed) + len(turn.response_ids)))
        assert batch.tokens[row, trained].tolist() == list(turn.response_ids)
        assert not batch.behavior_logp[row, : len(failed)].any()
        assert batch.turn_positions[row, 0] == len(failed) - 1 and batch.turn_mask[row].tolist() == [1.0]
        # The single-turn reward: no penalty for what has no code, neither the repair nor the response before it.
        assert batch.turn_rewards[row].tolist() == [1.0 if number == 0 else -1.0]


def test_hidden_tests_stay_hidden(pool):
    """Also where they were run on the response that failed."""
    problem = Problem(
        "add", "Add two numbers.", (TestCase("1 2", "3"),), (TestCase("40 2", "42"), TestCase("770 7", "777"))
    )
    settings = dataclasses.replace(SETTINGS, stop_hidden_at_first_failure=False)
    sampler = ScriptedSampler(CHAT, lambda *_: "```python\nprint(input())\n```")
    [episode] = collect(sampler, CHAT, pool, [problem], seed=0, step=0, settings=settings)
    assert len(episode.turns[0].verdict.hidden) == 2
    prompt = repair_prompt(failed_first(episode), CHAT, settings)
    text = CHAT.tokenizer.show(prompt)
    assert "`1 2`" in text and not any(hidden in text for hidden in ("40 2", "42", "770", "777"))
    [turn] = episode.turns
    other = dataclasses.replace(
        episode,
        problem=dataclasses.replace(problem, private_tests=(TestCase("5 5", "10"),)),
        turns=(dataclasses.replace(turn, verdict=dataclasses.replace(turn.verdict, hidden=())),),
    )
    assert repair_prompt(failed_first(other), CHAT, settings) == prompt


def test_what_is_no_failure_is_passed_over(workdir, failures):
    passed, *failed, broken = saved(workdir, 0)
    assert failed_first(passed) is None and failed_first(broken) is None
    assert all(failed_first(e) == dataclasses.replace(e, end="") for e in failed)
    assert failed_first(dataclasses.replace(passed, turns=())) is None
    longer = dataclasses.replace(failed[0], turns=(failed[0].turns[0], passed.turns[0]))
    assert failed_first(longer) == failed_first(failed[0])  # of several responses the first
    # Prompts without room for a token of a repair, as in a rollout, where the dialogue would end there.
    lengths = sorted(len(prompt) for step in range(FILES) for prompt in failures(request(step)).prompts)
    for context, fitting in ((lengths[4], 4), (lengths[4] + 1, 5)):
        short = dataclasses.replace(SETTINGS, context=context)
        found = {name for step in range(FILES) for name in names(failures(request(step, settings=short)))}
        assert len(found) == fitting
    told = rf"no first response that failed .* config.episode.context=20; left out: {2 * FILES} episodes whose .*"
    with pytest.raises(ConfigError, match=rf"{told} {4 * FILES} failures that leave no room"):
        failures(request(settings=dataclasses.replace(SETTINGS, context=20)))


def test_what_an_iteration_leaves_out_is_counted(failures):
    assert failures(request(count=4)).tally == Tally(4, {"no_failure": 2})
    assert failures(request(count=9)).tally == Tally(4, {"no_failure": 2})  # each of them more than once
    shares = [failures(request(count=3, indexes=range(i, i + 1))).tally for i in range(3)]
    assert shares == [Tally(3, {"no_failure": 2, "not_drawn": 1})] * 3  # the iteration's, in every process
    lengths = sorted(len(prompt) for prompt in failures(request()).prompts)
    short = dataclasses.replace(SETTINGS, context=lengths[1] + 1)
    without = sum(length > lengths[1] for length in lengths)
    assert failures(request(settings=short)).tally == Tally(4 - without, {"no_failure": 2, "no_room": without})


def test_files_that_cannot_be_used_are_named(tmp_path, workdir, failures):
    with pytest.raises(ConfigError, match=r"config\.data\.failures: no episodes in .*: give the --workdir of a run"):
        FailedResponses.of(config_lib.load("configs/tiny.py:repair", overrides={"data.failures": str(tmp_path)}))
    careful = dataclasses.replace(SETTINGS, system_prompt="You are a careful author.")
    told = r"config\.data\.failures: .*00000\d\.jsonl\.gz: the episode about .* system prompt than this model's"
    with pytest.raises(ConfigError, match=told):
        failures(request(settings=careful))
    write_episodes(episodes_path(tmp_path, 0), saved(workdir, 0))
    before = dataclasses.replace(failures, workdir=tmp_path, steps=(0,)).identity()
    write_episodes(episodes_path(tmp_path, 0), saved(workdir, 1))
    assert dataclasses.replace(failures, workdir=tmp_path, steps=(0,)).identity() != before
    episodes_path(tmp_path, 0).write_bytes(b"no episodes")
    with pytest.raises(ConfigError, match=r"config\.data\.failures: .*cannot be read as episodes"):
        dataclasses.replace(failures, workdir=tmp_path, steps=(0,))(request())


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("episode.feedback", "random", 'episode.feedback: "true" or "none" for a repairer'),
        ("eval.split", "test_500", 'eval.split: must be "" for a repairer .* rlef_jax.evaluate --repairer'),
        ("eval.every", 5, "eval.every: must be 0 for a repairer"),
    ],
)
def test_what_a_repairers_run_cannot_have(key, value, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load("configs/tiny.py:repair", overrides={key: value})
    config_lib.load("configs/tiny.py:repair", overrides={key: value, "data.failures": "", "ppo.rollouts": 256})


def test_without_feedback_the_prompt_ends_at_try_again(workdir, failures):
    nothing = failures(request(settings=dataclasses.replace(SETTINGS, feedback="none")))
    assert all("tests:" not in CHAT.tokenizer.show(prompt)[-300:] for prompt in nothing.prompts)
    shown = failures(request())
    assert names(shown) == names(nothing)
    assert all(len(a) > len(b) for a, b in zip(shown.prompts, nothing.prompts, strict=True))


def test_a_response_cut_by_length_is_closed_first(workdir):
    failed = failed_first(saved(workdir, 0)[1])
    [turn] = failed.turns
    cut = dataclasses.replace(turn, response_ids=turn.response_ids[:-1], finish_reason="length")
    prompt, anew = next_prompt(dataclasses.replace(failed, turns=(cut,)), "Again.", CHAT)
    assert prompt == [CHAT.stop_ids[0], *CHAT.next_prompt("Again.", closed=True)] and not anew
    assert whole_prompt(dataclasses.replace(failed, turns=(cut,)), "Again.", CHAT) == whole_prompt(
        failed, "Again.", CHAT
    )
