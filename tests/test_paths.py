"""Paths as people give them, to every command: home folders, addresses of other machines, and what no path can be."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlef_jax import command_line, config
from rlef_jax.errors import ConfigError
from rlef_jax.paths import local_text

TINY = "--config=configs/tiny.py"
ADDRESSES = [
    "gs://bucket/run",
    "s3://bucket/run",
    "file:///tmp/run",
    "http://host/run",
    "hdfs://host/run",
    "gs:/bucket",
]

# Every option that takes a path: module, what comes before it, the option ("" for a positional argument).
OPTIONS = [
    ("train", [TINY], "--workdir"),
    ("train", ["--workdir=x"], "--config"),
    *(("train", [TINY, "--workdir=x"], f"--config.{key}") for key in config.PATH_KEYS),
    ("sft", ["--config=configs/tiny_sft.py"], "--workdir"),
    ("sft", ["--config=configs/tiny_sft.py", "--workdir=x"], "--config.model.tokenizer"),
    *(("evaluate", [TINY], option) for option in ("--out", "--data", "--episodes", "--judge-only", "--few-shot")),
    ("evaluate", [], "--workdir"),
    ("evaluate", [], "--config"),
    ("evaluate", [TINY], "--config.model.init"),
    ("plan", ["--devices=1"], "--config"),
    ("plan", ["--devices=1", TINY], "--config.data.dir"),
    ("judge", ["--problem=x.json"], ""),
    ("judge", ["x.py"], "--problem"),
    ("judge", ["--isolation-report"], "--python"),
    ("export", ["--workdir=x"], "--output"),
    ("export", ["--output=x"], "--workdir"),
    ("export", ["--output=x"], "--init"),
    ("fetch", [], "--output"),
    ("show_episode", [], ""),
    ("replay_batch", [], "--workdir"),
    ("analysis.report", [], ""),
    ("analysis.breakdown", [], ""),
    ("analysis.compare", ["x=y"], "--plot"),
    ("data.code_contests.__main__", ["--source=x"], "--output"),
    ("data.code_contests.__main__", ["--output=x"], "--source"),
    ("data.code_contests.judge_check", [], "--data"),
    ("data.mini_contests.make_tokenizer", [], ""),
]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder as the current one, with the configurations beside what must not be made."""
    (tmp_path / "configs").symlink_to(Path(__file__).parents[1] / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # a command's handlers are not the tests'
    return tmp_path


def refused(module, arguments, monkeypatch, capsys):
    """The line on stderr of a command that refuses its arguments."""
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"rlef_jax.{module}").main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1, error
    return error


@pytest.mark.parametrize(("module", "before", "option"), OPTIONS)
def test_an_address_is_refused_by_name_and_nothing_is_made(elsewhere, monkeypatch, capsys, module, before, option):
    for address in ADDRESSES[:2]:
        argument = f"{option}={address}" if option else address
        line = refused(module, [*before, argument], monkeypatch, capsys)
        assert f"{address!r} is an address; remote folders are not supported" in line
        assert option.removeprefix("--") in line
    assert [path.name for path in elsewhere.iterdir()] == ["configs"]


@pytest.mark.parametrize("text", [*ADDRESSES, "", "a\0b", "~no_such_user/x"])
def test_what_is_no_path_of_this_machine_is_one_line(text):
    with pytest.raises(ConfigError, match="^--out: .") as error:
        local_text(text, "--out")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["runs/x", "/a/b", "./~", "a~b", "mini_contests:valid", "package:tokenizer", "C:/x", "a/b://c", "3.10"]
)
def test_other_paths_stay_as_they_are(text):
    assert local_text(text, "--out") == text


def test_home_folders_are_expanded_by_commands_and_in_configurations(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.setattr(sys, "argv", ["train", "--config=~/configs/tiny.py", "--workdir=~/runs/x",
                                      "--config.model.init=~/weights", "--config.data.dir=~"])  # fmt: skip
    calls = []
    command_line.main(lambda c, workdir: calls.append((c.model.init, c.data.dir, c.model.tokenizer, workdir)))
    home = str(elsewhere)
    assert calls == [(f"{home}/weights", home, "package:tokenizer", elsewhere / "runs" / "x")]
    assert local_text("~root/x", "--out") == os.path.expanduser("~root/x") != "~root/x"
    assert [path.name for path in elsewhere.iterdir()] == ["configs"]


def test_paths_inside_a_configuration_file_follow_the_same_rule(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere))
    for value, message in (("~/w", None), ("gs://bucket/w", "config.model.init: 'gs://bucket/w' is an address")):
        Path("mine.py").write_text(
            "from rlef_jax.config import base_config\n\n\ndef get_config(variant=''):\n    c = base_config()\n"
            f"    c.model.init = {value!r}\n    return c\n"
        )
        if message is None:
            assert config.load("mine.py").model.init == f"{elsewhere}/w"
        else:
            with pytest.raises(ConfigError, match=message):
                config.load("mine.py")


UNKNOWN_UID = 54321


def without_home(*arguments):
    """A command as a user whom passwd doesn't know, without HOME and the rest of the environment."""
    if os.geteuid() != 0:
        pytest.skip("only root can become a user that passwd doesn't know")
    command = [sys.executable, "-m", "tests.helpers.as_user", str(UNKNOWN_UID), "env", "-u", "HOME", *arguments]
    root = str(Path(__file__).parents[1])
    bare = {"PATH": "/usr/bin:/bin", "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=root, env=bare, capture_output=True, text=True, timeout=300)


def test_a_user_without_a_home_can_judge(tmp_path):
    done = without_home(sys.executable, "-m", "rlef_jax.judge", "--isolation-report")
    assert done.returncode == 0 and done.stdout.startswith(f"user {UNKNOWN_UID}, "), done.stderr
    refused = without_home(sys.executable, "-m", "rlef_jax.judge", "~/x.py", "--problem=p.json")
    assert refused.returncode == 2 and "no home folder is known for '~'" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_names_that_no_encoding_has_are_written_as_escapes(tmp_path):
    """A terminal that knows ASCII only, and a file's name that isn't UTF-8."""
    (tmp_path / "sum.json").write_text(json.dumps({"name": "é\ud800", "public_tests": [{"input": "", "output": ""}]}))
    program = os.fsencode(tmp_path) + b"/\xff\xc3\xa9.py"
    Path(os.fsdecode(program)).write_text("")
    for module, arguments, code in (
        ("judge", [program, "--problem", str(tmp_path / "sum.json")], 0),
        ("judge", [program, "--problem", b"\xff.json"], 2),
        ("evaluate", [b"--judge-only=\xff", "--benchmark=human_eval", b"--data=\xe9"], 2),
        ("analysis.report", [b"\xff\xe9"], 1),
    ):
        done = subprocess.run(
            [sys.executable, "-m", f"rlef_jax.{module}", *arguments], cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=120,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr and b"UnicodeEncodeError" not in done.stderr, done.stderr
        assert done.returncode == code and rb"\udc" in done.stdout + done.stderr, (module, done)


@pytest.mark.parametrize(
    ("module", "argument"), [("judge", "--isolation-report"), ("data.mini_contests.bounds", "--split=valid")]
)
def test_output_that_cannot_be_written_is_one_line(module, argument):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", f"rlef_jax.{module}", argument], stdout=full, stderr=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[1], timeout=120,
        )  # fmt: skip
    assert done.returncode in (1, 2) and done.stderr == "error: [Errno 28] No space left on device\n", done
