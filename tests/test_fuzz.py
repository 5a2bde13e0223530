"""Whatever a user types or a disk returns: a right result or one clear line, never a traceback, never a hang.

About 2,400 cases under the profile "full": configurations, command lines, checkpoints, episode files and the other
files of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlef_jax import config as config_lib
from rlef_jax import show_episode
from rlef_jax.data.sources import check_splits
from rlef_jax.dialog.chat import ChatFormat
from rlef_jax.errors import ConfigError, RunError
from rlef_jax.training.build import ppo_settings, rollout_settings
from rlef_jax.training.checkpoint import Checkpoints
from rlef_jax.training.episode_io import episodes_path, read_episodes, write_episodes
from rlef_jax.training.metrics_writer import MetricsWriter, read_metrics
from rlef_jax.training.workdir import CHECKPOINTS, TRAIN, Progress, items_of, open_workdir, resume
from rlef_jax.types import Episode, Problem, Status, TestCase, TestResult, Turn, Verdict
from tests.helpers.examples import examples
from tests.helpers.tiny_tokenizer import tiny_tokenizer
from tests.training.test_workdir import FRESH, START, make_state

REPOSITORY = Path(__file__).parents[1]
TINY = str(REPOSITORY / "configs" / "tiny.py")
CHAT = ChatFormat(tiny_tokenizer())
KEYS = list(config_lib.leaf_keys(config_lib.base_config()))
MANY = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck))

WORDS = st.sampled_from(
    ["", "x", "test", "train", "true", "random", "none", "paper", "float16", "package:none", "/dev/null", "nan", "é\n"]
)
NUMBERS = st.one_of(
    st.integers(-3, 12), st.sampled_from([2**31, 2**63, -(2**40), 10**30]),
    st.floats(allow_nan=True, allow_infinity=True), st.booleans(),
)  # fmt: skip
VALUES = st.one_of(
    NUMBERS, WORDS, st.none(), st.lists(st.one_of(st.integers(-5, 300), WORDS), max_size=4).map(tuple),
    st.dictionaries(WORDS, st.integers(), max_size=2),
)  # fmt: skip


def clear(message: str) -> None:
    """An error that a reader can act on: not empty, no traceback, no bare repr of an exception."""
    assert message.strip() and "Traceback" not in message
    assert len(message) < 4000


@MANY(max_examples=examples(900))
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4))
def test_any_values_load_or_are_refused_by_name(overrides):
    try:
        config = config_lib.load(TINY, overrides=overrides)
    except ConfigError as error:
        clear(str(error))
        named = [key for key in KEYS if key in str(error)]
        assert named, str(error)
        return
    # What was accepted must be usable by everything that reads it without a device.
    for value in config_lib.flat(config).values():
        assert not isinstance(value, float) or math.isfinite(value)
    for evaluation in (False, True):
        rollout_settings(config, CHAT.stop_ids, config.episode.feedback, evaluation=evaluation)
    ppo_settings(config)
    with contextlib.suppress(ConfigError):
        check_splits(config.data.name, train=config.data.train_split, evaluated={"eval.split": config.eval.split})


@MANY(max_examples=examples(150))
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_any_text_as_a_config_file_is_refused(text):
    path = Path(TINY).with_name("absent.py")
    with pytest.raises(ConfigError) as refused:
        config_lib.load(str(path) + text.replace("\0", "")[:20] + "!")
    clear(str(refused.value))


@MANY(max_examples=examples(150))
@given(st.sampled_from(["x = (", "raise KeyError(3)", "import nothing_of_that_name", "get_config = 3", "\ud800", ""]),
       st.sampled_from(["", "def get_config(variant=''):\n    return 7", "def get_config():\n    return None",
                        "from rlef_jax.config import base_config\n\ndef get_config(variant=''):\n"
                        "    c = base_config()\n    c.ppo.nope = 1\n    return c",
                        "def get_config(variant=''):\n    return [][0]"]),
       WORDS)  # fmt: skip
def test_broken_config_files_are_refused(tmp_path_factory, head, body, variant):
    path = tmp_path_factory.mktemp("configs") / "mine.py"
    path.write_bytes(f"{head}\n{body}\n".encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as refused:
        config_lib.load(str(path), variant)
    clear(str(refused.value))


ARGUMENTS = st.one_of(
    st.builds("--config.{}={}".format, st.sampled_from([*KEYS, "ppo", "ppo.lr", "x.y", "", "ppo.", "a.b.c"]), VALUES),
    st.sampled_from([f"--config={path}" for path in (TINY, f"{TINY}:nope", f"{TINY}:single_turn", "configs", "/", "")]),
    st.builds("--workdir={}".format, st.sampled_from(["/tmp/x", "", "/dev/null/x", "/proc/none"])),
    st.sampled_from([
        "--help", "--helpfull", "--", "x", "--nope", "--noconfig.train.save_episodes", "--config", "-config.seed=1",
        "--config.ppo.buckets=(256", "--config.ppo.buckets=256", "--config.seed", "--flagfile=/none",
    ]),
)  # fmt: skip


@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.fork_server"], cwd=REPOSITORY,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.stdin.close()
    process.wait()
    process.stdout.close()


@MANY(max_examples=examples(500))
@given(st.booleans(), st.lists(ARGUMENTS, max_size=4))
def test_any_command_line_runs_or_is_one_error(server, complete, arguments):
    if complete:
        arguments = [f"--config={TINY}", "--workdir=/tmp/x", *arguments]
    arguments = [a.replace("\0", "").encode("utf-8", "replace").decode() for a in arguments]
    server.stdin.write(json.dumps(arguments) + "\n")
    server.stdin.flush()
    answer = json.loads(server.stdout.readline())
    assert "Traceback" not in answer["err"] + answer["out"], (arguments, answer["err"])
    if any(a.startswith("--help") for a in arguments) and "ran" not in answer["out"]:
        return
    if answer["code"] == 0:
        assert answer["out"].startswith("ran"), (arguments, answer)
    else:
        assert answer["code"] == 2 and answer["err"].startswith("error: "), (arguments, answer)
        clear(answer["err"])


RESULT = TestResult(Status.WRONG_ANSWER, "1\n", "", 0, 0.1, 0.1, 10)
PROBLEM = Problem("p", "add", (TestCase("1", "2"),), (TestCase("3", "4"),), tags={"family": "x", "open": True})
EPISODE = Episode(
    PROBLEM, 0, 0, 0,
    (Turn((5, 6), (7, 8), (-0.5, -1.0), (0, 0), "stop", Verdict(Status.WRONG_ANSWER, (RESULT,), (RESULT,))),),
    "turn_limit",
)  # fmt: skip
DAMAGE = st.tuples(
    st.integers(0, 10**6), st.sampled_from(["flip", "cut", "empty", "gone", "insert"]), st.integers(0, 10**6),
    st.integers(0, 255),
)  # fmt: skip


def damaged(data: bytes, kind: str, at: int, byte: int) -> bytes | None:
    at %= max(len(data), 1)
    return {
        "flip": data[:at] + bytes([byte]) + data[at + 1 :],
        "cut": data[:at],
        "empty": b"",
        "gone": None,
        "insert": data[:at] + bytes([byte]) + data[at:],
    }[kind]


@pytest.fixture(scope="module")
def good_run(tmp_path_factory):
    """The files of a run, small, and in a folder of their own."""
    folder = tmp_path_factory.mktemp("good")
    open_workdir(folder, config_lib.load(TINY), TRAIN, resume=True)
    with MetricsWriter(folder) as writer:
        writer.write(0, {"solved": 0.5})
    write_episodes(episodes_path(folder, 0), [EPISODE, dataclasses.replace(EPISODE, index=1)])
    with Checkpoints(folder / CHECKPOINTS) as checkpoints:
        for number in (1, 2):
            progress = dataclasses.replace(START, iteration=number)
            checkpoints.save(number, items_of(make_state(float(number))), dataclasses.asdict(progress))
    return folder


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("abandoned_reads")
@MANY(max_examples=examples(250))
@given(st.lists(DAMAGE, min_size=1, max_size=3))
def test_any_damage_to_checkpoints_gives_a_saved_state_or_one_line(good_run, tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(good_run, folder, dirs_exist_ok=True)
    files = sorted(p for p in (folder / CHECKPOINTS).rglob("*") if p.is_file())
    for which, kind, at, byte in damage:
        path = files[which % len(files)]
        if path.exists():
            data = damaged(path.read_bytes(), kind, at, byte)
            path.unlink() if data is None else path.write_bytes(data)
    lines: list[str] = []
    try:
        with Checkpoints(folder / CHECKPOINTS) as checkpoints:
            state, progress = resume(folder, checkpoints, FRESH, START, checkpoint_every=1, tell=lines.append)
    except (ConfigError, RunError, OSError) as error:
        clear(str(error))
    else:
        assert progress.iteration in (0, 1, 2) and isinstance(progress, Progress)
        expected = FRESH if progress.iteration == 0 else make_state(float(progress.iteration))
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        for line in lines:
            clear(line)
    finally:
        shutil.rmtree(folder)


def shown(folder: Path) -> tuple[int, str]:
    """Exit code and stderr of `show_episode FOLDER`."""
    errors = io.StringIO()
    before = sys.argv
    sys.argv = ["show_episode", str(folder)]
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            show_episode.main()
        return 0, errors.getvalue()
    except SystemExit as stop:
        return int(stop.code or 0), errors.getvalue()
    finally:
        sys.argv = before


@MANY(max_examples=examples(300))
@given(st.lists(DAMAGE, min_size=1, max_size=2), st.booleans())
def test_any_damage_to_episodes_or_other_files_is_one_line(good_run, tmp_path_factory, damage, inside):
    """`inside`: the compressed text is changed instead of the file, so that it still is gzip, and often JSON."""
    import gzip

    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(good_run, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKPOINTS, "tensorboard"))
    files = [episodes_path(folder, 0), folder / "config.json", folder / "metrics.jsonl"]
    for which, kind, at, byte in damage:
        path = files[which % len(files)]
        if not path.exists():
            continue
        data = path.read_bytes()
        packed = inside and path.suffix == ".gz" and kind != "gone"
        try:
            data = gzip.decompress(data) if packed else data
        except (OSError, EOFError, ValueError):
            packed = False
        new = damaged(data, kind, at, byte)
        path.unlink() if new is None else path.write_bytes(gzip.compress(new) if packed else new)
    code, errors = shown(folder)
    assert code == 0 or (code in (1, 2) and errors.startswith("error: ")), (code, errors)
    if code:
        clear(errors)
    for read in (read_metrics, lambda f: read_episodes(episodes_path(f, 0))):
        try:
            read(folder)
        except (ConfigError, FileNotFoundError) as error:
            clear(str(error))
    shutil.rmtree(folder)


VALUE_CHANGES = st.sampled_from([None, -1, 10**9, "x", [], {}, 1.5, True, [[]], ["x"], [-1], [10**9]])


@MANY(max_examples=examples(200))
@given(st.lists(st.tuples(st.integers(0, 10**6), VALUE_CHANGES), min_size=1, max_size=2))
def test_episodes_with_other_values_inside_are_shown_or_one_line(good_run, tmp_path_factory, changes):
    """Valid JSON of the wrong kind, anywhere in an episode."""
    import gzip

    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(good_run, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CHECKPOINTS, "tensorboard"))
    path = episodes_path(folder, 0)
    episode = json.loads(gzip.decompress(path.read_bytes()).splitlines()[0])
    for which, value in changes:
        places = list(_places(episode))
        container, key = places[which % len(places)]
        container[key] = value
    path.write_bytes(gzip.compress(json.dumps(episode).encode() + b"\n"))
    code, errors = shown(folder)
    assert code == 0 or (code in (1, 2) and errors.startswith("error: ")), (code, errors)
    shutil.rmtree(folder)


def _places(tree):
    """(container, key) of everything in a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def test_the_tree_of_places_reaches_every_leaf():
    assert len(list(_places({"a": [1, {"b": 2}], "c": 3}))) == 5
