"""Arms of a comparison: rates, paired differences, the table and the plot of hand-written runs."""

import dataclasses
import json

import numpy as np
import pytest

from rlef_jax.analysis.compare import Arm, comparison, difference, main, parse_arm, solve_rates
from rlef_jax.errors import ConfigError
from rlef_jax.training.episode_io import write_episodes
from tests.analysis.test_breakdown import episode


@pytest.fixture
def run(tmp_path):
    """Writes a run of two iterations whose evaluation has these outcomes, {problem: one letter a turn}."""

    def write(name, reward=0.0, **outcomes):
        made = [episode(p, o, "public_passed" if o[-1] == "r" else "turn_limit") for p, o in outcomes.items()]
        write_episodes(tmp_path / name / "episodes" / "rlef.jsonl.gz", made)
        records = [{"step": s, "reward": reward + s, "kl_to_ref": 0.1, "solved": 0.5} for s in (0, 1)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        return tmp_path / name

    return write


def test_rates_by_seed_and_problem(run):
    arm = Arm("x", (run("a", p="r", q="fr", s="fff"), run("b", p="fff", q="r", s="r")))
    names, rates = solve_rates(arm, "rlef")
    assert names == ["p", "q", "s"]
    assert rates.tolist() == [[[100, 100], [0, 100], [0, 0]], [[0, 0], [100, 100], [100, 100]]]


def test_a_rollout_that_the_judge_broke_on_does_not_count(run):
    folder = run("a", p="r")
    broken = dataclasses.replace(episode("p", "fff"), end="infra")
    write_episodes(folder / "episodes" / "rlef.jsonl.gz", [episode("p", "r"), broken])
    assert solve_rates(Arm("x", (folder,)), "rlef")[1].tolist() == [[[100, 100]]]
    write_episodes(folder / "episodes" / "rlef.jsonl.gz", [broken])
    with pytest.raises(ConfigError, match="the judge broke on every rollout of p"):
        solve_rates(Arm("x", (folder,)), "rlef")


def test_an_interval_is_of_paired_problems_and_of_seeds():
    rng = np.random.default_rng(0)
    hard = rng.random(400) * 100
    first = np.stack([hard, hard])
    low, high = difference(first, first + 5)
    assert low == pytest.approx(5) == high  # what both share cancels
    low, high = difference(first, np.stack([hard, hard + 10]))
    assert low == pytest.approx(0) and high == pytest.approx(10)  # its seeds disagree: either alone may be drawn
    noise = first + rng.normal(0, 20, first.shape)
    low, high = difference(first, noise)
    error = 20 / np.sqrt(2 * 400)
    assert 2 * 1.5 * error < high - low < 2 * 3 * error and low < (noise - first).mean() < high


def test_the_table_compares_with_the_first_arm(run):
    arms = [Arm("base", (run("a", p="fff", q="r"),)), Arm("other", (run("b", 1.0, p="fr", q="r"),))]
    lines = comparison(arms).splitlines()
    assert lines[0].split()[:3] == ["seeds", "1@1", "1@3"]
    assert lines[1].split() == ["base", "1", "50.0", "50.0", "50.0", "-", "+0.50", "0.100"]
    assert lines[2].split() == [
        "other",
        "1",
        "50.0",
        "100.0",
        "100.0",
        "+50.0",
        "(+0.0",
        "to",
        "+100.0)",
        "+1.50",
        "0.100",
    ]


def test_the_command_draws_curves(run, tmp_path, monkeypatch, capsys):
    a, b = run("a", p="r"), run("b", p="r")
    monkeypatch.setattr("sys.argv", ["compare", f"x={a},{b}", f"y={b}", f"--plot={tmp_path / 'arms.png'}"])
    main()
    assert "plot: " in capsys.readouterr().out and (tmp_path / "arms.png").read_bytes()[:4] == b"\x89PNG"


def test_what_cannot_be_compared_is_named(run):
    a, b = run("a", p="r"), run("b", q="r")
    for text in ("x", "=a", "x="):
        with pytest.raises(ConfigError, match="not of the form NAME=RUN"):
            parse_arm(text)
    with pytest.raises(ConfigError, match="no evaluation best in .*a; there are rlef"):
        comparison([Arm("x", (a,))], "best")
    with pytest.raises(ConfigError, match="b was evaluated on other problems than .*a"):
        comparison([Arm("x", (a, b))])
    with pytest.raises(ConfigError, match="y was evaluated on other problems than x"):
        comparison([Arm("x", (a,)), Arm("y", (b,))])
