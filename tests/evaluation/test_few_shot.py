"""Few-shot prompting (C.3): the selected dialogues, their tokens, and the whole command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rlef_jax.data import mini_contests
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.dialog.load import load_chat
from rlef_jax.dialog.prompts import problem_prompt
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.evaluation.few_shot import Shots, choose, opening
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.training.episode_io import read_episodes, write_episodes
from rlef_jax.training.rollout import RolloutSettings, collect
from rlef_jax.types import Limits
from tests.helpers.byte_bpe import TEMPLATES, write_tokenizer
from tests.helpers.scripted_sampler import ScriptedSampler
from tests.helpers.small_run import OVERRIDES

CHAT = load_chat("package:tokenizer", "")
SAMPLING = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=CHAT.stop_ids, max_new_tokens=400)
SETTINGS = RolloutSettings(SAMPLING, context=4000, limits=Limits(wall_s=10.0, memory_bytes=512 << 20))
PROBLEMS = mini_contests.eval_split("test")[:8]
WRONG = "```python\nprint('?')\n```"
# Responses of each dialogue; a correct one ends it. The last response continues after its code and is cut by length.
LENGTHS = (1, 2, 2, 3, 3, 2, 4, 2)


@pytest.fixture(scope="module")
def pool():
    with ExecutionPool(1, find_python("3.10")) as running:
        yield running


@pytest.fixture(scope="module")
def episodes(pool):
    def script(index, turn):
        if turn + 1 < LENGTHS[index]:
            return WRONG
        return f"```python\n{PROBLEMS[index].solutions[0]}\n```\n" + "That is it. " * 100 * (index == 7)

    return collect(ScriptedSampler(CHAT, script), CHAT, pool, PROBLEMS, seed=0, step=0, settings=SETTINGS)


@pytest.fixture(scope="module")
def saved(episodes, tmp_path_factory):
    path = tmp_path_factory.mktemp("shots") / "000003.jsonl.gz"
    write_episodes(path, [*episodes, *episodes])  # a run repeats its problems
    return path


def names(shots):
    return shots.names


def of(*places):
    return [PROBLEMS[i].name for i in places]


def test_two_and_three_responses_by_turns_and_no_evaluated_problem(saved, episodes):
    assert [len(e.turns) for e in episodes] == [1, 2, 2, 3, 3, 2, 3, 2] and not episodes[6].solved
    assert names(choose(saved, 1, [])) == of(1)
    assert names(choose(saved, 3, [])) == of(1, 3, 2)
    assert names(choose(saved, 6, [])) == of(1, 3, 2, 4, 5, 7)
    assert names(choose(saved, 3, PROBLEMS[:4])) == of(5, 4, 7)
    renamed = dataclasses.replace(PROBLEMS[1], description="Another one of this name.")
    assert names(choose(saved, 1, [renamed])) == of(1)
    with pytest.raises(ConfigError, match=r"6 problems, none of them evaluated here.*--shots=7 needs as many"):
        choose(saved, 7, [])


def test_files_that_hold_no_dialogues_are_one_line(tmp_path, saved, episodes):
    write_episodes(tmp_path / "evaluation" / "chunks" / "000000.jsonl.gz", episodes[:3])
    write_episodes(tmp_path / "evaluation" / "chunks" / "000001.jsonl.gz", episodes[3:])
    assert names(choose(tmp_path / "evaluation", 3, [])) == of(1, 3, 2)  # an evaluation's folder works too
    (tmp_path / "text.jsonl.gz").write_text("no")
    for path, message in (
        (tmp_path / "none", "give a file of episodes"),
        (tmp_path, "or an evaluation's folder"),
        (tmp_path / "text.jsonl.gz", "cannot be read as episodes"),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            choose(path, 1, [])
        assert str(raised.value).startswith("--few-shot") and len(str(raised.value).splitlines()) == 1
    other = load_chat(str(write_tokenizer(tmp_path / "other", TEMPLATES["chatml"])))
    told = rf"--few-shot: {saved}: the episode about .* another tokenizer, chat template or wording .*: give episodes"
    with pytest.raises(ConfigError, match=told):
        opening(other, choose(saved, 1, []))
    judged = [dataclasses.replace(e, turns=tuple(dataclasses.replace(t, prompt_delta_ids=(), response_ids=())
              for t in e.turns)) for e in episodes]  # fmt: skip
    write_episodes(tmp_path / "judged.jsonl.gz", judged)  # as from --judge-only, without tokens
    with pytest.raises(ConfigError, match="0 problems"):
        choose(tmp_path / "judged.jsonl.gz", 1, [])


def test_the_dialogues_as_they_are_read(saved, episodes):
    shots = choose(saved, 2, [])
    text = CHAT.tokenizer.show(opening(CHAT, shots, "Be brief."))
    expected = "<s><|system|>Be brief.<|end|>"
    for shot in shots.dialogues:
        messages = [problem_prompt(shot.problem.description)]
        messages += [feedback_message(shot.problem, turn.verdict) for turn in shot.turns[:-1]]
        right = f"```python\n{shot.problem.solutions[0]}\n```\n"
        for message, response in zip(messages, [*[WRONG] * (len(messages) - 1), right], strict=True):
            expected += f"<|user|>{message}<|end|><|assistant|>{response}<|end|>"
        expected += "<|assistant|><|end|>"  # the empty message between the dialogues
    assert text + "<|assistant|><|end|>" == expected


def test_a_dialogue_cut_by_length_is_closed(episodes):
    assert episodes[7].turns[-1].finish_reason == "length" and episodes[7].solved
    ids = opening(CHAT, Shots(Path("here"), [episodes[7]]))
    assert ids[-1] == CHAT.stop_ids[0] and ids[:-1] == episodes[7].token_ids


def test_tokens_are_those_of_the_dialogues_and_only_appended_to(pool, saved, episodes):
    shots = choose(saved, 2, [])
    front = opening(CHAT, shots)
    settings = dataclasses.replace(SETTINGS, opening=front)
    sampler = ScriptedSampler(CHAT, lambda index, turn: [WRONG, f"```python\n{PROBLEMS[0].solutions[0]}\n```"][turn])
    [episode] = collect(sampler, CHAT, pool, PROBLEMS[:1], seed=0, step=0, settings=settings)
    assert episode.solved and list(episode.token_ids) == sampler.streams[0]
    assert episode.token_ids[: len(front)] == front
    first = shots.dialogues[0].token_ids
    assert front[: len(first)] == first  # as sampled, one token per character
    last_turn = CHAT.user_turn(problem_prompt(PROBLEMS[0].description))
    assert list(episode.turns[0].prompt_delta_ids[-len(last_turn) :]) == last_turn
    # Dialogues that were themselves made with few-shot prompts can be shown: only their own part is used.
    again = opening(CHAT, Shots(Path("here"), [episode]))
    assert again == (*CHAT.first_prompt(problem_prompt(PROBLEMS[0].description)),
                                     *episode.token_ids[len(episode.turns[0].prompt_delta_ids) :])  # fmt: skip
    with pytest.raises(ConfigError, match=rf"\({len(front)} of them few-shot dialogues\) leaves no room"):
        collect(sampler, CHAT, pool, PROBLEMS[:1], seed=0, step=0, settings=dataclasses.replace(settings, context=100))


def command(saved, out, *flags):
    config = {k: v for k, v in OVERRIDES.items() if k != "eval.split"}
    config |= {"episode.context": 1600, "ppo.buckets": (1600,)}
    return evaluate(
        parsed(
            ["--config=configs/tiny.py", "--benchmark=mini_contests/test", "--problems=2", f"--few-shot={saved}",
             f"--out={out}", *(f"--config.{k}={v}" for k, v in config.items()), *flags]
        )
    )  # fmt: skip


def test_the_whole_command(tmp_path, saved, quick_compilation):
    results = command(saved, tmp_path / "out")
    assert results["evaluation"]["few_shot"] == of(2, 3)
    front = opening(CHAT, choose(saved, 2, PROBLEMS[:2]))
    episodes = [e for path in (tmp_path / "out" / "chunks").iterdir() for e in read_episodes(path)]
    assert len(episodes) == 2 and all(e.token_ids[: len(front)] == front for e in episodes)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    with pytest.raises(ConfigError, match="holds another evaluation: its few_shot is"):
        command(saved, tmp_path / "out", "--shots=1")
    with pytest.raises(ConfigError, match="--shots: 1 or more; it is 0"):
        command(saved, tmp_path / "out", "--shots=0")
    with pytest.raises(ConfigError, match="--few-shot: responses made elsewhere"):
        evaluate(parsed([f"--few-shot={saved}", f"--judge-only={saved}"]))
