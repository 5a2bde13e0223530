"""Problems that lack tests: which tests decide, what is shown and counted, everywhere that problems are judged."""

from __future__ import annotations

import json

import pytest

from rlef_jax import judge
from rlef_jax.data import benchmarks, sources
from rlef_jax.data.code_contests import judge_check
from rlef_jax.data.code_contests.build import build
from rlef_jax.data.code_contests.counts import table
from rlef_jax.data.missing_tests import Missing
from rlef_jax.data.missing_tests import testable as those_with_tests
from rlef_jax.data.shown_tests import with_public
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.dialog.feedback import feedback_message
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.evaluation.few_shot import choose
from rlef_jax.evaluation.recorded import Recorded, judge_recorded
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.execution.verdict import submit_hidden, submit_public
from rlef_jax.reward import turn_rewards
from rlef_jax.sampling.request import SamplingConfig
from rlef_jax.training.episode_io import read_episodes, write_episodes
from rlef_jax.training.rollout import RolloutSettings, collect
from rlef_jax.types import Limits, Problem, Status, TestCase, TestResult, Verdict
from tests.helpers.contest_rows import row, write_parquet
from tests.helpers.scripted_sampler import ScriptedSampler
from tests.helpers.tiny_tokenizer import tiny_tokenizer

LIMITS = Limits(wall_s=20.0, memory_bytes=256 << 20)
RIGHT, WRONG, LUCKY, BROKEN = "print(2 * int(input()))", "print(0)", "print(2)", "print(("
ONE, TWO = (TestCase("1\n", "2"),), (TestCase("5\n", "10"), TestCase("7\n", "14"))
WHOLE, GENERATED = Problem("whole", "w", ONE, TWO), Problem("generated", "g", ONE, (), TWO)
NO_HIDDEN, NO_PUBLIC = Problem("no hidden", "h", ONE, ()), Problem("no public", "p", (), TWO)
NONE = Problem("none", "n", (), ())
PASSED, LIMIT = "public_passed", "turn_limit"
# Programs of a dialogue, and its expected (turns, solved, end) for each of the three problems.
ENDS = {
    (RIGHT,): [(1, True, PASSED), (1, True, PASSED), (1, True, PASSED)],
    (WRONG, WRONG, RIGHT): [(3, True, PASSED), (3, True, PASSED), (1, False, PASSED)],
    (LUCKY, RIGHT): [(1, False, PASSED), (1, True, PASSED), (1, False, PASSED)],
    (BROKEN, None, RIGHT): [(3, True, PASSED), (3, True, PASSED), (3, True, PASSED)],
    (BROKEN, BROKEN, BROKEN): [(3, False, LIMIT), (3, False, LIMIT), (3, False, LIMIT)],
}


@pytest.fixture(scope="module")
def pool():
    with ExecutionPool(2, find_python("3.10")) as shared:
        yield shared


@pytest.mark.parametrize("programs", ENDS, ids=range(len(ENDS)))
def test_what_ends_a_dialogue_and_what_decides(pool, programs):
    rollouts = [Recorded(problem, programs) for problem in (WHOLE, NO_HIDDEN, NO_PUBLIC)]
    recorded = judge_recorded(pool, rollouts, LIMITS, max_turns=3)
    assert [(len(e.turns), e.solved, e.end) for e in recorded] == ENDS[programs]
    chat = ChatFormat(tiny_tokenizer())
    sampler = ScriptedSampler(
        chat, lambda _, turn: f"```python\n{programs[turn]}\n```" if programs[turn] else "no code"
    )
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, top_k=0, stop_ids=chat.stop_ids, max_new_tokens=100)
    settings = RolloutSettings(sampling, context=2000, limits=LIMITS)
    sampled = collect(sampler, chat, pool, [r.problem for r in rollouts], seed=0, step=0, settings=settings)
    assert [(len(e.turns), e.solved, e.end) for e in sampled] == ENDS[programs]
    for episode in sampled:
        assert turn_rewards(episode)[-1] == (1.0 if episode.solved else -1.0)


def test_verdicts(pool):
    syntax = submit_public(pool, BROKEN, NO_PUBLIC, LIMITS).result(60)
    assert syntax.status is Status.SYNTAX_ERROR and not syntax.public_passed and "solution.py" in syntax.public[0].error
    assert "Your code does not parse:" in feedback_message(NO_PUBLIC, syntax)
    wrong = submit_public(pool, WRONG, NO_PUBLIC, LIMITS).result(60)
    assert (wrong.status, wrong.public, wrong.public_passed, wrong.passed) == (Status.PASSED, (), True, False)
    judged = submit_hidden(pool, WRONG, NO_PUBLIC, wrong, LIMITS).result(60)
    assert judged.status is Status.WRONG_ANSWER and judged.public_passed and not judged.passed
    right = submit_public(pool, RIGHT, NO_HIDDEN, LIMITS).result(60)
    assert right.public_passed and not right.passed
    assert submit_hidden(pool, RIGHT, NO_HIDDEN, right, LIMITS).result(60).passed
    with pytest.raises(ValueError, match="problem 'none' has no test"):
        submit_public(pool, RIGHT, NONE, LIMITS)
    for status in (Status.NO_CODE, Status.INFRA_ERROR, Status.SYNTAX_ERROR):
        assert not Verdict(status).public_passed and not Verdict(status).passed
    assert not Verdict(Status.PASSED).passed  # not judged on hidden tests
    assert not Verdict(Status.WRONG_ANSWER, (TestResult(Status.WRONG_ANSWER),)).public_passed


