"""The breakdown's groups and rates for hand-written episodes, and one-line errors for missing files."""

import dataclasses

import pytest

from rlef_jax import config as config_lib
from rlef_jax.analysis.breakdown import breakdown, grouped, table
from rlef_jax.errors import ConfigError
from rlef_jax.training.episode_io import write_episodes
from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict

CASE = TestCase("1", "1")


def episode(name, outcomes, end="public_passed", **tags):
    """One letter per turn: f = fails a public test, r = correct."""
    ok, bad = TestResult(Status.PASSED), TestResult(Status.WRONG_ANSWER)
    verdicts = {"f": Verdict(Status.WRONG_ANSWER, (bad,)), "r": Verdict(Status.PASSED, (ok,), (ok,))}
    turns = tuple(Turn((1,), (2,), (0.0,), (0,), "stop", verdicts[letter]) for letter in outcomes)
    return Episode(Problem(name, name, (CASE,), (CASE,), tags=tags), 0, 0, 0, turns, end)


def episodes_of(first):
    """Closed problems, an open one with the outcome `first`, and one on which the judge broke."""
    return [
        episode("a", "r", question="order", open=False, structure_held_out=False),
        episode("b", "fff", "turn_limit", question="", open=False, structure_held_out=True),
        episode("c", first, question="order", open=True, structure_held_out=False),
        episode("d", "fr", question="none", open=True, structure_held_out=False),
        episode("e", "r", question="none", open=True, structure_held_out=False),
        episode("f", "f", "infra", question="none", open=True, structure_held_out=True),
    ]


def test_groups_in_order():
    groups = grouped(episodes_of("r"))
    assert {name: "".join(e.problem.name for e in group) for name, group in groups.items()} == {
        "all": "abcdef",
        "closed": "ab",
        "open": "cdef",
        "open: none": "def",
        "open: order": "c",
        "held-out shape": "bf",
        "held-out shape, closed": "b",
        "held-out shape, open": "f",
        "seen shape": "acde",
        "seen shape, closed": "a",
        "seen shape, open": "cde",
    }
    assert list(groups)[:5] == ["all", "closed", "open", "open: none", "open: order"]
    untagged = dataclasses.replace(episodes_of("r")[0], problem=Problem("x", "x", (CASE,), (CASE,)))
    assert list(grouped([untagged])) == ["all"]
    own = dataclasses.replace(untagged, problem=dataclasses.replace(untagged.problem, tags={"open": True}))
    assert list(grouped([own])) == ["all"]  # one's own tag, not MiniContests'


def test_the_table():
    lines = table({"before": episodes_of("fr"), "after": episodes_of("r")}, 3).splitlines()
    assert lines[0].split() == ["before", "after"]
    assert lines[1].split() == ["problems", "1@1", "1@3"] * 2
    rows = {line[:22].strip(): line[22:].split() for line in lines[2:]}
    assert rows["all"] == ["5", "40.0", "80.0", "5", "60.0", "80.0"]
    assert rows["closed"] == ["2", "50.0", "50.0"] * 2
    assert rows["open: order"] == ["1", "0.0", "100.0", "1", "100.0", "100.0"]
    assert rows["open: none"] == ["2", "50.0", "100.0"] * 2
    assert rows["held-out shape, open"] == ["0", "-", "-"] * 2
    assert len({len(line) for line in lines}) == 1


def test_reads_a_workdir(tmp_path):
    config_lib.save(config_lib.load("configs/tiny.py"), tmp_path)
    with pytest.raises(ConfigError, match="no evaluation warm_start, rlef .* there are none"):
        breakdown(tmp_path)
    for name, outcomes in (("rlef", "r"), ("valid_000005", "fr")):
        write_episodes(tmp_path / "episodes" / f"{name}.jsonl.gz", episodes_of(outcomes))
    assert breakdown(tmp_path) == table({"rlef": episodes_of("r")}, 3)
    assert breakdown(tmp_path, ["valid_000005"]) == table({"valid_000005": episodes_of("fr")}, 3)
    with pytest.raises(ConfigError, match="no evaluation warm_start in .* there are rlef, valid_000005"):
        breakdown(tmp_path, ["rlef", "warm_start"])
