"""The command on CodeContests: the source of the problems, and the judge's error rate beside a score."""

import json

import pytest

from rlef_jax.data.code_contests import judge_check
from rlef_jax.data.code_contests.build import build
from rlef_jax.errors import ConfigError
from rlef_jax.evaluate import evaluate, parsed
from rlef_jax.evaluation.job import text_of
from rlef_jax.execution.interpreter import find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.training.inputs import PYTHON, RECORD
from rlef_jax.types import Limits
from tests.helpers.contest_rows import row, write_parquet
from tests.helpers.small_run import OVERRIDES

RIGHT = "print(sum(map(int, input().split())))"


@pytest.fixture
def folder(tmp_path):
    wrong = {"solutions": {"language": [3], "solution": ["print(0)"]}}
    (tmp_path / "source").mkdir()
    slow = {"time_limit": {"seconds": 20, "nanos": 0}}  # enough even on a busy machine
    write_parquet(tmp_path / "source" / "test.parquet", [row("good", **slow), row("bad", **wrong, **slow)])
    build(tmp_path / "source", tmp_path / "built")
    return tmp_path / "built"


def judged(tmp_path, folder, *flags):
    rows = [{"problem": name, "responses": [f"```python\n{RIGHT}\n```"]} for name in ("good", "bad")]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    arguments = [f"--judge-only={path}", "--benchmark=code_contests/test", f"--data={folder}", "--turns=1"]
    return evaluate(parsed([*arguments, f"--out={tmp_path / 'out'}", *flags]))


def test_the_judges_own_errors_stand_beside_the_score(tmp_path, folder):
    results = judged(tmp_path, folder)
    assert (results["1@1"], results["problems"], results["infra"]) == (100.0, 2, 0)
    assert "not measured; do python -m rlef_jax.data.code_contests.judge_check" in text_of(results)
    with ExecutionPool(1, find_python("3.10")) as pool:
        judge_check.check(folder, "test", pool, {}, solutions=3, limits=Limits(), ahead=2)
    with_check = judged(tmp_path, folder)  # uses the saved rollouts; only the line about the judge changes
    assert with_check["1@1"] == 100.0
    assert "no reference solution passes on 1 of 2 problems (50.0 %: 1 wrong answer); 0 have none" in text_of(
        with_check
    )
    assert json.loads((tmp_path / "out" / "results.json").read_text())["judge"] == with_check["judge"]


def test_an_evaluation_goes_on_under_the_same_python_only(tmp_path, folder):
    judged(tmp_path, folder)
    record = tmp_path / "out" / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {PYTHON: ["3.9.1"]}))
    with pytest.raises(ConfigError, match=r"3\.9\.1 before, 3\..* now\. Put them back, or give another --out"):
        judged(tmp_path, folder)


def test_a_configurations_rules_hold_for_its_own_source(tmp_path, folder, capsys):
    with ExecutionPool(1, find_python("3.10")) as pool:
        judge_check.check(folder, "test", pool, {}, solutions=3, limits=Limits(), ahead=2)
    flags = ("--config.data.name=code_contests", '--config.data.exclude=("references_fail",)')
    with pytest.raises(ConfigError, match="no problem 'bad'"):
        judged(tmp_path, folder, *flags)
    assert "test: 1 of 2 problems; left out: 1 references_fail" in capsys.readouterr().err


def test_what_was_left_out_is_in_the_denominators_name(tmp_path, capsys, quick_compilation):
    (tmp_path / "source").mkdir()
    long = row("long", description="Add the numbers. " * 40)
    write_parquet(tmp_path / "source" / "test.parquet", [row("good"), long, row("better")])
    build(tmp_path / "source", tmp_path / "built")
    small = [f"--config.{key}={value}" for key, value in OVERRIDES.items() if not key.startswith("eval.")]
    data = ["--config.data.name=code_contests", f"--config.data.dir={tmp_path / 'built'}"]
    asked = ["--config=configs/tiny.py", *small, *data, "--benchmark=code_contests/test"]
    ruled = ["--config.data.max_prompt_tokens=150", f"--out={tmp_path / 'ruled'}"]
    results = evaluate(parsed([*asked, *ruled, "--turns=1", "--samples=1"]))
    rules = {"with a prompt longer than max_prompt_tokens=150": 1}
    assert results["problems"] == 2 and results["split_left_out"] == {"of": 3, "kept": 2, "rules": rules}
    line = "2 of 3 problems; left out: 1 with a prompt longer than max_prompt_tokens=150"
    assert f"percentages are of 2 problems of code_contests/test: {line}" in text_of(results)
    assert f"test: {line}" in capsys.readouterr().err
    assert json.loads((tmp_path / "ruled" / "results.json").read_text())["split_left_out"]["rules"] == rules
    with pytest.raises(ConfigError, match="problem 'long': its prompt of .* leave such problems out"):
        evaluate(parsed([*asked, f"--out={tmp_path / 'all'}", "--turns=1", "--samples=1"]))


def test_folders_that_are_not_there_are_one_line(tmp_path, folder):
    for flags, message in (
        ([f"--data={tmp_path / 'nowhere'}"], "no CodeContests in"),
        (["--benchmark=code_contests/tests"], "'tests' is none of test"),
    ):
        with pytest.raises(ConfigError) as raised:
            judged(tmp_path, folder, *flags)
        assert message in str(raised.value) and len(str(raised.value).splitlines()) == 1