def test_what_reading_says():
    reports: list[Missing] = []
    assert those_with_tests("x", [WHOLE, GENERATED], reports.append) == [WHOLE, GENERATED] and not reports
    assert those_with_tests("x", [WHOLE, NO_HIDDEN, NO_PUBLIC, NONE, NONE], reports.append) == [
        WHOLE,
        NO_HIDDEN,
        NO_PUBLIC,
    ]
    assert reports == [Missing(
        "x: 3 problems; 1 without hidden tests: their public tests decide; 1 without public tests: nothing can be fed"
        " back, and their first valid program is the last; 2 without any test left out",
        ("none", "none"),
    )]  # fmt: skip
    with pytest.raises(ConfigError, match="x: none of its 1 problems has a test"):
        those_with_tests("x", [NONE], reports.append)


def test_feedback_from_more_tests_and_few_shot(tmp_path, pool):
    assert with_public(NO_HIDDEN, 5) == NO_HIDDEN
    shown = with_public(NO_PUBLIC, 5)
    assert shown.public_tests == TWO[:1] and shown.hidden_tests == TWO[1:]
    episodes = judge_recorded(pool, [Recorded(NO_HIDDEN, (BROKEN, RIGHT))], LIMITS, max_turns=3)
    write_episodes(tmp_path / "e.jsonl.gz", episodes)
    assert read_episodes(tmp_path / "e.jsonl.gz") == episodes and episodes[0].solved
    with pytest.raises(ConfigError, match="0 problems"):  # recorded episodes have no tokens
        choose(tmp_path / "e.jsonl.gz", 1, [])


def columns(*pairs):
    return {"input": [i for i, _ in pairs], "output": [o for _, o in pairs]}


EMPTY, SUM = columns(), columns(("1 2\n", "3\n"))


@pytest.fixture
def built(tmp_path):
    rows = [
        row("whole"),
        row("no hidden", private_tests=EMPTY),
        row("no public", public_tests=EMPTY),
        row("generated", private_tests=EMPTY, generated_tests=SUM),
        row("none", public_tests=EMPTY, private_tests=EMPTY),
    ]
    (tmp_path / "source").mkdir()
    for split in ("train", "test"):
        write_parquet(tmp_path / "source" / f"{split}.parquet", rows)
    return build(tmp_path / "source", tmp_path / "built"), tmp_path / "built"


def test_a_build_counts_them(built):
    counts, _ = built
    assert counts["test"]["kept"] == 4 and counts["test"]["dropped"] == {"no tests": 1}
    facts = counts["test"]["facts"]
    assert (facts["no_hidden"], facts["no_public"]) == (1, 1)
    # Training requires public and private tests (3.1).
    assert counts["train"]["dropped"] == {"no private tests": 2, "no public tests": 1, "no tests": 1}
    lines = {line[:42].strip(): line[42:].split() for line in table(counts).split("\n")}
    assert lines["without hidden tests: public ones decide"] == ["0", "1"]
    assert lines["without public tests: no feedback"] == ["0", "1"] and lines["dropped: no tests"] == ["1", "1"]


def test_an_evaluation_says_so_and_scores_them(tmp_path, built, capsys):
    _, folder = built
    right = "print(sum(map(int, input().split())))"
    names = ["whole", "no hidden", "no public", "generated"]
    samples = tmp_path / "s.jsonl"
    samples.write_text(
        "".join(json.dumps({"problem": n, "solution": p}) + "\n" for n in names for p in (right, "print(3)"))
    )
    results = evaluate(parsed([f"--judge-only={samples}", "--benchmark=code_contests/test", f"--data={folder}",
                             "--turns=1", f"--out={tmp_path / 'out'}"]))  # fmt: skip
    # print(3) is correct if only the public test decides, or a generated one with the same answer.
    assert results["1@1"] == pytest.approx(100 * 6 / 8) and results["problems"] == 4
    printed = capsys.readouterr().err
    assert printed.startswith(
        "code_contests/test: 4 problems; 1 without hidden tests: their public tests decide; 1 without"
    )
    assert results["evaluation"]["missing_tests"] in printed
    problems = benchmarks.load("code_contests/test", folder)
    assert [p.name for p in problems] == names
    with ExecutionPool(1, find_python("3.10")) as pool:
        report = judge_check.check(folder, "test", pool, {}, solutions=1, limits=LIMITS, ahead=2)
    assert [p.reasons for p in report.problems] == [("passed",)] * 4


def test_training_never_gets_one(built, monkeypatch):
    source = sources.Source("code_contests", dir=str(built[1]))
    assert {p.name for p in sources.training_problems(source, "train", 0, 0, 4)} == {"whole"}
    monkeypatch.setattr(sources.reader, "problem_at", lambda *_: NONE)  # for a folder built by an older version
    with pytest.raises(ConfigError, match="'none' of train has no test"):
        sources.training_problems(source, "train", 0, 0, 4)


def test_the_judge_command_runs_each_test_once(tmp_path, capsys):
    (tmp_path / "p.py").write_text(RIGHT)
    for name, problem, counts in (("h", NO_HIDDEN, (1, 1, 1)), ("p", NO_PUBLIC, (2, None, 2)), ("w", WHOLE, (3, 1, 2))):
        fields = {kind: [{"input": t.input, "output": t.output} for t in getattr(problem, kind)]
                  for kind in ("public_tests", "private_tests")}  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, **fields}))
        for which, count in zip(("all", "public", "hidden"), counts, strict=True):
            code = judge.main(
                [str(tmp_path / "p.py"), f"--problem={tmp_path / name}.json", f"--tests={which}", "--workers=1"]
            )
            streams = capsys.readouterr()
            if count is None:
                assert code == judge.USAGE and streams.err == f"error: {name}: no tests to run\n"
            else:
                assert code == judge.PASSED and f"{count} of {count} tests passed" in streams.out
