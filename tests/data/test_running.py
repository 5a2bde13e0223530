"""Reference solutions run in the judge: each failure is one line with the task, and doesn't affect this process."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest

from rlef_jax import judge
from rlef_jax.data import benchmarks, running
from rlef_jax.data.running import Run, finished, runner_of
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool

PROMPT = "def zero(n):\n"
PLUS = """
inputs = [[1], [2]]
def assertion(out, exp, atol): pass
def check(candidate):
    for inp in inputs:
        assertion(candidate(*inp), ref_func(*inp), 0)
"""
BASE = "def check(candidate):\n    assert candidate(1) == 0\n"


@pytest.fixture(scope="module")
def pool():
    with ExecutionPool(2, find_python("3.10")) as shared:
        yield shared


def written(folder, body="    return 0\n", base=BASE, plus=PLUS, name="HumanEval/0"):
    row = {"task_id": name, "entry_point": "zero", "prompt": PROMPT, "canonical_solution": body}
    folder.mkdir(exist_ok=True)
    for file, test in (("HumanEval.jsonl", base), ("HumanEvalPlus-OriginFmt.jsonl", plus)):
        with (folder / file).open("a") as lines:
            lines.write(json.dumps(row | {"test": test}) + "\n")
    return folder


REFERENCES = {
    "    return undefined_name\n": "fails: NameError: name 'undefined_name' is not defined",
    "      x = 1\n   return x\n": "fails: IndentationError: unindent does not match",
    "    while True: pass\n": "did not end within 20 s",
    "    return zero(n)\n": "fails: RecursionError: maximum recursion depth exceeded",
    "    import os\n    os._exit(0)\n": "fails: The program ended before all of its results were there.",
    "    import os\n    os.kill(os.getpid(), 9)\n": "fails: Killed by SIGKILL.",
    "    return input()\n": "fails: EOFError: EOF when reading a line",
    "    raise SystemExit('bye')\n": "fails: Exited with code 1.",
    "    return bytearray(1 << 40)\n": "took more than 4 GB of memory",
    "    return 'x' * (1 << 28)\n": "fails: calls.CodecError: the value is too large",
    "    return object()\n": "returns a value of type object, which nothing is equal to",
    "    return (n for _ in '1')\n": "returns a value of type generator, which nothing is equal to",
    "    return 0\nzero = 3\n": "fails: TypeError: 'int' object is not callable",
    "    return 0\nimport numpy\n": "fails: ModuleNotFoundError: No module named 'numpy'",
}


@pytest.mark.parametrize("body", REFERENCES)
def test_whatever_a_reference_does_is_one_line(tmp_path, pool, monkeypatch, body):
    limits = dataclasses.replace(running.LIMITS, wall_s=1.0) if "while" in body else running.LIMITS
    monkeypatch.setattr(running, "LIMITS", limits)
    with pytest.raises(ConfigError) as raised:
        benchmarks.load("human_eval_plus", written(tmp_path / "data", body), runner=runner_of(pool))
    text = str(raised.value)
    assert f"HumanEval/0: its reference solution {REFERENCES[body]}" in text
    assert "\n" not in text and str(tmp_path) in text


def test_so_it_is_where_an_assert_calls_it_and_where_one_is_wrong(tmp_path, pool):
    near = "def check(candidate):\n    assert abs(candidate(1)) < 1\n"
    for number, (body, message) in enumerate({
        "    return n.x\n": "its reference solution fails: AttributeError: 'int' object has no attribute 'x'",
        "    return 1\n": "its reference solution fails its own asserts: zero(1) returned 1",
        "    import os\n    os._exit(3)\n": "its reference solution fails: Exited with code 3",
    }.items()):  # fmt: skip
        folder = written(tmp_path / str(number), body, base=near)
        with pytest.raises(ConfigError) as raised:
            benchmarks.load("human_eval", folder, runner=runner_of(pool))
        assert f"HumanEval/0: {message}" in str(raised.value)


def test_the_commands_say_it_in_a_line(tmp_path, capsys):
    folder = written(tmp_path / "data", "    return undefined_name\n", name="HumanEval/3")
    (tmp_path / "p.py").write_text("print(1)")
    code = judge.main(
        [str(tmp_path / "p.py"), "--problem", str(folder / "HumanEvalPlus-OriginFmt.jsonl"), "--workers=1"]
    )
    assert code == judge.USAGE and capsys.readouterr().err.count("\n") == 1
    samples = tmp_path / "s.jsonl"
    samples.write_text(json.dumps({"task_id": "HumanEval/3", "solution": ""}))
    with pytest.raises(ConfigError, match="HumanEval/3: its reference solution fails: NameError"):
        evaluate(parsed([f"--judge-only={samples}", "--benchmark=human_eval_plus", f"--data={folder}", "--turns=1",
                         f"--out={tmp_path / 'out'}"]))  # fmt: skip


def test_references_run_elsewhere_and_many_at_a_time(tmp_path, pool):
    """They run in another process, under the judge's Python, while other tasks are read."""
    folder = tmp_path / "data"
    for i in range(12):
        written(
            folder, f"    import os, sys\n    return [os.getpid(), sys.version_info[:2], {i}]\n", name=f"HumanEval/{i}"
        )
    problems = benchmarks.load("human_eval_plus", folder, runner=runner_of(pool))
    results = [result for p in problems for t in p.hidden_tests for result in t.expected]
    assert [r[2] for r in results] == [i for i in range(12) for _ in range(2)]
    assert all(pid != os.getpid() and version == (3, 10) for pid, version, _ in results)


def test_readers_go_on_with_what_their_runs_returned():
    """One reader yields twice, one never, one several runs at a time."""
    programs = []

    def runner(run):
        programs.append(run.entry_point)
        return [run.entry_point.upper()]

    class Future(list):
        def result(self):
            return self

    def reading(*rounds):
        got = []
        for names in rounds:
            got.append((yield [Run("", name, ()) for name in names]))
        return got

    returned = finished([reading("a", "b"), reading(), reading("cd")], lambda run: Future(runner(run)))
    assert returned == [[["A"], ["B"]], [], [["C", "D"]]] and programs == ["a", "c", "d", "b"]


def test_inputs_that_are_no_literals_are_one_line(tmp_path, pool):
    for number, plus in enumerate((PLUS.replace("[[1], [2]]", "[[9 ** 9 ** 9]]"), PLUS.replace("inputs", "given"))):
        folder = written(tmp_path / str(number), plus=plus)
        with pytest.raises(ConfigError, match="human_eval_plus: HumanEval/0: ") as raised:
            benchmarks.load("human_eval_plus", folder, runner=runner_of(pool))
        assert "\n" not in str(raised.value)


def test_what_cannot_be_sent_is_the_readers_to_tell():
    class Future:
        def result(self):
            raise ValueError("the value is too large")

    def reading():
        try:
            yield [Run("", "f", ())]
        except ValueError as error:
            raise ValueError(f"task 3: {error}") from error

    with pytest.raises(ValueError, match="task 3: the value is too large"):
        finished([reading()], lambda run: Future())


def test_a_pool_is_started_only_where_something_is_to_be_run():
    def make_pool():
        raise AssertionError("started")

    with running.running(make_pool):
        pass
