"""What lies behind a configuration's names: what tells two apart, what is refused, and what is only told."""

import dataclasses
import json
import os
import shutil

import pytest

from rlef_jax import config as config_lib
from rlef_jax.data.code_contests import judge_check
from rlef_jax.data.code_contests.build import build
from rlef_jax.data.code_contests.reader import shard_hashes
from rlef_jax.data.sources import Source, fit
from rlef_jax.errors import ConfigError
from rlef_jax.execution.interpreter import Interpreter, find_python
from rlef_jax.execution.pool import ExecutionPool
from rlef_jax.training.inputs import PYTHON, RECORD, agreed, check_inputs, identities, problems_identity
from rlef_jax.types import Limits
from tests.helpers.contest_rows import row, write_parquet

OLD = Interpreter("python3.10", "3.10.14")


def built(folder, answer):
    """A data folder, built anew at the same path."""
    shutil.rmtree(folder, ignore_errors=True)
    source = folder.with_name("source")
    source.mkdir(exist_ok=True)
    tests = {"private_tests": {"input": ["3 4\n"], "output": [answer]}}
    wrong = {"solutions": {"language": [3], "solution": ["print(0)"]}}
    write_parquet(source / "train.parquet", [row("a", **tests), row("b", **wrong)])
    build(source, folder)
    return Source("code_contests", str(folder))


def compare(folder, before, now, **kwargs):
    """What is said to a run that was begun with `before` and goes on with `now`."""
    told = []
    check_inputs(folder, before, begun=False, mend="", tell=told.append)
    accepted = check_inputs(folder, now, begun=True, mend="Put them back", tell=told.append, **kwargs)
    return accepted, told


def test_data_built_anew_at_the_same_path(tmp_path):
    source = built(tmp_path / "data", "7\n")
    before = problems_identity(source, "train")
    os.utime(next((tmp_path / "data").glob("*.array_record*")))  # copied, or only touched
    assert problems_identity(source, "train") == before
    assert problems_identity(built(tmp_path / "data", "7\n"), "train") == before
    other = problems_identity(built(tmp_path / "data", "12\n"), "train")
    refused = rf"begun with other inputs: problems: {before[0]} before, {other[0]} now\. Put them back"
    with pytest.raises(ConfigError, match=refused):
        compare(tmp_path, {"problems": before}, {"problems": other})
    with pytest.raises(ConfigError, match="begun with other inputs"):  # what was refused isn't recorded
        check_inputs(tmp_path, {"problems": other}, begun=True, mend="", tell=print)
    assert compare(tmp_path, {"problems": before}, {"problems": other}, accept=True)[0]
    assert not check_inputs(tmp_path, {"problems": other}, begun=True, mend="", tell=print)  # and now it is the run's


def test_shards_are_read_once(tmp_path):
    source = built(tmp_path / "data", "7\n")
    hashes = shard_hashes(source.dir, "train")
    [kept] = (tmp_path / "data" / "shard_hashes").iterdir()
    known = json.loads(kept.read_text())
    kept.write_text(json.dumps(known | {"hashes": ["kept"]}))
    assert shard_hashes(source.dir, "train") == ["kept"]
    kept.write_text("{")
    assert shard_hashes(source.dir, "train") == hashes


def test_a_check_of_the_references_that_was_made_again(tmp_path):
    """The data is the same, the rules leave out another problem."""

    source = dataclasses.replace(built(tmp_path / "data", "7\n"), exclude=("references_fail",))
    with ExecutionPool(1, find_python()) as pool:
        judge_check.check(tmp_path / "data", "train", pool, {}, solutions=3, limits=Limits(wall_s=20.0), ahead=2)
    before = problems_identity(fit(source, ["train"], len), "train")
    report = tmp_path / "data" / "judge_check_train.json"
    found = json.loads(report.read_text())
    report.write_text(json.dumps(found | {"problems": [["a", ["crash"]], ["b", ["passed"]]]}))
    now = problems_identity(fit(source, ["train"], len), "train")
    assert before[:2] == now[:2] and before[2] != now[2]


