"""n@k against enumeration, and the summary against hand-made counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlef_jax.metrics.n_at_k import mean_n_at_k, n_at_k, resampled_interval, rollouts_for
from rlef_jax.metrics.summary import n_at_k_percent, summarise
from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict


def enumerated(samples: int, public: int, correct: int, n: int, k: int) -> float:
    """n@k by enumerating all draws of k and all choices of n among those that pass the public tests."""
    kinds = ["right"] * correct + ["passes"] * (public - correct) + ["fails"] * (samples - public)
    chances = []
    for draw in itertools.combinations(range(samples), k):
        passing = [i for i in draw if kinds[i] != "fails"]
        choices = list(itertools.combinations(passing, min(n, len(passing))))
        chances.append(np.mean([any(kinds[i] == "right" for i in choice) for choice in choices]))
    return float(np.mean(chances))


@settings(max_examples=60)
@given(st.data())
def test_n_at_k_is_the_enumeration(data):
    samples = data.draw(st.integers(1, 7))
    public = data.draw(st.integers(0, samples))
    correct = data.draw(st.integers(0, public))
    k = data.draw(st.integers(1, samples))
    n = data.draw(st.integers(1, 8))
    assert n_at_k(samples, public, correct, n, k) == pytest.approx(
        enumerated(samples, public, correct, n, k), abs=1e-12
    )


def test_n_at_k_by_hand():
    assert n_at_k(10, 4, 3, n=1, k=1) == pytest.approx(0.3)  # 1@1 is the share of correct samples
    assert n_at_k(2, 2, 1, n=1, k=2) == pytest.approx(0.5)  # the public tests can't distinguish the two
    assert n_at_k(2, 1, 1, n=1, k=2) == pytest.approx(1.0)  # the public tests can
    assert n_at_k(200, 100, 50, n=10, k=33) == pytest.approx(1 - 2**-10, abs=1e-3)
    assert mean_n_at_k([(2, 1, 1), (2, 0, 0)], 1, 2) == pytest.approx(0.5)
    assert (rollouts_for(100, 3), rollouts_for(3, 3)) == (33, 1)


def test_interval_of_resampled_results():
    low, high = resampled_interval([(50, 30, 20)] * 16, 1, 1, resamplings=1000)
    spread = (0.4 * 0.6 / (50 * 16)) ** 0.5  # of the mean of 16 shares of 50 draws each
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.15) and low < 0.4 < high
    assert resampled_interval([(5, 5, 5), (5, 2, 0)], 1, 3) == (0.5, 0.5)  # nothing to vary


@pytest.mark.parametrize(
    "counts", [(3, 4, 1, 1, 1), (3, 1, 2, 1, 1), (3, 1, 1, 1, 4), (3, 1, 1, 0, 1), (3, 1, 1, 1, 0)]
)
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError):
        n_at_k(*counts)


def episode(outcomes: str, end: str, *, name: str = "p", index: int = 0) -> Episode:
    """One letter per turn: f = fails a public test, n = no code, h = passes public, fails hidden, r = correct."""

    def verdict(letter: str) -> Verdict:
        if letter == "n":
            return Verdict(Status.NO_CODE)
        ok, bad = TestResult(Status.PASSED), TestResult(Status.WRONG_ANSWER)
        public = bad if letter == "f" else ok
        status = Status.PASSED if letter == "r" else Status.WRONG_ANSWER
        return Verdict(status, (public,), {"r": (ok,), "h": (bad,)}.get(letter, ()))

    problem = Problem(name, name, (TestCase("", ""),), (TestCase("", ""),))
    turns = tuple(Turn((1,), (2,), (0.0,), (0,), "stop", verdict(letter)) for letter in outcomes)
    return Episode(problem, 0, 0, index, turns, end)


EPISODES = [
    episode("r", "public_passed", name="a"),
    episode("h", "public_passed", name="b"),
    episode("fr", "public_passed", name="c"),
    episode("nh", "public_passed", name="d"),
    episode("ffr", "public_passed", name="e"),
    episode("fff", "turn_limit", name="f"),
    episode("ff", "context", name="g"),
    episode("r", "public_passed", name="h"),
]


def test_summary_by_hand():
    s = summarise([*EPISODES, episode("f", "infra", name="i")], bootstrap_samples=50)
    assert s["1@1"] == pytest.approx(100 * 2 / 8)
    assert s["1@3"] == pytest.approx(100 * 4 / 8)
    assert s["repaired_at_2"] == pytest.approx(100 * 1 / 5)
    assert (s["second_turns"], s["problems"], s["episodes"], s["infra"]) == (5, 8, 8, 1)
    assert s["error_kinds"][0] == {"WRONG_ANSWER": 4, "PASSED": 3, "NO_CODE": 1}  # b passes the public tests
    assert s["error_kinds"][1] == {"WRONG_ANSWER": 3, "PASSED": 2}
    assert s["hidden_kinds"] == [{"PASSED": 2, "WRONG_ANSWER": 1}, {"PASSED": 1, "WRONG_ANSWER": 1}, {"PASSED": 1}]
    assert s["turns"] == pytest.approx(15 / 8)


def test_a_problem_weighs_the_same_however_often_it_was_tried():
    s = summarise([episode("r", "public_passed", name="a")] * 3 + [episode("fff", "turn_limit", name="b")])
    assert s["1@3"] == pytest.approx(50.0)


def test_interval_resamples_problems():
    # 100 problems, half solved, ten rollouts each: rollouts of a problem agree, so only problems vary.
    rollouts = [episode("r" if i % 2 else "fff", "public_passed", name=str(i)) for i in range(100) for _ in range(10)]
    low, high = summarise(rollouts, bootstrap_samples=2000)["1@3_ci"]
    assert high - low == pytest.approx(2 * 1.96 * 5.0, rel=0.15)  # 5.0 = 100 sqrt(0.25 / 100)
    assert low < 50 < high
    again = summarise(rollouts, bootstrap_samples=2000)["1@3_ci"]
    assert again == [low, high]


def test_single_turn_and_no_feedback():
    single = summarise([episode("r", "public_passed"), episode("f", "turn_limit", name="q")], max_turns=1)
    assert single["1@1"] == pytest.approx(50.0) and single["repaired_at_2"] is None
    blind = summarise([episode("hhr", "turn_limit"), episode("fff", "turn_limit", name="q")])
    assert blind["1@3"] == pytest.approx(50.0) and blind["1@1"] is None
    # Of the one whose first response failed, the second is wrong: the other's first response may have been right.
    assert (blind["repaired_at_2"], blind["second_turns"]) == (0.0, 1)
    unknown = summarise([episode("fhr", "turn_limit"), episode("fff", "turn_limit", name="q")])
    assert unknown["1@1"] == 0.0 and unknown["repaired_at_2"] is None and unknown["second_turns"] == 2


def test_unfinished_or_unjudged_is_refused():
    with pytest.raises(ValueError, match="goes on"):
        summarise([episode("f", "")])
    with pytest.raises(ValueError, match="none of 1"):
        summarise([episode("f", "infra")])


def test_resamplings_that_miss_what_counts_give_no_interval():
    episodes = [episode("fr", "public_passed", name="z")]
    episodes += [episode("r", "public_passed", name=str(i)) for i in range(20)]
    summaries = [summarise(episodes, bootstrap_samples=1, seed=seed) for seed in range(10)]
    assert all(s["repaired_at_2"] == 100.0 for s in summaries)
    intervals = [s["repaired_at_2_ci"] for s in summaries]
    assert None in intervals and [100.0, 100.0] in intervals


def test_n_at_k_of_rollouts():
    rollouts = [episode("r", "public_passed"), episode("ffr", "public_passed"), episode("h", "public_passed")]
    rollouts += [episode("fff", "turn_limit")]
    assert n_at_k_percent(rollouts, 1, 3, turns=3) == (pytest.approx(50.0), 0)
    assert n_at_k_percent(rollouts, 1, 12, turns=3) == (pytest.approx(100 * 2 / 3), 0)
    assert n_at_k_percent(rollouts, 2, 12, turns=3) == (pytest.approx(100.0), 0)


def test_an_infra_error_leaves_its_problem_out_of_n_at_k():
    broken = episode("f", "infra", name="a")
    rollouts = [episode("r", "public_passed", name="a"), broken]
    rollouts += [episode("fff", "turn_limit", name="b"), episode("r", "public_passed", name="b")]
    assert n_at_k_percent(rollouts, 1, 6, turns=3) == (pytest.approx(100.0), 1)  # a has one judged rollout of two
    assert n_at_k_percent(rollouts, 1, 3, turns=3) == (pytest.approx(75.0), 0)  # one rollout needed: none is left out
    assert n_at_k_percent([broken, *rollouts[2:]], 1, 3, turns=3)[1] == 1  # a has none at all
    with pytest.raises(ValueError, match="none of 1 problems has 2 judged rollouts"):
        n_at_k_percent(rollouts[:2], 1, 6, turns=3)
