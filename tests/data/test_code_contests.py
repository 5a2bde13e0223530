"""CodeContests: every field of both published forms comes back from the built folder; builds survive kill -9."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlef_jax.data.code_contests import __main__ as command
from rlef_jax.data.code_contests import build as build_module
from rlef_jax.data.code_contests import release
from rlef_jax.data.code_contests.build import build
from rlef_jax.data.code_contests.counts import several_answers
from rlef_jax.data.code_contests.reader import Split, open_split
from rlef_jax.data.problem_files import find_problem
from rlef_jax.errors import ConfigError
from tests.helpers.contest_rows import TESTS, as_proto, row, rows, write_parquet

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data" / "code_contests"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real problems in {SHARED}")
SOURCES = ("UNKNOWN_SOURCE", "CODECHEF", "CODEFORCES", "HACKEREARTH", "CODEJAM", "ATCODER", "AIZU")


def written(folder: Path, train: list, valid: list | None = None) -> Path:
    folder.mkdir()
    half = len(train) // 2
    write_parquet(folder / "train-00000-of-00002.parquet", train[:half])
    write_parquet(folder / "train-00001-of-00002.parquet", train[half:])
    write_parquet(folder / "valid-00000-of-00001.parquet", train[:3] if valid is None else valid)
    return folder


def assert_is(problem, r, *, solutions=10, incorrect=10):
    """Compares a problem with its row, as pyarrow reads it."""
    assert (problem.name, problem.description) == (r["name"], r["description"])
    for kind in TESTS:
        tests = [(t.input, t.output) for t in getattr(problem, kind)]
        assert tests == list(zip(r[kind]["input"], r[kind]["output"])), kind
    for kind, most in (("solutions", solutions), ("incorrect_solutions", incorrect)):
        python3 = [t for lang, t in zip(r[kind]["language"], r[kind]["solution"]) if lang == 3]
        assert list(getattr(problem, kind)) == python3[:most]
    limit = r["time_limit"]
    assert problem.time_limit_s == (limit and (limit["seconds"] * 10**9 + limit["nanos"]) / 1e9)
    assert problem.memory_limit_bytes == (r["memory_limit_bytes"] or None)
    tags = problem.tags
    for name in ("cf_rating", "cf_contest_id", "cf_index", "input_file", "output_file", "is_description_translated"):
        assert tags[name] == r[name], name
    assert tags["cf_tags"] == tuple(r["cf_tags"])
    assert tags["source"] == SOURCES[r["source"]]


def no_runs(run):
    raise AssertionError("contest problems take no reference's run")


def is_kept(r):
    return bool(r["public_tests"]["input"] and r["private_tests"]["input"])


def same_folder(one: Path, other: Path) -> None:
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_every_field_comes_back_and_training_drops_what_it_cannot_use(tmp_path):
    train = rows(40)
    counts = build(written(tmp_path / "source", train), tmp_path / "out", solutions=2, incorrect=3)
    kept_rows = [r for r in train if is_kept(r)]
    no_public = sum(not r["public_tests"]["input"] for r in train)
    assert counts["train"]["read"] == 40 and counts["train"]["kept"] == len(kept_rows) < 40
    assert counts["train"]["dropped"] == {
        "no public tests": no_public,
        "no private tests": 40 - no_public - len(kept_rows),
    }
    assert counts["valid"]["kept"] == 3 and "dropped" not in counts["valid"]  # evaluation splits keep all problems
    problems = open_split(str(tmp_path / "out"), "train")
    assert len(problems) == len(kept_rows)
    for i, (problem, r) in enumerate(zip(problems, kept_rows, strict=True)):
        assert_is(problem, r, solutions=2, incorrect=3)
        assert problem.tags["id"] == f"train/{i}"
    assert problems[-1] == problems[len(kept_rows) - 1] and problems[2:4] == [problems[2], problems[3]]
    with pytest.raises(IndexError):
        problems[len(kept_rows)]


def test_the_counts_are_those_of_the_rows(tmp_path):
    train = rows(40, seed=1)
    counts = build(written(tmp_path / "source", train), tmp_path / "out")["train"]
    kept_rows = [r for r in train if is_kept(r)]
    for kind in TESTS:
        assert counts["tests"][kind.removesuffix("_tests")] == sum(len(r[kind]["input"]) for r in kept_rows)
    assert counts["most_tests"] == max(sum(len(r[kind]["input"]) for kind in TESTS) for r in kept_rows)
    assert counts["facts"] == {
        "no_time_limit": sum(r["time_limit"] is None for r in kept_rows),
        "no_memory_limit": sum(r["memory_limit_bytes"] == 0 for r in kept_rows),
        "no_public": 0,
        "no_hidden": 0,
        "several_answers": sum("any of them" in r["description"] for r in kept_rows),
        "files": sum(bool(r["input_file"] or r["output_file"]) for r in kept_rows),
        "no_solution": sum(3 not in r["solutions"]["language"] for r in kept_rows),
        "no_incorrect": sum(3 not in r["incorrect_solutions"]["language"] for r in kept_rows),
    }
    sizes = [p.stat().st_size for p in (tmp_path / "out").glob("*train*")]
    assert 0 < counts["largest"] < counts["bytes"] and len(sizes) == 10  # 2 files, 5 row groups each


@needs_shared
def test_real_problems_come_back_in_every_field(tmp_path):
    build(SHARED, tmp_path / "out")
    for split, count in (("train", 200), ("valid", 20), ("test", 20)):
        expected = pq.read_table(SHARED / f"{split}-00000-of-00001.parquet").to_pylist()
        problems = open_split(str(tmp_path / "out"), split)
        assert len(problems) == count
        for problem, r in zip(problems, expected, strict=True):
            assert_is(problem, r)


def as_json_lines(folder: Path, of_split: dict[str, list]) -> Path:
    folder.mkdir()
    for split, some in of_split.items():
        text = "".join(
            json.dumps(as_proto(r, camel=i % 2 == 0, names=i % 3 > 0), ensure_ascii=i % 2 == 0) + "\n"
            for i, r in enumerate(some)
        )
        if split == "valid":
            (folder / f"code_contests_{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        else:
            (folder / f"code_contests_{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def problems_of(folder: Path, split: str) -> Split:
    return open_split(str(folder), split)


def assert_both_forms_agree(tmp_path, parquet: Path, of_split: dict[str, list]) -> None:
    one = build(parquet, tmp_path / "parquet")
    other = build(as_json_lines(tmp_path / "lines", of_split), tmp_path / "json")
    assert one == other
    for split in of_split:
        assert list(problems_of(tmp_path / "parquet", split)) == list(problems_of(tmp_path / "json", split))


@needs_shared
def test_both_forms_of_real_problems_are_equal(tmp_path, monkeypatch):
    monkeypatch.setattr(release, "RANGE_BYTES", 100_000)  # so that many units share a file
    of_split = {
        split: pq.read_table(SHARED / f"{split}-00000-of-00001.parquet").to_pylist()
        for split in ("train", "valid", "test")
    }
    assert_both_forms_agree(tmp_path, SHARED, of_split)
    assert len(list((tmp_path / "json").glob("*train.array_record*"))) > 5


def test_both_forms_of_awkward_problems_are_equal(tmp_path):
    train = rows(30, seed=2)
    assert_both_forms_agree(tmp_path, written(tmp_path / "source", train), {"train": train, "valid": train[:3]})


def test_ranges_of_a_file_hold_each_line_once(tmp_path, monkeypatch):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps({"name": "x" * (i % 4), "cfRating": i}) for i in range(12)))
    for size in range(1, path.stat().st_size + 2):
        monkeypatch.setattr(release, "RANGE_BYTES", size)
        problems = [p for unit in release.units(tmp_path) for p, _ in release.read(unit, solutions=1, incorrect=1)]
        assert [p.tags["cf_rating"] for p in problems] == list(range(12)), size


@pytest.mark.parametrize(
    "number, index, name",
    [(0, "", "UNKNOWN_DIFFICULTY"), (5, "", "HARDEST"), (7, "A", "A"), (17, "K", "K"), (19, "L", "L"), (19, "M", "M"),
     (18, "L", "L"), (28, "V2", "V"), (28, "U", "U"), (29, "V", "V"), (19, "", "L"), (99, "", "UNKNOWN_DIFFICULTY")],
)  # fmt: skip
def test_the_index_decides_where_readers_disagree_on_difficulties(number, index, name):
    assert release.parquet_difficulty(number, index) == name


@pytest.mark.parametrize(
    "text, expected",
    [("If there are multiple answers, print any of them.", True), ("You may print the words in any order", True),
     ("If there are several possible solutions, output any.", True), ("You can print any suitable array", True),
     ("Find any valid sequence", True), ("Print the largest sum.", False), ("Is there any way to win?", False),
     ("Each test has several lines.", False), ("Answer the queries in order", False)],
)  # fmt: skip
def test_statements_that_take_several_answers(text, expected):
    assert several_answers(text) is expected


# Builds that kill themselves without cleaning up at their n-th step: after reading a row, before or after moving a file
# to its final name. Each continues from the previous one. Prints how each ended, and its shards.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from rlef_jax.data.code_contests import build
from rlef_jax.data.code_contests.examples import features
features()  # what is slow to import, once
source, out = map(Path, sys.argv[1:3])
replace = os.replace
def run(left):
    def step(*_):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def replaced(*args):
        step(); replace(*args); step()
    os.replace = replaced
    build.build(source, out, report=step)
for at in sys.argv[3:]:
    if (child := os.fork()) == 0:
        try:
            run(int(at))
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    shards = {p.name: p.stat().st_ino for p in out.glob("*.array_record-*") if p.suffix != ".part"}
    print(json.dumps([os.WIFSIGNALED(status), (out / build.DONE).is_file(), shards]), flush=True)
"""


