"""The turn rules of an episode: when it continues or ends, and which episodes are judged on hidden tests."""

from __future__ import annotations

import pytest

from rlef_jax import episode as machine
from rlef_jax.types import Problem, Status, TestCase, TestResult, Turn, Verdict

PROBLEM = Problem("sum", "Add.", (TestCase("1 2", "3"),), (TestCase("2 2", "4"),))
PASS, FAIL = TestResult(Status.PASSED), TestResult(Status.WRONG_ANSWER)


def turn(*public: TestResult, status: Status | None = None) -> Turn:
    first_failure = next((r.status for r in public if r.status is not Status.PASSED), Status.PASSED)
    return Turn((1, 2), (3, 4, 5), (0.0,) * 3, (0,) * 3, "stop", Verdict(status or first_failure, public))


def new():
    return machine.start(PROBLEM, seed=1, step=2, index=3)


def played(*turns: Turn, max_turns: int = 3, stop_on_pass: bool = True):
    episode = new()
    for t in turns:
        episode = machine.step(episode, t, max_turns=max_turns, stop_on_pass=stop_on_pass)
    return episode


@pytest.mark.parametrize(
    ("turns", "end"),
    [
        ([turn(FAIL)], ""),
        ([turn(PASS)], "public_passed"),
        ([turn(PASS, FAIL)], ""),
        ([turn(FAIL), turn(FAIL)], ""),
        ([turn(FAIL), turn(PASS)], "public_passed"),
        ([turn(FAIL), turn(FAIL), turn(FAIL)], "turn_limit"),
        ([turn(FAIL), turn(FAIL), turn(PASS)], "public_passed"),
        ([turn(status=Status.NO_CODE)], ""),
        ([turn(TestResult(Status.INFRA_ERROR), status=Status.INFRA_ERROR)], "infra"),
    ],
)
def test_ends(turns, end):
    episode = played(*turns)
    assert episode.end == end
    assert len(episode.turns) == len(turns)
    assert (episode.seed, episode.step, episode.index) == (1, 2, 3)


def test_without_feedback_all_turns_are_taken():
    assert played(turn(PASS), turn(PASS), stop_on_pass=False).end == ""
    assert played(turn(PASS), turn(PASS), turn(PASS), stop_on_pass=False).end == "turn_limit"


def test_nothing_follows_the_end():
    over = played(turn(PASS))
    with pytest.raises(ValueError, match=r"episode 3 of step 2 \(sum\) is over \(public_passed\)"):
        machine.step(over, turn(FAIL), max_turns=3)
    with pytest.raises(ValueError, match="is over"):
        machine.end_by_context(over)
    with pytest.raises(ValueError, match="not judged"):
        machine.step(new(), Turn((1,), (2,), (0.0,), (0,), "stop"), max_turns=3)


def test_room_counts_every_token():
    episode = played(turn(FAIL), turn(FAIL))
    assert machine.room(episode, 4, context=20) == 20 - 2 * 5 - 4
    assert machine.end_by_context(episode).end == "context"
    with pytest.raises(ValueError, match="first prompt"):
        machine.end_by_context(new())


def test_hidden_results_decide():
    over = played(turn(FAIL), turn(PASS))
    assert not over.solved  # not judged on hidden tests yet
    right = machine.judge_last(over, Verdict(Status.PASSED, (PASS,), (PASS, PASS)))
    assert right.solved and right.turns[0] == over.turns[0] and right.token_ids == over.token_ids
    assert not machine.judge_last(over, Verdict(Status.WRONG_ANSWER, (PASS,), (PASS, FAIL))).solved
    broken = machine.judge_last(over, Verdict(Status.INFRA_ERROR, (PASS,), (TestResult(Status.INFRA_ERROR),)))
    assert broken.end == "infra" and not broken.solved
    with pytest.raises(ValueError, match="no judged response"):
        machine.last_verdict(new())
    with pytest.raises(ValueError, match="goes on"):
        machine.judge_last(played(turn(FAIL)), Verdict(Status.PASSED, (PASS,), (PASS,)))
