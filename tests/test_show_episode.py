"""A printed episode shows all tokens in order and every test; what isn't there is said in a line."""

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
        "family: sums",
        "<user>add",
        "print(1)<end>",
        "--- turn 1: WRONG_ANSWER",
        "public test 1 of 2: PASSED (3 ms",
        "public test 2 of 2: WRONG_ANSWER (4 ms, 9 MB)",
        "    input:    2\n              2\n    expected: 4\n    got:      22\n",
        "<user>failed",
        "print(2)<end>",
        "hidden test 1 of 2: RUNTIME_ERROR",
        "    got:      (empty)\n    error:    Traceback\n              ValueError: no\n",
        "hidden tests 2 to 2: not run",
    ]
    position = 0
    for part in expected:
        assert part in text[position:], part
        position += text[position:].index(part) + len(part)


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
    done = subprocess.run(
        [sys.executable, "-m", "rlef_jax.show_episode", str(tmp_path / "no")], capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no saved episodes in")
