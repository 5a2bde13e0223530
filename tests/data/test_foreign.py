"""Damaged downloads and other files: every reader reports one line with file, record and fix."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlef_jax.data import benchmarks, foreign
from rlef_jax.data.code_contests.build import DONE, build, read_plan
from rlef_jax.data.problem_files import find_problem
from rlef_jax.errors import ConfigError
from rlef_jax.evaluation.recorded import read_recorded
from rlef_jax.types import Problem, TestCase
from tests.helpers.contest_rows import as_proto, row, rows, write_parquet

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"  # `str.splitlines` treats them as line ends
PROBLEM = Problem("p", "d", (TestCase("1", "1"),), ())


def no_runs(run):
    raise AssertionError("these problems take no reference's run")


def samples(count=40):
    rows = [{"problem": "p", "solution": f"print({i})  # {SEPARATORS}"} for i in range(count)]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows).encode()


def contests(count=30):
    return "".join(json.dumps(as_proto(r, camel=True)) + "\n" for r in rows(count)).encode()


def test_only_a_newline_ends_a_line_and_a_mark_of_byte_order_is_dropped(tmp_path):
    for name, data in (
        ("plain.jsonl", samples()),
        ("bom.jsonl", b"\xef\xbb\xbf" + samples()),
        ("windows.jsonl", samples().replace(b"\n", b"\r\n\r\n")),
        ("packed.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + samples())),
        ("unpacked_by_a_browser.jsonl.gz", samples()),
        ("two_members.jsonl.gz", gzip.compress(samples(20)) + gzip.compress(samples()[len(samples(20)) :])),
    ):
        (tmp_path / name).write_bytes(data)
        rollouts = read_recorded(tmp_path / name, [PROBLEM])
        assert [r.programs[0] for r in rollouts] == [f"print({i})  # {SEPARATORS}" for i in range(40)], name
    (tmp_path / "p.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"name": f"a{SEPARATORS}", "public_tests": []}).encode()
    )
    assert find_problem(str(tmp_path / "p.json"), "", no_runs).name == f"a{SEPARATORS}"


# Each with a part of its error message. `good` is compressed JSON lines.
DAMAGE = {
    "cut": (lambda good: good[: len(good) // 2], "Compressed file ended"),
    "cut in its header": (lambda good: good[:5], "download it again"),
    "cut at its end": (lambda good: good[:-3], "Compressed file ended"),
    "another checksum": (lambda good: good[:-8] + bytes(8), "CRC check failed"),
    "followed by garbage": (lambda good: good + b"garbage", "Not a gzipped file"),
    "zeros": (lambda good: good[:100] + bytes(len(good) - 100), "damaged"),
    "empty": (lambda good: b"", "is empty"),
    "packed nothing": (lambda good: gzip.compress(b""), "is empty"),
    "a pointer": (lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a packed pointer": (lambda good: gzip.compress(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "a page": (lambda good: b"\n<!DOCTYPE html>\n<html>Sign in</html>", "is a web page"),
    "a wide page": (lambda good: "<html>".encode("utf-16"), "is UTF-16"),
    "no text": (lambda good: gzip.compress(gzip.decompress(good).replace(b"1", b"\xff")), "line 1: not UTF-8 text"),
    "no JSON": (lambda good: gzip.compress(gzip.decompress(good)[:-9]), "not JSON"),
    "deep": (lambda good: gzip.compress(b"[" * 100_000), "line 1: not JSON"),
    "a list": (lambda good: gzip.compress(gzip.decompress(good) + b"[1]\n"), "not a JSON object"),
}


def error_line(read, path) -> str:
    with pytest.raises(ConfigError) as raised:
        read()
    text = str(raised.value)
    assert str(path) in text and "\n" not in text and len(text) < 600
    return text


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_for_every_reader(tmp_path, name):
    damage, words = DAMAGE[name]
    for where, good, read in (
        ("HumanEval.jsonl.gz", samples(), lambda p: benchmarks.load("human_eval", p.parent, runner=no_runs)),
        ("samples.jsonl.gz", samples(), lambda p: read_recorded(p, [PROBLEM])),
        ("problems.jsonl.gz", samples(), lambda p: find_problem(str(p), "x", no_runs)),
        ("test.jsonl", samples(), lambda p: benchmarks.load("livecodebench", p.parent)),  # still gzipped
        ("train.jsonl.gz", contests(), lambda p: build(p.parent, tmp_path / "built")),
    ):
        path = tmp_path / where.replace(".", "_") / where
        path.parent.mkdir()
        path.write_bytes(damage(gzip.compress(good)))
        text = error_line(lambda read=read, path=path: read(path), path)
        if where in ("HumanEval.jsonl.gz", "samples.jsonl.gz"):  # others may report an earlier line
            assert words in text


def test_what_is_no_file_is_one_line(tmp_path):
    (tmp_path / "HumanEval.jsonl").mkdir()
    (tmp_path / "train.parquet").mkdir()
    assert "is a folder" in error_line(
        lambda: benchmarks.load("human_eval", tmp_path, runner=no_runs), "HumanEval.jsonl"
    )
    assert "is a folder" in error_line(lambda: read_recorded(tmp_path, [PROBLEM]), tmp_path)
    assert "is a folder" in error_line(lambda: build(tmp_path, tmp_path / "built"), "train.parquet")
    assert "no file" in error_line(lambda: find_problem(str(tmp_path / "x.jsonl"), "", no_runs), "x.jsonl")


def test_a_file_of_another_release_is_named(tmp_path):
    (tmp_path / "HumanEval.jsonl").write_text(json.dumps({"task_id": "HumanEval/1"}))
    (tmp_path / "HumanEvalPlus-OriginFmt.jsonl").write_text(json.dumps({"task_id": "HumanEval/0"}))
    text = error_line(
        lambda: benchmarks.load("human_eval_plus", tmp_path, runner=no_runs), tmp_path / "HumanEval.jsonl"
    )
    assert "no task HumanEval/0" in text


def test_a_build_goes_on_after_a_damaged_file_is_downloaded_again(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_parquet(source / "test.parquet", rows(6))
    write_parquet(source / "train-0.parquet", rows(6, seed=1))
    good = (source / "train-0.parquet").read_bytes()
    middle = pq.ParquetFile(source / "train-0.parquet").metadata.row_group(1).column(0).data_page_offset
    (source / "train-0.parquet").write_bytes(good[:middle] + bytes(40) + good[middle + 40 :])
    assert "download it again" in error_line(lambda: build(source, out), source / "train-0.parquet")
    shards = {path.name.removeprefix("code_contests-train.array_record-") for path in out.glob("*train*")}
    assert not (out / DONE).exists() and "00001-of-00002" not in shards and "00001-of-00002.part" in shards
    with pytest.raises(ConfigError, match="was interrupted; go on"):
        read_plan(out)
    (source / "train-0.parquet").write_bytes(good[:middle])  # with another size
    error_line(lambda: build(source, out), source / "train-0.parquet")
    (source / "train-0.parquet").write_bytes(good)
    assert build(source, out) == build(source, tmp_path / "fresh")


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz", "jsonl"])
def test_any_flipped_bytes_are_read_over_or_one_line(tmp_path, kind):
    rng = random.Random(0)
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / f"train.{kind}"
    if kind == "parquet":
        write_parquet(path, rows(20))
    else:
        path.write_bytes(gzip.compress(contests()) if kind.endswith("gz") else contests())
    good, failed = path.read_bytes(), 0
    for number in range(25):
        data = bytearray(good)
        for _ in range(rng.choice([1, 3, 50])):
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        try:
            build(path.parent, tmp_path / f"out{number}")
        except ConfigError as error:
            failed += 1
            assert str(path) in str(error) and "\n" not in str(error), error
    assert failed > 5


def test_counts_that_were_damaged_are_made_again(tmp_path):
    (tmp_path / "source").mkdir()
    write_parquet(tmp_path / "source" / "test.parquet", [row("a"), row("b")])
    counts = build(tmp_path / "source", tmp_path / "out")
    for path in (tmp_path / "out" / "counts").iterdir():
        path.write_text("{")
    assert build(tmp_path / "source", tmp_path / "out") == counts


def test_every_reader_goes_through_here():
    """No other module that reads data splits text into lines or opens archives."""
    package = Path(foreign.__file__).parents[1]
    readers = [*package.glob("data/**/*.py"), *package.glob("evaluation/*.py"), package / "judge.py"]
    for path in readers:
        text = path.read_text()
        assert "splitlines" not in text, path
        assert "import gzip" not in text or path.name == "foreign.py", path
