"""Feedback from more tests (B.3): which tests become public, and what is then judged and shown (real judge)."""

from __future__ import annotations

import json

import pytest

from rlef_jax.data import benchmarks, mini_contests
from rlef_jax.data.running import runner_of
from rlef_jax.data.shown_tests import with_public
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.evaluation.job import text_of
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.training.episode_io import read_episodes
from rlef_jax.types import FunctionTest, Problem, TestCase


def doubles(*numbers):
    return tuple(TestCase(f"{n}\n", f"{2 * n}") for n in numbers)


PROBLEM = Problem("double", "d", doubles(1), doubles(2, 1, 3), doubles(4, 5, 3))


@pytest.mark.parametrize(
    "count, public, private, generated",
    [
        (0, (1,), (2, 1, 3), (4, 5, 3)),
        (1, (1,), (2, 1, 3), (4, 5, 3)),
        (2, (1, 2), (1, 3), (4, 5, 3)),
        (3, (1, 2, 3), (1,), (4, 5, 3)),  # a duplicate of a public test isn't shown again
        (5, (1, 2, 3, 4, 5), (1,), (3,)),
        (20, (1, 2, 3, 4, 5), (1,), (3,)),
    ],
)
def test_private_tests_come_first_and_each_once(count, public, private, generated):
    problem = with_public(PROBLEM, count)
    assert problem.public_tests == doubles(*public)
    assert (problem.private_tests, problem.generated_tests) == (doubles(*private), doubles(*generated))
    assert set(problem.public_tests + problem.hidden_tests) == set(PROBLEM.public_tests + PROBLEM.hidden_tests)


def test_one_test_stays_hidden():
    assert with_public(Problem("p", "d", doubles(1), doubles(2, 3)), 20) == Problem("p", "d", doubles(1, 2), doubles(3))
    assert with_public(Problem("p", "d", doubles(1), (), doubles(2)), 20) == Problem(
        "p", "d", doubles(1), (), doubles(2)
    )
    plus = FunctionTest("f", ((1,), (2,)), (1, 2))  # up to ten calls of a plus test
    human_eval = Problem("h", "d", (FunctionTest("f", ((1,),), (1,)),), (plus,), style="human_eval")
    assert with_public(human_eval, 20) == human_eval


# The first record of MBPP+ v0.2.0 as published, with twelve of its inputs.
MBPP_PLUS = {
    "task_id": 2,
    "code": "\ndef similar_elements(test_tup1, test_tup2):\n  return tuple(set(test_tup1) & set(test_tup2))\n",
    "prompt": "Write a function to find the shared elements from the given two lists.",
    "source_file": "Benchmark Questions Verification V2.ipynb",
    "test_imports": [],
    "test_list": [
        "assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))",
        "assert set(similar_elements((1, 2, 3, 4),(5, 4, 3, 7))) == set((3, 4))",
        "assert set(similar_elements((11, 12, 14, 13),(17, 15, 14, 13))) == set((13, 14))",
    ],
    "test": (
        "import numpy as np\n"
        "from math import inf\n"
        "\n"
        "def is_floats(x) -> bool:\n"
        "    # check if it is float; List[float]; Tuple[float]\n"
        "    if isinstance(x, float):\n"
        "        return True\n"
        "    if isinstance(x, (list, tuple)):\n"
        "        return all(isinstance(i, float) for i in x)\n"
        "    if isinstance(x, np.ndarray):\n"
        "        return x.dtype == np.float64 or x.dtype == np.float32\n"
        "    return False\n"
        "\n"
        "\n"
        "def assertion(out, exp, atol):\n"
        "    if atol == 0 and is_floats(exp):\n"
        "        atol = 1e-6\n"
        "    out = set(out)\n"
        "    exp = set(exp)\n"
        "    if out != exp and atol != 0:\n"
        "        assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
        "    else:\n"
        '        assert out == exp, f"out: {out}, exp: {exp}"\n'
        "\n"
        "\n"
        "inputs = [[(3, 4, 5, 6), (5, 7, 4, 10)], [(1, 2, 3, 4), (5, 4, 3, 7)], [(11, 12, 14, 13), "
        "(17, 15, 14, 13)], [(), ()], [(1, 2, 3), ()], [(), (4, 5, 6)], [(100, 200, 300, 400, 500),"
        " (100, 200, 400, 500)], [(10, 20, 30, 40, 50), (50, 60, 70, 80)], [(1, 2, 3, 4, 4, 5, 5), "
        "(4, 5, 6)], [(), (True, False, False, False, False, True)], [(1, 2, 3, 1), ()], [('kx', 'D"
        "HBNiditD'), (4, 5, 6)]]\n"
        "results = [(4, 5), (3, 4), (13, 14), (), (), (), (200, 100, 500, 400), (50,), (4, 5), (), (), ()]\n"
        "for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
        "    assertion(similar_elements(*inp), exp, 0)\n"
        "\n"
    ),
}


def test_plus_tests_are_never_shown(tmp_path):
    """The first problem of MBPP+, whose twelve plus inputs make two hidden tests here."""
    (tmp_path / "MbppPlus-OriginFmt.jsonl").write_text(json.dumps(MBPP_PLUS) + "\n")
    with ExecutionPool(1, find_python("3.10")) as pool:
        [problem] = benchmarks.load("mbpp_plus", tmp_path, runner=runner_of(pool))
    assert len(problem.hidden_tests) > 1
    assert with_public(problem, 20) == problem
    arguments = ["--config=configs/tiny.py", "--benchmark=mbpp_plus", f"--data={tmp_path}", "--feedback-tests=20"]
    with pytest.raises(ConfigError, match="--feedback-tests: hidden tests of function problems are never shown"):
        evaluate(parsed([*arguments, f"--out={tmp_path / 'out'}"]))


def test_more_tests_end_choose_and_show(tmp_path):
    problem = mini_contests.eval_split("valid")[0]
    count = len(problem.public_tests)
    shown = problem.public_tests[0]
    half = f"```python\nprint({shown.output!r})\n```"
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"problem": problem.name, "responses": [half, half, half]}) + "\n")

    def judged(out, *flags):
        arguments = [f"--judge-only={path}", "--benchmark=mini_contests/valid", "--problems=1", f"--out={out}"]
        results = evaluate(parsed([*arguments, *flags]))
        [episode] = [e for file in (out / "chunks").iterdir() for e in read_episodes(file)]
        return results, episode

    results, episode = judged(tmp_path / "plain")
    assert len(episode.turns[0].verdict.public) == count and "feedback_tests" not in results["evaluation"]
    results, episode = judged(tmp_path / "more", "--feedback-tests=5")
    assert [len(t.verdict.public) for t in episode.turns] == [5, 5, 5]
    assert results["evaluation"]["made_public"] == 5 - count
    message = feedback_message(episode.problem, episode.turns[0].verdict)
    assert episode.problem.public_tests[4] == problem.hidden_tests[4 - count]
    assert f"- input `{problem.hidden_tests[4 - count].input}` failed:" in message
    assert f"from up to 5 tests a problem: {5 - count} hidden tests were made public" in text_of(results)
    with pytest.raises(ConfigError, match="holds another evaluation"):
        judged(tmp_path / "plain", "--feedback-tests=5")
    with pytest.raises(ConfigError, match="--feedback-tests: 0 or more; it is -1"):
        judged(tmp_path / "none", "--feedback-tests=-1")
