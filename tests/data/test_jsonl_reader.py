"""Own problems by position: files are checked once, splits and names hold over files, prompts are counted once."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pickle

import numpy as np
import pytest

from rlef_jax import config as config_lib
from rlef_jax.data import sources
from rlef_jax.data.jsonl import index as index_module
from rlef_jax.data.jsonl.index import cache_of, open_index
from rlef_jax.data.jsonl.reader import open_split
from rlef_jax.data.jsonl.schema import line_of
from rlef_jax.data.sources import MIX, Share, Source, check_splits, evaluation_problems, fit, training_problems
from rlef_jax.errors import ConfigError
from rlef_jax.training.inputs import problems_identity
from rlef_jax.types import Problem, TestCase

HIDDEN = (TestCase("2", "2"),)


def own(name, description="Print it.", private=HIDDEN):
    return Problem(name, description, (TestCase("1", "1"),), private)


def written(path, problems, split=""):
    """Writes problems to a file; its name."""
    text = "".join(line_of(problem, split) + "\n" for problem in problems).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


@pytest.fixture
def checks(monkeypatch):
    """The files whose lines are checked, as they are; nothing is known in this process of earlier checks."""
    checked = []
    scan = index_module._scan

    def counted(path, *rest):
        checked.append(path.name)
        return scan(path, *rest)

    def forget():
        index_module._opened.cache_clear()
        checked.clear()

    monkeypatch.setattr(index_module, "_scan", counted)
    return checked, forget


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz"])
def test_a_file_is_checked_once_until_it_changes(tmp_path, checks, name):
    checked, forget = checks
    path = tmp_path / name
    problems = [own(f"p{i}") for i in range(5)]
    written(path, problems)
    assert list(open_split([str(path)], "train")) == problems and checked == [name]
    forget()  # as in another process
    assert list(open_split([str(path)], "valid")) == problems and not checked
    before = open_index(path).content
    forget()
    written(path, [*problems, own("new")])
    assert len(open_split([str(path)], "train")) == 6 and checked == [name]
    assert open_index(path).content != before
    kinds = sorted(p.name.partition("-")[0] for p in cache_of(path).iterdir())
    assert kinds == (["index", "lines"] if name.endswith(".gz") else ["index"])  # none of the file as it was before


def test_what_cannot_be_remembered_is_checked_again(tmp_path, checks):
    checked, forget = checks
    path = tmp_path / "own.jsonl"
    written(path, [own("p")])
    cache_of(path).write_text("in the way")
    for _ in range(2):
        forget()
        assert open_split([str(path)], "train")[0] == own("p") and checked == ["own.jsonl"]
    packed = tmp_path / "own.jsonl.gz"
    written(packed, [own("p")])
    cache_of(packed).write_text("in the way")
    with pytest.raises(ConfigError, match="own.jsonl.gz can't be unpacked to .*: unpack it yourself, with gunzip"):
        open_index(packed)


def test_a_damaged_cache_is_made_anew(tmp_path, checks):
    """Cut anywhere, or with any one byte changed: what is read is what was written, or nothing."""
    checked, forget = checks
    problems = [own("p"), own("q", "Print it twice.")]
    path = tmp_path / "own.jsonl"
    source = Source("jsonl", files={"train": (written(path, problems),)}, max_prompt_tokens=2)

    def prompted():
        forget()
        lines = []
        fitted = fit(source, ["train"], lambda problem: [1] * len(problem.description.split()), tell=lines.append)
        assert training_problems(fitted, "train", 0, 0, 1) == problems[:1]

    prompted()
    (index,) = cache_of(path).glob("index-*")
    (lengths,) = cache_of(path).glob("prompt_tokens-*")
    for saved in (index, lengths):
        whole = saved.read_bytes()
        arrays = index_module.saved_arrays(saved)
        for cut in (0, 4, len(whole) // 2, len(whole) - 1):
            saved.write_bytes(whole[:cut])
            prompted()
            assert index_module.saved_arrays(saved).keys() == arrays.keys()  # it is whole again
            assert checked == (["own.jsonl"] if saved == index else [])
        whole = saved.read_bytes()
        arrays = index_module.saved_arrays(saved)
        for place in range(0, len(whole), 11):
            saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
            read = index_module.saved_arrays(saved)
            assert all(np.array_equal(read[name], arrays[name]) for name in read if name in arrays), place
        saved.write_bytes(whole)


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz"])
def test_processes_of_one_number_do_not_share_what_they_are_writing(tmp_path, monkeypatch, name):
    """As in containers that share a folder: one checks the file while the other does so."""
    path = tmp_path / name
    problems = [own(f"p{i}") for i in range(3)]
    written(path, problems)
    scan, save = index_module._scan, np.savez
    inside = []

    def other_process():
        if not inside:
            inside.append(True)
            index_module._opened.cache_clear()
            assert list(open_split([str(path)], "train")) == problems

    def scanned(*args):
        result = scan(*args)
        other_process()
        return result

    def saved(file, **arrays):
        save(file, **arrays)
        inside.clear()
        monkeypatch.setattr(np, "savez", save)
        other_process()

    monkeypatch.setattr(index_module, "_scan", scanned)
    monkeypatch.setattr(np, "savez", saved)
    assert list(open_split([str(path)], "train")) == problems
    index_module._opened.cache_clear()
    assert list(open_split([str(path)], "train")) == problems
    assert not list(cache_of(path).glob("*.part*"))


def test_other_content_of_the_same_size_and_time_is_noticed(tmp_path, checks):
    _, forget = checks
    path = tmp_path / "own.jsonl"
    written(path, [own("p"), own("q")])
    state = path.stat()
    before = open_index(path).content
    written(path, [own("p"), own("r")])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    for _ in range(2):  # in this process, and in another
        assert open_index(path).content != before
        assert [p.name for p in open_split([str(path)], "train")] == ["p", "r"]
        forget()


def test_a_packed_file_that_is_touched_is_read_on(tmp_path):
    path = tmp_path / "own.jsonl.gz"
    written(path, [own("p")])
    assert open_split([str(path)], "train")[0] == own("p")
    os.utime(path, (1, 1))  # it is unpacked again, to another name
    assert open_split([str(path)], "train")[0] == own("p")


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path):
    path = tmp_path / "own.jsonl"
    split = open_split([written(path, [own("p"), own("q")])], "train")
    written(path, [own("longer than before"), own("q")])
    with pytest.raises(ConfigError, match="own.jsonl:2: the file has changed since it was checked: start anew"):
        split[1]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("most", [0, 5])
def test_a_run_goes_on_with_the_files_that_it_began_with(tmp_path, mixed, most):
    """Other content, shorter too, is refused by name, in the process that finds problems too; it may be put back."""
    path = tmp_path / "own.jsonl"
    before = [own(f"p{i}") for i in range(4)]
    files = {split: (written(path, before),) for split in ("train", "test")}
    source = Source("jsonl", files=files, max_prompt_tokens=most)
    mix = (Share("own", 1.0, source, "train"),) if mixed else ()
    fitted = fit(dataclasses.replace(source, mix=mix), ["train", "test"], lambda problem: [1], tell=str)
    fitted = pickle.loads(pickle.dumps(fitted))
    first = training_problems(fitted, "train", 0, 0, 4)
    for changed in ([own("new"), *before[1:]], before[:1]):
        written(path, changed)
        with pytest.raises(ConfigError) as raised:
            training_problems(fitted, "train", 0, 1, 4)
        assert str(raised.value) == f"{path} has changed since the run began: put it back as it was, or start anew"
        with pytest.raises(ConfigError, match="own.jsonl has changed since the run began"):
            evaluation_problems(fitted, "test")
    written(path, before)
    assert training_problems(fitted, "train", 0, 0, 4) == first
    assert list(evaluation_problems(fitted, "test")) == before


def test_a_split_has_the_lines_that_say_so_and_those_that_say_nothing(tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    lines = [line_of(own("a"), "train"), line_of(own("b")), line_of(own("c"), "test"), line_of(own("d"), "train")]
    mixed.write_text("\n".join(lines))
    other = written(tmp_path / "other.jsonl", [own("e")])
    assert [p.name for p in open_split([str(mixed), other], "train")] == ["a", "b", "d", "e"]
    assert [p.name for p in open_split([str(mixed)], "test")] == ["b", "c"]
    tested = written(tmp_path / "tested.jsonl", [own("f")], "test")
    assert [p.name for p in open_split([str(mixed), tested], "valid")] == ["b"]
    with pytest.raises(ConfigError, match="tested.jsonl: every problem is of another split"):
        open_split([tested], "train")


def test_names_are_unique_over_the_files_of_a_split(tmp_path):
    one, two = (written(tmp_path / f"{n}.jsonl", [own(f"only {n}"), own("p")]) for n in ("one", "two"))
    with pytest.raises(ConfigError, match=rf'{two}:2: name: "p" is that of {one}:2 too'):
        open_split([one, two], "train")


def test_faults_of_all_files_are_named_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "b.jsonl").write_text("1\n")
    with pytest.raises(ConfigError) as raised:
        open_split([str(tmp_path / name) for name in ("a.jsonl", "absent.jsonl", "b.jsonl")], "train")
    lines = str(raised.value).splitlines()
    assert [line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in lines] == [
        "a.jsonl", "a.jsonl", f"no file {tmp_path}/absent.jsonl", "b.jsonl",
    ]  # fmt: skip


def test_training_goes_through_an_epoch_before_a_problem_comes_again(tmp_path):
    file = written(tmp_path / "own.jsonl", [own(f"p{i}") for i in range(7)])
    source = Source("jsonl", files={"train": (file,)})
    stream = [p.name for step in range(7) for p in training_problems(source, "train", 1, step, 4)]
    for epoch in range(4):
        assert sorted(stream[7 * epoch : 7 * (epoch + 1)]) == [f"p{i}" for i in range(7)]
    other = [p.name for step in range(7) for p in training_problems(source, "train", 2, step, 4)]
    assert other != stream
    parts = [p.name for share in (range(1), range(1, 4)) for p in training_problems(source, "train", 1, 3, 4, share)]
    assert parts == stream[12:16]


def test_rules_and_what_is_missing_are_told(tmp_path):
    problems = [own(f"p{i}", description="word " * (3 + i)) for i in range(4)]
    file = written(tmp_path / "own.jsonl", [*problems, own("open", private=())])
    source = Source("jsonl", files={"train": (file,), "test": (file,)}, max_prompt_tokens=4)
    lines, prompted = [], []

    def words(problem):
        prompted.append(problem.name)
        return [len(word) for word in problem.description.split()]

    fitted = fit(source, ["train", "test"], words, tell=lines.append)
    assert lines[0] == "train: 5 problems; 1 without hidden tests: their public tests decide"
    assert lines[2] == "train: 3 of 5 problems; left out: 2 with a prompt longer than max_prompt_tokens=4"
    assert {p.name for p in training_problems(fitted, "train", 0, 0, 6)} == {"p0", "p1", "open"}
    assert [p.name for p in evaluation_problems(fitted, "test", 2)] == ["p0", "p1"]
    assert fitted.left_out["test"].kept == 3
    identity = problems_identity(fitted, "train")
    assert identity[:2] == [problems_identity(source, "train")[0], "3 kept by config.data's rules"]
    prompted.clear()
    fit(source, ["train"], words, tell=lines.append)
    assert len(prompted) == 5  # those that identify the tokenizer; the lengths are remembered


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"config.data.train_files, .*: name the files of problems"):
        check_splits(Source("jsonl"), train="train", evaluated={})
    source = Source("jsonl", files={"train": ("x.jsonl",)})
    with pytest.raises(ConfigError, match=r"config.eval.split: 'test' \(config.data.test_files\) is none of train"):
        check_splits(source, train="train", evaluated={"eval.split": "test"})
    with pytest.raises(ConfigError, match="config.eval.split is empty: give one of train, valid, test"):
        evaluation_problems(source, "")
    with pytest.raises(ConfigError, match="no file x.jsonl"):
        training_problems(source, "train", 0, 0, 1)


def test_a_config_becomes_a_source_and_a_mix(tmp_path):
    file = written(tmp_path / "extra.jsonl", [own("x")])
    values = {
        "data.name": "jsonl", "data.train_files": ("a.jsonl", "b.jsonl"), "data.test_files": ("c.jsonl",),
        "data.mix": ("jsonl:1", "mini_contests:2.5", f"{file}:0.5"),
    }  # fmt: skip
    source = Source.of(config_lib.load("configs/tiny.py", overrides=values))
    assert source.files == {"train": ("a.jsonl", "b.jsonl"), "test": ("c.jsonl",)}
    assert [(s.label, s.weight, s.source.name, s.split) for s in source.mix] == [
        ("jsonl", 1.0, "jsonl", "train"), ("mini_contests", 2.5, "mini_contests", "train"),
        ("extra", 0.5, "jsonl", "train"),
    ]  # fmt: skip
    assert source.mix[2].source.files["train"] == (file,) and source.mix[0].source.files == source.files


def test_a_mix_has_each_source_by_its_weight_in_its_own_order(tmp_path):
    """Over groups and processes too; problems say where they are from."""
    files = {n: written(tmp_path / f"{n}.jsonl", [own(f"{n}{i}") for i in range(9)]) for n in ("one", "two")}
    config = config_lib.load(
        "configs/tiny.py", overrides={"data.mix": (f"{files['one']}:60", f"{files['two']}:39", "mini_contests:1")}
    )
    lines = []
    source = fit(Source.of(config), [], lambda problem: [], tell=lines.append)
    assert lines == ["one/train: 9 problems", "two/train: 9 problems"]
    check_splits(source, train="train", evaluated={"eval.split": "test_500"})
    stream = [p for step in range(10) for p in training_problems(source, "train", 3, step, 100)]
    labels = [p.tags[MIX] for p in stream]
    assert {label: labels.count(label) for label in set(labels)} == {"one": 600, "two": 390, "mini_contests": 10}
    for label, member in zip(("one", "two", "mini_contests"), source.mix):
        alone = training_problems(member.source, "train", 3, 0, labels.count(label))
        drawn = [dataclasses.replace(p, tags={k: v for k, v in p.tags.items() if k != MIX}) for p in stream]
        assert [p for p, of in zip(drawn, labels) if of == label] == alone
    assert [p.name for p in training_problems(source, "train", 4, 0, 100)] != [p.name for p in stream[:100]]
    shared = [p for part in (range(30), range(30, 100)) for p in training_problems(source, "train", 3, 2, 100, part)]
    assert shared == stream[200:300]
    grouped = training_problems(source, "train", 3, 0, 100, group_size=4)
    assert grouped == [p for p in stream[:25] for _ in range(4)]


def test_a_mix_names_the_source_that_cannot_be_used(tmp_path):
    config = config_lib.load("configs/tiny.py", overrides={"data.mix": ("mini_contests:1", "code_contests:1")})
    with pytest.raises(ConfigError, match="config.data.mix: code_contests: config.data.dir: give the folder"):
        check_splits(Source.of(config), train="train", evaluated={})


@pytest.mark.parametrize(
    "values, message",
    [
        ({"data.mix": ("mini_contests",)}, 'data.mix: of entries "NAME:WEIGHT", with a weight above 0; not'),
        ({"data.mix": ("mini_contests:0",)}, "with a weight above 0"),
        ({"data.mix": ("apps:1",)}, r"data.mix: of mini_contests, code_contests, jsonl and files of problems"),
        ({"data.mix": ("a/x.jsonl:1", "b/x.jsonl.gz:1")}, "data.mix: of names that differ, .* 'x' stands there twice"),
        ({"data.mix": ("a.jsonl:1", "mini_contests:2000")}, "a thousandth of all, or more; that of 'a.jsonl' is less"),
        ({"data.mix": ("a.jsonl:1",), "data.train_files": ("b.jsonl",)}, "data.train_files: are read for"),
        ({"data.train_files": ("b.jsonl",)}, 'data.train_files: is for data.name="jsonl" only'),
        ({"data.name": "jsonl", "data.families": ("find",)}, 'data.families: is for data.name="mini_contests" only'),
    ],
)
def test_configurations_that_cannot_be(values, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load("configs/tiny.py", overrides=values)


def test_sources_are_those_that_the_configuration_checks():
    assert sources.SOURCES == config_lib.validate.__globals__["_SOURCES"]


def test_reading_one_problem_reads_its_line_only(tmp_path):
    """All other lines are zeros by then, which are no JSON."""
    path = tmp_path / "own.jsonl"
    split = open_split([written(path, [own(f"p{i}") for i in range(1000)])], "train")
    last = int(open_index(path).offsets[-1])
    with open(path, "rb+") as file:
        file.write(bytes(last))  # zeros over every line but the last
    assert split[999] == own("p999") and split[-1] == own("p999")
    with pytest.raises(ConfigError, match="has changed"):
        split[0]


def test_a_line_of_the_docs_is_as_long_as_it_has_to_be():
    assert json.loads(line_of(own("p"))) == {
        "name": "p", "description": "Print it.", "public_tests": [{"input": "1", "output": "1"}],
        "private_tests": [{"input": "2", "output": "2"}],
    }  # fmt: skip
