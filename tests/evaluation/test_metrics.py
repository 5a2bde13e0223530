"""The n@k table, metrics over turns and chrF, against hand-made counts, formulas and sacreBLEU."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlef_jax.evaluation.metrics import first_responses, n_at_k_table, over_turns, text_report, whole_report
from rlef_jax.metrics.chrf import chrf
from rlef_jax.metrics.n_at_k import n_at_k
from rlef_jax.metrics.outcome import outcome_of
from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict


def episode(outcomes: str, *, name: str = "p", end: str = "public_passed") -> Episode:
    """A letter per turn: f fails a public test, t is too slow for it, n has no code, p passes the public tests and goes
    on, h fails a hidden one, s is too slow for a hidden one, r is right.

    Turn i has i tokens; a response without code was cut by length.
    """
    ok, bad, slow = (TestResult(s) for s in (Status.PASSED, Status.WRONG_ANSWER, Status.TIME_LIMIT))
    verdicts = {
        "f": Verdict(Status.WRONG_ANSWER, (bad,)),
        "t": Verdict(Status.TIME_LIMIT, (slow,)),
        "n": Verdict(Status.NO_CODE),
        "p": Verdict(Status.PASSED, (ok,)),
        "h": Verdict(Status.WRONG_ANSWER, (ok,), (bad,)),
        "s": Verdict(Status.TIME_LIMIT, (ok,), (ok, slow)),
        "r": Verdict(Status.PASSED, (ok,), (ok,)),
    }
    problem = Problem(name, name, (TestCase("", ""),), (TestCase("", ""),))
    turns = tuple(
        Turn(
            (1,),
            (2,) * (i + 1),
            (0.0,) * (i + 1),
            (0,) * (i + 1),
            "length" if letter == "n" else "stop",
            verdicts[letter],
        )
        for i, letter in enumerate(outcomes)
    )
    return Episode(problem, 0, 0, 0, turns, end)


@settings(max_examples=60)
@given(st.data())
def test_submitting_all_that_is_drawn_is_the_unbiased_pass_at_k(data):
    samples = data.draw(st.integers(1, 40))
    correct = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    public = data.draw(st.integers(correct, samples))
    unbiased = 1 - math.prod((samples - correct - i) / (samples - i) for i in range(k))  # Chen et al. (2021)
    assert n_at_k(samples, public, correct, n=k, k=k) == pytest.approx(unbiased, abs=1e-9)
    # A perfect filter selects a correct one whenever one was drawn.
    assert n_at_k(samples, correct, correct, n=1, k=k) == pytest.approx(unbiased, abs=1e-9)


@settings(max_examples=60)
@given(st.integers(1, 30), st.data())
def test_more_samples_help_a_perfect_filter_and_one_is_the_plain_mean(samples, data):
    correct = data.draw(st.integers(0, samples))
    public = data.draw(st.integers(correct, samples))
    values = [n_at_k(samples, correct, correct, 1, k) for k in range(1, samples + 1)]
    assert all(a <= b + 1e-12 for a, b in zip(values, values[1:]))
    assert n_at_k(samples, public, correct, 1, 1) == pytest.approx(correct / samples)
    more = [n_at_k(samples, public, correct, n, samples) for n in range(1, samples + 1)]
    assert all(a <= b + 1e-12 for a, b in zip(more, more[1:]))


FOUR = [episode("r"), episode("ffr"), episode("h"), episode("fff", end="turn_limit")]


def test_the_table_by_hand():
    table = n_at_k_table(FOUR, [(1, 3), (1, 12), (2, 12)], turns=3)
    assert table["1@3"]["percent"] == pytest.approx(50.0)
    assert table["1@12"]["percent"] == pytest.approx(100 * 2 / 3)  # of three that pass the public tests
    assert table["2@12"]["percent"] == pytest.approx(100.0)
    assert table["1@3"]["pass@1_rollouts"] == pytest.approx(50.0)
    assert table["1@12"]["pass@4_rollouts"] == pytest.approx(100.0)
    assert table["1@12"]["rollouts"] == 4 and table["1@12"]["problems"] == 1
    # Three first responses of four: r and h pass, drawn together in half of the draws.
    assert table["1@3"]["independent"] == pytest.approx(100 * (0.5 * 0.5 + 0.25 * 1 + 0.25 * 0))
    assert table["1@12"]["independent"] is None  # there are fewer than twelve


def test_intervals_over_samples_and_over_problems():
    sure = [episode("r", name="a")] * 4 + [episode("fff", name="b", end="turn_limit")] * 4
    row = n_at_k_table(sure, [(1, 3)], turns=3)["1@3"]
    assert row["percent"] == pytest.approx(50.0)
    assert row["samples_ci"] == pytest.approx([50.0, 50.0])  # each problem's results all agree ...
    assert row["problems_ci"] == pytest.approx([0.0, 100.0])  # ... and the problems don't
    row = n_at_k_table([*FOUR, *FOUR], [(1, 3)], turns=3)["1@3"]
    assert row["samples_ci"][0] < 50 < row["samples_ci"][1]
    assert row["problems_ci"] == pytest.approx([50.0, 50.0])


def test_rollouts_that_the_judge_broke_on():
    broken = episode("f", name="a", end="infra")
    mixed = [episode("r", name="a"), broken, *(episode("fff", name="b", end="turn_limit") for _ in range(2))]
    table = n_at_k_table(mixed, [(1, 3), (1, 6), (1, 9)], turns=3)
    assert table["1@3"]["percent"] == pytest.approx(50.0) and table["1@3"]["left_out"] == 0
    assert table["1@6"]["percent"] == 0.0 and table["1@6"]["left_out"] == 1
    assert table["1@9"]["percent"] is None and table["1@9"]["left_out"] == 2
    assert over_turns([broken, *FOUR])["responses"] == [4, 2, 2]


PROGRAMS = [("a",), ("print(1)", "print(2)", "print(2)"), ("c",), (None, "print(1)", "print(1)")]


def test_over_turns_by_hand():
    episodes = [episode("r"), episode("tfr"), episode("h"), episode("nff", end="turn_limit")]
    metrics = over_turns([outcome_of(e, p) for e, p in zip(episodes, PROGRAMS)])
    assert metrics["solved_by_turn"] == pytest.approx([25.0, 25.0, 50.0])
    assert metrics["responses"] == [4, 2, 2]
    assert metrics["error_kinds"][0] == {"PASSED": 2, "TIME_LIMIT": 1, "NO_CODE": 1}
    assert metrics["hidden_kinds"] == [{"PASSED": 1, "WRONG_ANSWER": 1}, {}, {"PASSED": 1}]
    assert metrics["transitions"] == [
        {"TIME_LIMIT": {"WRONG_ANSWER": 1}, "NO_CODE": {"WRONG_ANSWER": 1}},
        {"WRONG_ANSWER": {"PASSED": 1, "WRONG_ANSWER": 1}},
    ]
    assert metrics["pairs"] == [1, 2]  # a response without code can't be compared
    assert metrics["code_changed"] == pytest.approx([100 - 100 * chrf("print(2)", "print(1)"), 0.0])
    assert metrics["response_tokens"][1] == {"mean": 2.0, "median": 2.0, "longest": 2.0, "cut": 0.0}
    assert metrics["response_tokens"][0]["cut"] == 25.0


def test_a_repair_that_is_too_slow_for_a_hidden_test_is_a_repair_on_the_public_tests():
    """Figure 3 of the paper is about public tests, to which the feedback relates."""
    metrics = over_turns([episode("ts"), episode("fs")])
    assert metrics["error_kinds"] == [{"TIME_LIMIT": 1, "WRONG_ANSWER": 1}, {"PASSED": 2}]
    assert metrics["transitions"] == [{"TIME_LIMIT": {"PASSED": 1}, "WRONG_ANSWER": {"PASSED": 1}}]
    assert metrics["hidden_kinds"] == [{}, {"TIME_LIMIT": 2}]
    assert metrics["solved_by_turn"] == [0.0, 0.0]


@pytest.mark.parametrize(
    "outcomes, solved",
    [
        (["ppr"], [None, None, 100.0]),
        (["ffr", "fff"], [0.0, 0.0, 50.0]),  # who fails a public test isn't right
        (["fpr", "fff"], [0.0, None, 50.0]),  # nobody ran hidden tests on the second response
        (["pfr", "fff"], [None, 0.0, 50.0]),  # had it ended at the second response, that one would have been judged
    ],
)
def test_without_feedback_nobody_knows_of_responses_that_passed_and_went_on(outcomes, solved):
    rollouts = [episode(o, end="turn_limit") for o in outcomes]
    assert over_turns(rollouts)["solved_by_turn"] == solved
    row = n_at_k_table(rollouts * 3, [(1, 3)], turns=3)["1@3"]
    first = first_responses(rollouts)
    assert (row["independent"] is None, first["percent"] is None) == (solved[0] is None, solved[0] is None)


def test_single_turn_estimates_have_both_intervals():
    rollouts = [episode("r" if i % 2 else "f", name=str(i // 6), end="turn_limit") for i in range(60)]
    row = n_at_k_table(rollouts, [(1, 3)], turns=3, problem_resamplings=100)["1@3"]
    assert row["independent_samples_ci"][0] < row["independent"] < row["independent_samples_ci"][1]
    assert row["independent_problems_ci"] == pytest.approx([row["independent"]] * 2)  # the problems are alike
    first = first_responses(rollouts)
    assert first["percent"] == 50.0 and first["samples_ci"][0] < 50.0 < first["samples_ci"][1]


def test_pass_at_k_says_what_it_counts():
    text = text_report(whole_report(FOUR, [(1, 12)], turns=3, problem_resamplings=10))
    head, row, note = text.splitlines()[:3]
    assert " pass@R    R " in head and row.split()[0] == "1@12" and " 100.0    4 " in row
    assert note == "k counts responses, R the rollouts that they make; pass@R submits all of them"


def test_no_number_is_minus_zero():
    """100 less the chrF of two equal programs, added up, may be a little below 0."""
    rollout = dataclasses.replace(outcome_of(episode("ffr")), changed=(-1e-14, -1e-14))
    assert "-0.0" not in text_report(whole_report([rollout], [(1, 3)], turns=3, problem_resamplings=10))


def test_the_report_as_text():
    report = whole_report(FOUR, [(1, 3), (1, 12)], turns=3, problem_resamplings=10)
    text = text_report(report)
    assert "    1@12    66.7" in text and "from turn 1 to turn 2" in text
    assert "1 problems, 4 rollouts, 0 broken by the judge" in text
    with pytest.raises(ValueError, match="none of 1 rollouts was judged"):
        whole_report([episode("f", end="infra")], [(1, 3)], turns=3, problem_resamplings=10)


@pytest.mark.parametrize(
    "hypothesis, reference, score",  # sacreBLEU 2.x: CHRF(eps_smoothing=False).sentence_score(hypothesis, [reference])
    [
        ("def f(x):\n    return x + 1\n", "def f(x):\n    return x - 1\n", 86.99121956474897),
        ("a", "ab", 55.55555555555556),
        ("print(input())", "import sys\nprint(sum(map(int, sys.stdin)))", 16.81396666241559),
        ("abc", "xyz", 0.0),
        ("for i in range(10):\n\tprint(i)", "for i in range(10):\n    print(i)", 100.0),
    ],
)
def test_chrf_is_sacrebleus(hypothesis, reference, score):
    assert 100 * chrf(hypothesis, reference) == pytest.approx(score, abs=1e-9)


def test_chrf_of_nothing():
    assert chrf("", " \n") == 1.0 and chrf("", "a") == 0.0
