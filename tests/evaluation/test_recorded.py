"""Recorded responses with the real judge: each file format, the turn rules, bad files, and the whole command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlef_jax.data import benchmarks, mini_contests
from rlef_jax.data.running import runner_of
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.evaluation.recorded import Recorded, judge_recorded, read_recorded
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.types import FunctionTest, Limits, Problem, Status, TestCase

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DOUBLE = Problem("double", "d", (TestCase("1\n", "2"),), (TestCase("3\n", "6"), TestCase("5\n", "10")), solutions=("",))
START = 'def inc(x):\n    """Adds one."""\n'
INC = Problem(
    "inc",
    START,
    (FunctionTest("inc", ((1,),), (2,), text="assert inc(1) == 2"),),
    (FunctionTest("inc", ((5,), (-1,)), (6, 0)),),
    style="human_eval",
    start=START,
)
RIGHT = "```python\nprint(2 * int(input()))\n```"
WRONG = "```python\nprint(int(input()))\n```"
LUCKY = "```python\nprint(int(input()) + 1)\n```"


@pytest.fixture(scope="module")
def pool():
    with ExecutionPool(2, find_python("3.10")) as shared:
        yield shared


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_form(tmp_path):
    rows = [
        {"task_id": "inc", "completion": "    return x + 1\n"},
        {"problem": "double", "responses": [WRONG, "no code", RIGHT]},
        {"problem": "inc", "solution": "inc = lambda x: x + 1"},
        {"problem": "inc", "responses": ["    return x\n```\nThat was it.", "```python\ndef inc(x): return 1\n```"]},
    ]
    rollouts = read_recorded(written(tmp_path / "s.jsonl", rows), [DOUBLE, INC])
    assert [r.problem.name for r in rollouts] == ["double", "inc", "inc", "inc"]  # the problems' order
    assert rollouts[0].programs == ("print(int(input()))", None, "print(2 * int(input()))")
    assert rollouts[1].programs == (START + "    return x + 1\n",)
    assert rollouts[2].programs == ("inc = lambda x: x + 1",)
    assert rollouts[3].programs == (START + "    return x\n", START + "\ndef inc(x): return 1")


@pytest.mark.parametrize(
    "row, message",
    [
        ({"task_id": "dec", "completion": ""}, "sample 2: the benchmark has no problem 'dec'"),
        ({"completion": ""}, "sample 2: 'problem'"),
        ({"task_id": "inc"}, "sample 2: give one of"),
        ({"task_id": "inc", "completion": "", "solution": ""}, "sample 2: give one of"),
        ({"task_id": "inc", "completion": 3}, "sample 2: 'completion' is no text"),
        ({"task_id": "inc", "responses": []}, 'sample 2: "responses" is no list of texts'),
        (3, "line 2: not a JSON object"),
    ],
)
def test_bad_samples_are_named(tmp_path, row, message):
    path = written(tmp_path / "s.jsonl", [{"task_id": "inc", "completion": ""}, row])
    with pytest.raises(ConfigError) as raised:
        read_recorded(path, [INC])
    assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1
    (tmp_path / "t.jsonl").write_text("{")
    with pytest.raises(ConfigError, match="t.jsonl, line 1: not JSON"):
        read_recorded(tmp_path / "t.jsonl", [INC])
    assert (
        len(read_recorded(written(tmp_path / "v.jsonl", [{"task_id": "dec", "completion": ""}]), [INC], ["dec"])) == 0
    )
    with pytest.raises(ConfigError, match="no file"):
        read_recorded(tmp_path / "u.jsonl", [INC])


def test_turns_end_as_sampled_ones_do(pool):
    def of(problem, *programs):
        return Recorded(problem, programs)

    right, wrong, lucky = "print(2 * int(input()))", "print(int(input()))", "print(int(input()) + 1)"
    rollouts = [
        of(DOUBLE, right, wrong),
        of(DOUBLE, wrong, None, right),
        of(DOUBLE, lucky, right),
        of(DOUBLE, wrong, wrong, wrong, right),
        of(INC, START + "    return x", START + "    return x + 1"),
    ]
    progress = []
    limits = Limits(wall_s=10.0, memory_bytes=256 << 20)
    episodes = judge_recorded(
        pool, rollouts, limits, max_turns=3, first_index=7, on_progress=lambda *a: progress.append(a)
    )
    assert [(len(e.turns), e.solved, e.end) for e in episodes] == [
        (1, True, "public_passed"),  # later responses aren't used
        (3, True, "public_passed"),
        (1, False, "public_passed"),  # fails a hidden test, without feedback
        (3, False, "turn_limit"),
        (2, True, "public_passed"),
    ]
    assert [e.index for e in episodes] == [7, 8, 9, 10, 11] and progress[-1] == (5, 5)
    assert episodes[1].turns[1].verdict.status is Status.NO_CODE
    assert len(episodes[2].turns[0].verdict.hidden) == 1  # they stop at the first failure


def minis(tmp_path, name="samples.jsonl"):
    """Recorded dialogues of the first problems of MiniContests' test split: correct at once, repaired, or never."""
    fence = "```python\n{}\n```".format
    rows = []
    for i, p in enumerate(mini_contests.eval_split("valid")[:6]):
        right, wrong = fence(p.solutions[0]), fence("print('?')")
        rows.append({"problem": p.name, "responses": [[right], [wrong, right], [wrong, wrong, wrong]][i % 3]})
        rows.append({"problem": p.name, "responses": [wrong, "nothing", wrong]})
    return written(tmp_path / name, rows)


