"""Rewards per turn, case by case (RLEF, section 2.2)."""

import pytest

from rlef_jax.reward import has_weight, turn_rewards
from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict

CASE = TestCase("1", "1")
PROBLEM = Problem(name="p", description="", public_tests=(CASE,), private_tests=(CASE,))
OK, BAD = TestResult(Status.PASSED), TestResult(Status.WRONG_ANSWER)

SOLVED = Verdict(Status.PASSED, (OK,), (OK,))
PUBLIC_ONLY = Verdict(Status.WRONG_ANSWER, (OK,), (BAD,))
WRONG = Verdict(Status.WRONG_ANSWER, (BAD,))
NO_CODE = Verdict(Status.NO_CODE)
SYNTAX = Verdict(Status.SYNTAX_ERROR, (TestResult(Status.SYNTAX_ERROR),))
CRASH = Verdict(Status.RUNTIME_ERROR, (TestResult(Status.RUNTIME_ERROR),))
INFRA = Verdict(Status.INFRA_ERROR, (TestResult(Status.INFRA_ERROR),))


def episode(*verdicts, end="turn_limit"):
    turns = tuple(Turn((1,), (2,), (-1.0,), (0,), "stop", v) for v in verdicts)
    return Episode(PROBLEM, seed=0, step=0, index=0, turns=turns, end=end)


@pytest.mark.parametrize(
    ("verdicts", "end", "expected"),
    [
        ([SOLVED], "public_passed", (1.0,)),
        ([PUBLIC_ONLY], "public_passed", (-1.0,)),
        ([WRONG, SOLVED], "public_passed", (0.0, 1.0)),
        ([WRONG, CRASH, WRONG], "turn_limit", (0.0, 0.0, -1.0)),
        ([NO_CODE, SYNTAX, SOLVED], "turn_limit", (-0.2, -0.2, 1.0)),
        ([WRONG, NO_CODE], "context", (0.0, -1.0)),  # the last turn's reward is -1, without the penalty on top
        ([SYNTAX], "turn_limit", (-1.0,)),  # single-turn training has no penalty
        ([WRONG, INFRA], "infra", (0.0, 0.0)),
        ([SOLVED], "infra", (0.0,)),
        ([INFRA, WRONG], "turn_limit", (0.0, 0.0)),
    ],
)
def test_rewards(verdicts, end, expected):
    assert turn_rewards(episode(*verdicts, end=end)) == expected


def test_penalty_is_a_setting():
    assert turn_rewards(episode(NO_CODE, WRONG), invalid_penalty=-0.5) == (-0.5, -1.0)


def test_broken_episodes_do_not_count():
    assert has_weight(episode(WRONG))
    assert not has_weight(episode(WRONG, end="infra"))
    assert not has_weight(episode(INFRA, WRONG))


def test_unfinished_or_unjudged_episodes_have_no_reward():
    with pytest.raises(ValueError, match="not ended"):
        turn_rewards(episode(WRONG, end=""))
    with pytest.raises(ValueError, match="never judged"):
        turn_rewards(episode(None, WRONG))
