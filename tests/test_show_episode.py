"""A printed episode shows all tokens in order and every test; missing files are one-line errors."""

import dataclasses
import subprocess
import sys

import pytest

from rlef_jax.errors import ConfigError
from rlef_jax.show_episode import find_episode, format_episode
from rlef_jax.training.episode_io import episodes_path, write_episodes
from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict


def show(ids):
    return "".join(chr(i) for i in ids)


def ids(text):
    return tuple(map(ord, text))


def episode(index=3):
    problem = Problem(
        name="sum",
        description="add",
        public_tests=(TestCase("1 2", "3"), TestCase("2\n2", "4")),
        private_tests=(TestCase("5 5", "10"),),
        generated_tests=(TestCase("9 9", "18"),),
        tags={"family": "sums"},
    )
    wrong = TestResult(Status.WRONG_ANSWER, stdout="22", wall_s=0.0042, memory_bytes=9 << 20)
    crash = TestResult(Status.RUNTIME_ERROR, error="Traceback\nValueError: no")
    good = TestResult(Status.PASSED, stdout="3", wall_s=0.003)
    first = Verdict(Status.WRONG_ANSWER, public=(good, wrong))
    second = Verdict(Status.RUNTIME_ERROR, public=(good, good), hidden=(crash,))

    def turn(prompt, response, verdict):
        return Turn(ids(prompt), ids(response), (0.0,) * len(response), (0,) * len(response), "stop", verdict)

    turns = (turn("<user>add", "print(1)<end>", first), turn("<user>failed", "print(2)<end>", second))
    return Episode(problem, 0, 7, index, turns, "public_passed")


def test_everything_is_printed_in_order():
    text = format_episode(episode(), show)
    expected = [
        "problem sum: not solved, end: public_passed",
        "seed 0, step 7, index 3",
        "reward -1.0, before the KL penalty",
        "family: sums",
        "<user>add",
        "print(1)<end>",
        "--- turn 1: WRONG_ANSWER, reward +0.0 ---",
        "public test 1 of 2: PASSED (3 ms",
        "public test 2 of 2: WRONG_ANSWER (4 ms, 9 MB)",
        "    input:    2\n              2\n    expected: 4\n    got:      22\n",
        "<user>failed",
        "print(2)<end>",
        "--- turn 2: RUNTIME_ERROR, reward -1.0 ---",
        "hidden test 1 of 2: RUNTIME_ERROR",
        "    got:      (empty)\n    error:    Traceback\n              ValueError: no\n",
        "hidden tests 2 to 2: not run",
    ]
    position = 0
    for part in expected:
        assert part in text[position:], part
        position += text[position:].index(part) + len(part)


def with_turns(base, *verdicts, end="turn_limit"):
    turns = tuple(dataclasses.replace(base.turns[0], verdict=verdict) for verdict in verdicts)
    return dataclasses.replace(base, turns=turns, end=end)


def test_rewards_are_those_of_the_run():
    wrong = Verdict(Status.WRONG_ANSWER, (TestResult(Status.WRONG_ANSWER),) * 2)
    text = format_episode(with_turns(episode(), Verdict(Status.NO_CODE), wrong), show, invalid_penalty=-0.5)
    assert "reward -1.5, before the KL penalty" in text
    assert "turn 1: NO_CODE, reward -0.5 ---" in text and "turn 2: WRONG_ANSWER, reward -1.0 ---" in text
    broken = format_episode(with_turns(episode(), Verdict(Status.INFRA_ERROR), end="infra"), show)
    assert "reward +0.0, before the KL penalty: the judge broke" in broken
    assert "reward" not in format_episode(with_turns(episode(), wrong, end=""), show)


@pytest.mark.parametrize(
    "got, lines",
    [
        ("22\n", ["got:      22↵"]),
        ("22", ["got:      22"]),
        ("2 2 \n\n", ["got:      2 2·", "          ↵"]),
        ("1\t\n2\r\n3", ["got:      1→", r"          2\r", "          3"]),
        ("\x1b[31m", [r"got:      \x1b[31m"]),
    ],
)
def test_nothing_of_an_output_is_lost(got, lines):
    verdict = Verdict(Status.WRONG_ANSWER, (TestResult(Status.WRONG_ANSWER, stdout=got), TestResult(Status.PASSED)))
    text = format_episode(with_turns(episode(), verdict), show)
    shown = text.split("expected: 3\n")[1].split("public test 2")[0]
    assert shown.splitlines() == [f"    {line}" for line in lines]


def test_finds_evaluations(tmp_path):
    for name in ("rlef", "valid_000005"):
        write_episodes(tmp_path / "episodes" / f"{name}.jsonl.gz", [episode(len(name))])
    assert find_episode(tmp_path, 4, evaluation="rlef") == episode(4)
    assert find_episode(tmp_path, 12, evaluation="valid_000005") == episode(12)
    with pytest.raises(ConfigError, match="no evaluation 'warm'.* there are evaluations rlef, valid_000005"):
        find_episode(tmp_path, 0, evaluation="warm")
    with pytest.raises(ConfigError, match="there are evaluations rlef, valid_000005"):
        find_episode(tmp_path, 0)
    write_episodes(episodes_path(tmp_path, 7), [episode(3)])
    with pytest.raises(ConfigError, match="there are steps 7 to 7 and evaluations rlef, valid_000005"):
        find_episode(tmp_path, 0, evaluation="000007")


def test_finds_by_step_and_index(tmp_path):
    write_episodes(episodes_path(tmp_path, 7), [episode(3), episode(4)])
    write_episodes(episodes_path(tmp_path, 12), [episode(5)])
    assert find_episode(tmp_path, 4, 7) == episode(4)
    assert find_episode(tmp_path, 5) == episode(5)
    with pytest.raises(ConfigError, match="from 3 to 4"):
        find_episode(tmp_path, 5, 7)
    with pytest.raises(ConfigError, match="steps 7 to 12"):
        find_episode(tmp_path, 3, 8)


def test_the_command_says_what_is_missing(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "rlef_jax.show_episode", str(tmp_path / "no")], capture_output=True, text=True
    )
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: no saved episodes in")
