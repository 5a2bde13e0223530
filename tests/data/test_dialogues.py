"""The warm start's dialogues: the loss covers the author's tokens, and the careful author repairs correctly."""

import numpy as np
import pytest

from rlef_jax.data.dialogues import CAREFUL, dialogues, with_reading
from rlef_jax.data.mini_contests import problem_at
from rlef_jax.data.mini_contests.trusted import run_trusted
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.extract import extract_code
from rlef_jax.dialog.tokenizer import Tokenizer
from rlef_jax.execution.judge import outputs_match
from rlef_jax.model.weights import resolve


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(Tokenizer.load(resolve("package:tokenizer", ".model", "model.tokenizer")))


@pytest.fixture(scope="module")
def written(chat):
    return dialogues(5, 0, chat, problems=40, per_problem=4, marked_share=0.5, right_repairs=0.15)


def spans(mask):
    edges = np.flatnonzero(np.diff([0, *mask, 0])).reshape(-1, 2)
    return [(int(a), int(b)) for a, b in edges]


def test_the_loss_covers_the_responses_and_nothing_else(written, chat):
    for dialogue in written:
        counted_ids = [dialogue.ids[a:b] for a, b in spans(dialogue.action_mask)]
        assert [chat.response_text(ids) for ids in counted_ids] == list(dialogue.responses)
        assert all(ids[-1] in chat.stop_ids for ids in counted_ids)
        assert len(dialogue.ids) <= 256


def test_only_a_pass_or_the_third_turn_ends_a_dialogue(written):
    for dialogue in written:
        assert not any(dialogue.passed[:-1])
        assert dialogue.passed[-1] or len(dialogue.passed) == 3


def test_the_careful_author_repairs_rightly_and_the_other_seldom(written, chat):
    mark = chat.tokenizer.encode(CAREFUL)
    repairs = {True: [], False: []}
    for dialogue in written:
        marked = list(dialogue.ids[2 : 2 + len(mark)]) == mark
        repairs[marked] += [p for p in dialogue.passed[1:]]
        if marked:
            assert len(dialogue.passed) <= 2
    assert all(repairs[True]) and len(repairs[True]) > 20
    assert 0.05 < np.mean(repairs[False]) < 0.45


def test_the_verdict_in_a_dialogue_is_true(written):
    for dialogue in written[:40]:
        for text, passed in zip(dialogue.responses, dialogue.passed, strict=True):
            program = extract_code(text)
            if program is None or "while True:\n    pass" in program or "10 ** 10" in program:
                assert not passed
                continue
            runs = [run_trusted(program, t.input) for t in dialogue.problem.public_tests]
            tests = dialogue.problem.public_tests
            right = [not r.error and outputs_match(t.output, r.output) for r, t in zip(runs, tests, strict=True)]
            assert all(right) == passed


def test_dialogues_are_a_function_of_seed_and_chunk(chat, written):
    again = dialogues(5, 0, chat, problems=40, per_problem=4, marked_share=0.5, right_repairs=0.15)
    assert [d.ids for d in again] == [d.ids for d in written]
    other = dialogues(5, 1, chat, problems=2, per_problem=4, marked_share=0.5, right_repairs=0.15)
    assert not {d.ids for d in other} & {d.ids for d in written}


def test_even_questions_are_those_of_the_problems(chat):
    made = dialogues(5, 0, chat, problems=40, per_problem=1, even_questions=1.0)
    rare = [d for d in made if d.problem.tags["open"] and d.problem.tags["question"] not in ("separator", "none")]
    assert len(rare) > 15  # of 40, six names in nine; by the families' weights two in nine


def test_another_reading_changes_the_tests_and_not_the_statement():
    problem = next(p for p in (problem_at("train", 5, i) for i in range(50)) if p.tags["open"])
    others = [with_reading(problem, r) for r in range(len(problem.tags["readings"]))]
    assert len({o.description for o in others}) == 1
    assert len({o.public_tests for o in others}) == len(others)
    assert others[problem.tags["reading"]].public_tests == problem.public_tests
