"""The problem of each episode: permutations, disjoint shares, exclusion rules, and their config."""

from __future__ import annotations

import collections
import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlef_jax import config as config_lib
from rlef_jax.data import mini_contests, sources
from rlef_jax.data.code_contests import reader, references
from rlef_jax.data.code_contests.build import build
from rlef_jax.data.code_contests.order import epoch_order, position_at
from rlef_jax.data.code_contests.reader import open_split, problem_at
from rlef_jax.data.code_contests.references import Checked, Report
from rlef_jax.data.sources import (
    LeftOut,
    Source,
    check_splits,
    evaluation_problems,
    fit,
    split_bounds,
    training_problems,
)
from rlef_jax.errors import ConfigError
from tests.helpers.contest_rows import row, write_parquet

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**31 - 1)


@given(SIZES, SEEDS, st.integers(0, 5))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    positions = [position_at(size, seed, epoch * size + i) for i in range(size)]
    assert sorted(positions) == list(range(size))


@given(st.integers(20, 300), SEEDS)
def test_epochs_and_seeds_differ(size, seed):
    assert not np.array_equal(epoch_order(size, seed, 0), epoch_order(size, seed, 1))
    assert not np.array_equal(epoch_order(size, seed, 0), epoch_order(size, seed + 1, 0))


def test_the_order_is_that_of_every_version():
    """A run that is resumed under another version of NumPy, or of this code, must go on with the same problems."""
    assert [position_at(10, 0, i) for i in range(20)] == [9, 7, 0, 8, 6, 4, 3, 2, 5, 1, 5, 4, 8, 1, 6, 2, 3, 0, 7, 9]


def test_shuffling_is_global_and_even():
    first = collections.Counter(position_at(7, seed, 0) for seed in range(7000))
    assert all(850 < first[i] < 1150 for i in range(7)), first


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    (base / "source").mkdir()
    fields = ("Print any of them.", "Add.")
    train = [
        row(f"p{i}", description=fields[i % 3 > 0] + " word" * i, input_file="in.txt" if i == 4 else "")
        for i in range(23)
    ]
    write_parquet(base / "source" / "train.parquet", train)
    write_parquet(base / "source" / "valid.parquet", train[:5])
    write_parquet(base / "source" / "test.parquet", train[:3])
    build(base / "source", base / "out")
    return str(base / "out")