def judge(path, out, *flags):
    return evaluate(
        parsed([f"--judge-only={path}", f"--out={out}", "--benchmark=mini_contests/valid", "--problems=8", *flags])
    )


def test_contests_through_the_command(tmp_path):
    results = judge(minis(tmp_path), tmp_path / "out", "--n-at-k=1@3,1@6,2@6")
    assert results["1@1"] == pytest.approx(100 / 6) and results["1@3"] == pytest.approx(100 / 3)
    assert results["n_at_k"]["1@6"]["percent"] == pytest.approx(100 * 2 / 3)
    assert results["n_at_k"]["1@6"]["pass@2_rollouts"] == pytest.approx(100 * 2 / 3)
    assert results["evaluation"]["without_samples"] == 2 and results["left_out"] == 0
    assert results["over_turns"]["responses"] == [12, 10, 8]
    assert results["over_turns"]["transitions"][0] == {"WRONG_ANSWER": {"NO_CODE": 6, "PASSED": 2, "WRONG_ANSWER": 2}}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert results == judge(minis(tmp_path), tmp_path / "out", "--n-at-k=1@3,1@6,2@6")  # from the saved rollouts
    with pytest.raises(ConfigError, match="holds another evaluation: its chunk is 256, asked for is 3"):
        judge(minis(tmp_path), tmp_path / "out", "--chunk=3")


def test_a_chunk_of_another_size_is_refused(tmp_path):
    judge(minis(tmp_path), tmp_path / "out", "--chunk=5")
    chunks = sorted((tmp_path / "out" / "chunks").iterdir())
    assert len(chunks) == 3
    chunks[0].write_bytes(chunks[1].read_bytes())
    with pytest.raises(ConfigError, match="doesn't hold rollouts 0 to 4"):
        judge(minis(tmp_path), tmp_path / "out", "--chunk=5")


def test_bad_arguments_are_one_line(tmp_path):
    path = minis(tmp_path)
    for flags, message in (
        (["--benchmark=human_eval"], "--benchmark=human_eval needs --data=FOLDER"),
        (["--benchmark=humaneval"], "--benchmark: no 'humaneval'; there is human_eval_plus"),
        (["--benchmark=human_eval", f"--data={tmp_path}"], "no HumanEval.jsonl.gz or HumanEval.jsonl in it"),
        (["--n-at-k=1@"], "--n-at-k: '1@' is not of the form 10@100"),
        (["--n-at-k=1@2"], "less than one rollout of 3 turns"),
        (["--chunk=0"], "--chunk: 1 or more; it is 0"),
        (["--config.episode.nothing=1"], "unknown key 'episode.nothing'; did you mean --config."),
        (["--config.episode.context"], "config.episode.context takes a whole number; write --config.episode.context="),
    ):
        with pytest.raises(ConfigError) as raised:
            judge(path, tmp_path / "o", *flags)
        assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1
    process = subprocess.run([sys.executable, "-m", "rlef_jax.evaluate"], capture_output=True, text=True)
    assert process.returncode == 2 and process.stderr.startswith("error: one of --workdir, --config and --judge-only")


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--turn=3"], "error: unrecognized argument --turn=3 (did you mean --turns?); --help names every option"),
        (["--workdir=a", "--config=b"], "error: argument --config: not allowed with argument --workdir"),
        (["--feedback=some"], "error: argument --feedback: invalid choice: 'some' (choose from"),
    ],
)
def test_a_misspelt_option_is_one_line(capsys, arguments, line):
    with pytest.raises(SystemExit) as stop:
        parsed(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith(line) and len(error.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [("human_eval_plus", 164), ("mbpp_plus", 378), ("human_eval", 164), ("mbpp", 499), ("mbpp_sanitized", 257)],
)
def test_every_canonical_solution_passes_and_no_prompt_does(pool, tmp_path, name, count):
    if not DATA.is_dir():
        pytest.skip(f"no {DATA}")
    problems = benchmarks.load(name, DATA, runner=runner_of(pool))
    assert len(problems) == count
    for kind, percent in (("solution", 100.0), ("prompt", 0.0)):
        prompts = [p.start or f'"""{p.description}"""' for p in problems]
        programs = [p.solutions[0] for p in problems] if kind == "solution" else prompts
        rows = [{"task_id": p.name, "solution": text} for p, text in zip(problems, programs, strict=True)]
        path = written(tmp_path / f"{kind}.jsonl", rows)
        args = [f"--judge-only={path}", f"--benchmark={name}", f"--data={DATA}", f"--out={tmp_path / kind}"]
        # What is right is asked, not how fast this machine is: Mbpp/255 and /599 take 8 to 11 s of the processor.
        args.append("--config.execution.wall_scale=4")
        results = evaluate(parsed(args))
        assert (results["1@1"], results["infra"], results["problems"]) == (percent, 0, count)