def test_a_build_killed_at_any_point_goes_on_and_ends_with_the_same_bytes(tmp_path):
    source, out = written(tmp_path / "source", rows(24, seed=3)), tmp_path / "out"
    build(source, tmp_path / "whole")
    # The first dies before it writes a plan, others within shards, between a shard and its counts, and in the metadata.
    kills = ["1", "2", "5", "9", "7", "8", "6", "10", "5", "7", "9", "6", "3", "7", "9"]
    process = subprocess.run(
        [sys.executable, "-c", KILLED, source, out, *kills], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    old_shards, unfinished = {}, 0
    for line in process.stdout.splitlines():
        killed, complete, shards = json.loads(line)
        assert old_shards.items() <= shards.items()  # finished shards are kept, not made again
        old_shards, unfinished = shards, unfinished + (killed and not complete)
    assert unfinished >= 9
    build(source, out)
    same_folder(out, tmp_path / "whole")
    (out / build_module.shard_name("train", 1, 6)).unlink()
    build(source, out)
    same_folder(out, tmp_path / "whole")


def test_what_cannot_be_built_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="--source: no folder"):
        build(tmp_path / "none", tmp_path / "out")
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(ConfigError, match="has no file of CodeContests"):
        build(source, tmp_path / "out")
    write_parquet(source / "train.parquet", rows(2))
    (source / "test.jsonl").write_text("")
    with pytest.raises(ConfigError, match="parquet files and JSON lines"):
        build(source, tmp_path / "out")
    (source / "test.jsonl").unlink()
    pq.write_table(pq.read_table(source / "train.parquet").drop_columns(["cf_tags"]), source / "train.parquet")
    with pytest.raises(ConfigError, match="it has no column cf_tags"):
        build(source, tmp_path / "out")
    (source / "train.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match="not a parquet file"):
        build(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="not a parquet file"):
        find_problem(str(source / "train.parquet"), "x", no_runs)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="not empty"):
        build(written(tmp_path / "good", rows(4)), tmp_path / "full")


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"source": "MARS"}', '{"timeLimit": "3 h"}', '{"publicTests": [{"input": 3}]}',
     '{"name": "\\ud800", "publicTests": [{"input": "1", "output": "1"}]}',
     '{"difficulty": 18}', '{"publicTests": 7}', '{"memoryLimitBytes": "many"}', '{"timeLimit": "1.xs"}'],
)  # fmt: skip
def test_lines_of_another_kind_are_named(tmp_path, line):
    source = tmp_path / "source"
    source.mkdir()
    good = json.dumps(as_proto(row("good"), camel=True))
    (source / "valid.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ConfigError, match=r"valid.jsonl: (byte \d+|problem)"):
        build(source, tmp_path / "out")


def test_another_source_does_not_go_on_with_a_build(tmp_path):
    source = written(tmp_path / "source", rows(8))
    build(source, tmp_path / "out")
    with pytest.raises(ConfigError, match="another incorrect"):
        build(source, tmp_path / "out", incorrect=0)
    write_parquet(source / "test.parquet", rows(2))
    with pytest.raises(ConfigError, match="another source"):
        build(source, tmp_path / "out")


def test_the_command_prints_the_table_and_an_error_in_one_line(tmp_path, capsys, monkeypatch):
    source = written(tmp_path / "source", rows(10, seed=4))
    arguments = ["code_contests", f"--source={source}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    command.main()
    text = capsys.readouterr().out
    assert "dropped: no public tests" in text and "problems kept" in text and "set config.data.dir to it" in text
    command.main()
    assert capsys.readouterr().out.splitlines()[:-1] == text.splitlines()[:-1]  # it has finished already
    monkeypatch.setattr(sys, "argv", [*arguments, "--solutions=-1"])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2 and capsys.readouterr().err == "error: --solutions: 0 or more; it is -1\n"