def test_another_python_is_refused_and_another_patch_is_told(tmp_path):
    before = identities(config(), OLD, Source("mini_contests"), [])
    patch = dataclasses.replace(OLD, version="3.10.15")
    _, told = compare(tmp_path, before, identities(config(), patch, Source("mini_contests"), []))
    assert told == [f"{tmp_path} goes on with another input, {PYTHON}: 3.10.14 before, 3.10.15 now"]
    other = dataclasses.replace(OLD, version="3.11.14")
    with pytest.raises(ConfigError, match=r"execution\.python\): 3\.10\.14 before, 3\.11\.14 now"):
        compare(tmp_path, before, identities(config(), other, Source("mini_contests"), []))


def test_a_package_that_was_upgraded(tmp_path):
    """For an interpreter that is named by its path: programs may import what is installed there."""

    def with_numpy(version):
        folder = tmp_path / version
        for name, number in (("numpy", version), ("scipy", "1.13.0")):
            (folder / f"{name}-{number}.dist-info").mkdir(parents=True)
            text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n"
            (folder / f"{name}-{number}.dist-info" / "METADATA").write_text(text)
        return identities(config(), dataclasses.replace(OLD, packages=(str(folder),)), Source("mini_contests"), [])

    with pytest.raises(ConfigError, match=r"\(config\.execution\.python\): numpy 1\.26\.4 before, numpy 2\.0\.1 now\."):
        compare(tmp_path, with_numpy("1.26.4"), with_numpy("2.0.1"))


def config(**overrides):
    return config_lib.load("configs/tiny.py", overrides={f"model.{k}": v for k, v in overrides.items()})


def test_other_files_under_the_same_names(tmp_path):
    """Tokenizer and weights: of a small file every byte counts, of a large one that it is another model's."""
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "generation_config.json"):
        (tmp_path / "tokenizer" / name).write_text("{}")
    weights = tmp_path / "weights.gguf"
    with open(weights, "wb") as file:
        file.truncate(40 << 20)  # more than is read of it

    def found():
        named = config(tokenizer=str(tmp_path / "tokenizer"), init=str(weights))
        return identities(named, OLD, Source("mini_contests"), ["train"])

    before = found()
    (tmp_path / "tokenizer" / "generation_config.json").write_text("[]")
    with pytest.raises(
        ConfigError, match=r"tokenizer \(config\.model\.tokenizer\): generation_config\.json of 2 bytes"
    ):
        compare(tmp_path, before, found())
    (tmp_path / "tokenizer" / "generation_config.json").write_text("{}")
    with open(weights, "r+b") as file:
        file.seek(20 << 20)
        file.write(b"\1" * (1 << 20))  # a fortieth of the model
    with pytest.raises(
        ConfigError, match=r"first weights \(config\.model\.init\): weights\.gguf of 41943040 bytes"
    ) as it:
        compare(tmp_path, before, found())
    assert "tokenizer" not in str(it.value) and len(str(it.value).splitlines()) == 1


def test_what_an_older_run_has_not_recorded(tmp_path):
    told = []
    check_inputs(tmp_path, {"data": ["1"]}, begun=True, mend="", tell=told.append)
    assert told == [f"{tmp_path} doesn't say what it was begun with (no {RECORD}): recorded as it is now"]
    assert compare(tmp_path, {"data": ["1"]}, {"data": ["1"], "new": ["2"]}) == (False, [])
    (tmp_path / RECORD).write_text("[")
    with pytest.raises(ConfigError, match="is not what a run wrote .* remove it to go on without comparing"):
        check_inputs(tmp_path, {}, begun=True, mend="", tell=print)


def test_processes_of_a_job_must_agree():
    assert agreed([{PYTHON: ["3.10.14"]}, {PYTHON: ["3.10.15"]}]) == {PYTHON: ["3.10.14"]}
    with pytest.raises(ConfigError, match=r"process 1 of this job .* 3\.10\.14 in process 0, 3\.12\.3 in it"):
        agreed([{PYTHON: ["3.10.14"]}, {PYTHON: ["3.12.3"]}])