@given(st.integers(0, 40), st.integers(1, 30), st.integers(1, 6), st.integers(0, 3))
def test_shares_are_disjoint_and_the_stream_is_the_same_however_many_read(folder, step, count, processes, seed):
    source = Source("code_contests", folder)
    edges = [count * p // processes for p in range(processes + 1)]
    shares = [range(a, b) for a, b in zip(edges, edges[1:])]
    parts = [training_problems(source, "train", seed, step, count, share) for share in shares]
    together = [p.tags["id"] for part in parts for p in part]
    alone = [problem_at(folder, "train", seed, step * count + i).tags["id"] for i in range(count)]
    assert together == alone


def test_steps_go_through_an_epoch_before_a_problem_comes_again(folder):
    source = Source("code_contests", folder)
    stream = [p.name for step in range(23) for p in training_problems(source, "train", 1, step, 4)]
    for epoch in range(4):
        assert sorted(stream[23 * epoch : 23 * (epoch + 1)]) == sorted(f"p{i}" for i in range(23))


def words(problem):
    return [sum(word.encode()) for word in problem.description.split()]


def test_longer_prompts_are_left_out_counted_and_remembered(folder):
    source = Source("code_contests", folder, max_prompt_tokens=12)
    lines, prompted, reported = [], [], []

    def counting(problem):
        prompted.append(problem)
        return words(problem)

    fitted = fit(source, ["train", "valid", "train"], counting, tell=lines.append, report=lambda *a: reported.append(a))
    unfiltered = open_split(folder, "train")
    short = [i for i, p in enumerate(unfiltered) if len(words(p)) <= 12]
    assert fitted.positions["train"] == tuple(short) and 0 < len(short) < 23
    assert fitted.positions["valid"] == tuple(range(5))
    rule = "with a prompt longer than max_prompt_tokens=12"
    assert lines == [
        f"train: {len(short)} of 23 problems; left out: {23 - len(short)} {rule}",
        f"valid: 5 of 5 problems; left out: 0 {rule}",
    ]
    assert fitted.left_out["train"] == LeftOut(23, len(short), {rule: 23 - len(short)})
    assert reported[-1] == ("prompts of valid", 5, 5)
    stream = [p.tags["id"] for p in training_problems(fitted, "train", 0, 0, 2 * len(short))]
    assert collections.Counter(stream) == {f"train/{i}": 2 for i in short}
    assert [p.name for p in evaluation_problems(fitted, "valid", 2)] == ["p0", "p1"]

    prompted.clear()
    again = fit(dataclasses.replace(source, max_prompt_tokens=9), ["train"], counting, tell=lines.append)
    assert len(again.positions["train"]) < len(short) and len(prompted) <= reader._PROBES  # the lengths were cached
    longer = fit(source, ["train"], lambda p: words(p) * 2, tell=lines.append)  # another tokenizer counts anew
    assert len(longer.positions["train"]) < len(short)
    with pytest.raises(ConfigError, match="the rules leave no problem of train"):
        fit(dataclasses.replace(source, max_prompt_tokens=1), ["train"], words, tell=lines.append)


def test_many_problems_are_counted_once_for_a_tokenizer(tmp_path):
    (tmp_path / "source").mkdir()
    write_parquet(tmp_path / "source" / "train.parquet", [row(f"p{i}") for i in range(300)], group=100)
    build(tmp_path / "source", tmp_path / "out")
    prompted = []

    def counting(problem):
        prompted.append(problem)
        return words(problem)

    for expected in (300 + 60, 60):  # every fifth prompt identifies the tokenizer
        prompted.clear()
        fit(Source("code_contests", str(tmp_path / "out"), max_prompt_tokens=9), ["train"], counting, tell=str)
        assert len(prompted) == expected


def test_exclusions(folder, tmp_path):
    lines = []
    rules = Source("code_contests", folder, exclude=("several_answers", "files"))
    positions = fit(rules, ["train"], words, tell=lines.append).positions["train"]
    assert positions == tuple(i for i in range(23) if i % 3 and i != 4)
    assert lines == [f"train: {len(positions)} of 23 problems; left out: 8 several_answers, 1 files"]
    unchecked = Source("code_contests", folder, exclude=("references_fail",))
    with pytest.raises(ConfigError, match="not all references of valid have been run; do: python -m"):
        fit(unchecked, ["valid"], words)
    report = Report(
        "valid",
        {},
        (Checked("p0", ("passed",)), Checked("p1", ("crash", "passed")), Checked("p2", ("limits",)), Checked("p3", ()),
         Checked("p4", ("judge",))),
    )  # fmt: skip
    path = references.report_path(type(tmp_path)(folder), "valid")
    path.write_text(json.dumps(references.to_json(report)))
    try:
        assert fit(unchecked, ["valid"], words, tell=lines.append).positions["valid"] == (0, 1, 3, 4)
        path.write_text("{}")
        with pytest.raises(ConfigError, match="delete it and run the check again"):
            fit(unchecked, ["valid"], words)
    finally:
        path.unlink()


def test_sources_that_cannot_be_read_are_one_line(folder, tmp_path):
    command = "build it: python -m rlef_jax.data.code_contests --source=FOLDER --output="
    absent = Source("code_contests", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=re.escape(f"config.data.dir: no CodeContests in '{absent.dir}'; {command}")):
        check_splits(absent, train="train", evaluated={})
    with pytest.raises(ConfigError, match="config.data.dir: give the folder"):
        check_splits(Source("code_contests"), train="train", evaluated={})
    (tmp_path / "build.json").write_text("{}")
    with pytest.raises(ConfigError, match="was interrupted; go on"):
        evaluation_problems(Source("code_contests", str(tmp_path)), "valid")
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(ConfigError, match="build it anew"):
        open_split(str(tmp_path), "valid")
    source = Source("code_contests", folder)
    with pytest.raises(ConfigError, match="config.eval.split: 'test_500' is none of train, valid, test"):
        check_splits(source, train="train", evaluated={"eval.split": "test_500"})
    with pytest.raises(ConfigError, match="config.data.train_split: 'dev' is none of"):
        training_problems(source, "dev", 0, 0, 1)
    with pytest.raises(ConfigError, match="config.eval.split is empty: give one of train, valid, test"):
        evaluation_problems(source, "")
    assert [len(evaluation_problems(source, s)) for s in ("train", "valid", "test")] == [23, 5, 3]
    assert split_bounds(source, evaluation_problems(source, "test")) == {}


def test_families():
    source = Source("mini_contests", families=("two_numbers", "counts"))
    names = {p.tags["family"] for p in training_problems(source, "train", 0, 0, 12)}
    assert names == {"two_numbers", "counts"}
    assert [p.tags["family"] for p in evaluation_problems(source, "valid", 40)] == [
        p.tags["family"] for p in mini_contests.eval_split("valid", ("two_numbers", "counts"))[:40]
    ]
    with pytest.raises(ConfigError, match="config.data.families: no family 'sums'; there is average, brackets"):
        check_splits(dataclasses.replace(source, families=("sums",)), train="train", evaluated={})
    with pytest.raises(ConfigError, match="no family 'machine'"):  # held out of training
        check_splits(dataclasses.replace(source, families=("machine",)), train="train", evaluated={})
    with pytest.raises(ValueError, match="has none of find"):
        mini_contests.problem_at("held_out_families", 0, 0, ("find",))
    assert training_problems("mini_contests", "train", 0, 1, 2) == [
        mini_contests.problem_at("train", 0, i) for i in (2, 3)
    ]


def test_a_config_becomes_a_source(folder):
    config = config_lib.load(
        "configs/smollm2_135m.py:code_contests", overrides={"data.dir": folder, "data.exclude": ("files",)}
    )
    assert Source.of(config) == Source("code_contests", folder, exclude=("files",), max_prompt_tokens=768)
    assert Source.of(config_lib.load("configs/smollm2_135m.py:easy")).families == ("two_numbers", "reduce", "counts")
    assert Source.of(config_lib.load("configs/llama31_70b.py")).dir == "data/code_contests"
    assert sources.SOURCES == ("mini_contests", "code_contests", "jsonl")
